"""Optimised slopes: never looser than CROWN, sound at every step, and honest about what they leave out."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cure_jax as cj
from cure_jax.bounds.alpha_crown import Ascent
from cure_jax.bounds.alpha_crown import _ascended as ascended
from cure_jax.bounds.folding import linear
from tests import networks
from tests.bounds import test_coefficients as networks_of_windows

X = jnp.array([0.4, 0.6])


def _bounds(bound, region):
    return jax.jit(bound)(region)


@pytest.mark.parametrize(
    "network", [pytest.param(n, marks=[pytest.mark.slow] if n == "residual" else []) for n in networks.NETWORKS]
)
@pytest.mark.parametrize("p", [np.inf])
def test_from_loose_to_tight(network, p):
    apply, make_params = networks.NETWORKS[network]
    f, region = functools.partial(apply, make_params(2)), cj.lp_ball(X, 0.3, float(p), within=(0.0, 1.0))
    chain = [
        _bounds(cj.crown(f), region),
        _bounds(cj.alpha_crown(f, intermediate="crown"), region),
        _bounds(cj.alpha_crown(f), region),
    ]
    # The last two, up to what their steps leave open.
    for (looser, tighter), left in zip(itertools.pairwise(chain), (1e-5, 1e-2), strict=True):
        assert jnp.all(tighter.lower >= looser.lower - left)
        assert jnp.all(tighter.upper <= looser.upper + left)
    share = {"mlp": 0.95, "residual": 0.999}[network]
    assert jnp.sum(chain[-1].upper - chain[-1].lower) < share * jnp.sum(chain[0].upper - chain[0].lower)


def test_lower_bounds_alone_are_as_good_and_leave_the_upper_ones_to_crown():
    f, region = networks.random_mlp(3), cj.linf_ball(X, 0.2)
    lower_only = _bounds(cj.alpha_crown(f, 10, intermediate="crown", lower_only=True), region)
    both, plain = _bounds(cj.alpha_crown(f, 10, intermediate="crown"), region), _bounds(cj.crown(f), region)
    np.testing.assert_allclose(lower_only.lower, both.lower, atol=1e-6)
    np.testing.assert_array_equal(lower_only.upper, plain.upper)
    assert jnp.any(both.upper < plain.upper)


def _image(x):
    return networks_of_windows.NETWORKS["two"](x)


def test_slopes_in_windows_reach_what_slopes_everywhere_do(monkeypatch):
    x = jnp.asarray(np.random.default_rng(3).uniform(size=(4, 3, 2)).astype(np.float32))
    region = cj.linf_ball(x, 0.2, within=(0.0, 1.0))
    plain, windows = (_bounds(bound(_image), region) for bound in (cj.crown, cj.alpha_crown))
    monkeypatch.setattr(linear, "moving_axes", lambda graph, target: ())
    everywhere = _bounds(cj.alpha_crown(_image), region)
    gain = jnp.mean(everywhere.lower - plain.lower)
    assert gain > 0.01
    np.testing.assert_allclose(jnp.mean(windows.lower - plain.lower), gain, rtol=0.02)
    np.testing.assert_allclose(windows.lower, everywhere.lower, atol=0.05 * gain)


def test_the_ascent_goes_on_while_it_gains_and_keeps_the_best():
    """A parabola over alpha whose top is at 0.3; the learning rate leads beyond it."""
    seen = []

    def value(alphas):
        jax.debug.callback(lambda alpha: seen.append(float(alpha)), alphas[0][0], ordered=True)
        return -jnp.sum((alphas[0] - 0.3) ** 2)

    lowest = jnp.float32(-jnp.inf)
    best = ascended(value, {0: jnp.ones(2)}, lowest, Ascent(30))[0]
    assert -np.sum((best - 0.3) ** 2) > -0.1 * 2 * 0.7**2
    np.testing.assert_allclose(best[0], min(seen, key=lambda alpha: abs(alpha - 0.3)))
    assert 5 < len(seen) < 30
    np.testing.assert_allclose(ascended(value, {0: jnp.full(2, 0.3)}, lowest, Ascent(30))[0], 0.3)
    # Where nothing moves, it ends; and no more than the steps that are allowed are taken.
    seen.clear()
    ascended(lambda alphas: value(alphas) * 0, {0: jnp.ones(2)}, lowest, Ascent(30))
    assert len(seen) <= 5
    seen.clear()
    ascended(value, {0: jnp.ones(2)}, lowest, Ascent(2))
    assert len(seen) == 3


def test_the_derivative_is_that_at_the_slopes_that_were_found():
    f = networks.random_mlp(3)

    def lower(eps):
        return jnp.sum(cj.alpha_crown(f, 10, lower_only=True)(cj.linf_ball(X, eps)).lower)

    slope = jax.jit(jax.grad(lower))(0.2)
    assert np.isfinite(slope)
    low, high = (float(jax.jit(lower)(eps)) for eps in (0.198, 0.202))
    np.testing.assert_allclose(slope, (high - low) / 0.004, rtol=0.1)


def test_intermediate_bounds_can_be_passed_in():
    f, region = networks.random_mlp(3), cj.linf_ball(X, 0.2)
    layers = _bounds(cj.intermediate_bounds(f), region)
    given = jax.jit(lambda region, layers: cj.alpha_crown(f, 10, layers)(region))(region, layers)
    np.testing.assert_allclose(given.lower, _bounds(cj.alpha_crown(f, 10, "crown"), region).lower, atol=1e-6)


@pytest.mark.parametrize("f", [lambda x: 2 * x + 1, lambda x: jnp.ones(2)])
def test_without_anything_to_optimise_it_is_crown(f):
    region = cj.l2_ball(X, 0.2)
    np.testing.assert_array_equal(cj.alpha_crown(f)(region).lower, cj.crown(f)(region).lower)


def test_mistakes_are_explained():
    with pytest.raises(ValueError, match="steps=0; expected at least 1"):
        cj.alpha_crown(lambda x: x, 0)
    with pytest.raises(ValueError, match="intermediate must be one of"):
        cj.alpha_crown(lambda x: x, intermediate="ibq")
