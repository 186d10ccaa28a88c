import jax.numpy as jnp
import numpy as np
import pytest

from cure_jax import perturbations
from cure_jax.perturbations import by_name, by_names


def test_names_are_those_of_the_functions():
    assert by_name("rotation", (-10, 10)) == perturbations.rotation(-10, 10)
    assert by_name("translation", [-2.0, 2.0]) == perturbations.translation((-2, 2), (-2, 2))
    assert by_name("patch", 5) == perturbations.patch(5)
    assert by_name("patch", (2, 3)) == perturbations.patch((2, 3))
    assert by_name("pixels", 2) == perturbations.pixels(2)
    both = by_name("rotation+shear", ((-2, 2), (-0.02, 0.02)))
    assert both == perturbations.compose(perturbations.rotation(-2, 2), perturbations.shear(-0.02, 0.02))


def test_what_is_empty_or_0_is_left_out():
    assert set(by_names({"rotation": (), "shear": (-0.1, 0.1), "patch": 0, "pixels": 1})) == {"shear", "pixels"}


@pytest.mark.parametrize(
    ("name", "value", "error", "message"),
    [
        ("rotate", (-1, 1), ValueError, "Unknown perturbation 'rotate'; expected one of rotation, "),
        ("rotation", 10, TypeError, r"expected \(least, greatest\)"),
        ("rotation", (1, -1), ValueError, "empty"),
        ("rotation+shear", (-2, 2), TypeError, "a pair .* for each of rotation, shear"),
        ("rotation+patch", ((-2, 2), 5), ValueError, "geometric perturbations only"),
        ("pixels", 1.5, TypeError, "count"),
        ("pixels", 0, ValueError, "at least 1 pixel"),
        ("patch", "5", TypeError, "size"),
    ],
)
def test_says_what_is_wrong(name, value, error, message):
    with pytest.raises(error, match=message):
        by_name(name, value)


def test_pixels_are_a_ball_of_one_cell():
    few, x = perturbations.pixels(2), jnp.full((3, 4, 1), 0.25)
    [cell] = few.cells(x.shape)
    assert not len(few.split(cell, x.shape))
    region, transform, point = few.inputs(x, jnp.asarray(cell))
    assert region.k == 2
    np.testing.assert_array_equal(transform(point), x)
    with pytest.raises(ValueError, match="has 1 pixels"):
        few.cells((1, 1, 3))
