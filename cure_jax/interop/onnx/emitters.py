"""Which operators of ONNX compute a primitive of JAX. Those of windows and products have a file of their own."""

import math
from collections.abc import Callable, Mapping

import jax.numpy as jnp
import numpy as np
from onnx import TensorProto

from cure_jax.graph import Equation, Node
from cure_jax.interop.onnx import linear_emitters
from cure_jax.interop.onnx.emission import Emission, refused

__all__ = ["EMITTERS"]

Emitter = Callable[[Emission, Equation], str]
# Indices are found by applying the primitive to the numbers of the entries, which float32 has up to here.
_MOST_ENTRIES = 2**24


def _named(operator: str) -> Emitter:
    return lambda emission, equation: emission.add(operator, emission.operands(equation))


def _composed(function: Callable[[Emission, str], str]) -> Emitter:
    """A function of one variable that is made of several operators."""
    return lambda emission, equation: function(emission, emission.operand(equation, 0))


def _scaled(emission: Emission, x: str, factor: float) -> str:
    return emission.add("Mul", [x, emission.constant(factor)])


def _shifted(emission: Emission, x: str, summand: float) -> str:
    return emission.add("Add", [x, emission.constant(summand)])


def _clipped(emission: Emission, x: str, lower: str, upper: str) -> str:
    return emission.add("Min", [emission.add("Max", [x, lower]), upper])


def _relu6(emission: Emission, x: str) -> str:
    return _clipped(emission, x, emission.constant(0.0), emission.constant(6.0))


def _hard_silu(emission: Emission, x: str) -> str:
    return emission.add("Mul", [x, _scaled(emission, _relu6(emission, _shifted(emission, x, 3.0)), 1 / 6)])


def _mish(emission: Emission, x: str) -> str:
    return emission.add("Mul", [x, emission.add("Tanh", [emission.add("Softplus", [x])])])


def _gelu(emission: Emission, x: str) -> str:
    error = emission.add("Erf", [_scaled(emission, x, math.sqrt(0.5))])
    return emission.add("Mul", [_scaled(emission, x, 0.5), _shifted(emission, error, 1.0)])


def _gelu_tanh(emission: Emission, x: str) -> str:
    cube = _scaled(emission, emission.add("Pow", [x, emission.constant(3.0)]), 0.044715)
    inner = _scaled(emission, emission.add("Add", [x, cube]), math.sqrt(2 / math.pi))
    return emission.add("Mul", [_scaled(emission, x, 0.5), _shifted(emission, emission.add("Tanh", [inner]), 1.0)])


def _maximum(emission: Emission, equation: Equation) -> str:
    """ReLU by its name: other tools look for it."""
    constants = equation.constants
    if len(constants) == 1 and not np.any(np.asarray(constants[0])):
        return emission.add("Relu", [emission.operand(equation, equation.positions[0])])
    return emission.add("Max", emission.operands(equation))


def _parameter(equation: Equation) -> float:
    """The parameter of an activation, if it is one number."""
    values = np.unique(np.asarray(equation.operands[1])) if len(equation.operands) > 1 else np.ones(1)
    if values.size != 1:
        raise refused(equation, "its parameter is another one for each entry")
    return float(values[0])


def _with_alpha(operator: str) -> Emitter:
    return lambda emission, equation: emission.add(
        operator, [emission.operand(equation, 0)], alpha=_parameter(equation)
    )


def _leaky_relu(emission: Emission, equation: Equation) -> str:
    # Its parameter is a constant of the call or inside of it: the value at -1 has it.
    x = jnp.full(equation.bounded[0].shape, -1, equation.bounded[0].dtype)
    slopes = np.unique(-np.asarray(equation.evaluate(x)))
    if slopes.size != 1:
        raise refused(equation, "its slope is another one for each entry")
    return emission.add("LeakyRelu", [emission.operand(equation, equation.positions[0])], alpha=float(slopes[0]))


def _clamp(emission: Emission, equation: Equation) -> str:
    lower, x, upper = emission.operands(equation)
    return _clipped(emission, x, lower, upper)


def _clip(emission: Emission, equation: Equation) -> str:
    if equation.positions != (0,):
        raise refused(equation, "its limits depend on the input")
    # `jnp.clip` takes limits that are integers.
    lower, upper = (emission.constant(np.asarray(limit, np.float32)) for limit in equation.constants)
    return _clipped(emission, emission.operand(equation, 0), lower, upper)


def _integer_power(emission: Emission, equation: Equation) -> str:
    x, exponent = emission.operand(equation, 0), equation.params["y"]
    if exponent == -1:
        return emission.add("Reciprocal", [x])
    return emission.add("Pow", [x, emission.constant(float(exponent))])


def _select(emission: Emission, equation: Equation) -> str:
    """`select_n(which, *cases)`: the first case where it is false."""
    if len(equation.operands) != 3 or isinstance(equation.operands[0], Node):
        raise refused(equation, "only two cases, chosen by a constant, can be")
    which = np.asarray(equation.operands[0]).astype(bool)
    return emission.add("Where", [emission.constant(which), *emission.operands(equation)[:0:-1]])


def _reshape(emission: Emission, equation: Equation) -> str:
    return emission.reshaped(emission.operand(equation, 0), equation.output.shape)


def _transpose(emission: Emission, equation: Equation) -> str:
    return emission.transposed(emission.operand(equation, 0), equation.params["permutation"])


