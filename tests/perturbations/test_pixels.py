"""Few pixels: an image outside of the limits, which cannot be seen while it is traced, is not verified."""

import jax.numpy as jnp
import numpy as np
import pytest

import cure_jax as cj
from cure_jax import perturbations
from cure_jax.regions.l0_ball import L0Ball


def linear(x):
    margin = 2.0 - (3.0 * x[0, 0, 0] + x[0, 1, 0])
    return jnp.stack([margin, 0.0 * margin])


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("method", ["ibp", "crown", "vertex_crown"])
def test_an_image_outside_of_the_limits_is_not_verified(count, method):
    # With the first pixel at 0.4 the margin of the second image is -0.2, that of the first one at least 0.4.
    images = np.array([[[[0.3], [0.4]]], [[[0.3], [1.0]]]], np.float32)
    found = perturbations.certify_perturbation(
        linear, images, np.array([0, 0]), perturbations.pixels(count, within=(0.0, 0.4)), method=method
    )
    assert found.verified.tolist() == [True, False]


def test_the_support_of_a_ball_whose_center_is_outside_asks_no_pixel_to_change():
    center, limits = jnp.array([0.3, 1.0]), (jnp.zeros(2), jnp.full(2, 0.4))
    region, coefficients = L0Ball(center, *limits, 2, "pixel"), jnp.array([3.0, 1.0])
    assert float(region.support(coefficients)) == pytest.approx(3 * 0.4 + 1.0)
    assert bool(region.bounding_box().contains(center))


def test_large_exponents_do_not_overflow():
    radii = {1.0: 1.0, np.inf: 0.1}
    assert 0.0999 < cj.covered_radius(radii, 200.0, 784) < 0.11
    assert cj.covered_radius(radii, 200.0, 784) <= cj.covered_radius(radii, 20.0, 784)
