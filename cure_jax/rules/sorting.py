"""Sorting along an axis: entry i of the result is the i-th smallest value.

It rises with every operand, so it lies between the i-th smallest lower and the i-th smallest upper limit. Where the box
of one operand is apart from all others, the operands below it and above it are known, and so is its place: there the
result IS that operand. Elsewhere the lines are the ends of the interval.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

from cure_jax.graph import Equation
from cure_jax.regions import Interval
from cure_jax.rules.registry import LinearMap, Nonlinear, Relaxation, register

__all__: list[str] = []


def _known(x: Interval) -> Interval:
    """Without limits that are no numbers: sorted to the end, they would stand for the greatest."""
    return Interval(
        *(jnp.where(jnp.isnan(end), other, end) for end, other in ((x.lower, -jnp.inf), (x.upper, jnp.inf)))
    )


def _interval(equation: Equation, x: Interval) -> Interval:
    x = _known(x)
    return Interval(equation.evaluate(x.lower), equation.evaluate(x.upper))


def _places(equation: Equation, x: Interval) -> tuple[jax.Array, jax.Array]:
    """Which operand has which place among the lower limits, and where it has that place for all points of the box."""
    x, axis = _known(x), equation.params["dimension"]
    order = jnp.argsort(x.lower, axis=axis)
    lower, upper = (jnp.take_along_axis(end, order, axis=axis) for end in (x.lower, x.upper))
    # The greatest upper limit of those before, and the least lower limit of those behind.
    before, behind = _shifted(lax.cummax(upper, axis), axis, 1, -jnp.inf), _shifted(lower, axis, -1, jnp.inf)
    return order, (before <= lower) & (upper <= behind)


def _shifted(x: jax.Array, axis: int, by: int, fill: float) -> jax.Array:
    padding = [(0, 0, 0)] * x.ndim
    padding[axis] = (by, -by, 0)
    return lax.pad(x, jnp.asarray(fill, x.dtype), padding)


def _relax(equation: Equation, intervals: Sequence[Interval], alpha: jax.Array | None) -> Relaxation:
    del alpha
    (x,), axis = intervals, equation.params["dimension"]
    image = _interval(equation, x)
    order, decided = _places(equation, x)

    def entries(value: jax.Array) -> jax.Array:
        return jnp.where(decided, jnp.take_along_axis(value, order, axis=axis), 0)

    _, pull = jax.vjp(entries, x.lower)
    lower, upper = (LinearMap(pull, jnp.where(decided, 0, end)) for end in (image.lower, image.upper))
    return Relaxation(lower, upper)


def _undecided(equation: Equation, intervals: Sequence[Interval]) -> tuple[jax.Array, ...]:
    (x,), axis = intervals, equation.params["dimension"]
    order, decided = _places(equation, x)
    back = jnp.argsort(order, axis=axis)
    return (~jnp.take_along_axis(decided, back, axis=axis),)


def _lipschitz(equation: Equation) -> float:
    """Among all orders of two lists of numbers the sorted ones are the nearest to each other."""
    del equation
    return 1.0


def _one_array(equation: Equation) -> bool:
    return len(equation.operands) == 1


register(
    "sort",
    Nonlinear(_interval, _relax, _lipschitz, undecided=_undecided),
    when=_one_array,
    otherwise="which entry it selects depends on the input",
)
