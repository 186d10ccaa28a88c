"""What is particular to CROWN: bounds of the layers, passed out and in, and derivatives through undecided neurons."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cure_jax as cj
from tests import networks

X = jnp.array([0.4, 0.6])


def test_layers_are_bounded_one_by_one():
    params = networks.mlp_params(1)
    f, region = networks.random_mlp(1), cj.linf_ball(X, 0.2)
    layers = jax.jit(cj.intermediate_bounds(f))(region)
    assert [layer.shape for layer in layers] == [(8,), (8,)]
    second = jax.jit(cj.crown(lambda x: jax.nn.relu(x @ params[0][0] + params[0][1]) @ params[1][0] + params[1][1]))
    # Where the sign is known, interval arithmetic is enough.
    exact, found = second(region), layers[1]
    undecided = (exact.lower < 0) & (exact.upper > 0)
    assert jnp.any(undecided)
    np.testing.assert_allclose(found.lower[undecided], exact.lower[undecided], atol=1e-5)
    np.testing.assert_allclose(found.upper[undecided], exact.upper[undecided], atol=1e-5)
    assert jnp.all((found.lower > 0) | (found.upper < 0) | undecided)


@pytest.mark.parametrize("method", ["crown", "ibp"])
def test_saved_layers_give_the_same_bounds_for_every_specification(method):
    f, region = networks.random_mlp(1), cj.l2_ball(X, 0.2, within=(0.0, 1.0))
    layers = jax.jit(cj.intermediate_bounds(f, method))(region)
    for label in range(3):
        margins = cj.margins(f, label)
        given = jax.jit(lambda region, layers, margins=margins: cj.crown(margins, layers)(region))(region, layers)
        fresh = jax.jit(cj.crown(margins, method))(region)
        np.testing.assert_allclose(given.lower, fresh.lower, atol=1e-6)


def test_layers_that_do_not_fit_are_refused():
    f, region = networks.random_mlp(1), cj.linf_ball(X, 0.2)
    layers = cj.intermediate_bounds(f, "ibp")(region)
    with pytest.raises(ValueError, match=r"2 layers; f has 1"):
        cj.crown(lambda x: jax.nn.relu(jnp.ones((8, 2)) @ x), layers)(region)
    with pytest.raises(ValueError, match=r"number 1 have shapes .*needs \[\(8,\)\]"):
        cj.crown(f, layers[:1])(region)
    with pytest.raises(ValueError, match="intermediate must be one of"):
        cj.intermediate_bounds(f, "crwn")


def test_derivatives_are_those_of_finite_differences():
    params = networks.mlp_params(1)

    def total(scale: jax.Array) -> jax.Array:
        region = cj.l2_ball(X, 0.2 * scale)
        return jnp.sum(cj.crown(lambda x: networks.mlp(params, x * scale))(region).lower)

    both = jax.jit(jax.value_and_grad(total))
    _, slope = both(jnp.float32(1.0))
    step = 1e-3
    expected = (both(jnp.float32(1 + step))[0] - both(jnp.float32(1 - step))[0]) / (2 * step)
    np.testing.assert_allclose(slope, expected, rtol=2e-2)
    forward = jax.jit(lambda scale: jax.jvp(total, (scale,), (jnp.float32(1.0),))[1])(jnp.float32(1.0))
    np.testing.assert_allclose(forward, slope, rtol=1e-4)


def test_chains_of_affine_equations_may_be_long():
    """Longer than Python's stack is deep: loops that are written out."""

    def f(x):
        y = jax.nn.relu(x)
        for _ in range(600):
            y = 0.5 * y + 0.25
        return y

    bounds = cj.crown(f, intermediate="ibp")(cj.linf_ball(jnp.array([0.1, -0.2]), 0.5))
    np.testing.assert_allclose(bounds.lower, 0.5, rtol=1e-6)
    np.testing.assert_allclose(bounds.upper, 0.5, rtol=1e-6)
