import hashlib

import numpy as np
import pytest

from cure_jax.data import digits

CHECKSUMS = {
    "train": "3c17484317b93021e6081479079a2c59400d218d951f045ecef126144416d0d1",
    "validation": "94f88601887d9bb0994ae4fbd745e3cce8fc88c654d756981f5a36ee03761d7f",
    "test": "f69c312cd5849dc5463cb2c24d32c784c9bb4f58bee626bc5d44959b2ab48281",
}


@pytest.mark.parametrize("split", CHECKSUMS)
def test_split_never_changes(split):
    images, labels = digits.load(split)
    levels = np.round(images * digits.MAX_LEVEL).astype(np.uint8)
    np.testing.assert_array_equal(levels / np.float32(16), images)
    assert hashlib.sha256(levels.tobytes() + labels.astype("<i4").tobytes()).hexdigest() == CHECKSUMS[split]


@pytest.mark.parametrize(("split", "size"), [("train", 1297), ("validation", 200), ("test", 300)])
def test_shapes_types_and_range(split, size):
    images, labels = digits.load(split)
    assert images.shape == (size, 8, 8, 1)
    assert labels.shape == (size,)
    assert (images.dtype, labels.dtype) == (np.float32, np.int32)
    assert (images.min(), images.max()) == (0.0, 1.0)
    assert set(labels.tolist()) == set(range(10))


def test_splits_are_the_whole_set_once():
    rows = np.concatenate([digits.load(split)[0].reshape(-1, 64) for split in digits.SPLITS])
    assert len(rows) == 1797
    assert len(np.unique(rows, axis=0)) == 1797


def test_a_prefix_of_a_split_is_balanced():
    _, labels = digits.load("test")
    counts = np.bincount(labels[:100], minlength=10)
    assert counts.min() >= 9
    assert counts.max() <= 11


def test_unknown_split_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"'valid'; expected one of \['train', 'validation', 'test'\]"):
        digits.load("valid")
