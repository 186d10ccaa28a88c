"""CIFAR-10 at l_inf 8/255 and l_2 0.5 (l_1 1.0 reported): CNN7, as published.

python launch/train.py --config=configs/cifar10_large.py:scratch --workdir=runs/cifar10_large/scratch
python launch/certify.py --workdir=runs/cifar10_large/scratch --method=best
"""

from cure_jax.configs import cifar10_small
from cure_jax.configs.methods import Finetuning, Losses, lipschitz, small_box, with_method
from cure_jax.training.config import Config

_FINETUNING = Finetuning(epochs=36, milestones=(28, 32), ramp_end=16.0, alignment=0.5)


def get_config(method: str = "scratch") -> Config:
    """The config of one method, see `cure_jax.configs.methods`."""
    config = cifar10_small.base()
    config.setting = "cifar10_large"
    config.radii = {"linf": 8 / 255, "l2": 0.5}
    config.reported = {"l1": 1.0}
    config.epochs, config.milestones = 180, (140, 160)
    config.l1_penalty = 1e-6 if method == "l2" else 0.0
    if method == "l2":
        config.epochs, config.milestones = 160, (120, 140)
    losses = Losses(linf=small_box(0.7), l2=lipschitz(0.5), l2_alone=lipschitz(0.6))
    return with_method(config, method, losses, _FINETUNING)
