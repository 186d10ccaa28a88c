"""`jnp.where` with a comparison that depends on the input: `graph` records it as one of two equations.

* `piecewise_linear`: one straight piece left of a kink and another right of it, as `jnp.where(x > 0, x, 0.1 * x)`. They
  need not meet. On a box [l, u] around the kink k the function lies on two segments, so a line is below all of it if it
  is below their four ends; the intercept is the least that these ask for, whatever the slope is. Where the lower one of
  the two ends at k lies below the chord, the lines through it from that to l and that to u are faces of the convex
  hull, and alpha mixes them; else the chord is the only face.
* `where`: any other two cases. Where the comparison has one outcome on the box it is that case; elsewhere all that is
  known is that it is one of them.

Source: Singh et al., "An Abstract Domain for Certifying Neural Networks" (DeepPoly), POPL 2019, Section 4 (the hull of
a function with one kink).
"""

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from cure_jax.graph import Equation, Node
from cure_jax.regions import Interval
from cure_jax.rules.registry import LinearMap, Nonlinear, Relaxation, elementwise_map, register

__all__: list[str] = []

_NARROWEST = 1e-16


class _Pieces(NamedTuple):
    """Two straight pieces: slope and intercept left of the kink and right of it."""

    kink: jax.Array
    left: tuple[jax.Array, jax.Array]
    right: tuple[jax.Array, jax.Array]

    @property
    def negated(self) -> "_Pieces":
        left, right = ((-slope, -intercept) for slope, intercept in (self.left, self.right))
        return _Pieces(self.kink, left, right)


def _pieces(equation: Equation) -> _Pieces:
    node = equation.output
    kink = jnp.broadcast_to(jnp.asarray(equation.constants[0], node.dtype), node.shape)

    def straight(piece) -> tuple[jax.Array, jax.Array]:
        intercept, slope = jax.jvp(piece, (node.zeros(),), (jnp.ones(node.shape, node.dtype),))
        return slope, intercept

    left, right = map(straight, equation.params["pieces"])
    return _Pieces(kink, left, right)


def _at(piece: tuple[jax.Array, jax.Array], x: jax.Array) -> jax.Array:
    """The value of a straight piece, its intercept where it is flat and x infinite."""
    slope, intercept = piece
    return slope * jnp.where(slope == 0, 0, x) + intercept


def _decided(pieces: _Pieces, x: Interval) -> tuple[jax.Array, jax.Array]:
    return x.upper < pieces.kink, x.lower > pieces.kink


def _corners(pieces: _Pieces, x: Interval) -> jax.Array:
    """The values at the ends of both segments, `[4, *output]`; those of one piece where there is no other."""
    on_left, on_right = _decided(pieces, x)
    kink = jnp.where(on_left, x.upper, jnp.where(on_right, x.lower, pieces.kink))
    first, last = (jnp.where(on_right, x.upper, x.lower), kink), (kink, jnp.where(on_left, x.lower, x.upper))
    left = [jnp.where(on_right, _at(pieces.right, end), _at(pieces.left, end)) for end in first]
    right = [jnp.where(on_left, _at(pieces.left, end), _at(pieces.right, end)) for end in last]
    return jnp.stack([*left, *right])


def _interval(equation: Equation, x: Interval) -> Interval:
    corners = _corners(_pieces(equation), x)
    return Interval(jnp.min(corners, axis=0), jnp.max(corners, axis=0))


def _relax(equation: Equation, intervals: Sequence[Interval], alpha: jax.Array | None) -> Relaxation:
    (x,), pieces = intervals, _pieces(equation)
    alpha = _start(equation, intervals) if alpha is None else alpha
    image = _interval(equation, x)
    lower, upper = _below(pieces, x, alpha), _below(pieces.negated, x, alpha)

    def line(slope: jax.Array, intercept: jax.Array, end: jax.Array) -> LinearMap:
        usable = jnp.isfinite(slope) & jnp.isfinite(intercept)
        return elementwise_map((jnp.where(usable, slope, 0),), jnp.where(usable, intercept, end))

    return Relaxation(line(*lower, image.lower), line(-upper[0], -upper[1], image.upper))


