"""What is no number is not taken for one: a guard against it, or a comparison, decides nothing there."""

import jax
import jax.numpy as jnp
import pytest

import cure_jax as cj

UNIT = cj.linf_ball(jnp.array([0.0]), 1.0)
# Functions that are not defined on all of [-1, 1], and a point where the guard answers.
GUARDED = {
    "a saturated logarithm": (lambda x: jnp.where(jnp.isnan(jnp.log(x)), 10.0, jnp.tanh(jnp.log(x)))[0], -1.0),
    "a saturated reciprocal": (lambda x: jnp.where(jnp.isfinite(1 / x), jnp.tanh(1 / x), 10.0)[0], 0.0),
    "a clipped quotient": (
        lambda x: jnp.where(jnp.isnan(x / jnp.abs(x)), 10.0, jnp.clip(x / jnp.abs(x), -1, 1))[0],
        0.0,
    ),
    "a comparison": (lambda x: jnp.where(jnp.tanh(jnp.log(x)) < 2, 0.0 * x, 10.0)[0], -1.0),
    "a guard alone": (lambda x: jnp.where(jnp.isnan(jnp.sqrt(x)), 10.0, 3 * x)[0], -1.0),
    "a constant": (lambda x: jnp.where(jnp.isnan(jnp.log(x)), 10.0, 3.0)[0], -1.0),
}


@pytest.mark.parametrize("method", ["ibp", "crown", "alpha_crown", "lipschitz"])
@pytest.mark.parametrize("name", GUARDED)
def test_bounds_hold_where_a_guard_answers(name, method):
    f, point = GUARDED[name]
    bounds = jax.jit(getattr(cj, method)(f))(UNIT)
    assert float(f(jnp.array([point]))) == 10.0
    assert bounds.lower <= 10.0 <= bounds.upper


@pytest.mark.parametrize("method", ["ibp", "crown"])
def test_where_all_is_defined_guards_cost_nothing(method):
    region = cj.linf_ball(jnp.array([2.0]), 1.0)
    guarded, plain = GUARDED["a saturated logarithm"][0], lambda x: jnp.tanh(jnp.log(x))[0]
    bounds, expected = (getattr(cj, method)(f)(region) for f in (guarded, plain))
    assert bounds.lower == pytest.approx(float(expected.lower), abs=1e-5)
    assert bounds.upper == pytest.approx(float(expected.upper), abs=1e-5)


def test_a_jump_is_no_rounding():
    bounds = cj.lipschitz(lambda x: (jnp.where(x > 0, 1e6 + 1, 1e6) - 1e6)[0])(cj.l2_ball(jnp.array([-0.1]), 1.0))
    assert bounds.upper >= 1.0


def test_constants_that_are_added_to_each_other_are_refused_outward():
    def f(x):
        return jnp.maximum(x.at[jnp.array([0, 0, 0])].add(jnp.array([1e8, 1.0, -1e8])), 0)

    region = cj.linf_ball(jnp.array([0.3, 0.2]), 1e-3)
    assert cj.crown(f)(region).upper.shape == (2,)
    with pytest.raises(cj.UnsupportedPrimitive, match="scatter-add"):
        cj.ibp(f, arithmetic="outward")(region)
