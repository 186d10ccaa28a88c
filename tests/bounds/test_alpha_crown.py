"""Optimised slopes: never looser than CROWN, sound at every step, and honest about what they leave out."""

import functools
import itertools
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cure_jax as cj
from cure_jax.bounds import alpha_crown as function
from tests import networks

MODULE = __import__("sys").modules[function.__module__]
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
        _bounds(cj.alpha_crown(f, 10, intermediate="crown"), region),
        _bounds(cj.alpha_crown(f, 10), region),
    ]
    for looser, tighter in itertools.pairwise(chain):
        assert jnp.all(tighter.lower >= looser.lower - 1e-5)
        assert jnp.all(tighter.upper <= looser.upper + 1e-5)
    share = {"mlp": 0.95, "residual": 0.999}[network]
    assert jnp.sum(chain[-1].upper - chain[-1].lower) < share * jnp.sum(chain[0].upper - chain[0].lower)


def test_lower_bounds_alone_are_as_good_and_leave_the_upper_ones_to_crown():
    f, region = networks.random_mlp(3), cj.linf_ball(X, 0.2)
    lower_only = _bounds(cj.alpha_crown(f, 10, intermediate="crown", lower_only=True), region)
    both, plain = _bounds(cj.alpha_crown(f, 10, intermediate="crown"), region), _bounds(cj.crown(f), region)
    np.testing.assert_allclose(lower_only.lower, both.lower, atol=1e-6)
    np.testing.assert_array_equal(lower_only.upper, plain.upper)
    assert jnp.any(both.upper < plain.upper)


def test_too_many_slopes_are_reported_and_shared_or_left_to_crown(monkeypatch, caplog):
    f, region = networks.random_mlp(3), cj.l2_ball(X, 0.5, within=(0.0, 1.0))
    fixed = _bounds(cj.alpha_crown(f, 10, intermediate="crown"), region)
    free = _bounds(cj.alpha_crown(f, 10), region)
    monkeypatch.setattr(MODULE, "_MAX_INNER_SLOPES", 100)
    with caplog.at_level(logging.INFO):
        shared = _bounds(cj.alpha_crown(f, 10), region)
        left = _bounds(cj.alpha_crown(f, 10, share=False), region)
    # The second layer has 8 neurons of two sides, with 8 slopes each.
    assert "128 slopes of inner neurons are more than 100; those of 1 layers share theirs" in caplog.text
    assert "128 slopes of inner neurons are more than 100; inner bounds are CROWN's" in caplog.text
    np.testing.assert_array_equal(left.lower, fixed.lower)
    points = jax.vmap(f)(jax.vmap(region.sample)(jax.random.split(jax.random.key(0), 1000)))
    assert jnp.all((shared.lower <= points.min(0)) & (points.max(0) <= shared.upper))
    # Between the two, up to what ten steps leave open.
    widths = [float(jnp.sum(bounds.upper - bounds.lower)) for bounds in (free, shared, fixed)]
    assert widths[0] <= 1.02 * widths[1]
    assert widths[1] < widths[2]


@pytest.mark.slow
def test_the_layers_with_the_most_slopes_share_them(monkeypatch, caplog):
    def f(x):
        for width in (4, 4, 8):
            x = jax.nn.relu(jnp.ones((width, len(x))) @ x - 0.5 * jnp.sum(x))
        return x

    # The second layer has 4 neurons of two sides with 4 slopes each, the third one 8 with 8.
    expected = {160: 0, 159: 1, 32: 1, 31: 2}
    for budget, layers in expected.items():
        monkeypatch.setattr(MODULE, "_MAX_INNER_SLOPES", budget)
        caplog.clear()
        with caplog.at_level(logging.INFO):
            cj.alpha_crown(f, 1)(cj.linf_ball(X, 0.2))
        assert caplog.text.count("share theirs") == (layers > 0)
        assert f"those of {layers} layers" in caplog.text or not layers


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