def _broadcast(emission: Emission, equation: Equation) -> str:
    x, shape = equation.operands[0], equation.output.shape
    sizes = [1] * len(shape)
    for axis, size in zip(equation.params["broadcast_dimensions"], x.shape, strict=True):
        sizes[axis] = size
    reshaped = emission.reshaped(emission.operand(equation, 0), sizes)
    return reshaped if tuple(sizes) == shape else emission.add("Expand", [reshaped, emission.integers(shape)])


def _concatenate(emission: Emission, equation: Equation) -> str:
    return emission.add("Concat", emission.operands(equation), axis=equation.params["dimension"])


def _slice(emission: Emission, equation: Equation) -> str:
    params, rank = equation.params, len(equation.output.shape)
    limits = (params["start_indices"], params["limit_indices"], range(rank), params["strides"] or (1,) * rank)
    return emission.add("Slice", [emission.operand(equation, 0), *map(emission.integers, limits)])


def _pad(emission: Emission, equation: Equation) -> str:
    low, high, interior = zip(*equation.params["padding_config"], strict=True)
    if any(interior) or isinstance(equation.operands[1], Node):
        raise refused(equation, "only constants around an array can be, not between its entries")
    x, value = emission.operands(equation)
    return emission.add("Pad", [x, emission.integers((*low, *high)), value])


def _moved(emission: Emission, equation: Equation) -> str:
    """A primitive that only moves entries, by their numbers."""
    (x,) = equation.bounded
    size = math.prod(x.shape)
    if equation.positions != (0,) or size >= _MOST_ENTRIES:
        raise refused(equation, "where its entries come from is not known")
    places = np.asarray(equation.evaluate(jnp.arange(size, dtype=x.dtype).reshape(x.shape)))
    later = np.asarray(equation.evaluate(jnp.arange(1, size + 1, dtype=x.dtype).reshape(x.shape)))
    if not np.array_equal(places + 1, later):
        raise refused(equation, "some of its entries do not come from its operand")
    flat = emission.reshaped(emission.names[x.index], (size,))
    return emission.add("Gather", [flat, emission.constant(places.astype(np.int64))], axis=0)


def _reduction(operator: str) -> Emitter:
    def emit(emission: Emission, equation: Equation) -> str:
        x, axes = emission.operand(equation, 0), list(equation.params["axes"])
        if operator == "ReduceSum":
            return emission.add(operator, [x, emission.integers(axes)], keepdims=0, noop_with_empty_axes=1)
        return emission.add(operator, [x], axes=axes, keepdims=0)

    return emit


def _cumulative_sum(emission: Emission, equation: Equation) -> str:
    axis = emission.constant(np.array(equation.params["axis"], np.int64))
    return emission.add("CumSum", [emission.operand(equation, 0), axis], reverse=int(equation.params["reverse"]))


def _convert(emission: Emission, equation: Equation) -> str:
    if equation.output.dtype != jnp.float32:
        raise refused(equation, "files are in float32")
    return emission.add("Cast", emission.operands(equation), to=TensorProto.FLOAT)


EMITTERS: Mapping[str, Emitter] = {
    "abs": _named("Abs"),
    "add": _named("Add"),
    "add_any": _named("Add"),
    "atan": _named("Atan"),
    "broadcast_in_dim": _broadcast,
    "celu": _with_alpha("Celu"),
    "clamp": _clamp,
    "clip": _clip,
    "concatenate": _concatenate,
    "convert_element_type": _convert,
    "copy": _named("Identity"),
    "cumsum": _cumulative_sum,
    "div": _named("Div"),
    "dynamic_slice": _moved,
    "elu": _with_alpha("Elu"),
    "erf": _named("Erf"),
    "exp": _named("Exp"),
    "exp2": _composed(lambda emission, x: emission.add("Exp", [_scaled(emission, x, math.log(2))])),
    "expand_dims": _reshape,
    "gather": _moved,
    "gelu": _composed(_gelu),
    "gelu_tanh": _composed(_gelu_tanh),
    "hard_silu": _composed(_hard_silu),
    "hard_tanh": _composed(lambda emission, x: _clipped(emission, x, emission.constant(-1.0), emission.constant(1.0))),
    "integer_pow": _integer_power,
    "leaky_relu": _leaky_relu,
    "log": _named("Log"),
    "logistic": _named("Sigmoid"),
    "max": _maximum,
    "min": _named("Min"),
    "mish": _composed(_mish),
    "mul": _named("Mul"),
    "neg": _named("Neg"),
    "pad": _pad,
    "pow": _named("Pow"),
    "reduce_max": _reduction("ReduceMax"),
    "reduce_min": _reduction("ReduceMin"),
    "reduce_sum": _reduction("ReduceSum"),
    "relu6": _composed(_relu6),
    "reshape": _reshape,
    "rev": _moved,
    "rsqrt": _composed(lambda emission, x: emission.add("Reciprocal", [emission.add("Sqrt", [x])])),
    "select_n": _select,
    "selu": _named("Selu"),
    "silu": _composed(lambda emission, x: emission.add("Mul", [x, emission.add("Sigmoid", [x])])),
    "slice": _slice,
    "soft_sign": _named("Softsign"),
    "softplus": _named("Softplus"),
    "sqrt": _named("Sqrt"),
    "square": _composed(lambda emission, x: emission.add("Mul", [x, x])),
    "squeeze": _reshape,
    "sub": _named("Sub"),
    "tanh": _named("Tanh"),
    "tile": _moved,
    "transpose": _transpose,
    **linear_emitters.EMITTERS,
}
