"""Outward rounding with weights that are computed: the same in every program, or refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cure_jax as cj
from cure_jax.graph import UnsupportedPrimitive

X = jnp.array([0.3, 0.5, 0.7])
SCALE = jnp.float32(1.2345678)
WEIGHTS = jnp.asarray(np.random.default_rng(0).uniform(999, 1001, (4, 3)).astype(np.float32))


def _cancelling(weights, scale):
    """Fused multiply-adds change what is left of the difference by a thousand roundings."""
    return lambda x: (weights * scale - scale * 1000) @ x


@pytest.mark.parametrize("method", ["ibp", "crown_ibp", "crown"])
def test_bounds_hold_the_network_whose_weights_are_computed_one_by_one(method):
    def bounds(weights, scale):
        return cj.certification.METHODS[method](_cancelling(weights, scale), arithmetic="outward")(
            cj.linf_ball(X, 1e-7)
        )

    exact = np.asarray(WEIGHTS * SCALE - SCALE * 1000, np.float64) @ np.asarray(X, np.float64)
    programs = {
        "eager": bounds,
        "parameters": jax.jit(bounds),
        "constants": lambda *parameters: jax.jit(lambda: bounds(*parameters))(),
        "batch": lambda *parameters: jax.tree.map(
            lambda leaf: leaf[0], jax.jit(jax.vmap(bounds, (None, 0)))(parameters[0], parameters[1][None])
        ),
    }
    for name, program in programs.items():
        found = program(WEIGHTS, SCALE)
        assert np.all((found.lower <= exact) & (exact <= found.upper)), name
        assert np.max(found.upper - found.lower) < 2e-5, name


REFUSED = {
    "dot_general": lambda w: w @ w.T,
    "reduce_sum": lambda w: w - jnp.mean(w),
    "sub": lambda w: jax.lax.rsqrt(w) - 0.5,
    "add": lambda w: jnp.exp(w) + 1.0,
    "gt": lambda w: jnp.where(jnp.exp(w) > 1.0, w, 0.0),
    "exp": lambda w: jnp.exp(jnp.exp(w)),
}


@pytest.mark.parametrize("name", REFUSED)
def test_weights_that_programs_compute_differently_are_refused_under_jit(name):
    def lower(w):
        return cj.crown(lambda x: REFUSED[name](w) @ x, arithmetic="outward")(cj.linf_ball(X, 0.1)).lower

    w = jnp.eye(3) + 1
    with pytest.raises(UnsupportedPrimitive, match=f"computed by `{name}` under jax.jit"):
        jax.jit(lower)(w)
    # Outside of it they are computed once.
    assert np.all(np.isfinite(lower(w)))


def test_a_normalisation_is_near_enough():
    def f(variance, scale, x):
        return (x - 0.5) * (jax.lax.rsqrt(variance + 1e-5) * scale) + 0.1

    bounds = jax.jit(lambda v, s: cj.crown(lambda x: f(v, s, x), arithmetic="outward")(cj.linf_ball(X, 0.1)))
    found = bounds(jnp.full(3, 0.7), jnp.full(3, 1.3))
    exact = (np.asarray(X, np.float64) - 0.5) * 1.3 / np.sqrt(0.7 + 1e-5) + 0.1
    assert np.all((found.lower < exact) & (exact < found.upper))
