"""The convolutional networks with BatchNorm of the certified-training literature: CNN7 and its smaller relatives.

Convolutions and dense layers keep their biases although BatchNorm follows, as in the published networks, so that
parameter counts and checkpoints correspond to theirs.
"""

import functools

import flax.linen as nn
import jax
from jaxtyping import Array, Float

from cure_jax.models.layers import Images, batch_norm, conv, flatten, normalize


class CNN7(nn.Module):
    """Five 3x3 convolutions and two dense layers, with BatchNorm and ReLU after all but the last.

    Widths are w, w, 2w, 2w, 2w with strides 1, 1, 2, 1, 1 and padding 1; then dense, and the logits. CNN5, about half
    its cost and for quick experiments, leaves out the last two convolutions.

    References:
      Shi et al., "Fast certified robust training with short warmup", NeurIPS 2021.

    Attributes:
      num_classes: Number of logits.
      width: w.
      convolutions: Of each one its width as a multiple of w, and its stride.
      dense: Width of the hidden dense layer.
      mean: Mean of the pixels, one value or one for each channel.
      std: Standard deviation of the pixels, likewise.
      momentum: Share of the old value when BatchNorm updates a running average (1 - the momentum of PyTorch).
      axis_name: Mapped axis over which BatchNorm averages its batch statistics; None for this device alone.
    """

    num_classes: int = 10
    width: int = 64
    convolutions: tuple[tuple[int, int], ...] = ((1, 1), (1, 1), (2, 2), (2, 1), (2, 1))
    dense: int = 512
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    momentum: float = 0.9
    axis_name: str | None = None

    @nn.compact
    def __call__(self, images: Images, train: bool = False) -> Float[Array, "batch classes"]:
        """Returns the logits; in training BatchNorm uses the statistics of the batch and updates "batch_stats"."""
        norm = functools.partial(batch_norm, train, self.momentum, self.axis_name)
        x = normalize(images, self.mean, self.std)
        for multiple, stride in self.convolutions:
            x = nn.relu(norm()(conv(multiple * self.width, 3, stride, padding=1)(x)))
        return _head(x, norm, self.dense, self.num_classes)


CNN7_narrow = functools.partial(CNN7, width=32, dense=216)
CNN7_wide = functools.partial(CNN7, width=96)
CNN5 = functools.partial(CNN7, convolutions=((1, 1), (1, 1), (2, 2)))


def _head(x: Images, norm: functools.partial[nn.BatchNorm], dense: int, num_classes: int) -> jax.Array:
    x = nn.relu(norm()(nn.Dense(dense)(flatten(x))))
    return nn.Dense(num_classes)(x)
