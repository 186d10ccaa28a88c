"""Checks of images and labels before anything is trained on them or certified."""

import contextlib
import inspect
import math
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int32, Integer
from numpy.typing import ArrayLike, DTypeLike

__all__ = ["as_class", "check_logits", "described", "on_one_example", "reaches_all", "validate"]


def described(value: object) -> str:
    """What somebody gave, in a few words for a message: its type, and its value, shape or name if that is short.

    Examples:
      >>> described(0.1), described("inf"), described(np.zeros((2, 3))), described((1, 2)), described(described)
      ('the float 0.1', "the str 'inf'", 'an array of shape (2, 3)', 'a tuple of 2', 'the function described')
    """
    if value is None:
        return "None"
    if isinstance(value, bool | int | float | str):
        return f"the {type(value).__name__} {value!r}"
    if isinstance(value, jax.Array | np.ndarray):
        return f"an array of shape {value.shape}"
    if isinstance(value, tuple | list | dict):
        return f"a {type(value).__name__} of {len(value)}"
    if inspect.isfunction(value):
        return "a lambda" if value.__name__ == "<lambda>" else f"the function {value.__name__}"
    return f"an object of type {type(value).__name__}"


def check_logits(logits: object) -> None:
    """Checks what a classifier returns of one example.

    Raises:
      TypeError: if it is no array.
      ValueError: if it is not `[classes]`, with two classes or more.
    """
    if not isinstance(logits, jax.Array | np.ndarray | jax.ShapeDtypeStruct):
        raise TypeError(
            f"f returns {described(logits)}; expected the logits of one example, an array [classes]. Return the "
            "logits alone, without auxiliary values."
        )
    shape = logits.shape
    if len(shape) != 1 or shape[0] < 2:
        raise ValueError(
            f"f returns shape {shape}; expected the logits of one example, at least 2. Make a function of one "
            "example of a network of batches: cj.models.classifier(model, variables)."
        )


def reaches_all(name: str, eps: float, p: float, shape: Sequence[int]) -> str | None:
    """What is said of a radius from which on a ball holds every image, whatever its center; None below.

    Args:
      name: of the radius.
      eps: the radius.
      p: the exponent of its norm.
      shape: of an image.

    Examples:
      >>> reaches_all("radii.linf", 8.0, math.inf, (28, 28, 1))
      'radii.linf is 8, but no two images of shape (28, 28, 1) with pixels in [0, 1] are further apart than 1 in linf: \
divide radii of pixels in 0 to 255 by 255.'
      >>> reaches_all("radii.l2", 1.0, 2.0, (28, 28, 1))
    """
    widest = math.prod(shape) ** (1 / p)
    if eps < widest:
        return None
    return (
        f"{name} is {eps:g}, but no two images of shape {tuple(shape)} with pixels in [0, 1] are further apart than "
        f"{widest:g} in l{p:g}: divide radii of pixels in 0 to 255 by 255."
    )


@contextlib.contextmanager
def on_one_example(shape: tuple[int, ...]) -> Iterator[None]:
    """Adds a note to whatever a classifier raises when it is called with one example of this shape.

    What a network says that expected a batch, or other axes, is about its own layers, and does not name the reason.
    """
    try:
        yield
    except Exception as error:
        error.add_note(
            f"f was called with one example, of shape {shape}; expected a function of one, without a batch axis. Of a "
            "flax network, which takes batches, cj.models.classifier(model, variables) makes one, and of what "
            "training.fit returns fitted.classifier. Axes are those of the training: [height, width, channels] in flax."
        )
        raise


def as_class(label: Integer[jax.typing.ArrayLike, "..."] | int) -> Int32[Array, "..."]:
    """Returns labels as int32, -1 in the place of what does not fit, which is no class.

    Comparing a label with numbers of classes in its own dtype will not do: 259 is 3 as uint8, and what has more bits
    than JAX keeps loses them.

    Args:
      label: an integer or integers of any dtype; they may be traced.

    Raises:
      TypeError: if it is none.
    """
    limits = np.iinfo(np.int32)
    if isinstance(label, int):
        label = np.asarray(label if limits.min <= label <= limits.max else -1)
    wide = label if isinstance(label, jax.Array) else np.asarray(label)
    if not jnp.issubdtype(wide.dtype, jnp.integer):
        raise TypeError(f"The label has dtype {wide.dtype}; expected an integer. Convert it, e.g. label.astype(int).")
    own, fits = jnp.iinfo(wide.dtype), True
    if own.min < limits.min:
        fits = fits & (wide >= limits.min)
    if own.max > limits.max:
        fits = fits & (wide <= np.asarray(limits.max, wide.dtype))
    chosen = (jnp if isinstance(wide, jax.Array) else np).where(fits, wide, np.asarray(0, wide.dtype))
    return jnp.where(fits, jnp.asarray(chosen.astype(np.int32)), -1)


