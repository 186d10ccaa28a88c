"""Fully connected networks."""

import flax.linen as nn
import numpy as np
from jaxtyping import Array, Float, Num

from cure_jax.models.layers import flatten, normalize


class MLP(nn.Module):
    """Dense layers with ReLU between them.

    Attributes:
      num_classes: Number of logits.
      features: Widths of the hidden layers.
      mean: Mean of the pixels, one value or one for each channel.
      std: Standard deviation of the pixels, likewise.
    """

    num_classes: int = 10
    features: tuple[int, ...] = (128, 128)
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)

    @nn.compact
    def __call__(
        self, images: Num[Array | np.ndarray, "batch *x"], train: bool = False
    ) -> Float[Array, "batch classes"]:
        """Returns the logits; `train` makes no difference."""
        del train
        x = flatten(normalize(images, self.mean, self.std))
        for width in self.features:
            x = nn.relu(nn.Dense(width)(x))
        return nn.Dense(self.num_classes)(x)
