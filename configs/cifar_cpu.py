"""CIFAR-10 on two CPU cores: a small convolutional network, l_inf 2/255 and l_2 0.25; l_1 0.5 is reported beside them.

    python launch/train.py --config=configs/cifar_cpu.py:scratch --workdir=runs/cifar_cpu/scratch
    python launch/certify.py --workdir=runs/cifar_cpu/scratch --method=best

TFDS_DATA_DIR or --config.data_dir says where the data is. Results: docs/results.md.
"""

from cure_jax import data
from cure_jax.configs import cifar10_small
from cure_jax.configs.methods import Finetuning, Losses, lipschitz, small_box, with_method
from cure_jax.training.config import Config

_LOSSES = Losses(linf=small_box(0.1), l2=lipschitz(0.3), l2_alone=lipschitz(0.3))
FINETUNING = Finetuning(epochs=6, milestones=(4, 5), ramp_end=2.0, alignment=0.5)


def base() -> Config:
    """What the settings of CIFAR-10 for two CPU cores start from."""
    config = cifar10_small.get_config("scratch")
    mean, std = data.normalization("cifar10")
    config.model = {"name": "conv_small", "options": {"mean": mean, "std": std}}
    config.epochs, config.milestones, config.ramp_end = 24, (18, 22), 10.0
    config.learning_rate = 1e-3
    config.batch_size = 128
    config.alignment.weight = 0.5
    config.projection.beta = 0.5
    return config


def get_config(method: str = "scratch") -> Config:
    """The config of one method, see `cure_jax.configs.methods`."""
    config = base()
    config.setting = "cifar_cpu"
    return with_method(config, method, _LOSSES, FINETUNING)
