"""Handwritten digits (8x8, embedded): a multi-layer perceptron, l_inf 0.13 and l_2 0.45.

    python launch/train.py --config=configs/digits.py:scratch --workdir=runs/digits/scratch
    python launch/certify.py --workdir=runs/digits/scratch --method=crown

2 CPU cores: 15-30 s to train, about 8 s to certify and attack. Results: docs/results.md.
"""

from cure_jax.configs.methods import Finetuning, Losses, lipschitz, small_box, with_method
from cure_jax.training.config import Config, default_config

# The fractions were chosen on the validation split: for the best union, and for l_2 alone the best l_2.
_LOSSES = Losses(linf=small_box(0.4), l2=lipschitz(0.9), l2_alone=lipschitz(1.15))
_FINETUNING = Finetuning(epochs=20, milestones=(14, 17), ramp_end=7.0, alignment=0.5)


def get_config(method: str = "scratch") -> Config:
    """The config of one method, see `cure_jax.configs.methods`."""
    config = default_config()
    config.setting = "digits"
    config.dataset = "digits"
    config.model = {"name": "mlp", "options": {"features": (128, 128)}}
    config.radii = {"linf": 0.13, "l2": 0.45}
    config.epochs = 100
    config.batch_size = 128
    config.learning_rate = 5e-3
    config.milestones = (70, 87)
    config.ramp_end = 35.0
    config.checkpoint_every = 500
    config.alignment.weight = 0.5
    config.projection.beta = 0.5
    return with_method(config, method, _LOSSES, _FINETUNING)
