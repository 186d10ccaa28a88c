"""Places on lines of pixels, where a compiled program may round one and the same place in two ways."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.ndimage import map_coordinates

from cure_jax import perturbations
from cure_jax.perturbations.affine import sources
from cure_jax.regions import Interval

IMAGE = jnp.asarray(np.random.default_rng(0).uniform(size=(8, 8, 1)).astype(np.float32))
MOVED = perturbations.compose(perturbations.scaling(0.95, 1.05), perturbations.shear(-0.05, 0.05))


def reference(x, theta):
    """In float64, at the places of float32."""
    places = [np.asarray(place, np.float64) + 4 for place in sources(MOVED.kinds, theta, (8, 8))]
    return map_coordinates(np.pad(np.asarray(x[..., 0], np.float64), 4), np.broadcast_arrays(*places), order=1)


# The first puts a column of pixels 2e-7 beside another one: its floor is one or the other.
@pytest.mark.parametrize("theta", [(1.05, -0.05), (1.0, 0.0), (0.95, 0.05), (1.05, 0.05), (1.0, -0.05)])
def test_images_and_their_bounds_are_right_on_lines_of_pixels(theta):
    theta = jnp.array(theta, jnp.float32)
    expected = reference(IMAGE, theta)
    moved = jax.jit(MOVED.apply)(IMAGE, theta)[..., 0]
    np.testing.assert_allclose(moved, expected, atol=2e-6)
    for width in (0.0, 1e-6, 0.02):
        region = jnp.maximum(theta - width, jnp.array(MOVED.lower)), jnp.minimum(theta + width, jnp.array(MOVED.upper))
        lines = jax.jit(lambda low, high: MOVED.lines(Interval(IMAGE, IMAGE), Interval(low, high)))(*region)
        at = jnp.tensordot(theta, lines.slopes, 1)[..., 0]
        assert np.all(at + lines.lower[..., 0] <= expected + 1e-6)
        assert np.all(at + lines.upper[..., 0] >= expected - 1e-6)
