"""Handwritten digits, embedded: 1797 real 8x8 images in 10 classes, no download and no dependency.

Source and licence: "Optical Recognition of Handwritten Digits", E. Alpaydin and C. Kaynak, 1998, UCI Machine
Learning Repository (https://doi.org/10.24432/C50P49), CC BY 4.0. These are the images of its test file, in its
order, as scikit-learn also ships them; `digits.npz` stores the original grey levels 0..16 as uint8.
"""

import hashlib
from importlib import resources

import numpy as np
from jaxtyping import Float32, Int32, UInt8

NUM_CLASSES = 10
MAX_LEVEL = 16
SPLIT_SEED = 0
SPLITS = {"train": slice(0, 1297), "validation": slice(1297, 1497), "test": slice(1497, 1797)}


def load(split: str) -> tuple[Float32[np.ndarray, "n 8 8 1"], Int32[np.ndarray, "n"]]:
    """Loads one split of the embedded digits.

    The splits are fixed for ever: they depend on `SPLIT_SEED` and SHA-256 alone, never on the random number
    generator of a library, and every prefix of a split has nearly equal numbers of each class.

    Args:
      split: "train" (1297 images), "validation" (200) or "test" (300); the three are disjoint.

    Returns:
      Images in [0, 1] (multiples of 1/16), and labels 0..9.

    Raises:
      ValueError: The split is not one of the three.

    Examples:
      >>> images, labels = load("test")
      >>> images.shape, labels.shape
      ((300, 8, 8, 1), (300,))
    """
    if split not in SPLITS:
        raise ValueError(f"digits has no split {split!r}; expected one of {list(SPLITS)}. Choose one of these.")
    with resources.files("cure_jax.data").joinpath("digits.npz").open("rb") as file, np.load(file) as archive:
        levels, labels = archive["images"], archive["labels"]
    chosen = _stratified_order(labels)[SPLITS[split]]
    images = levels[chosen].astype(np.float32)[..., None] / np.float32(MAX_LEVEL)
    return images, labels[chosen].astype(np.int32)


def _stratified_order(labels: UInt8[np.ndarray, "n"]) -> np.ndarray:
    """A seeded permutation in which the classes advance at the same pace."""
    keys = [hashlib.sha256(f"{SPLIT_SEED}:{index}".encode()).hexdigest() for index in range(len(labels))]
    progress = {}
    for label in range(NUM_CLASSES):
        members = sorted(np.flatnonzero(labels == label).tolist(), key=keys.__getitem__)
        progress |= {index: (rank + 0.5) / len(members) for rank, index in enumerate(members)}
    return np.array(sorted(progress, key=lambda index: (progress[index], keys[index])), dtype=np.int64)
