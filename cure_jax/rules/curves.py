"""How a smooth function of one variable is enclosed: everything follows from its derivative and its inflections.

Between two neighbouring inflections a function is convex or concave. The lower line on a box [l, u] touches a convex
piece; upper lines are minus the lower lines of -f, so only those are written down.

* On a convex function every tangent is a lower line. Alpha moves the point of contact over the box.
* Where the box reaches out of the convex piece, the function is concave there, and a line below its two ends is below
  all of it. So the tangent must pass below (l, f(l)), or (u, f(u)), which holds for contacts on one side of a point
  that bisection finds. Alpha moves the contact over what is left.
* If no tangent passes below both ends, the chord is the lower line.

Whatever slope s and contact t were chosen, and however roughly, the intercept is then taken as the least of
f(l) - s l, f(u) - s u, and f(t) + f'(t) (x - t) - s x at both ends of the convex piece: soundness rests on convexity
alone, not on the search.

Sources: Zhang et al., "Efficient Neural Network Robustness Certification with General Activation Functions" (CROWN),
NeurIPS 2018, Table 3 (tangents and chords); Shi et al., "Neural Network Verification with Branch-and-Bound for General
Nonlinearities", TACAS 2025, Section 3 (contacts as parameters).
"""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from cure_jax.graph import Equation
from cure_jax.regions import Interval
from cure_jax.rules.registry import Domain, LinearMap, Nonlinear, Relaxation, elementwise_map

__all__ = ["Curve", "rule"]

Function = Callable[[jax.Array], jax.Array]
# A number where it is known while tracing: then nothing has to be searched for.
End = float | jax.Array
Range = tuple[End, End]

_BOTTOM, _TOP = -math.inf, math.inf
_SEARCH_STEPS = 30
# Beyond this, most functions with inflections are straight up to rounding: bisection of wider boxes starts here.
_CURVED = 64.0
# In narrower boxes, relative to the size of their entries, the chord has the slope of the function in the middle.
_NARROW = 1e-3


class Curve(NamedTuple):
    """An elementwise function of one bounded operand, by its traits.

    Attributes:
      slope: `(equation, x) -> f'(x)`, of small relative error; at a kink any slope between the two. Finite, as are
        its derivatives.
      lipschitz: the largest |f'|.
      inflections: where the curvature changes its sign, ascending: numbers, or `(equation) ->` arrays.
      convex_first: whether the function is convex left of the first one. Of two concave pieces the left one must
        fall, and the function must rise on the right one.
      turns: where the function changes between rising and falling.
      range: the infimum and the supremum of its values: numbers, or `(equation) ->` what broadcasts to the output.
      rounding: how far a computed value may be off, in units of the last place.
      noise: `(equation, x) ->` the same in absolute terms, in units of the machine epsilon; for formulas that cancel.
      scale: 1 if f' changes little within distances far smaller than 1, 0 if only within those far smaller than |x|.
      defined: `(equation, lower, upper) ->` where the traits hold on the box; None: everywhere. Elsewhere nothing is
        known (`registry.Domain`).
      inside: a point where it is defined.
      straight: `(lower, upper) ->` where the function is affine on the box.
      apart: whether no box on which it is defined reaches across an inflection; then nothing is searched for.
    """

    slope: Callable[[Equation, jax.Array], jax.Array]
    lipschitz: float | Callable[[Equation], jax.Array] = math.inf
    inflections: tuple[float, ...] | Callable[[Equation], tuple[jax.Array, ...]] = ()
    convex_first: bool = True
    turns: tuple[float, ...] = ()
    range: Range | Callable[[Equation], Range] = (-math.inf, math.inf)
    rounding: float = 4
    noise: Callable[[Equation, jax.Array], jax.Array] = lambda equation, x: jnp.zeros_like(x)
    scale: float = 1.0
    defined: Callable[[Equation, jax.Array, jax.Array], jax.Array] | None = None
    inside: float = 1.0
    straight: Callable[[jax.Array, jax.Array], jax.Array] | None = None
    apart: bool = False


