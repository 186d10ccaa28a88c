"""What the operators of ONNX do, in primitives that have bound rules.

One entry of `OPERATORS` for each; those of windows and of shapes have files of their own. Dimensions are those of the
file (NCHW). Operands of different ranks are brought to one rank first: nothing is promoted.
"""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from cure_jax.interop.onnx import shape_operators, window_operators
from cure_jax.interop.onnx.step import Operator, Step, integers

__all__ = ["OPERATORS"]

_HIGHEST = lax.Precision.HIGHEST
# Whole exponents up to here are products, others a `pow`.
_LARGEST_POWER = 64


def _aligned(*operands: jax.Array) -> list[jax.Array]:
    """Operands with leading axes of size 1, so that all have one rank."""
    rank = max(operand.ndim for operand in operands)
    return [jnp.reshape(operand, (1,) * (rank - operand.ndim) + operand.shape) for operand in operands]


def _unary(function: Callable[[jax.Array], jax.Array]) -> Operator:
    return Operator(lambda step, x: function(x))


def _variadic(function: Callable[[jax.Array, jax.Array], jax.Array]) -> Operator:
    return Operator(lambda step, *operands: functools.reduce(function, _aligned(*operands)))


def _mean(step: Step, *operands: jax.Array) -> jax.Array:
    del step
    return functools.reduce(jnp.add, _aligned(*operands)) / len(operands)


def _clip(step: Step, x: jax.Array, lower: jax.Array | None = None, upper: jax.Array | None = None) -> jax.Array:
    if step.version < 11:
        lower, upper = (
            None if limit is None else jnp.asarray(limit, x.dtype) for limit in (step.get("min"), step.get("max"))
        )
    if lower is not None and upper is not None:
        return jnp.clip(x, jnp.reshape(lower, ()), jnp.reshape(upper, ()))
    if lower is not None:
        return jnp.maximum(x, jnp.reshape(lower, ()))
    return x if upper is None else jnp.minimum(x, jnp.reshape(upper, ()))


def _prelu(step: Step, x: jax.Array, slope: jax.Array) -> jax.Array:
    del step
    if slope.size == 1:
        return jax.nn.leaky_relu(x, jnp.reshape(slope, ()))
    x, slope = _aligned(x, slope)
    return jax.nn.relu(x) - slope * jax.nn.relu(-x)


def _selu(step: Step, x: jax.Array) -> jax.Array:
    alpha, gamma = step.get("alpha", 1.67326319217681884765625), step.get("gamma", 1.05070102214813232421875)
    return gamma * jax.nn.elu(x, alpha)


def _hard_sigmoid(step: Step, x: jax.Array) -> jax.Array:
    return jnp.clip(step.get("alpha", 0.2) * x + step.get("beta", 0.5), 0, 1)


def _gelu(step: Step, x: jax.Array) -> jax.Array:
    return jax.nn.gelu(x, approximate=step.get("approximate", "none") == "tanh")


def _power(step: Step, x: jax.Array, exponent: np.ndarray) -> jax.Array:
    del step
    if exponent.size == 1:
        (value,) = map(float, exponent.ravel())
        x = jnp.reshape(x, (1,) * (exponent.ndim - x.ndim) + x.shape)
        if value == 0.5:
            return jnp.sqrt(x)
        if value.is_integer() and 0 < abs(value) <= _LARGEST_POWER:
            return lax.integer_pow(x, int(value))
    x, constant = _aligned(x, jnp.asarray(exponent, x.dtype))
    shape = np.broadcast_shapes(x.shape, constant.shape)
    return lax.pow(jnp.broadcast_to(x, shape), jnp.broadcast_to(constant, shape))


def _softmax(function: Callable[..., jax.Array]) -> Operator:
    def apply(step: Step, x: jax.Array) -> jax.Array:
        if step.version >= 13:
            return function(x, axis=step.get("axis", -1))
        # Older versions take all axes from this one on together.
        axis = step.get("axis", 1) % max(x.ndim, 1)
        flat = x.reshape(math.prod(x.shape[:axis]), -1)
        return function(flat, axis=1).reshape(x.shape)

    return Operator(apply)


def _cast(step: Step, x: jax.Array) -> jax.Array:
    if step.get("to") not in _FLOATS:
        raise step.refused("where values that depend on the input become anything but float32 or float64")
    return x


# The numbers of float32 and float64 in `onnx.TensorProto.DataType`.
_FLOATS = (1, 11)


def _dropout(step: Step, x: jax.Array, ratio: Any = None, training: np.ndarray | None = None) -> jax.Array:
    del ratio
    if training is not None and np.any(training):
        raise step.refused("in training mode")
    return x


def _matmul(step: Step, left: jax.Array, right: jax.Array) -> jax.Array:
    del step
    if left.ndim > 2 and right.ndim > 2:
        left, right = _aligned(left, right)
    return jnp.matmul(left, right, precision=_HIGHEST)


def _gemm(step: Step, left: jax.Array, right: jax.Array, added: jax.Array | None = None) -> jax.Array:
    axes = ((0 if step.get("transA", 0) else 1,), (1 if step.get("transB", 0) else 0,))
    result = lax.dot_general(left, right, (axes, ((), ())), precision=_HIGHEST)
    if step.get("alpha", 1.0) != 1:
        result = result * step.get("alpha", 1.0)
    if added is None or step.get("beta", 1.0) == 0:
        return result
    scaled = added if step.get("beta", 1.0) == 1 else added * step.get("beta", 1.0)
    return jnp.add(*_aligned(result, scaled))


