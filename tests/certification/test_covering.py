"""One norm's ball around the balls of others."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

import cure_jax as cj

RADII = {1.0: 0.9, 2.0: 0.4, 3.0: 0.3, math.inf: 0.1}


@pytest.mark.parametrize("p", [1.0, 1.7, 2.0, math.inf])
def test_the_ball_holds_the_others_and_none_that_is_smaller_does(p):
    size, generator = 12, np.random.default_rng(0)
    radius = cj.covering_radius(RADII, p, size)
    offsets = [np.eye(size)[:1], np.ones((1, size)), generator.normal(size=(500, size)) ** 3]
    points = np.concatenate(
        [r * each / np.linalg.norm(each, q, axis=1)[:, None] for q, r in RADII.items() for each in offsets]
    )
    norms = np.linalg.norm(points, p, axis=1)
    assert norms.max() <= radius
    assert norms.max() >= radius * (1 - 3e-6)
    # As a region holds it, in float32.
    region = cj.lp_ball(jnp.zeros(size), radius, p)
    assert all(bool(region.contains(jnp.asarray(point, jnp.float32))) for point in points[norms.argsort()[-20:]])


@pytest.mark.parametrize(
    ("radii", "p", "size", "message"),
    [
        ({}, 2.0, 4, "got 0 radii"),
        ({2.0: 0.1}, 2.0, 0, "size=0"),
        ({0.5: 0.1}, 2.0, 4, "exponents of at least 1"),
        ({2.0: 0.1}, 0.5, 4, "exponents of at least 1"),
        ({2.0: -0.1}, 2.0, 4, "finite radii"),
        ({2.0: math.inf}, 2.0, 4, "finite radii"),
    ],
)
def test_mistakes_are_named(radii, p, size, message):
    with pytest.raises(ValueError, match=message):
        cj.covering_radius(radii, p, size)
