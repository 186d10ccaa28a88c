"""A small residual network."""

import functools

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from cure_jax.models.layers import Images, batch_norm, conv, normalize


class ResNet(nn.Module):
    """A residual network: a stem, stages of two-convolution blocks, the mean over all positions, the logits.

    A block is relu(norm(conv(relu(norm(conv(x))))) + shortcut(x)). The first block of every stage but the first has
    stride 2; where width or size change, the shortcut is a 1x1 convolution with BatchNorm. Convolutions have no bias.

    References:
      He et al., "Deep residual learning for image recognition", CVPR 2016.

    Attributes:
      num_classes: Number of logits.
      widths: Filters of each stage.
      blocks: Number of blocks of each stage.
      mean: Mean of the pixels, one value or one for each channel.
      std: Standard deviation of the pixels, likewise.
      momentum: Share of the old value when BatchNorm updates a running average (1 - the momentum of PyTorch).
      axis_name: Mapped axis over which BatchNorm averages its batch statistics; None for this device alone.
    """

    num_classes: int = 10
    widths: tuple[int, ...] = (16, 32, 64)
    blocks: int = 1
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    momentum: float = 0.9
    axis_name: str | None = None

    @nn.compact
    def __call__(self, images: Images, train: bool = False) -> Float[Array, "batch classes"]:
        """Returns the logits; in training BatchNorm uses the statistics of the batch and updates "batch_stats"."""
        norm = functools.partial(batch_norm, train, self.momentum, self.axis_name)
        x = normalize(images, self.mean, self.std)
        x = nn.relu(norm()(conv(self.widths[0], 3, padding=1, use_bias=False)(x)))
        for stage, width in enumerate(self.widths):
            for block in range(self.blocks):
                x = _block(x, norm, width, stride=2 if stage > 0 and block == 0 else 1)
        return nn.Dense(self.num_classes)(jnp.mean(x, axis=(1, 2)))


def _block(
    x: Float[Array, "batch height width channels"], norm: functools.partial[nn.BatchNorm], width: int, stride: int
) -> Float[Array, "batch rows columns features"]:
    y = nn.relu(norm()(conv(width, 3, stride, padding=1, use_bias=False)(x)))
    y = norm()(conv(width, 3, padding=1, use_bias=False)(y))
    if x.shape != y.shape:
        x = norm()(conv(width, 1, stride, use_bias=False)(x))
    return nn.relu(x + y)