def validate(
    images: ArrayLike, labels: ArrayLike, num_classes: int, dtype: DTypeLike = np.float32
) -> tuple[Float[np.ndarray, "n *example"], Int32[np.ndarray, "n"]]:
    """Checks images and labels, and returns them as floats in [0, 1] and int32.

    All radii of this library are in pixel units of [0, 1], so images on another scale would be certified for the
    wrong region: they are refused, except uint8, whose scale is known.

    Args:
      images: Floats in [0, 1], or uint8 (divided by 255); the first axis counts the examples.
      labels: Integers in 0..num_classes - 1, one for each image.
      num_classes: Number of classes.
      dtype: Of the images that are returned.

    Returns:
      Images and labels, copied only where their type changes.

    Raises:
      TypeError: Images are neither float nor uint8, or labels are not integers.
      ValueError: The lengths differ or are 0, a pixel is not finite or not in [0, 1], or a label is out of range.
        The message names the first offending index and its value.

    Examples:
      >>> images, labels = validate(np.full((2, 1, 1, 1), 255, np.uint8), np.array([0, 1]), 2)
      >>> images.dtype.name, float(images.max()), labels.dtype.name
      ('float32', 1.0, 'int32')
    """
    images, labels = np.asarray(images), np.asarray(labels)
    if images.ndim < 2 or labels.ndim != 1:
        raise ValueError(
            f"Got images of shape {images.shape} and labels of shape {labels.shape}; expected [n, ...] and [n]. "
            "Add the missing axis, and give labels as class numbers, not one-hot."
        )
    if len(images) != len(labels) or len(images) == 0:
        raise ValueError(
            f"Got {len(images)} images and {len(labels)} labels; expected equal numbers, at least 1. "
            "Give one label for each image."
        )
    return _validated_images(images, dtype), _validated_labels(labels, num_classes)


def _validated_images(images: np.ndarray, dtype: DTypeLike) -> np.ndarray:
    if images.dtype == np.uint8:
        return (images.astype(np.float32) / np.float32(255)).astype(dtype, copy=False)
    if not np.issubdtype(images.dtype, np.floating):
        raise TypeError(
            f"Got images of type {images.dtype}; expected float in [0, 1] or uint8 in 0..255. "
            "Convert them with .astype(numpy.float32) and scale them to [0, 1]."
        )
    # Written so that NaN, which compares false with everything, is bad too.
    bad = ~((images >= 0) & (images <= 1))
    if bad.any():
        index = _first(bad)
        raise ValueError(
            f"images[{', '.join(map(str, index))}] is {images[index]}; expected finite pixels in [0, 1]. "
            "Scale the images to [0, 1] and leave normalisation by mean and std to the network."
        )
    return images.astype(dtype, copy=False)


def _validated_labels(labels: np.ndarray, num_classes: int) -> np.ndarray:
    if not np.issubdtype(labels.dtype, np.integer):
        raise TypeError(
            f"Got labels of type {labels.dtype}; expected integers in 0..{num_classes - 1}. "
            "Convert them with .astype(numpy.int32)."
        )
    bad = (labels < 0) | (labels >= num_classes)
    if bad.any():
        (index,) = _first(bad)
        raise ValueError(
            f"labels[{index}] is {labels[index]}; expected 0..{num_classes - 1}. "
            "Correct num_classes, or number the classes from 0."
        )
    return labels.astype(np.int32, copy=False)


def _first(bad: np.ndarray) -> tuple[int, ...]:
    return tuple(int(i) for i in np.unravel_index(np.argmax(bad), bad.shape))
