"""The layers that the networks of this folder share."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num

from cure_jax.convolution import convolution

BATCH_NORM_EPSILON = 1e-5

Images = Num[Array | np.ndarray, "batch height width channels"]


def normalize(
    images: Num[Array | np.ndarray, "batch *x channels"], mean: tuple[float, ...], std: tuple[float, ...]
) -> Float[Array | np.ndarray, "batch *x channels"]:
    """Returns (images - mean) / std, channel by channel.

    Args:
      images: Floats in [0, 1].
      mean: One value, or one for each channel; in pixel units.
      std: Likewise, positive.

    Returns:
      Normalised images; the images themselves where mean is 0 and std is 1.

    Raises:
      TypeError: The images are not floats.
      ValueError: The lengths of mean and std do not fit the channels.
    """
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise TypeError(
            f"The network got images of type {images.dtype}; expected float in [0, 1]. "
            "Convert them first, e.g. with cure_jax.data.validate."
        )
    channels = images.shape[-1]
    if len(mean) not in (1, channels) or len(std) not in (1, channels):
        raise ValueError(
            f"Normalisation got {len(mean)} means and {len(std)} standard deviations for {channels} channels; "
            f"expected 1 or {channels} of each. Set the fields mean and std of the network."
        )
    if not any(mean) and set(std) == {1.0}:
        return images
    return (images - _along_channels(mean, images)) / _along_channels(std, images)


def conv(features: int, kernel: int, stride: int = 1, padding: int = 0, use_bias: bool = True) -> nn.Conv:
    """Returns a square 2-d convolution whose gradient is the fast one of `cure_jax.convolution`."""
    return nn.Conv(
        features,
        (kernel, kernel),
        strides=(stride, stride),
        padding=((padding, padding), (padding, padding)),
        use_bias=use_bias,
        conv_general_dilated=convolution,
    )


def batch_norm(train: bool, momentum: float, axis_name: str | None) -> nn.BatchNorm:
    """Returns the BatchNorm of all networks: batch statistics in training, running averages otherwise."""
    return nn.BatchNorm(
        use_running_average=not train, momentum=momentum, epsilon=BATCH_NORM_EPSILON, axis_name=axis_name
    )


def flatten(x: Float[Array | np.ndarray, "batch *x"]) -> Float[Array | np.ndarray, "batch features"]:
    """Returns each example as a vector, in the order height, width, channels."""
    return x.reshape(x.shape[0], -1)


def _along_channels(values: tuple[float, ...], images: jax.Array | np.ndarray) -> np.ndarray:
    return np.asarray(values, images.dtype).reshape((1,) * (images.ndim - 1) + (-1,))
