"""Augmentation: every view is one of those that it may be, and all of them occur."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cure_jax.training.augmentation import augmentation, center_crop

_IMAGE = np.arange(4 * 5 * 2, dtype=np.float32).reshape(4, 5, 2)


def _views(count: int, **options) -> np.ndarray:
    augment = augmentation(**options)
    assert augment is not None
    keys = jax.random.split(jax.random.key(0), count)
    return np.asarray(jax.jit(jax.vmap(augment, (0, None)))(keys, jnp.asarray(_IMAGE)))


def _crops(image: np.ndarray, height: int, width: int) -> set[bytes]:
    rows, columns = image.shape[0] - height + 1, image.shape[1] - width + 1
    return {image[i : i + height, j : j + width].tobytes() for i in range(rows) for j in range(columns)}


def test_nothing_to_do_is_no_augmentation() -> None:
    assert augmentation() is None


def test_flips_and_padded_crops_are_all_drawn_and_nothing_else() -> None:
    padded = np.pad(_IMAGE, ((1, 1), (1, 1), (0, 0)), mode="edge")
    possible = _crops(padded, 4, 5) | _crops(padded[:, ::-1], 4, 5)
    drawn = {view.tobytes() for view in _views(400, flip=True, padding=1)}
    assert drawn == possible
    assert len(possible) == 18


def test_small_crops_without_padding() -> None:
    assert {view.tobytes() for view in _views(200, crop=3)} == _crops(_IMAGE, 3, 3)


def test_the_middle_is_cut_out() -> None:
    images = np.stack([_IMAGE, -_IMAGE])
    np.testing.assert_array_equal(center_crop(images, 2), images[:, 1:3, 1:3])
    assert center_crop(images, 0) is images


@pytest.mark.parametrize("options", [{"padding": -1}, {"crop": -2}])
def test_negative_sizes_are_refused(options) -> None:
    with pytest.raises(ValueError, match="at least 0"):
        augmentation(**options)


def test_crops_larger_than_the_image_are_refused() -> None:
    with pytest.raises(ValueError, match="does not fit"):
        _views(1, crop=7)
    with pytest.raises(ValueError, match="Choose a smaller crop"):
        center_crop(_IMAGE[None], 5)
