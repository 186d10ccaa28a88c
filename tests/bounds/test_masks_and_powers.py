"""Finite bounds where they are easy: masked softmax, powers of what may be 0 or negative."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cure_jax as cj

X = jnp.array([0.3, 0.5, 0.7, 0.2])
MASK = jnp.array([True, True, False, True])
REGION = cj.linf_ball(X, 0.05)
MASKS = {"lowest": float(jnp.finfo(jnp.float32).min), "infinite": -np.inf}
BOUNDS = {"ibp": cj.ibp, "crown": cj.crown}


@pytest.mark.parametrize("bound", BOUNDS)
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("added", [False, True])
def test_a_masked_softmax_is_bounded_as_with_a_finite_mask(added, mask, bound):
    def softmax(value):
        if added:
            return lambda x: jax.nn.softmax(x + jnp.where(MASK, 0.0, value))
        return lambda x: jax.nn.softmax(jnp.where(MASK, x, value))

    bounds = jax.jit(lambda value: BOUNDS[bound](softmax(value))(REGION))
    found, finite = bounds(jnp.float32(MASKS[mask])), bounds(jnp.float32(-1e9))
    points = jax.vmap(REGION.sample)(jax.random.split(jax.random.key(0), 50))
    values = np.asarray(jax.vmap(softmax(MASKS[mask]))(jnp.concatenate([X[None], points])))
    assert np.all((np.asarray(found.lower) <= values + 1e-6) & (values <= np.asarray(found.upper) + 1e-6))
    for one, other in ((found.lower, finite.lower), (found.upper, finite.upper)):
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_a_mask_that_is_not_taken_away_is_infinite_in_the_bounds_too():
    f = lambda x: jnp.where(MASK, x, -jnp.inf)  # noqa: E731
    for bound in (cj.ibp, cj.crown):
        found = bound(f)(REGION)
        assert found.lower[2] == -np.inf
        np.testing.assert_allclose(cj.ibp(f)(REGION).upper[np.array([0, 1, 3])], X[np.array([0, 1, 3])] + 0.05)


def test_a_sum_that_overflows_is_beyond_the_largest_number_and_not_beyond_all():
    box = cj.linf_ball(jnp.array([-3e38]), 1e37)
    bounds = cj.ibp(lambda x: x - 3e38)(box)
    assert bounds.lower[0] == -np.inf
    assert bounds.upper[0] >= -jnp.finfo(jnp.float32).max


@pytest.mark.parametrize("bound", BOUNDS)
@pytest.mark.parametrize(
    ("power", "center"),
    [
        (lambda x: x**2.0, [-0.3, 0.1, 0.0]),
        (lambda x: x**3.0, [-0.3, 0.1, 0.0]),
        (lambda x: jnp.maximum(x, 0) ** 1.5, [-0.3, 0.1, 0.0]),
        (lambda x: jnp.maximum(x, 0) ** 0.5, [-0.3, 0.1, 0.0]),
        (lambda x: x ** jnp.array([2.0, 3.0, 0.5]), [-0.3, 0.1, 1.0]),
        (lambda x: jnp.sqrt(jnp.sum(x**2.0)), [-0.3, 0.1, 0.0]),
    ],
)
def test_powers_have_bounds_wherever_they_are_defined(power, center, bound):
    region = cj.linf_ball(jnp.array(center), 0.2)
    found = jax.jit(BOUNDS[bound](power))(region)
    assert np.max(found.upper - found.lower) < 1.5
    values = np.asarray(jax.vmap(power)(jax.vmap(region.sample)(jax.random.split(jax.random.key(1), 100))))
    assert np.all((np.asarray(found.lower) <= values + 1e-6) & (values <= np.asarray(found.upper) + 1e-6))
