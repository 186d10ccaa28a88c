"""Functions written as ONNX files, and read back."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cure_jax as cj
from cure_jax import interop
from tests import networks
from tests.interop.onnx_models import F32, run, weights

TOLERANCE = 1e-4


def _attention(x: jax.Array) -> jax.Array:
    """Products of what depends on the input: batched, and with both operands."""
    queries, keys = x @ jnp.asarray(weights(4, 4)), x @ jnp.asarray(weights(4, 4, seed=1))
    return jax.nn.softmax(queries @ keys.T) @ x


def _pooled(x: jax.Array) -> jax.Array:
    x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (2, 3, 1), (1, 2, 1), ((0, 1), (1, 1), (0, 0)))
    return jax.lax.reduce_window(x, 0.0, jax.lax.add, (2, 2, 1), (1, 1, 1), "VALID", window_dilation=(1, 1, 1))


class _Network(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.BatchNorm(use_running_average=True)(nn.Conv(4, (3, 3), strides=2)(x)))
        x = nn.ConvTranspose(4, (3, 3), strides=(2, 2))(x)
        x = x + nn.Conv(4, (3, 3), feature_group_count=2)(x)
        x = nn.max_pool(x, (2, 2), (1, 1), "SAME")
        x = jax.lax.reduce_window(x, 0.0, jax.lax.add, (1, 2, 2, 1), (1, 2, 2, 1), "VALID") / 4
        return nn.Dense(3)(nn.LayerNorm()(x).reshape(len(x), -1))


@functools.cache
def _variables():
    with jax.ensure_compile_time_eval():
        return jax.jit(_Network().init)(jax.random.key(0), jnp.zeros((1, 6, 6, 2)))


def _flax(x: jax.Array) -> jax.Array:
    return _Network().apply(_variables(), x[None])[0]


FUNCTIONS = {
    "relu": ((3,), jax.nn.relu),
    "activations": (
        (3, 4),
        lambda x: sum(
            g(x)
            for g in (
                jax.nn.gelu,
                jax.nn.silu,
                jax.nn.softplus,
                jax.nn.elu,
                jax.nn.selu,
                jax.nn.celu,
                jax.nn.relu6,
                jnp.tanh,
                jax.nn.hard_tanh,
                jax.nn.hard_silu,
                jax.nn.mish,
                jax.nn.leaky_relu,
                jax.nn.soft_sign,
                jax.nn.sigmoid,
                lambda x: jax.nn.gelu(x, approximate=False),
                lambda x: jax.nn.leaky_relu(x, 0.3),
                jnp.arctan,
                jnp.exp2,
                lambda x: jnp.clip(x, 0, 1),
                lambda x: jax.lax.clamp(-0.5, x, 0.7),
                jnp.abs,
                jnp.square,
                jax.lax.erf,
            )
        ),
    ),
    "powers": (
        (4,),
        lambda x: jnp.sqrt(x**2 + 1) + x**3 + 1 / (x**2 + 1) + jax.lax.rsqrt(x**2 + 2) + (x**2 + 1) ** 1.7,
    ),
    "attention": ((3, 4), _attention),
    "pooling": ((5, 7, 2), _pooled),
    "einsum": ((2, 3, 4), lambda x: jnp.einsum("ijk,jkl->il", x, weights(3, 4, 5))),
    "left matrix": ((4,), lambda x: jnp.asarray(weights(3, 4)) @ x),
    "moves": (
        (3, 4),
        lambda x: jnp.concatenate(
            [x[::-1, 1:3].ravel(), jnp.tile(x[0], 2), x.T[1], x[:, jnp.array([3, 1, 1])].ravel()]
        ),
    ),
    "sums": ((3, 4), lambda x: jnp.cumsum(x, 1) + jnp.sum(x, 0)[None] + jnp.max(x, 1, keepdims=True) - jnp.min(x)),
    "padding": ((3, 4), lambda x: jnp.pad(x, ((1, 0), (2, 1)), constant_values=0.5)[1:, :-1]),
    "choices": (
        (3,),
        lambda x: jnp.where(jnp.array([True, False, True]), x, -x) + jnp.maximum(x, jnp.array([-1.0, 0, 1])),
    ),
    "residual": ((2,), functools.partial(networks.residual, networks.residual_params(0))),
    "flax": ((6, 6, 2), _flax),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_are_written_and_read_back(name: str, tmp_path, rng):
    shape, f = FUNCTIONS[name]
    path = tmp_path / "f.onnx"
    interop.save_onnx(f, shape, path)
    g = interop.load_onnx(path, check=False)
    x = rng.normal(size=shape).astype(F32)
    expected, found = jax.jit(lambda x: (f(x), g(x)))(x)
    np.testing.assert_allclose(run(path, x[None])[0], expected, atol=TOLERANCE)
    np.testing.assert_allclose(found, expected, atol=TOLERANCE)


def test_what_cannot_be_written_is_named_with_its_line(tmp_path):
    with pytest.raises(cj.UnsupportedPrimitive, match=r"`sin` at .*test_onnx_writing.py.* cannot be written to ONNX"):
        interop.save_onnx(lambda x: jnp.sin(x), (3,), tmp_path / "f.onnx")
    with pytest.raises(ValueError, match="does not depend on its input"):
        interop.save_onnx(lambda x: jnp.ones(3), (3,), tmp_path / "f.onnx")
    assert not (tmp_path / "f.onnx").exists()