def rule(curve: Curve) -> Nonlinear:
    """The rule of a function with these traits."""

    def interval(equation: Equation, *intervals: Interval) -> Interval:
        return _interval(curve, equation, intervals[0])

    def relax(equation: Equation, intervals: Sequence[Interval], alpha: jax.Array | None) -> Relaxation:
        return _relax(curve, equation, intervals, alpha)

    def lipschitz(equation: Equation) -> float | jax.Array:
        return curve.lipschitz(equation) if callable(curve.lipschitz) else curve.lipschitz

    def start(equation: Equation, intervals: Sequence[Interval]) -> jax.Array:
        del intervals
        return jnp.full(equation.output.shape, 0.5, equation.output.dtype)

    def undecided(equation: Equation, intervals: Sequence[Interval]) -> tuple[jax.Array, ...]:
        del equation
        x = intervals[0]
        mask = x.lower < x.upper
        mask = mask & ~curve.straight(x.lower, x.upper) if curve.straight else mask
        return (mask,) * len(intervals)

    def contains(equation: Equation, intervals: Sequence[Interval]) -> jax.Array:
        assert curve.defined is not None
        return curve.defined(equation, intervals[0].lower, intervals[0].upper)

    domain = Domain(contains, curve.inside) if curve.defined else None
    return Nonlinear(interval, relax, lipschitz, start, undecided, domain=domain)


def _function(equation: Equation) -> Function:
    """The function of one variable; both operands of x * x are that one."""
    return lambda x: equation.evaluate(*(x,) * len(equation.bounded))


def _interval(curve: Curve, equation: Equation, x: Interval) -> Interval:
    """The image of the box, outwards by what rounding may have taken.

    Soundness:
      A continuous function takes its extrema at the ends and where it turns.
    """
    points = jnp.stack([x.lower, x.upper, *(jnp.clip(turn, x.lower, x.upper) for turn in curve.turns)])
    values = jax.vmap(_differentiable(curve, equation))(points)
    margins = lax.stop_gradient(jax.vmap(lambda point: _margin(curve, equation, point))(points))
    # A value that overflows has a margin that does, and their difference is no number.
    margins = jnp.where(jnp.isfinite(margins), margins, 0)
    least, greatest = curve.range(equation) if callable(curve.range) else curve.range
    below = jnp.maximum(jnp.min(values - margins, axis=0), least)
    above = jnp.minimum(jnp.max(values + margins, axis=0), greatest)
    # What overflows is beyond the largest number, not beyond all.
    largest = jnp.finfo(values.dtype).max
    below = jnp.where(jnp.isnan(below), -math.inf, jnp.minimum(below, largest))
    return Interval(below, jnp.where(jnp.isnan(above), math.inf, jnp.maximum(above, -largest)))


def _margin(curve: Curve, equation: Equation, x: jax.Array) -> jax.Array:
    """How far a computed value may be off."""
    info, value = jnp.finfo(x.dtype), _function(equation)(x)
    return info.eps * (curve.rounding * jnp.abs(value) + curve.noise(equation, x)) + info.tiny


def _differentiable(curve: Curve, equation: Equation) -> Function:
    """The function, with the derivative of its traits: finite where a formula overflows and at singular points."""
    function, largest = _function(equation), jnp.finfo(equation.output.dtype).max

    def value(x: jax.Array) -> jax.Array:
        here = lax.stop_gradient(x)
        slope = jnp.nan_to_num(lax.stop_gradient(curve.slope(equation, here)), posinf=largest, neginf=-largest)
        zero = jnp.where(jnp.isfinite(here), x, 0) - jnp.where(jnp.isfinite(here), here, 0)
        return function(here) + slope * zero

    return value


