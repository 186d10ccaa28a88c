"""Networks whose hidden layers cannot stretch distances: 1-Lipschitz in the 2-norm, whatever their weights."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from cure_jax.convolution import convolution
from cure_jax.models.layers import Images, flatten, normalize

__all__ = ["ContractingConv", "ContractingDense", "LipschitzNet"]

_LAYOUT = ("NHWC", "HWIO", "NHWC")
# Nothing is divided by zero: a channel that is all zero stays so.
_SMALLEST = 1e-12


class ContractingDense(nn.Module):
    """A dense layer x W + b whose W has a 2-norm of at most 1, up to float32 rounding.

    Each row or column of the kernel, whichever are fewer, is divided by the square root of its row sum of |W W^T| or
    |W^T W|. Nothing is iterated, and gradients go through it.

    References:
      Prach and Lampert, "Almost-Orthogonal Layers for Efficient General-Purpose Lipschitz Networks" (AOL), ECCV 2022,
      Theorem 1.

    Attributes:
      features: Width of the output.
    """

    features: int

    @nn.compact
    def __call__(self, x: Float[Array | np.ndarray, "batch inputs"]) -> Float[Array, "batch outputs"]:
        """Returns x W + b."""
        kernel = self.param("kernel", nn.initializers.orthogonal(), (x.shape[-1], self.features), x.dtype)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), x.dtype)
        return jnp.dot(x, _contracted(kernel[None, None])[0, 0]) + bias[None]


class ContractingConv(nn.Module):
    """A convolution with stride 1 that keeps the image size and has a 2-norm of at most 1, up to float32 rounding.

    The norm is that of the operator on the whole plane; zero padding and a finite image make it no larger. Input or
    output channels of the kernel, whichever are fewer, are divided as in `ContractingDense`, the products being those
    at all shifts. At first the middle of the kernel is orthogonal and the rest 0.

    References:
      Prach and Lampert, ECCV 2022, Theorem 2.

    Attributes:
      features: Channels of the output.
      kernel: Side of the square kernel, odd.
    """

    features: int
    kernel: int = 3

    @nn.compact
    def __call__(self, x: Images) -> Float[Array, "batch height width features"]:
        """Returns the convolution of x, plus a bias for each channel."""
        if self.kernel % 2 == 0:
            raise ValueError(f"A contracting convolution got the kernel size {self.kernel}; expected an odd one.")
        shape = (self.kernel, self.kernel, x.shape[-1], self.features)
        kernel = self.param("kernel", _orthogonal_middle, shape, x.dtype)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), x.dtype)
        around = (self.kernel // 2, self.kernel // 2)
        return (
            convolution(x, _contracted(kernel), (1, 1), (around, around), dimension_numbers=_LAYOUT)
            + bias[None, None, None]
        )


class LipschitzNet(nn.Module):
    """Contracting layers with absolute values between them; images halve by moving pixels into channels.

    An absolute value keeps the 2-norm of gradients, which a ReLU does not; moving pixels keeps all distances. So the
    logits are `scale` times a function with the constant 1 / least std, and the margins have at most sqrt(2) times
    theirs; the Lipschitz bounds find these constants. Train with the loss "lipschitz" and `initialization="default"`.

    References:
      Prach and Lampert, ECCV 2022; absolute values: Anil, Lucas and Grosse, "Sorting Out Lipschitz Function
      Approximation", ICML 2019, Section 4.

    Attributes:
      num_classes: Number of logits.
      stages: Channels of the convolutions of each stage; each stage begins with a halving of the image.
      dense: Widths of the hidden dense layers.
      scale: What the logits are multiplied by: the sharpness of the cross-entropy.
      mean: Mean of the pixels, one value or one for each channel.
      std: Standard deviation of the pixels; one value keeps the Lipschitz constant the same for all channels.
    """

    num_classes: int = 10
    stages: tuple[tuple[int, ...], ...] = ((32, 32), (64,))
    dense: tuple[int, ...] = (256,)
    scale: float = 4.0
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)

    @nn.compact
    def __call__(self, images: Images, train: bool = False) -> Float[Array, "batch classes"]:
        """Returns the logits; `train` makes no difference."""
        del train
        x = normalize(images, self.mean, self.std)
        for channels in self.stages:
            x = _halved(x)
            for features in channels:
                x = jnp.abs(ContractingConv(features)(x))
        x = flatten(x)
        for width in self.dense:
            x = jnp.abs(ContractingDense(width)(x))
        return self.scale * ContractingDense(self.num_classes)(x)


def _halved(x: Float[Array | np.ndarray, "batch height width channels"]) -> Float[Array | np.ndarray, "batch _ _ _"]:
    """Each 2 x 2 square of pixels as one pixel with four times the channels."""
    batch, height, width, channels = x.shape
    if height % 2 or width % 2:
        raise ValueError(f"A stage got an image of {height} x {width} pixels; expected even sides. Use fewer stages.")
    squares = x.reshape(batch, height // 2, 2, width // 2, 2, channels).transpose(0, 1, 3, 2, 4, 5)
    return squares.reshape(batch, height // 2, width // 2, 4 * channels)


def _orthogonal_middle(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
    middle = nn.initializers.orthogonal()(key, shape[2:], dtype)
    return jnp.zeros(shape, dtype).at[shape[0] // 2, shape[1] // 2].set(middle)


def _contracted(
    kernel: Float[Array | np.ndarray, "height width inputs outputs"],
) -> Float[Array, "height width inputs outputs"]:
    """The kernel with its input or output channels, whichever are fewer, divided so that its 2-norm is at most 1."""
    kernel = jnp.asarray(kernel)
    height, width, inputs, outputs = kernel.shape
    by_input = inputs <= outputs
    # Products of two channels at all shifts, as a convolution of the kernel with itself.
    images = kernel.transpose(2, 0, 1, 3) if by_input else kernel.transpose(3, 0, 1, 2)
    filters = images.transpose(1, 2, 3, 0)
    around = ((height - 1, height - 1), (width - 1, width - 1))
    products = convolution(images, filters, (1, 1), around, dimension_numbers=_LAYOUT, precision="highest")
    sums = jnp.sum(jnp.abs(products), axis=(1, 2, 3))
    scale = jax.lax.rsqrt(jnp.maximum(sums, _SMALLEST))
    return kernel * (scale[None, None, :, None] if by_input else scale[None, None, None, :])
