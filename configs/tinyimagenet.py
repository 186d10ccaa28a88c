"""TinyImageNet (56x56 crops) at l_inf 1/255 and l_2 36/255 (l_1 72/255 reported): CNN7, as published.

python launch/prepare_tiny_imagenet.py --source=tiny-imagenet-200.zip --data_dir=DIR
c=configs/tinyimagenet.py:scratch
python launch/train.py --config=$c --config.data_dir=DIR --workdir=runs/tinyimagenet/scratch
python launch/certify.py --workdir=runs/tinyimagenet/scratch --method=best
"""

from cure_jax import data
from cure_jax.configs import cifar10_small
from cure_jax.configs.methods import Finetuning, Losses, lipschitz, small_box, with_method
from cure_jax.training.config import Config

_FINETUNING = Finetuning(epochs=36, milestones=(28, 32), ramp_end=16.0, alignment=0.5)


def get_config(method: str = "scratch") -> Config:
    """The config of one method, see `cure_jax.configs.methods`."""
    config = cifar10_small.base()
    mean, std = data.normalization("tiny_imagenet")
    config.setting = "tinyimagenet"
    config.dataset = "tiny_imagenet"
    config.model = {"name": "cnn7", "options": {"mean": mean, "std": std}}
    config.augmentation = {"flip": True, "padding": 0, "crop": 56}
    config.radii = {"linf": 1 / 255, "l2": 36 / 255}
    config.reported = {"l1": 72 / 255}
    config.epochs, config.milestones = 180, (140, 160)
    config.l1_penalty = 1e-6
    config.projection.beta = 0.5
    losses = Losses(linf=small_box(0.4), l2=lipschitz(0.5), l2_alone=lipschitz(0.6))
    return with_method(config, method, losses, _FINETUNING)
