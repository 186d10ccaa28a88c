"""CIFAR-10 at l_inf 2/255 and l_2 0.25 (l_1 0.5 reported): CNN7, as published.

    c=configs/cifar10_small.py:scratch
    python launch/train.py --config=$c --workdir=runs/cifar10_small/scratch
    python launch/certify.py --workdir=runs/cifar10_small/scratch --method=best

For an accelerator; `configs/cifar_cpu.py` is for two CPU cores.
"""

from cure_jax import data
from cure_jax.configs.methods import Finetuning, Losses, lipschitz, small_box, with_method
from cure_jax.training.config import Config, default_config

_FINETUNING = Finetuning(epochs=32, milestones=(24, 28), ramp_end=16.0, alignment=0.5)


def base() -> Config:
    """What all settings of CIFAR-10 and TinyImageNet share."""
    config = default_config()
    mean, std = data.normalization("cifar10")
    config.dataset = "cifar10"
    config.model = {"name": "cnn7", "options": {"mean": mean, "std": std}}
    config.augmentation = {"flip": True, "padding": 2, "crop": 32}
    config.batch_size = 128
    config.ramp_end = 82.0
    # Here l_inf is the norm with the lower certified accuracy.
    config.alignment = {"weight": 2.0, "lower": "linf", "higher": "l2"}
    config.projection.beta = 0.8
    return config


def get_config(method: str = "scratch") -> Config:
    """The config of one method, see `cure_jax.configs.methods`."""
    config = base()
    config.setting = "cifar10_small"
    config.radii = {"linf": 2 / 255, "l2": 0.25}
    config.reported = {"l1": 0.5}
    config.epochs, config.milestones = 160, (120, 140)
    config.l1_penalty = 1e-6
    losses = Losses(linf=small_box(0.1, shrinking=0.4), l2=lipschitz(0.5), l2_alone=lipschitz(0.6))
    return with_method(config, method, losses, _FINETUNING)
