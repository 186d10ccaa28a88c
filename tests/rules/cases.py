"""One small function for each entry of the table of rules."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

import cure_jax as cj
from cure_jax.regions import Interval

W = np.random.default_rng(1).normal(size=(4, 3)).astype(np.float32)
CONSTANT = jnp.array([0.3, -0.2, 0.0, 1.1])
IMAGE = jnp.asarray(np.random.default_rng(3).normal(size=(1, 3, 3, 4)).astype(np.float32))
GROUPED = np.random.default_rng(6).normal(size=(2, 2, 2, 6)).astype(np.float32)
KERNEL = np.random.default_rng(2).normal(size=(2, 2, 1, 2)).astype(np.float32)


class Case(NamedTuple):
    """A function whose first equation (of that primitive) uses the rule, and the sign that its domain asks for."""

    primitive: str
    function: Callable[[jax.Array], jax.Array]
    shape: tuple[int, ...] = (4,)
    domain: str = "reals"


def _grouped(x: jax.Array) -> jax.Array:
    options = {"dimension_numbers": ("NHWC", "HWIO", "NHWC"), "feature_group_count": 2}
    return lax.conv_general_dilated(x, GROUPED, (1, 1), "SAME", **options)


def _softplus_interval(x: Interval) -> Interval:
    return Interval(jax.nn.softplus(x.lower), jax.nn.softplus(x.upper))


def _softplus_lines(x: Interval) -> tuple[tuple[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]:
    """The tangent at the center; the line of slope 1 through the upper end, which is above all of a convex function."""
    tangent, values = jax.nn.sigmoid(x.center), _softplus_interval(x)
    narrow = x.lower == x.upper
    chord = jnp.where(narrow, tangent, (values.upper - values.lower) / jnp.where(narrow, 1, x.upper - x.lower))
    below = jax.nn.softplus(x.center) - tangent * x.center
    return (tangent, below), (chord, values.lower - chord * x.lower)


custom_softplus = cj.custom_bounds(jax.nn.softplus, interval=_softplus_interval, relax=_softplus_lines, lipschitz=1.0)


def pool(x: jax.Array, strides: tuple[int, ...], padding: Any, **options: Any) -> jax.Array:
    return lax.reduce_window(x, -jnp.inf, lax.max, (2, 2), strides, padding, **options)


def _conv(x: jax.Array, stride: int = 1, padding: Any = "SAME", **options: Any) -> jax.Array:
    options["dimension_numbers"] = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x[None, ..., None], KERNEL, (stride, stride), padding, **options)


def _conv_of_kernel(images: jax.Array, kernel: jax.Array) -> jax.Array:
    options = {"dimension_numbers": ("NHWC", "HWIO", "NHWC")}
    return lax.conv_general_dilated(images, kernel, (1, 1), "SAME", **options)


CASES = {
    "reshape": Case("reshape", lambda x: x.reshape(2, 2)),
    "transpose": Case("transpose", lambda x: x.T, (2, 2)),
    "squeeze": Case("squeeze", lambda x: lax.squeeze(x, (0,)), (1, 4)),
    "expand_dims": Case("broadcast_in_dim", lambda x: lax.expand_dims(x, (0,))),
    "rev": Case("rev", lambda x: x[::-1]),
    "slice": Case("slice", lambda x: lax.slice(x, (1,), (3,))),
    "broadcast": Case("broadcast_in_dim", lambda x: lax.broadcast(x, (2,))),
    "tile": Case("tile", lambda x: jnp.tile(x, 2)),
    "broadcast scalar": Case("broadcast_in_dim", lambda x: lax.squeeze(x, (0,)) * CONSTANT, (1,)),
    "broadcast row": Case("broadcast_in_dim", lambda x: x + jnp.ones((3, 4)), (1, 4)),
    "gather": Case("gather", lambda x: x[jnp.array([2, 0, 2])]),
    "gather out of bounds": Case("gather", lambda x: x[jnp.array([9, 0, 2])]),
    "gather filled": Case("gather", lambda x: x.at[jnp.array([9, 0, 2])].get(mode="fill", fill_value=-5.0)),
    "dynamic_slice": Case("dynamic_slice", lambda x: lax.dynamic_slice(x, (jnp.array(1),), (2,))),
    "select_n": Case("select_n", lambda x: jnp.where(jnp.array([True, False, True, False]), x, CONSTANT)),
    "select_n both": Case("select_n", lambda x: jnp.where(jnp.array([True, False, True, False]), x, 2 * x)),
    "concatenate": Case("concatenate", lambda x: jnp.concatenate([x, CONSTANT, 3 * x])),
    "stack": Case("stack", lambda x: jnp.stack([x, CONSTANT])),
    "pad": Case("pad", lambda x: lax.pad(x, jnp.float32(0.7), [(1, 2, 1)])),
    "pad negative": Case("pad", lambda x: lax.pad(x, jnp.float32(0.7), [(-1, 2, 1)])),
    "copy": Case("copy", lambda x: jnp.array(x, copy=True)),
    "add constant": Case("add", lambda x: x + CONSTANT),
    "add both": Case("add", lambda x: x + 2 * x),
    "sub constant": Case("sub", lambda x: x - CONSTANT),
    "constant sub": Case("sub", lambda x: CONSTANT - x),
    "sub both": Case("sub", lambda x: x[::-1] - x),
    "neg": Case("neg", lambda x: -x),
    "mul": Case("mul", lambda x: x * CONSTANT),
    "div": Case("div", lambda x: x / (CONSTANT + 2)),
    "reduce_sum": Case("reduce_sum", lambda x: jnp.sum(x, axis=1), (2, 2)),
    "reduce_window_sum": Case(
        "reduce_window_sum", lambda x: lax.reduce_window(x, 0.0, lax.add, (2, 2), (1, 1), "SAME"), (2, 2)
    ),
    "reduce_window_sum in the padding": Case(
        "reduce_window_sum", lambda x: lax.reduce_window(x, 0.0, lax.add, (1, 1), (1, 1), [(1, 0), (0, 2)]), (2, 2)
    ),
    "dot right": Case("dot_general", lambda x: x @ jnp.asarray(W)),
    "dot left": Case("dot_general", lambda x: jnp.asarray(W).T @ x),
    "conv": Case("conv_general_dilated", _conv, (2, 2)),
    "dot batched": Case("dot_general", lambda x: jnp.einsum("bij,bjk->bki", x, jnp.stack([W[:2], W[2:]])), (2, 4, 2)),
    "einsum": Case("dot_general", lambda x: jnp.einsum("ij,kj->ki", x, W.T), (2, 4)),
    "cumsum": Case("cumsum", jnp.cumsum),
    "cumsum reversed": Case("cumsum", lambda x: lax.cumsum(x, axis=1, reverse=True), (2, 3)),
    "split": Case("slice", lambda x: jnp.split(x, [1, 3])[1]),
    "dynamic_update_slice": Case("dynamic_update_slice", lambda x: lax.dynamic_update_slice(CONSTANT, x, (1,)), (2,)),
    "dynamic_update_slice into": Case(
        "dynamic_update_slice", lambda x: lax.dynamic_update_slice(x, CONSTANT[:2], (1,))
    ),
    "dynamic_update_slice both": Case("dynamic_update_slice", lambda x: lax.dynamic_update_slice(x, 2 * x[:2], (1,))),
    "conv grouped": Case("conv_general_dilated", _grouped, (1, 3, 3, 4)),
    "conv strided": Case("conv_general_dilated", functools.partial(_conv, stride=2, padding="VALID"), (2, 2)),
    "conv dilated": Case(
        "conv_general_dilated", functools.partial(_conv, padding=[(2, 0), (0, 3)], rhs_dilation=(2, 1)), (3, 3)
    ),
    "conv of a kernel": Case("conv_general_dilated", functools.partial(_conv_of_kernel, IMAGE[..., :2]), (2, 2, 2, 3)),
    "conv both": Case(
        "conv_general_dilated", lambda x: _conv_of_kernel(x[None, ..., None], x[:2, :2, None, None]), (3, 3)
    ),
    "scatter": Case("scatter", lambda x: x.at[jnp.array([1, 2])].set(0.5 * x[:2])),
    "scatter into": Case("scatter", lambda x: jnp.ones(6).at[jnp.array([1, 2, 5, 0])].set(x)),
    "scatter constants": Case("scatter", lambda x: x.at[1:3].set(0.3)),
    "scatter out of bounds": Case("scatter", lambda x: x.at[jnp.array([1, 7])].set(0.5 * x[:2])),
    "scatter rows": Case("scatter", lambda x: x.at[jnp.array([1, 0]), jnp.array([1, 1])].set(x[0]), (2, 2)),
    "scatter-add": Case("scatter-add", lambda x: x.at[jnp.array([1, 2, 1])].add(0.5 * x[:3])),
    "scatter-sub": Case("scatter-sub", lambda x: x.at[jnp.array([1, 2, 1])].subtract(0.5 * x[:3])),
    "segment_sum": Case("scatter-add", lambda x: jax.ops.segment_sum(x, jnp.array([0, 1, 1, 0]), 2)),
    "diagonal": Case("gather", jnp.diagonal, (3, 3)),
    "relu": Case("max", jax.nn.relu),
    "max constant": Case("max", lambda x: jnp.maximum(x, CONSTANT)),
    "max both": Case("max", lambda x: jnp.maximum(x, 0.5 * x[::-1] + 0.2)),
    "min constant": Case("min", lambda x: jnp.minimum(CONSTANT, x)),
    "min both": Case("min", lambda x: jnp.minimum(x, 0.5 * x[::-1] + 0.2)),
    "max constant broadcast": Case("max", lambda x: jnp.maximum(x, CONSTANT), (1,)),
    "max both broadcast": Case("max", lambda x: jnp.maximum(x, jnp.sum(x))),
    "min both broadcast": Case("min", lambda x: jnp.minimum(x[None], x[:2, None])),
    "abs": Case("abs", jnp.abs),
    "leaky_relu": Case("leaky_relu", jax.nn.leaky_relu),
    "leaky_relu steep": Case("leaky_relu", lambda x: jax.nn.leaky_relu(x, 1.5)),
    "leaky_relu of both signs": Case("leaky_relu", lambda x: jax.nn.leaky_relu(x, CONSTANT)),
    "prelu": Case("leaky_relu", functools.partial(nn.PReLU().apply, {"params": {"negative_slope": jnp.float32(0.2)}})),
    "relu6": Case("relu6", lambda x: jax.nn.relu6(4 * x)),
    "hard_tanh": Case("hard_tanh", jax.nn.hard_tanh),
    "clamp": Case("clamp", lambda x: lax.clamp(-CONSTANT[3], x, CONSTANT[0])),
    "clip": Case("clip", lambda x: jnp.clip(x, -1, CONSTANT)),
    "where": Case("piecewise_linear", lambda x: jnp.where(x > 0, x, 0.1 * x)),
    "where concave": Case(
        "piecewise_linear", lambda x: jnp.where(x <= CONSTANT, 2 * x + 1 - CONSTANT, x / 2 + 1.5 * CONSTANT)
    ),
    "where falling": Case("piecewise_linear", lambda x: jnp.where(x < 0.3, 2 * x + 1, -x)),
    "where apart": Case("piecewise_linear", lambda x: jnp.where(x <= 0.3, x + 1, 0.5 * x)),
    "where a step": Case("piecewise_linear", lambda x: jnp.where(x >= CONSTANT, 1.0, -0.5)),
    "where of curves": Case("where", lambda x: jnp.where(x > 0, jnp.exp(x), 0.2)),
    "where of two": Case("where", lambda x: jnp.where(x < x[::-1], x, -x)),
    "where of rows": Case("where", lambda x: jnp.where(x[:, :1] > 0, x, 2.0), (2, 2)),
    "defined": Case("defined", lambda x: jnp.where(jnp.isnan(jnp.log(x)), 0.0, 2 * x)),
    "sin": Case("sin", jnp.sin),
    "cos": Case("cos", jnp.cos),
    "logaddexp": Case("logaddexp", lambda x: jnp.logaddexp(x, 2 * x[::-1])),
    "logaddexp constant": Case("logaddexp", lambda x: jnp.logaddexp(CONSTANT, x)),
    "sort": Case("sort", jnp.sort, (5,)),
    "sort descending": Case("sort", lambda x: jnp.sort(x, axis=0, descending=True), (3, 2)),
    "top_k": Case("sort", lambda x: lax.top_k(x, 2)[0], (2, 3)),
    "mul both": Case("mul", lambda x: x * x[::-1]),
    "div both": Case("mul", lambda x: x / (x[::-1] + 1), domain="positive"),
    "reciprocal": Case("integer_pow", lambda x: CONSTANT / x, domain="positive"),
    "dot both": Case("dot_general", lambda x: x @ x.T, (2, 3)),
    "dot both batched": Case("dot_general", lambda x: jnp.einsum("hqd,hkd->qhk", x, x[:, ::-1]), (2, 3, 2)),
    "custom_bounds": Case("custom_bounds", custom_softplus),
    "custom_bounds interval": Case("custom_bounds", cj.custom_bounds(jax.nn.softplus, interval=_softplus_interval)),
    "custom_bounds mapped": Case("custom_bounds", lambda x: jax.vmap(custom_softplus, 1)(x), (2, 3)),
    # All other smooth functions are in test_curves.py.
    "exp": Case("exp", jnp.exp),
    "tanh": Case("tanh", jnp.tanh),
    "gelu": Case("gelu", lambda x: nnx.gelu(x, approximate=False)),
    "square of a node": Case("mul", lambda x: x * x),
    "reduce_min": Case("reduce_min", lambda x: jnp.min(x, axis=0), (2, 2)),
    "min pool": Case(
        "reduce_window_min", lambda x: lax.reduce_window(x, jnp.inf, lax.min, (2, 2), (1, 1), "SAME"), (2, 2)
    ),
    "reduce_max": Case("reduce_max", lambda x: jnp.max(x, axis=0), (2, 2)),
    "max pool": Case("reduce_window_max", functools.partial(pool, strides=(2, 2), padding="VALID"), (2, 2)),
    "max pool overlapping": Case("reduce_window_max", functools.partial(pool, strides=(1, 1), padding="SAME"), (2, 2)),
    "max pool dilated": Case(
        "reduce_window_max",
        functools.partial(pool, strides=(2, 1), padding=[(1, 1), (0, 1)], base_dilation=(2, 1)),
        (2, 2),
    ),
}
