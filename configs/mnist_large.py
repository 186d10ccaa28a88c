"""MNIST at l_inf 0.3 and l_2 1.0 (l_1 2.0 reported): CNN7, as published.

python launch/train.py --config=configs/mnist_large.py:scratch --workdir=runs/mnist_large/scratch
python launch/certify.py --workdir=runs/mnist_large/scratch --method=best
"""

from cure_jax.configs import mnist_small
from cure_jax.configs.methods import Finetuning, Losses, lipschitz, small_box, with_method
from cure_jax.training.config import Config

_FINETUNING = Finetuning(epochs=14, milestones=(10, 12), ramp_end=4.0, alignment=0.5)


def get_config(method: str = "scratch") -> Config:
    """The config of one method, see `cure_jax.configs.methods`."""
    config = mnist_small.base()
    config.setting = "mnist_large"
    config.radii = {"linf": 0.3, "l2": 1.0}
    config.reported = {"l1": 2.0}
    config.l1_penalty = 1e-6
    config.alignment.weight = 0.5
    losses = Losses(linf=small_box(0.6), l2=lipschitz(0.5), l2_alone=lipschitz(0.6))
    return with_method(config, method, losses, _FINETUNING)
