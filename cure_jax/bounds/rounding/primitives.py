"""What rounding has to know of each primitive: how many terms its sums have, or on which pieces it is linear."""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from cure_jax.graph import Equation
from cure_jax.regions import Interval

__all__ = ["MOVES", "SELECTIONS", "TERMS", "VERTICES", "Terms"]


class Terms(NamedTuple):
    """How often numbers are rounded in an equation, at most.

    Attributes:
      forward: in an entry of the output, a sum of so many products.
      backward: in a coefficient of an operand, when coefficients are pulled back; 0 if they are copied.
    """

    forward: int
    backward: int


def _of_product(equation: Equation) -> Terms:
    position, numbers = 1 - equation.positions[0], equation.params["dimension_numbers"]
    (weights,) = equation.constants
    contracted, shared = (math.prod(weights.shape[i] for i in axes[position]) for axes in numbers)
    return Terms(contracted, weights.size // max(1, contracted * shared))


def _of_convolution(equation: Equation) -> Terms:
    kernel, numbers = equation.operands[1].shape, equation.params["dimension_numbers"]
    size, outputs, inputs = (max(1, n) for n in (math.prod(kernel), *(kernel[i] for i in numbers.rhs_spec[:2])))
    if equation.positions == (1,):
        # Each weight meets every entry of its channel.
        return Terms(size // outputs, math.prod(equation.output.shape) // outputs)
    return Terms(size // outputs, size // inputs)


def _of_window(equation: Equation) -> Terms:
    size = math.prod(equation.params["window_dimensions"])
    return Terms(size, size)


def _of_prefixes(equation: Equation) -> Terms:
    size = equation.output.shape[equation.params["axis"]]
    return Terms(size, size)


def _of_reduction(equation: Equation) -> Terms:
    return Terms(math.prod(equation.bounded[0].shape) // max(1, math.prod(equation.output.shape)), 0)


def _of_addition(equation: Equation) -> Terms:
    return Terms(len(equation.bounded), 0)


def _of_scaling(equation: Equation) -> Terms:
    del equation
    return Terms(1, 1)


def _of_move(equation: Equation) -> Terms:
    """A coefficient is the sum of those of all copies of its entry."""
    size, copies = math.prod(equation.bounded[0].shape), math.prod(equation.output.shape)
    if equation.name in ("broadcast_in_dim", "tile"):
        return Terms(1, copies // max(1, size) - 1)
    return Terms(1, copies if equation.name == "gather" else 0)


def _of_scatter(equation: Equation) -> Terms:
    """Of what is added, all may meet in one entry; coefficients are copied, or change their sign."""
    added = math.prod(equation.operands[2].shape)
    return Terms(1 if equation.name == "scatter" else 1 + added, 0)


def _of_selection(equation: Equation) -> Terms:
    """An entry may be selected by every window that it is in, with coefficients of both signs."""
    windows = equation.params.get("window_dimensions")
    return Terms(1, 0 if windows is None else 1 + math.prod(windows))


# They copy entries, or put constants beside them: exact, and non-decreasing in every operand.
MOVES = (
    *("broadcast_in_dim", "concatenate", "convert_element_type", "copy", "dynamic_slice", "dynamic_update_slice"),
    *("expand_dims", "gather", "pad", "reshape", "rev", "select_n", "slice", "squeeze", "stack", "tile", "transpose"),
)
TERMS: Mapping[str, Callable[[Equation], Terms]] = {
    **dict.fromkeys(MOVES, _of_move),
    **dict.fromkeys(("add", "add_any", "sub", "neg"), _of_addition),
    **dict.fromkeys(("mul", "div"), _of_scaling),
    "dot_general": _of_product,
    "conv_general_dilated": _of_convolution,
    "reduce_sum": _of_reduction,
    "reduce_window_sum": _of_window,
    "cumsum": _of_prefixes,
    **dict.fromkeys(("scatter", "scatter-add", "scatter-sub"), _of_scatter),
}
# Their lines select an entry, or are constant: exact whatever the entries are.
SELECTIONS: Mapping[str, Callable[[Equation], Terms]] = dict.fromkeys(
    ("reduce_max", "reduce_min", "reduce_window_max", "reduce_window_min"), _of_selection
)

# A value of each bounded operand, `[*output]`.
Point = tuple[jax.Array, ...]


def _with_kinks(x: Interval, kinks: Sequence[jax.Array]) -> list[Point]:
    return [(x.lower,), (x.upper,), *((jnp.clip(kink, x.lower, x.upper),) for kink in kinks)]


def _where_equal(equation: Equation, operands: Sequence[Interval]) -> list[Point]:
    """Of the maximum or minimum of a bounded operand and a constant, or of two bounded ones."""
    if len(operands) == 1:
        kinks = [jnp.broadcast_to(constant, equation.output.shape) for constant in equation.constants]
        return _with_kinks(operands[0], kinks)
    x, y = operands
    low, high = jnp.maximum(x.lower, y.lower), jnp.minimum(x.upper, y.upper)
    # In a box without such points a corner takes their place.
    meet = low <= high
    corners = list(itertools.product((x.lower, x.upper), (y.lower, y.upper)))
    return [*corners, *((jnp.where(meet, t, x.lower), jnp.where(meet, t, y.lower)) for t in (low, high))]


def _at_zero(equation: Equation, operands: Sequence[Interval]) -> list[Point]:
    return _with_kinks(operands[0], [equation.output.zeros()])


def _at_limits(equation: Equation, operands: Sequence[Interval]) -> list[Point]:
    """Of min(max(x, a), b): its least and its greatest value."""
    largest = jnp.full(equation.output.shape, jnp.finfo(equation.output.dtype).max, equation.output.dtype)
    return _with_kinks(operands[0], [equation.evaluate(-largest), equation.evaluate(largest)])


# Elementwise functions that are linear on polytopes: their vertices, in a box. There a linear function differs most
# from them.
VERTICES: Mapping[str, Callable[[Equation, Sequence[Interval]], list[Point]]] = {
    **dict.fromkeys(("max", "min"), _where_equal),
    **dict.fromkeys(("abs", "leaky_relu"), _at_zero),
    **dict.fromkeys(("clamp", "clip", "relu6", "hard_tanh"), _at_limits),
}
