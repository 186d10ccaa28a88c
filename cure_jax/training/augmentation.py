"""Random views of training images, one example at a time, on the device; and the fixed view that is certified."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

__all__ = ["Augment", "augmentation", "center_crop"]

Augment = Callable[[Key[Array, ""], Float[Array, "height width channels"]], Float[Array, "crop crop channels"]]


def augmentation(*, flip: bool = False, padding: int = 0, crop: int = 0) -> Augment | None:
    """A random horizontal flip, and a random crop of the padded image.

    Args:
      flip: mirror left and right in half of the cases.
      padding: pixels by which all edges are repeated outward before the crop.
      crop: height and width of what is cut out; 0 for those of the image.

    Returns:
      `(key, image) -> image`, or None if there is nothing to do.

    Raises:
      ValueError: if `padding` or `crop` is negative; when it is called, if the crop is larger than the padded image.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> augment = augmentation(flip=True, padding=2)
      >>> augment(jax.random.key(0), jnp.zeros((32, 32, 3))).shape
      (32, 32, 3)
    """
    if padding < 0 or crop < 0:
        raise ValueError(f"augmentation got padding={padding} and crop={crop}; expected numbers of pixels, at least 0.")
    if not (flip or padding or crop):
        return None

    def augment(key: jax.Array, image: jax.Array) -> jax.Array:
        flip_key, crop_key = jax.random.split(key)
        height, width, channels = image.shape
        size = (crop or height, crop or width)
        room = (height + 2 * padding - size[0], width + 2 * padding - size[1])
        if min(room) < 0:
            raise ValueError(
                f"A crop of {size} pixels does not fit into an image of {(height, width)} with padding {padding}. "
                "Choose a smaller crop."
            )
        if flip:
            image = jnp.where(jax.random.bernoulli(flip_key), image[:, ::-1], image)
        image = jnp.pad(image, ((padding, padding), (padding, padding), (0, 0)), mode="edge")
        start = jax.random.randint(crop_key, (2,), 0, jnp.asarray(room, jnp.int32) + 1)
        return jax.lax.dynamic_slice(image, (start[0], start[1], jnp.zeros((), start.dtype)), (*size, channels))

    return augment


def center_crop(images: np.ndarray, crop: int) -> np.ndarray:
    """The middle of images `[..., height, width, channels]`; all of it if `crop` is 0.

    Raises:
      ValueError: if the crop is larger than the images.

    Examples:
      >>> import numpy as np
      >>> center_crop(np.zeros((5, 64, 64, 3)), 56).shape
      (5, 56, 56, 3)
    """
    if not crop:
        return images
    height, width = images.shape[-3:-1]
    if crop < 0 or crop > min(height, width):
        raise ValueError(f"center_crop got crop={crop} for images of {(height, width)} pixels. Choose a smaller crop.")
    top, left = (height - crop) // 2, (width - crop) // 2
    return images[..., top : top + crop, left : left + crop, :]
