"""Layers that contract, by their singular values and by what the Lipschitz bounds find."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cure_jax as cj
from cure_jax.models import ContractingConv, ContractingDense, LipschitzNet


def _drawn(model, example, seed=0):
    """Weights far from those of the initializer, some channels all zero."""
    variables = model.init(jax.random.key(seed), example)
    generator = np.random.default_rng(seed)

    def draw(leaf):
        values = generator.normal(size=leaf.shape) * generator.choice([0.01, 1.0, 30.0], leaf.shape)
        values[..., 0] = 0.0
        return values.astype(np.float32)

    return jax.tree.map(draw, variables)


def _largest_singular_value(model, variables, shape):
    zeros = jnp.zeros((1, *shape))
    jacobian = jax.jacobian(lambda x: model.apply(variables, x))(zeros)
    return np.linalg.norm(np.asarray(jacobian, np.float64).reshape(-1, math.prod(shape)), 2)


@pytest.mark.parametrize("outputs", [3, 7, 12])
@pytest.mark.parametrize("seed", [0, 1])
def test_dense_layers_contract(outputs, seed):
    model = ContractingDense(outputs)
    norm = _largest_singular_value(model, _drawn(model, jnp.zeros((1, 7)), seed), (7,))
    assert 0.3 < norm <= 1 + 1e-5


@pytest.mark.parametrize("outputs", [2, 3, 8])
@pytest.mark.parametrize("kernel", [1, 3, 5])
def test_convolutions_contract(outputs, kernel):
    model = ContractingConv(outputs, kernel)
    norm = _largest_singular_value(model, _drawn(model, jnp.zeros((1, 6, 5, 3))), (6, 5, 3))
    assert 0.2 < norm <= 1 + 1e-5


def test_a_fresh_convolution_keeps_norms():
    model = ContractingConv(9)
    variables = model.init(jax.random.key(0), jnp.zeros((1, 6, 6, 4)))
    x = jax.random.normal(jax.random.key(1), (1, 6, 6, 4))
    np.testing.assert_allclose(jnp.linalg.norm(model.apply(variables, x)), jnp.linalg.norm(x), rtol=1e-5)


def test_halving_keeps_distances_and_loses_no_pixel():
    network = LipschitzNet(stages=((),), dense=(), scale=1.0, num_classes=48)
    variables = network.init(jax.random.key(0), jnp.zeros((1, 4, 4, 3)))
    x = jax.random.normal(jax.random.key(1), (2, 4, 4, 3))
    distance = jnp.linalg.norm(jnp.diff(network.apply(variables, x), axis=0))
    np.testing.assert_allclose(distance, jnp.linalg.norm(jnp.diff(x, axis=0)), rtol=1e-5)


def test_lipschitz_bounds_find_the_constant():
    network = LipschitzNet(stages=((4, 4), (6,)), dense=(8,), scale=3.0, std=(0.5,))
    variables = _drawn(network, jnp.zeros((1, 8, 8, 3)))

    def f(x):
        return network.apply(variables, x[None])[0]

    x = jax.random.uniform(jax.random.key(2), (8, 8, 3))
    bounds = cj.lipschitz(f)(cj.l2_ball(x, 0.1))
    # Each logit may move by radius * scale / std at most.
    assert np.all(bounds.upper - f(x) <= 1.02 * 0.1 * 3.0 / 0.5)
    assert np.sum(bounds.upper > f(x)) == 9  # the first logit is constant


@pytest.mark.parametrize(
    ("model", "shape", "message"),
    [
        (ContractingConv(4, 2), (1, 6, 6, 3), "kernel size 2; expected an odd one"),
        (LipschitzNet(stages=((4,), (4,))), (1, 6, 6, 3), "3 x 3 pixels; expected even sides"),
    ],
)
def test_says_what_does_not_fit(model, shape, message):
    with pytest.raises(ValueError, match=message):
        model.init(jax.random.key(0), jnp.zeros(shape))
