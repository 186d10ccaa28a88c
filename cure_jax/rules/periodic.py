"""Sine and cosine: sin(x + phase), whose distance from a line has its extrema where they are known.

For a slope s in [-1, 1], sin(x + phase) - s x is least on a box at an end of it or where the derivative rises through
0: at x_k = -arccos(s) - phase + 2 pi k, whose values fall or rise with k as s is positive or negative. So the
intercept of a lower line is known for EVERY slope. The slope is that of the line below the function which is highest at
a point p of the box, a face of its convex hull; it is bisected, as the point where the line touches moves left as s
falls. Alpha moves p over the box. Upper lines are minus lower lines of sin(x + phase + pi).
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from cure_jax.graph import Equation
from cure_jax.regions import Interval
from cure_jax.rules.registry import LinearMap, Nonlinear, Relaxation, elementwise_map, register

__all__: list[str] = []

_PHASES = {"sin": 0.0, "cos": math.pi / 2}
_SEARCH_STEPS = 24
# Beyond, rounding moves the arguments of sine and cosine too far to say where they turn.
_FARTHEST = 1e3
# In units of the machine epsilon: of values, and of arguments, which pass it on with slopes up to 1.
_ROUNDING = 8


class _Box(NamedTuple):
    """Limits that are known and not far from 0, and what is lower than sin(x + phase) on them."""

    lower: jax.Array
    upper: jax.Array
    phase: float

    def clip(self, x: jax.Array) -> jax.Array:
        return jnp.clip(x, self.lower, self.upper)

    def lowest(self, slope: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The least value of sin(x + phase) - slope x on the box, and where it is taken."""
        first = -jnp.arccos(jnp.clip(slope, -1, 1)) - self.phase
        # The last such point of the box, or the first one; rounding may take it for one of its neighbours.
        nearest = jnp.where(slope > 0, self.upper, self.lower)
        turn = jnp.round((nearest - first) / (2 * math.pi))
        turns = [self.clip(first + 2 * math.pi * (turn + shift)) for shift in (-1, 0, 1)]
        points = lax.stop_gradient(jnp.stack([self.lower, self.upper, *turns]))
        least = jnp.argmin(jnp.sin(points + self.phase) - slope[None] * points, axis=0)[None]
        # At an end it moves with the box; where the derivative is 0 it may as well stand still.
        points = jnp.stack([self.lower, self.upper, *lax.stop_gradient(turns)])
        point = jnp.take_along_axis(points, least, axis=0)[0]
        return jnp.sin(point + self.phase) - slope * point, point


def _box(x: Interval, phase: float) -> tuple[jax.Array, _Box]:
    """Where a box is near enough, and the box there."""
    known = (x.lower >= -_FARTHEST) & (x.upper <= _FARTHEST)
    lower, upper = (jnp.where(known, end, 0) for end in (x.lower, x.upper))
    return known, _Box(lower, jnp.maximum(lower, upper), phase)


def _slack(box: _Box) -> jax.Array:
    reach = jnp.maximum(jnp.abs(box.lower), jnp.abs(box.upper))
    return lax.stop_gradient(_ROUNDING * jnp.finfo(reach.dtype).eps * (2 + reach))


def _interval(equation: Equation, x: Interval) -> Interval:
    known, box = _box(x, _PHASES[equation.name])
    zero, slack = equation.output.zeros(), _slack(box)
    below, above = box.lowest(zero)[0], -box._replace(phase=box.phase + math.pi).lowest(zero)[0]
    lower, upper = jnp.maximum(below - slack, -1), jnp.minimum(above + slack, 1)
    return Interval(jnp.where(known, lower, -1), jnp.where(known, upper, 1))


def _relax(equation: Equation, intervals: Sequence[Interval], alpha: jax.Array | None) -> Relaxation:
    (x,) = intervals
    known, box = _box(x, _PHASES[equation.name])
    alpha = _start(equation, intervals) if alpha is None else alpha
    place = box.clip((1 - alpha) * box.lower + alpha * box.upper)

    def line(box: _Box) -> tuple[jax.Array, jax.Array]:
        slope = _slope(box, place)
        return slope, box.lowest(slope)[0]

    def confined(slope: jax.Array, intercept: jax.Array, end: float) -> LinearMap:
        return elementwise_map((jnp.where(known, slope, 0),), jnp.where(known, intercept, end))

    below, above = line(box), line(box._replace(phase=box.phase + math.pi))
    slack = _slack(box)
    return Relaxation(confined(below[0], below[1] - slack, -1), confined(-above[0], slack - above[1], 1))


def _slope(box: _Box, place: jax.Array) -> jax.Array:
    """Of the line below that is highest at a place; with the derivative of the slope there, if it touches there."""

    def halve(_: int, bracket: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        flat, steep = bracket
        middle = (flat + steep) / 2
        left = fixed.lowest(middle)[1] < here
        return jnp.where(left, middle, flat), jnp.where(left, steep, middle)

    fixed, here = lax.stop_gradient((box, place))
    fixed = box._replace(lower=fixed.lower, upper=fixed.upper)
    ends = -jnp.ones_like(here), jnp.ones_like(here)
    flat, steep = lax.fori_loop(0, _SEARCH_STEPS, halve, ends)
    slope, tangent = (flat + steep) / 2, jnp.cos(place + box.phase)
    touches = jnp.abs(slope - tangent) < 1e-3
    return jnp.where(touches, tangent, slope)


def _start(equation: Equation, intervals: Sequence[Interval]) -> jax.Array:
    del intervals
    return jnp.full(equation.output.shape, 0.5, equation.output.dtype)


def _undecided(equation: Equation, intervals: Sequence[Interval]) -> tuple[jax.Array, ...]:
    del equation
    return tuple(x.lower < x.upper for x in intervals)


def _lipschitz(equation: Equation) -> float:
    del equation
    return 1.0


register(("sin", "cos"), Nonlinear(_interval, _relax, _lipschitz, _start, _undecided))
