"""The rule of `cure_jax.custom_bounds`: what the user said, checked for shapes."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from cure_jax.custom import CustomBounds
from cure_jax.graph import Equation, Node
from cure_jax.regions import Interval
from cure_jax.rules.registry import LinearMap, Nonlinear, Relaxation, elementwise_map, register

__all__: list[str] = []


def _bounds(equation: Equation) -> CustomBounds:
    return equation.params["bounds"]


def _arguments(equation: Equation, intervals: Sequence[Interval]) -> list[Interval]:
    """The box of every argument: of width 0 for one that does not depend on the input."""
    remaining = iter(intervals)
    operands = equation.operands[len(equation.operands) - _bounds(equation).arguments :]
    return [next(remaining) if isinstance(operand, Node) else Interval(operand, operand) for operand in operands]


def _interval(equation: Equation, *intervals: Interval) -> Interval:
    image = _mapped(_bounds(equation).interval, _bounds(equation))(*_arguments(equation, intervals))
    if not isinstance(image, Interval) or image.shape != equation.output.shape:
        raise ValueError(
            f"`interval` of custom_bounds returned {_described(image)}; expected an Interval with limits of shape "
            f"{equation.output.shape}, that of the function's result. At {equation.source}."
        )
    return image


def _mapped(function: Any, bounds: CustomBounds) -> Any:
    """Under the `jax.vmap`s that were put around the bounded function."""
    for _ in range(bounds.depth):
        function = jax.vmap(function)
    return function


def _relax(equation: Equation, intervals: Sequence[Interval], alpha: jax.Array | None) -> Relaxation:
    del alpha
    bounds = _bounds(equation)
    if bounds.relax is None:
        image = _interval(equation, *intervals)
        return Relaxation(_constant(equation, image.lower), _constant(equation, image.upper))
    arguments = _arguments(equation, intervals)

    relax_one = bounds.relax

    def relax(*boxes: Interval) -> Any:
        lines = relax_one(*boxes)
        if bounds.depth and any(isinstance(line, LinearMap) for line in lines):
            raise equation.unsupported("under jax.vmap, custom_bounds need slopes and intercepts, not a LinearMap")
        return lines

    lines = _mapped(relax, bounds)(*arguments)
    lower, upper = (_line(equation, line, arguments) for line in lines)
    return Relaxation(lower, upper)


def _constant(equation: Equation, value: jax.Array) -> LinearMap:
    zeros = tuple(node.zeros() for node in equation.bounded)
    if all(node.shape == equation.output.shape for node in equation.bounded):
        return elementwise_map(zeros, value)
    return LinearMap(lambda coefficients: zeros, value)


def _line(equation: Equation, line: Any, arguments: Sequence[Interval]) -> LinearMap:
    if isinstance(line, LinearMap):
        if len(equation.bounded) < len(arguments):
            raise equation.unsupported("a LinearMap of custom_bounds needs arguments that all depend on the input")
        return line
    slopes, intercept = line
    slopes = slopes if isinstance(slopes, tuple | list) else (slopes,)
    if len(slopes) != len(arguments):
        raise ValueError(
            f"`relax` of custom_bounds returned {len(slopes)} slopes; expected one for each of the "
            f"{len(arguments)} arguments. At {equation.source}."
        )
    shape, dtype = equation.output.shape, equation.output.dtype
    operands = equation.operands[len(equation.operands) - len(arguments) :]
    intercept, kept = jnp.broadcast_to(jnp.asarray(intercept, dtype), shape), []
    for slope, argument, operand in zip(slopes, arguments, operands, strict=True):
        slope = jnp.broadcast_to(jnp.asarray(slope, dtype), shape)
        if not isinstance(operand, Node):
            intercept = intercept + slope * argument.lower
        elif operand.shape != shape:
            raise ValueError(
                f"`relax` of custom_bounds returned slopes for an argument of shape {operand.shape} and a result of "
                f"shape {shape}; slopes are for elementwise functions. Return LinearMaps. At {equation.source}."
            )
        else:
            kept.append(slope)
    return elementwise_map(kept, intercept)


def _described(value: Any) -> str:
    return f"limits of shape {value.shape}" if isinstance(value, Interval) else f"{type(value).__name__}"


def _lipschitz(equation: Equation) -> float:
    return float(_bounds(equation).lipschitz)


def _undecided(equation: Equation, intervals: Sequence[Interval]) -> tuple[jax.Array, ...]:
    bounds, arguments = _bounds(equation), _arguments(equation, intervals)
    if bounds.undecided is None:
        return tuple(jnp.ones(node.shape, bool) for node in equation.bounded)
    masks = _mapped(bounds.undecided, bounds)(*arguments)
    operands = equation.operands[len(equation.operands) - len(arguments) :]
    return tuple(mask for mask, operand in zip(masks, operands, strict=True) if isinstance(operand, Node))


def _closes_over_constants(equation: Equation) -> bool:
    """Only arguments depend on the input."""
    closed_over = equation.operands[: len(equation.operands) - _bounds(equation).arguments]
    return not any(isinstance(operand, Node) for operand in closed_over)


register(
    "custom_bounds",
    Nonlinear(_interval, _relax, _lipschitz, undecided=_undecided),
    when=_closes_over_constants,
    otherwise="it closes over a value that depends on the input; make that an argument",
)
