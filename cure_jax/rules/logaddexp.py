"""log(exp(x) + exp(y)) of two operands, by the softplus of their difference.

logaddexp(x, y) = y + softplus(x - y). So the lines of softplus on the box of x - y are lines of logaddexp, and its
interval is that of a function that rises with both operands.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

from cure_jax.graph import Equation, Node
from cure_jax.regions import Interval
from cure_jax.rules.curves import rule
from cure_jax.rules.registry import LinearMap, Nonlinear, Relaxation, elementwise_map, register
from cure_jax.rules.smooth import CURVES

__all__: list[str] = []

_SOFTPLUS = rule(CURVES["softplus"])


def _softplus(equation: Equation) -> Equation:
    """Of the difference of the two operands: logaddexp(x, y) = y + softplus(x - y)."""
    return dataclasses.replace(equation, name="softplus", operands=(equation.output,), bind=jax.nn.softplus)


def _operands(equation: Equation, intervals: Sequence[Interval]) -> tuple[Interval, Interval]:
    """The boxes of both operands, of width 0 for a constant."""
    remaining = iter(intervals)
    one, other = (next(remaining) if isinstance(x, Node) else Interval(x, x) for x in equation.operands)
    return one, other


def _difference(equation: Equation, intervals: Sequence[Interval]) -> Interval:
    x, y = _operands(equation, intervals)
    return Interval(x.lower - y.upper, x.upper - y.lower)


def _logaddexp_interval(equation: Equation, *intervals: Interval) -> Interval:
    """It rises with both operands."""
    x, y = _operands(equation, intervals)
    info = jnp.finfo(equation.output.dtype)
    lower, upper = (_logaddexp(a, b) for a, b in ((x.lower, y.lower), (x.upper, y.upper)))
    rounding = lambda value: lax.stop_gradient(4 * info.eps * (1 + jnp.abs(value)))  # noqa: E731
    room = [jnp.where(jnp.isfinite(value), rounding(value), 0) for value in (lower, upper)]
    return Interval(lower - room[0], upper + room[1])


def _logaddexp(x: jax.Array, y: jax.Array) -> jax.Array:
    """With finite derivatives, also where both are infinite."""
    both = jnp.isinf(x) & (x == y)
    x, y = jnp.where(both, 0, x), jnp.where(both, lax.stop_gradient(x), y)
    return jnp.where(both, y, jnp.logaddexp(x, jnp.where(both, 0, y)))


def _logaddexp_relax(equation: Equation, intervals: Sequence[Interval], alpha: jax.Array | None) -> Relaxation:
    lines = _SOFTPLUS.relax(_softplus(equation), [_difference(equation, intervals)], alpha)
    image, (x, y) = _logaddexp_interval(equation, *intervals), _operands(equation, intervals)

    def line(line: LinearMap, end: jax.Array) -> LinearMap:
        assert line.slopes is not None
        slopes = line.slopes[0], 1 - line.slopes[0]
        # What a constant contributes is part of the intercept.
        known = sum(
            slope * operand.lower
            for slope, operand, given in zip(slopes, (x, y), equation.operands, strict=True)
            if not isinstance(given, Node)
        )
        intercept = line.intercept + known
        usable = jnp.isfinite(intercept)
        kept = [jnp.where(usable, slopes[position], 0) for position in equation.positions]
        return elementwise_map(kept, jnp.where(usable, intercept, end))

    return Relaxation(line(lines.lower, image.lower), line(lines.upper, image.upper))


def _logaddexp_start(equation: Equation, intervals: Sequence[Interval]) -> jax.Array:
    assert _SOFTPLUS.start is not None
    return _SOFTPLUS.start(_softplus(equation), [_difference(equation, intervals)])


def _logaddexp_undecided(equation: Equation, intervals: Sequence[Interval]) -> tuple[jax.Array, ...]:
    difference = _difference(equation, intervals)
    return (difference.lower < difference.upper,) * len(intervals)


# Its derivatives are positive and sum to 1.
register(
    "logaddexp",
    Nonlinear(_logaddexp_interval, _logaddexp_relax, lambda equation: 1.0, _logaddexp_start, _logaddexp_undecided),
)
