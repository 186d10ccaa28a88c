import jax.numpy as jnp
import numpy as np
import pytest

from cure_jax.data import validate


def _images(value=0.5):
    return np.full((4, 2, 3, 1), value, np.float32)


LABELS = np.array([0, 1, 2, 1])


def test_good_arrays_pass_unchanged():
    images, labels = validate(_images(), LABELS, 3)
    np.testing.assert_array_equal(images, _images())
    np.testing.assert_array_equal(labels, LABELS)
    assert (images.dtype, labels.dtype) == (np.float32, np.int32)


def test_uint8_is_divided_by_255():
    levels = np.arange(256, dtype=np.uint8).reshape(4, 8, 8, 1)
    images, _ = validate(levels, LABELS, 3)
    np.testing.assert_allclose(images.ravel(), np.arange(256) / 255, rtol=1e-7)
    assert images.max() == 1.0


def test_jax_arrays_and_lists_pass():
    images, labels = validate(jnp.asarray(_images()), LABELS.tolist(), 3)
    assert isinstance(images, np.ndarray)
    assert labels.tolist() == LABELS.tolist()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1.5, -0.001])
def test_the_first_bad_pixel_is_named(value):
    images = _images()
    images[2, 1, 0, 0] = images[3, 0, 0, 0] = value
    with pytest.raises(ValueError, match=rf"images\[2, 1, 0, 0\] is {value}.*expected finite pixels in \[0, 1\]"):
        validate(images, LABELS, 3)


@pytest.mark.parametrize("value", [3, -1])
def test_the_first_bad_label_is_named(value):
    with pytest.raises(ValueError, match=rf"labels\[1\] is {value}; expected 0\.\.2"):
        validate(_images(), np.array([0, value, 2, value]), 3)


def test_wrong_lengths_are_named():
    with pytest.raises(ValueError, match="Got 4 images and 3 labels"):
        validate(_images(), LABELS[:3], 3)
    with pytest.raises(ValueError, match="Got 0 images and 0 labels"):
        validate(_images()[:0], LABELS[:0], 3)


def test_one_hot_labels_are_refused():
    with pytest.raises(ValueError, match=r"labels of shape \(4, 3\); expected .* not one-hot"):
        validate(_images(), np.eye(3, dtype=int)[LABELS], 3)


def test_wrong_types_are_named():
    with pytest.raises(TypeError, match="images of type int32; expected float"):
        validate(_images().astype(np.int32), LABELS, 3)
    with pytest.raises(TypeError, match="labels of type float64; expected integers"):
        validate(_images(), LABELS.astype(float), 3)
