"""Handwritten digits as base classifiers of smoothed ones: trained on noise, l_2 or l_1.

    python launch/train.py --config=configs/digits_smoothing.py:consistency --workdir=runs/digits_smoothing/consistency

Methods: gaussian | consistency (l_2), laplace | uniform | splitting (l_1). 40 s to 2 minutes on a busy core of a CPU.
How they are certified, and with what result: docs/smoothing.md.
"""

from typing import Any

from cure_jax.configs import digits
from cure_jax.training.config import Config

# By method: the norm that the noise certifies, the noise, its scale in pixels, the weight of consistency.
METHODS: dict[str, tuple[str, str, float, float]] = {
    "gaussian": ("l2", "gaussian", 0.35, 0.0),
    "consistency": ("l2", "gaussian", 0.35, 5.0),
    "laplace": ("l1", "laplace", 0.3, 5.0),
    "uniform": ("l1", "uniform", 0.75, 5.0),
    "splitting": ("l1", "splitting", 2.0, 5.0),
}


def with_noise(config: Config, method: str, levels: int, methods: dict[str, tuple[str, str, float, float]]) -> Config:
    """A setting, trained on noise.

    Raises:
      ValueError: for an unknown method.
    """
    if method not in methods:
        raise ValueError(f"Unknown method {method!r}; expected one of {', '.join(methods)}.")
    norm, noise, scale, consistency = methods[method]
    loss: dict[str, Any] = {"kind": "noise", "noise": noise, "scale": scale, "levels": levels}
    config.name = method
    config.losses = {norm: {**loss, "samples": 2, "consistency": consistency, "entropy": 0.5}}
    # Those that the network without its noise would be certified at.
    config.radii = {norm: 0.5}
    config.initialization, config.warmup_regularizer, config.l1_penalty = "default", 0.0, 0.0
    config.alignment.weight = config.projection.beta = 0.0
    return config


def get_config(method: str = "consistency") -> Config:
    """The config of one method."""
    config = digits.get_config("linf")
    config.setting = "digits_smoothing"
    config.model = {"name": "mlp", "options": {"features": (256, 256)}}
    config.learning_rate, config.ramp_end = 2e-3, 20.0
    return with_noise(config, method, 16, METHODS)
