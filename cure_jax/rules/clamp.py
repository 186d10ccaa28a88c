"""min(max(x, a), b) with constant limits a <= b: ReLU6, hard tanh, clipping.

The function is convex left of b and concave right of a. On a box [l, u] it lies below the chord through the ends if
u <= b, and else below every line through (b, b) that is above (l, f(l)) and not falling; above it the same, turned
around. These are the faces of its convex hull.
Source: Singh et al., "An Abstract Domain for Certifying Neural Networks", POPL 2019, Section 4 (the hull of a function
with one kink, here once for each kink).
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from cure_jax.graph import Equation
from cure_jax.regions import Interval
from cure_jax.rules.registry import Nonlinear, Relaxation, elementwise_map, register

__all__: list[str] = []

_NARROWEST = 1e-16
# The limits of functions that have none among their operands.
_LIMITS = {"relu6": (0.0, 6.0), "hard_tanh": (-1.0, 1.0)}


def _limits(equation: Equation) -> tuple[jax.Array, jax.Array]:
    constants = equation.constants
    node = equation.output
    low, high = (
        jnp.broadcast_to(jnp.asarray(limit, node.dtype), node.shape)
        for limit in _LIMITS.get(equation.name) or constants
    )
    # Where the limits cross, the upper one wins.
    return jnp.minimum(low, high), high


def _interval(equation: Equation, x: Interval) -> Interval:
    return Interval(equation.evaluate(x.lower), equation.evaluate(x.upper))


def _relax(equation: Equation, intervals: Sequence[Interval], alpha: jax.Array | None) -> Relaxation:
    (x,), (low, high) = intervals, _limits(equation)
    alpha = _start(equation, intervals) if alpha is None else alpha
    below = _below(x.lower, x.upper, low, high, alpha)
    # Turned around, -clamp(-x, -b, -a) is the same function.
    slope, intercept = _below(-x.upper, -x.lower, -high, -low, alpha)
    return Relaxation(elementwise_map((below[0],), below[1]), elementwise_map((slope,), -intercept))


def _below(
    lower: jax.Array, upper: jax.Array, low: jax.Array, high: jax.Array, alpha: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Slope and intercept of a line below.

    Soundness:
      For lower < a < upper, the line through (a, a) with a slope in [0, s], s that of the line from there to
      (upper, f(upper)), is at most a left of a, and right of it at most the chord of a concave function. Otherwise the
      function is concave on the box, and its chord lies below it; the intercept is the lesser of what the ends ask
      for, whatever rounding makes of the slope.
    """
    kink = (lower < low) & (low < upper)
    bottom, top = jnp.clip(lower, low, high), jnp.clip(upper, low, high)
    # Where a box is wide, the part of it between the limits may be all of it, or next to nothing.
    scale = jnp.where(jnp.maximum(upper, -lower) > jnp.finfo(lower.dtype).max / 4, 0.25, 1).astype(lower.dtype)
    width = scale * upper - scale * jnp.where(kink, low, lower)
    # In boxes so narrow that the derivative of a quotient overflows, a line of slope 0 serves as well.
    wide = width > _NARROWEST
    steepest = jnp.where(wide, jnp.clip(scale * (top - bottom) / jnp.where(wide, width, 1), 0, 1), 0)
    rising = (scale * low - scale * lower) < width
    inside = ((lower >= low) & (upper <= high)).astype(lower.dtype)
    chord = jnp.where(width > 0, jnp.where(inside > 0, 1, steepest), inside)
    slope = jnp.where(kink, steepest * jnp.where(rising, alpha, 1 - alpha), chord)
    flat = slope == 0
    ends = jnp.minimum(bottom - slope * jnp.where(flat, 0, lower), top - slope * jnp.where(flat, 0, upper))
    through_kink = jnp.where(jnp.isfinite(low), low, 0)
    return slope, jnp.where(kink, through_kink - slope * through_kink, ends)


def _start(equation: Equation, intervals: Sequence[Interval]) -> jax.Array:
    """Of each line the steepest or the flattest, whichever leaves the least area."""
    del intervals
    return jnp.ones(equation.output.shape, equation.output.dtype)


def _undecided(equation: Equation, intervals: Sequence[Interval]) -> tuple[jax.Array, ...]:
    (x,), limits = intervals, _limits(equation)
    low, high = ((x.lower < limit) & (limit < x.upper) for limit in limits)
    return (low | high,)


def _lipschitz(equation: Equation) -> float:
    del equation
    return 1.0


def _limits_are_constant(equation: Equation) -> bool:
    position = 1 if equation.name == "clamp" else 0
    return equation.positions == (position,) and equation.bounded[0].shape == equation.output.shape


register(
    ("clamp", "clip", "relu6", "hard_tanh"),
    Nonlinear(_interval, _relax, _lipschitz, _start, _undecided, blends=True),
    when=_limits_are_constant,
    otherwise="a limit depends on the input; use jnp.maximum and jnp.minimum",
)
