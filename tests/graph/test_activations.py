"""Activation functions are recognised by name and by what they compute, and by nothing less."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from cure_jax.graph import trace

X = jnp.array([-2.0, -0.3, 0.0, 1.7])
NAMED = {
    "celu": jax.nn.celu,
    "clip": lambda x: jnp.clip(x, -1.0, 1.0),
    "elu": lambda x: nn.elu(x, 0.5),
    "gelu": lambda x: nnx.gelu(x, approximate=False),
    "gelu_tanh": nn.gelu,
    "hard_silu": nn.hard_swish,
    "hard_tanh": nnx.hard_tanh,
    "leaky_relu": lambda x: nn.leaky_relu(x, negative_slope=0.2),
    "mish": jax.nn.mish,
    "relu6": nn.relu6,
    "selu": nnx.selu,
    "silu": nnx.swish,
    "soft_sign": nn.soft_sign,
    "softplus": nnx.softplus,
    "sparse_plus": jax.nn.sparse_plus,
}


def names(function, x=X):
    graph = trace(function, x)
    np.testing.assert_allclose(graph.evaluate(x), function(x), rtol=1e-6, atol=1e-6)
    return [equation.name for equation in graph.equations]


@pytest.mark.parametrize("name", list(NAMED))
def test_functions_are_one_equation(name):
    assert names(NAMED[name]) == [name]
    assert names(jax.jit(jax.checkpoint(NAMED[name]))) == [name]
    assert names(jax.vmap(NAMED[name]), jnp.stack([X, -X])) == [name]


def test_parameters_may_be_traced():
    value = lambda slope: trace(lambda x: nn.leaky_relu(x, slope), X).evaluate(X)  # noqa: E731
    np.testing.assert_allclose(jax.jit(value)(0.3), nn.leaky_relu(X, 0.3), rtol=1e-6)


@pytest.mark.parametrize("module", [nn.PReLU(), nnx.PReLU()])
def test_prelu_is_leaky_relu(module):
    if isinstance(module, nn.Module):
        module = module.bind(module.init(jax.random.key(0), X))
    assert names(module) == ["leaky_relu"]


def test_functions_built_of_recognised_ones_are_inlined():
    assert names(jax.nn.log_sigmoid) == ["neg", "softplus", "neg"]
    assert names(jax.nn.hard_sigmoid) == ["add", "relu6", "div"]


def test_a_function_of_the_same_name_is_something_else():
    def silu(x):
        return x * jax.nn.sigmoid(1.0001 * x)

    def relu6(x):
        return jnp.minimum(jnp.maximum(x, 0.0), 5.0)

    def softplus(x):
        return jax.nn.softplus(x) + 1

    assert names(jax.jit(silu)) == ["mul", "logistic", "mul"]
    assert names(jax.jit(relu6)) == ["max", "min"]
    assert names(jax.jit(softplus)) == ["softplus", "add"]


@pytest.mark.parametrize("scale", [0.5, 1.0001])
def test_a_run_of_equations_that_is_almost_gelu_is_something_else(scale):
    def almost(x):
        return x * (0.5 * (scale + jnp.tanh(np.float32(0.7978846) * (x + 0.044715 * (x**3)))))

    def mixed(x):
        return jnp.flip(x) * (0.5 * (1.0 + jnp.tanh(np.float32(0.7978846) * (x + 0.044715 * (x**3)))))

    assert "gelu_tanh" not in names(almost)
    assert "gelu_tanh" not in names(mixed)
    assert names(jax.nn.gelu) == ["gelu_tanh"]


def test_what_else_uses_a_part_of_gelu_keeps_it():
    def both(x):
        cube = x**3
        return jax.nn.gelu(x) + cube

    assert names(both) == ["integer_pow", "gelu_tanh", "add"]


def test_predicates_of_ones_own_are_not_leaky_relu():
    assert names(lambda x: jnp.where(x > 0, x, 0.1 * x)) == ["piecewise_linear"]


def test_parameters_that_depend_on_the_input_are_no_parameters():
    assert "where" in names(lambda x: jax.nn.leaky_relu(x, jnp.abs(x)))