def _relax(curve: Curve, equation: Equation, intervals: Sequence[Interval], alpha: jax.Array | None) -> Relaxation:
    """A lower and an upper line; where the function or its box has no finite values, the ends of the interval."""
    x = intervals[0]
    f, image = _differentiable(curve, equation), _interval(curve, equation, x)
    finite = jnp.isfinite(x.lower) & jnp.isfinite(x.upper) & jnp.isfinite(image.lower) & jnp.isfinite(image.upper)
    lower, upper = (jnp.where(finite, end, curve.inside) for end in (x.lower, x.upper))
    lower, upper = jnp.minimum(lower, upper), jnp.maximum(lower, upper)
    alpha = jnp.full(lower.shape, 0.5, lower.dtype) if alpha is None else alpha
    slope = lambda point: curve.slope(equation, point)  # noqa: E731
    box = _Box(lower, upper, f(lower), f(upper), alpha)
    chord = _chord(curve, equation, box)
    convex, concave = _pieces(curve, equation, upper)
    below = _below(box, f, slope, chord, convex, curve.apart)
    turned = box._replace(at_lower=-box.at_lower, at_upper=-box.at_upper)
    above = _below(turned, lambda point: -f(point), lambda point: -slope(point), -chord, concave, curve.apart)
    slack = lax.stop_gradient(_slack(curve, equation, box, below[0], above[0]))

    def line(slope: jax.Array, intercept: jax.Array, constant: jax.Array) -> LinearMap:
        usable = finite & jnp.isfinite(slope) & jnp.isfinite(intercept)
        slope, intercept = jnp.where(usable, slope, 0), jnp.where(usable, intercept, constant)
        return elementwise_map((slope, *(jnp.zeros_like(slope),) * (len(intervals) - 1)), intercept)

    return Relaxation(line(below[0], below[1] - slack, image.lower), line(-above[0], slack - above[1], image.upper))


def _slack(curve: Curve, equation: Equation, box: "_Box", *slopes: jax.Array) -> jax.Array:
    """What rounding may take from an intercept: of values, of slopes across the box, and of the sums themselves."""
    margin = jnp.maximum(*(_margin(curve, equation, end) for end in (box.lower, box.upper)))
    steepest = jnp.maximum(*(jnp.abs(slope) for slope in slopes))
    reach = jnp.maximum(jnp.abs(box.lower), jnp.abs(box.upper))
    return margin + 2 * curve.rounding * jnp.finfo(margin.dtype).eps * steepest * reach


def _pieces(curve: Curve, equation: Equation, upper: jax.Array) -> tuple[Range | None, Range | None]:
    """The convex piece that a lower line touches, the concave one that an upper line does; None where there is none."""
    inflections = curve.inflections(equation) if callable(curve.inflections) else curve.inflections
    ends: list[End] = [_BOTTOM, *inflections, _TOP]
    pieces = list(itertools.pairwise(ends))
    found: list[Range | None] = []
    for kind in (pieces[::2], pieces[1::2]) if curve.convex_first else (pieces[1::2], pieces[::2]):
        # Of two pieces the right one, if the box reaches it: it rises, while the left one falls. A line that is above
        # the function there and at the left end rises too, and lies above all of the left one.
        chosen = kind[0] if kind else None
        for piece in kind[1:]:
            assert chosen is not None
            reached = piece[0] < upper
            chosen = (jnp.where(reached, piece[0], chosen[0]), jnp.where(reached, piece[1], chosen[1]))
        found.append(chosen)
    return found[0], found[1]


class _Box(NamedTuple):
    """Where a line must hold, the values of the function at the ends, and alpha."""

    lower: jax.Array
    upper: jax.Array
    at_lower: jax.Array
    at_upper: jax.Array
    alpha: jax.Array

    @property
    def middle(self) -> jax.Array:
        return self.lower / 2 + self.upper / 2


def _chord(curve: Curve, equation: Equation, box: _Box) -> jax.Array:
    """The slope of the chord, kept within the slopes of the function: a difference of near numbers is all rounding."""
    lower, upper = box.lower, box.upper
    inflections = curve.inflections(equation) if callable(curve.inflections) else curve.inflections
    points = [lower, upper, *(jnp.clip(jnp.asarray(point, lower.dtype), lower, upper) for point in inflections)]
    slopes = jnp.stack([curve.slope(equation, point) for point in points])
    reach = curve.scale + jnp.maximum(jnp.abs(lower), jnp.abs(upper))
    narrow = ~(upper / 2 - lower / 2 > _NARROW / 2 * reach)
    chord = (box.at_upper / 2 - box.at_lower / 2) / jnp.where(narrow, 1, upper / 2 - lower / 2)
    chord = jnp.where(narrow, curve.slope(equation, box.middle), chord)
    return jnp.clip(chord, lax.stop_gradient(jnp.min(slopes, axis=0)), lax.stop_gradient(jnp.max(slopes, axis=0)))


