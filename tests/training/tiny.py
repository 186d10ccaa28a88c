"""The smallest problems on which every part of a training run does something."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from cure_jax.models.layers import batch_norm, conv, flatten
from cure_jax.training import default_config

SHAPE = (4, 4, 1)
CLASSES = 3


class TinyMLP(nn.Module):
    """One hidden layer, no argument `train`."""

    width: int = 6

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        return nn.Dense(CLASSES)(nn.relu(nn.Dense(self.width)(flatten(images))))


class TinyConvNet(nn.Module):
    """A convolution with BatchNorm, and a dense layer.

    The convolution has no bias: its gradient would be rounding errors, which Adam blows up.
    """

    momentum: float = 0.9
    axis_name: str | None = None

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        x = nn.relu(batch_norm(train, self.momentum, self.axis_name)(conv(2, 3, 2, padding=1, use_bias=False)(images)))
        return nn.Dense(CLASSES)(flatten(x))


class ForeignConvNet(nn.Module):
    """As somebody else writes it: BatchNorm with its own momentum, without fields for it and for a device axis."""

    scale: float = 1.0

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        x = self.scale * nn.Conv(2, (3, 3), strides=(2, 2))(images)
        x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.97)(x))
        return nn.Dense(CLASSES)(flatten(x))


def data(size: int = 48, seed: int = 0, dtype: Any = np.float32) -> tuple[np.ndarray, np.ndarray]:
    """Noisy images of three patterns, black and white pixels among them: a linear problem with a margin."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(CLASSES, size=size).astype(np.int32)
    patterns = np.random.default_rng(7).choice([0.1, 0.9], size=(CLASSES, *SHAPE))
    images = patterns[labels] + generator.uniform(-0.3, 0.3, size=(size, *SHAPE))
    return np.clip(images, 0, 1).astype(dtype), labels


def config(**fields: Any) -> ml_collections.ConfigDict:
    """A run of a few steps with all stages: natural, ramp, full radius. Dots in the names of fields reach deeper."""
    result = default_config()
    small = {
        "radii": {"linf": 0.05, "l2": 0.1},
        "losses": {
            "linf": {"kind": "small_box", "ratio": 0.4, "inside": False},
            "l2": {"kind": "lipschitz", "fraction": 1.0},
        },
        "attack_steps": 2,
        "epochs": 3,
        "batch_size": 16,
        "learning_rate": 1e-2,
        "milestones": (2,),
        "natural_epochs": 1.0,
        "ramp_end": 2.0,
        "scan_steps": 2,
        "checkpoint_every": 4,
    }
    for name, value in small.items():
        result[name] = value
    result.update_from_flattened_dict(fields)
    return result


def scratch(**fields: Any) -> ml_collections.ConfigDict:
    """CURE-Scratch: the worst norm, bound alignment and gradient projection."""
    return config(**{"alignment.weight": 0.5, "projection.beta": 0.5, **fields})


def variables(model: nn.Module, seed: int = 0, dtype: Any = jnp.float32) -> dict[str, Any]:
    """Initial parameters and running averages."""
    return dict(jax.jit(model.init)(jax.random.key(seed), jnp.zeros((1, *SHAPE), dtype)))