def _below(pieces: _Pieces, x: Interval, alpha: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Slope and intercept of a line below, no numbers where the box or what is on it is infinite."""
    (p, s), (q, t), kink = pieces.left, pieces.right, pieces.kink
    on_left, on_right = _decided(pieces, x)
    finite = jnp.isfinite(x.lower) & jnp.isfinite(x.upper)
    across = finite & ~on_left & ~on_right & jnp.isfinite(kink)
    lower, upper, kink = (jnp.where(across, value, 0) for value in (x.lower, x.upper, kink))
    width = upper - lower
    at_left, at_right = p * kink + s, q * kink + t
    lowest = jnp.minimum(at_left, at_right)

    def per(difference: jax.Array, width: jax.Array) -> jax.Array:
        # In narrower boxes any slope serves as well.
        wide = width > _NARROWEST
        return jnp.where(wide, difference / jnp.where(wide, width, 1), 0)

    # From the lowest end at the kink to both ends of the box.
    first, last = p - per(at_left - lowest, kink - lower), q + per(at_right - lowest, upper - kink)
    share = per(kink - lower, width)
    chord = share * p + (1 - share) * q + per(at_right - at_left, width)
    slope = jnp.where(first <= last, (1 - alpha) * first + alpha * last, chord)
    ends = p * lower + s - slope * lower, q * upper + t - slope * upper
    corners = jnp.stack([*ends, lowest - slope * kink])
    slope, intercept = jnp.where(across, slope, math.nan), jnp.min(corners, axis=0)
    for decided, piece in ((on_left, pieces.left), (on_right, pieces.right)):
        slope, intercept = jnp.where(decided, piece[0], slope), jnp.where(decided, piece[1], intercept)
    return slope, intercept


def _start(equation: Equation, intervals: Sequence[Interval]) -> jax.Array:
    """Of the two lines through the kink that which leaves the least area."""
    (x,), kink = intervals, _pieces(equation).kink
    return (x.upper - kink > kink - x.lower).astype(kink.dtype)


def _undecided(equation: Equation, intervals: Sequence[Interval]) -> tuple[jax.Array, ...]:
    (x,) = intervals
    on_left, on_right = _decided(_pieces(equation), x)
    return (~on_left & ~on_right & (x.lower < x.upper),)


def _lipschitz(equation: Equation) -> jax.Array:
    """The steeper slope, if the pieces meet."""
    pieces = _pieces(equation)
    (p, s), (q, t), kink = pieces.left, pieces.right, pieces.kink
    known = jnp.where(jnp.isfinite(kink), kink, 0)
    # The same number: a jump as small as a rounding is a jump.
    meet = p * known + s == q * known + t
    steepest = jnp.maximum(jnp.abs(p), jnp.abs(q))
    return jnp.max(jnp.where(meet & ~jnp.isnan(kink), steepest, math.inf), initial=0)


_BLENDED = Nonlinear(_interval, _relax, _lipschitz, _start, _undecided, blends=True)
register("piecewise_linear", _BLENDED)


class _Where(NamedTuple):
    """The boxes of the operands of `where`, and where the comparison is known to be false or true."""

    cases: tuple[Interval, Interval]
    is_false: jax.Array
    is_true: jax.Array

    @property
    def unknown(self) -> jax.Array:
        return ~(self.is_false | self.is_true)


def _where(equation: Equation, intervals: Sequence[Interval]) -> _Where:
    remaining, node = iter(intervals), equation.output
    boxes = []
    for operand in equation.operands:
        if isinstance(operand, Node):
            boxes.append(next(remaining))
        else:
            value = jnp.broadcast_to(operand, node.shape)
            boxes.append(Interval(value, value))
    left, right, *cases = boxes
    if equation.params["comparison"] in ("lt", "le"):
        left, right = right, left
    # Now the question is whether the left one is greater, which counts as open where they may be equal.
    return _Where((cases[0], cases[1]), left.upper < right.lower, left.lower > right.upper)


def _where_interval(equation: Equation, *intervals: Interval) -> Interval:
    where = _where(equation, intervals)
    one, other = where.cases
    lower, upper = jnp.minimum(one.lower, other.lower), jnp.maximum(one.upper, other.upper)
    for known, case in ((where.is_false, one), (where.is_true, other)):
        lower, upper = jnp.where(known, case.lower, lower), jnp.where(known, case.upper, upper)
    return Interval(lower, upper)


def _where_relax(equation: Equation, intervals: Sequence[Interval], alpha: jax.Array | None) -> Relaxation:
    del alpha
    where, image = _where(equation, intervals), _where_interval(equation, *intervals)
    nothing = equation.output.zeros()
    slopes = [nothing, nothing, where.is_false.astype(nothing.dtype), where.is_true.astype(nothing.dtype)]
    slopes = [slopes[position] for position in equation.positions]
    # A case that is a constant is the intercept.
    known = nothing
    for position, chosen in ((2, where.is_false), (3, where.is_true)):
        if not isinstance(equation.operands[position], Node):
            known = jnp.where(chosen, where.cases[position - 2].lower, known)
    ends = (jnp.where(where.unknown, end, known) for end in (image.lower, image.upper))
    lower, upper = (elementwise_map(slopes, end) for end in ends)
    return Relaxation(lower, upper)


def _where_undecided(equation: Equation, intervals: Sequence[Interval]) -> tuple[jax.Array, ...]:
    return (_where(equation, intervals).unknown,) * len(intervals)


def _unbounded(equation: Equation) -> float:
    del equation
    return math.inf


register("where", Nonlinear(_where_interval, _where_relax, _unbounded, undecided=_where_undecided))


def _defined(equation: Equation, intervals: Sequence[Interval]) -> tuple[Interval, jax.Array]:
    """The box of the value, and whether all that it rests on is known to be numbers."""
    (value, *_), tops = equation.operands, list(intervals)
    known = tops.pop(0) if isinstance(value, Node) else Interval(value, value)
    finite = [jnp.isfinite(top.lower) & jnp.isfinite(top.upper) for top in tops]
    return known, functools.reduce(jnp.logical_and, finite)


def _defined_interval(equation: Equation, *intervals: Interval) -> Interval:
    value, is_known = _defined(equation, intervals)
    return Interval(jnp.where(is_known, value.lower, -jnp.inf), jnp.where(is_known, value.upper, jnp.inf))


def _defined_relax(equation: Equation, intervals: Sequence[Interval], alpha: jax.Array | None) -> Relaxation:
    del alpha
    value, is_known = _defined(equation, intervals)
    is_node = isinstance(equation.operands[0], Node)
    slopes = [jnp.zeros_like(value.lower) for _ in intervals]
    if is_node:
        slopes[0] = is_known.astype(value.dtype)
    intercept = jnp.zeros_like(value.lower) if is_node else value.lower
    ends = (jnp.where(is_known, intercept, otherwise) for otherwise in (-jnp.inf, jnp.inf))
    lower, upper = (elementwise_map(slopes, end) for end in ends)
    return Relaxation(lower, upper)


register("defined", Nonlinear(_defined_interval, _defined_relax, _unbounded))
