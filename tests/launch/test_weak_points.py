"""Candidates for counterexamples: in the region, and worse than random."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cure_jax as cj
from cure_jax.regions import LpBall
from launch.checks.hunting_grounds import grounds
from launch.checks.weak_points import extreme_point, weak_points
from tests import networks

PARAMS = networks.mlp_params(0, (64, 16, 5))


@pytest.mark.parametrize("norm", ["l1", "cut hull", "hull"])
def test_points_are_in_the_region(norm):
    f = lambda x: networks.mlp(PARAMS, x.ravel())  # noqa: E731
    ground = grounds(0)[norm]
    x = jnp.asarray(np.random.default_rng(0).uniform(size=(8, 8, 1)), jnp.float32)
    region = ground.make(jnp.float32(ground.usual[0]), x)
    attack = jax.jit(lambda key: weak_points(f, x, jnp.int32(3), region, key))
    points, count = attack(jax.random.key(0))
    assert count >= len(points) > 40
    inside = jax.jit(jax.vmap(lambda point: region.contains(point, 2e-3 if norm == "hull" else 1e-5)))
    assert np.all(inside(points))
    # As low as attacks alone get, and lower than at the image and at random.
    margin = jax.vmap(lambda point: f(point)[3] - jnp.max(jnp.delete(f(point), 3, assume_unique_indices=True)))(points)
    assert jnp.argmin(margin) not in (0, *range(len(points) - 12, len(points)))
    assert jnp.min(margin[3:]) < margin[0]


def test_support_is_not_what_extreme_points_rest_on(monkeypatch):
    def wrong(self, coefficients):
        raise AssertionError("the code under test")

    monkeypatch.setattr(LpBall, "support", wrong)
    region = cj.l1_ball(jnp.full(4, 0.5), 0.3)
    point = extreme_point(region, jnp.array([0.1, -2.0, 0.3, 0.0]))
    np.testing.assert_allclose(point, [0.5, 0.2, 0.5, 0.5], atol=1e-6)