def _below(
    box: _Box, f: Function, slope: Function, chord: jax.Array, piece: Range | None, apart: bool
) -> tuple[jax.Array, jax.Array]:
    """Slope and intercept of a lower line, before slack.

    Soundness:
      For every x of the box, whatever `contact` is: on the piece the function lies above its tangent at the contact,
      whose distance from the line is least at an end of the piece; elsewhere it is concave, and its distance from
      the line is least at an end of the box or of the piece.
    """
    ends = lambda s: _least(box.at_lower - s * box.lower, box.at_upper - s * box.upper)  # noqa: E731
    if piece is None:
        return chord, ends(chord)
    low, high = (jnp.clip(end, box.lower, box.upper) for end in piece)
    met = (piece[0] < box.upper) & (box.lower < piece[1])
    everywhere = low, high, jnp.ones(low.shape, bool)
    first, last, touching = everywhere if apart else _contacts(box, f, slope, piece)
    touching &= met
    best = jnp.clip(box.middle, first, jnp.maximum(first, last))
    share = 2 * box.alpha - 1
    # In the middle, where an optimiser starts, alpha may go to either side: the derivative is their mean.
    room = jnp.where(share == 0, (last - first) / 2, jnp.where(share < 0, best - first, last - best))
    contact = best + share * room
    contact = jnp.clip(jnp.where(touching, contact, last), low, high)
    tangent = slope(contact)
    chosen = jnp.where(touching, tangent, chord)
    turn = tangent - chosen
    touch = f(contact) - chosen * contact + _least(turn * (low - contact), turn * (high - contact))
    return chosen, _least(ends(chosen), jnp.where(met, touch, math.inf))


def _least(x: jax.Array, y: jax.Array) -> jax.Array:
    """The minimum, with the derivative of one of the two.

    At ties, which are the rule here, `jnp.minimum` shares it between those that are EQUAL to the result; in compiled
    code they may be so up to rounding only, and the shares do not sum to 1.
    """
    return jnp.where(y >= x, x, y)


def _contacts(box: _Box, f: Function, slope: Function, piece: Range) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The first and the last point of the piece whose tangent passes below both ends of the box, and if there is one.

    A tangent at t passes h(t) = f(t) + f'(t) (p - t) - f(p) above the end p; h' = f''(t) (p - t) has one sign.
    """
    low, high = (jnp.clip(end, box.lower, box.upper) for end in piece)
    first, last = low, high
    touching = jnp.ones(low.shape, bool)
    if piece[0] is not _BOTTOM:
        found, some = _search(f, slope, (box.lower, box.at_lower), high, low)
        reaches = piece[0] <= box.lower
        first, touching = jnp.where(reaches, low, found), touching & (reaches | some)
    if piece[1] is not _TOP:
        found, some = _search(f, slope, (box.upper, box.at_upper), low, high)
        reaches = piece[1] >= box.upper
        last, touching = jnp.where(reaches, high, found), touching & (reaches | some)
    return first, last, touching & (first <= last)


def _search(
    f: Function, slope: Function, end: tuple[jax.Array, jax.Array], near: jax.Array, far: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The last point from `near` to `far` whose tangent passes below an end of the box, and whether `near` is one."""

    def height(point: jax.Array, end: tuple[jax.Array, jax.Array]) -> jax.Array:
        return f(point) + slope(point) * (end[0] - point) - end[1]

    def halve(step: jax.Array, bracket: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        good, bad = bracket
        point = good / 2 + bad / 2
        curved = jnp.clip(point, -_CURVED, _CURVED)
        point = jnp.clip(jnp.where(step == 0, curved, point), jnp.minimum(good, bad), jnp.maximum(good, bad))
        passes = height(point, goal) <= 0
        return jnp.where(passes, point, good), jnp.where(passes, bad, point)

    goal, first, last = lax.stop_gradient((end, near, far))
    point, _ = lax.fori_loop(0, _SEARCH_STEPS, halve, (first, last))
    # The derivative of the root of `height`: its value stays.
    above, curvature = height(point, end), jax.jvp(slope, (point,), (jnp.ones_like(point),))[1]
    rate = lax.stop_gradient(curvature * (goal[0] - point))
    root = point - (above - lax.stop_gradient(above)) / jnp.where(jnp.abs(rate) > 1e-6, rate, math.inf)
    return jnp.where(height(last, goal) <= 0, far, root), height(first, goal) <= 0