def _einsum(step: Step, *operands: jax.Array) -> jax.Array:
    return jnp.einsum(step.get("equation"), *operands, precision=_HIGHEST)


def _scale_and_shift(step: Step, x: jax.Array, scale: jax.Array, shift: jax.Array) -> jax.Array:
    """BatchNormalization, whose statistics became a factor and a summand for each channel when it was read."""
    del step
    shape = (1, -1, *(1,) * (x.ndim - 2))
    return x * scale.reshape(shape) + shift.reshape(shape)


def _layer_normalization(step: Step, x: jax.Array, scale: jax.Array, bias: jax.Array | None = None) -> jax.Array:
    axes = tuple(range(step.get("axis", -1) % x.ndim, x.ndim))
    centered = x - jnp.mean(x, axes, keepdims=True)
    variance = jnp.mean(jnp.square(centered), axes, keepdims=True)
    normalized, scale = _aligned(centered * lax.rsqrt(variance + step.get("epsilon", 1e-5)), scale)
    result = normalized * scale
    return result if bias is None else jnp.add(*_aligned(result, bias))


def _reduction(function: Callable[..., jax.Array]) -> Operator:
    def apply(step: Step, x: jax.Array, axes: np.ndarray | None = None) -> jax.Array:
        chosen = integers(step, axes, "axes")
        if not chosen and step.get("noop_with_empty_axes", 0):
            return x
        return function(x, axis=chosen or None, keepdims=bool(step.get("keepdims", 1)))

    return Operator(apply)


def _cumulative_sum(step: Step, x: jax.Array, axis: np.ndarray) -> jax.Array:
    if step.get("exclusive", 0):
        raise step.refused("without the entry itself (exclusive)")
    return lax.cumsum(x, int(axis.reshape(())) % x.ndim, reverse=bool(step.get("reverse", 0)))


def _where(step: Step, condition: np.ndarray, chosen: jax.Array, other: jax.Array) -> jax.Array:
    del step
    shape = np.broadcast_shapes(condition.shape, chosen.shape, other.shape)
    chosen, other = (jnp.broadcast_to(value, shape) for value in (chosen, other))
    return jnp.where(np.broadcast_to(condition, shape), chosen, other)


OPERATORS: Mapping[str, Operator] = {
    "Abs": _unary(jnp.abs),
    "Add": _variadic(jnp.add),
    "Atan": _unary(jnp.arctan),
    "BatchNormalization": Operator(_scale_and_shift),
    "Cast": Operator(_cast),
    "Celu": Operator(lambda step, x: jax.nn.celu(x, step.get("alpha", 1.0))),
    "Clip": Operator(_clip),
    "CumSum": Operator(_cumulative_sum, static=(1,)),
    "Div": _variadic(jnp.divide),
    "Dropout": Operator(_dropout),
    "Einsum": Operator(_einsum),
    "Elu": Operator(lambda step, x: jax.nn.elu(x, step.get("alpha", 1.0))),
    "Erf": _unary(lax.erf),
    "Exp": _unary(jnp.exp),
    "Gelu": Operator(_gelu),
    "Gemm": Operator(_gemm),
    "HardSigmoid": Operator(_hard_sigmoid),
    "HardSwish": _unary(jax.nn.hard_silu),
    "Identity": _unary(lambda x: x),
    "LayerNormalization": Operator(_layer_normalization),
    "LeakyRelu": Operator(lambda step, x: jax.nn.leaky_relu(x, step.get("alpha", 0.01))),
    "Log": _unary(jnp.log),
    "LogSoftmax": _softmax(jax.nn.log_softmax),
    "MatMul": Operator(_matmul),
    "Max": _variadic(jnp.maximum),
    "Mean": Operator(_mean),
    "Min": _variadic(jnp.minimum),
    "Mish": _unary(jax.nn.mish),
    "Mul": _variadic(jnp.multiply),
    "Neg": _unary(jnp.negative),
    "PRelu": Operator(_prelu),
    "Pow": Operator(_power, static=(1,)),
    "Reciprocal": _unary(lambda x: lax.integer_pow(x, -1)),
    "ReduceMax": _reduction(jnp.max),
    "ReduceMean": _reduction(jnp.mean),
    "ReduceMin": _reduction(jnp.min),
    "ReduceSum": _reduction(jnp.sum),
    "Relu": _unary(jax.nn.relu),
    "Selu": Operator(_selu),
    "Sigmoid": _unary(jax.nn.sigmoid),
    "Softmax": _softmax(jax.nn.softmax),
    "Softplus": _unary(jax.nn.softplus),
    "Softsign": _unary(jax.nn.soft_sign),
    "Sqrt": _unary(jnp.sqrt),
    "Sub": _variadic(jnp.subtract),
    "Sum": _variadic(jnp.add),
    "Tanh": _unary(jnp.tanh),
    "Where": Operator(_where, static=(0,)),
    **shape_operators.OPERATORS,
    **window_operators.OPERATORS,
}
