"""Data sets by name."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int32, UInt8

from cure_jax.data import digits, tfds

TFDS_PREFIX = "tfds:"


class Dataset(NamedTuple):
    """One split of a data set, in memory.

    Attributes:
      images: Float32 in [0, 1], or uint8 in 0..255 (a quarter of the memory); `cure_jax.data.validate` converts.
      labels: Class numbers from 0.
      num_classes: Number of classes.
    """

    images: Float32[np.ndarray, "n height width channels"] | UInt8[np.ndarray, "n height width channels"]
    labels: Int32[np.ndarray, "n"]
    num_classes: int


def load(name: str, split: str, data_dir: str | None = None) -> Dataset:
    """Loads one split of a data set.

    Args:
      name: One of `names()`, or "tfds:NAME" for any image classification set of TensorFlow Datasets.
      split: "train", "validation" (held out from train) or "test".
      data_dir: Folder of prepared TensorFlow Datasets copies; unused by embedded sets.

    Returns:
      The split, in memory.

    Raises:
      ValueError: The name or the split is unknown.
      FileNotFoundError: The data set is not prepared in data_dir.
      ModuleNotFoundError: The package that reads it is missing.

    Examples:
      >>> load("digits", "validation").images.shape
      (200, 8, 8, 1)
    """
    if name.startswith(TFDS_PREFIX):
        return _load_tfds(name.removeprefix(TFDS_PREFIX), split, data_dir)
    _check_name(name)
    return _LOADERS[name](split, data_dir)


def describe(name: str, data_dir: str | None = None) -> tuple[tuple[int, ...], int]:
    """The shape of an image and the number of classes; of a set by name without reading it.

    Args:
      name: As for `load`.
      data_dir: As for `load`; looked into for "tfds:NAME" only.

    Raises:
      ValueError: The name is unknown.
      FileNotFoundError: The set "tfds:NAME" is not prepared in data_dir.

    Examples:
      >>> describe("cifar10")
      ((32, 32, 3), 10)
    """
    if name.startswith(TFDS_PREFIX):
        return tfds.describe(name.removeprefix(TFDS_PREFIX), data_dir=data_dir)
    _check_name(name)
    return _SHAPES[name]


def names() -> tuple[str, ...]:
    """Returns the names that `load` knows."""
    return tuple(_LOADERS)


def normalization(name: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Returns the customary mean and standard deviation of a data set's channels, for the network's first layer.

    Args:
      name: Name of a data set; one without customary values gets mean 0 and standard deviation 1.

    Returns:
      Mean and standard deviation, in pixel units of [0, 1].
    """
    return _NORMALIZATION.get(tfds.without_version(name.removeprefix(TFDS_PREFIX)), ((0.0,), (1.0,)))


def _check_name(name: str) -> None:
    if name not in _LOADERS:
        raise ValueError(
            f"Unknown data set {name!r}; expected one of {list(names())} or 'tfds:NAME' for another set of TensorFlow "
            "Datasets. Correct the name, or pass arrays of your own."
        )


def _load_digits(split: str, data_dir: str | None) -> Dataset:
    del data_dir
    return Dataset(*digits.load(split), digits.NUM_CLASSES)


def _load_tfds(name: str, split: str, data_dir: str | None) -> Dataset:
    return Dataset(*tfds.load(name, split, data_dir=data_dir))


_LOADERS: dict[str, Callable[[str, str | None], Dataset]] = {
    "digits": _load_digits,
    **{name: functools.partial(_load_tfds, name) for name in ("mnist", "cifar10", "tiny_imagenet")},
}

_SHAPES = {
    "digits": ((8, 8, 1), digits.NUM_CLASSES),
    "mnist": ((28, 28, 1), 10),
    "cifar10": ((32, 32, 3), 10),
    "tiny_imagenet": ((64, 64, 3), 200),
}

_NORMALIZATION = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "tiny_imagenet": ((0.4802, 0.4481, 0.3975), (0.2302, 0.2265, 0.2262)),
}
