"""Interval arithmetic rounded outward, for the geometry of a cell of parameters.

Every function here allows for the rounding of what it computes: an end moves outward by `_ROUNDINGS` units in the last
place of the terms that it was summed from. That is room for sums of some thirty terms, in any order, fused or not.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from cure_jax.regions import Interval

__all__ = ["add", "constant", "cosine", "joined", "outward", "product", "reciprocal", "scaled", "sine", "total"]

_ROUNDINGS = 16
# Of the least normal number: more than is lost where products underflow.
_UNDERFLOW = 2.0**10


def outward(lower: jax.Array, upper: jax.Array, magnitude: jax.Array | None = None) -> Interval:
    """Return [lower, upper], computed from terms whose magnitudes sum to `magnitude`, with room for rounding."""
    largest = jnp.maximum(jnp.abs(lower), jnp.abs(upper)) if magnitude is None else magnitude
    information = jnp.finfo(lower.dtype)
    room = _ROUNDINGS * float(information.eps) * largest + _UNDERFLOW * float(information.tiny)
    return Interval(lower - room, upper + room)


def constant(value: jax.Array) -> Interval:
    """Return the interval of one number that is exact."""
    return Interval(value, value)


def joined(*intervals: Interval) -> Interval:
    """Return intervals one after the other, along a new first axis."""
    return jax.tree.map(lambda *ends: jnp.stack(ends), *intervals)


def add(left: Interval, right: Interval) -> Interval:
    """Return the sum of two intervals."""
    magnitude = _magnitude(left) + _magnitude(right)
    return outward(left.lower + right.lower, left.upper + right.upper, magnitude)


def product(left: Interval, right: Interval) -> Interval:
    """Return the product of two intervals."""
    lower, upper = _extremes(left, right)
    return outward(lower, upper)


def scaled(interval: Interval, factor: jax.Array | float) -> Interval:
    """Return the product with a number that is exact, or has room for its rounding."""
    ends = interval.lower * factor, interval.upper * factor
    return outward(jnp.minimum(*ends), jnp.maximum(*ends))


def total(left: Interval, right: Interval, axis: int) -> Interval:
    """Return the inner product of two intervals along an axis."""
    lower, upper = _extremes(left, right)
    magnitude = jnp.sum(jnp.maximum(jnp.abs(lower), jnp.abs(upper)), axis)
    return outward(jnp.sum(lower, axis), jnp.sum(upper, axis), magnitude)


def reciprocal(interval: Interval) -> Interval:
    """Return 1 / x for a positive interval; everything for one that is not."""
    positive = interval.lower > 0
    lower, upper = (jnp.where(positive, end, 1) for end in (interval.lower, interval.upper))
    found = outward(1 / upper, 1 / lower)
    return Interval(jnp.where(positive, found.lower, -jnp.inf), jnp.where(positive, found.upper, jnp.inf))


def cosine(degrees: Interval) -> Interval:
    """Return the cosine of an angle in degrees."""
    return _wave(degrees, 0.0, jnp.cos)


def sine(degrees: Interval) -> Interval:
    """Return the sine of an angle in degrees."""
    return _wave(degrees, 90.0, jnp.sin)


def _wave(degrees: Interval, peak: float, function: Callable[[jax.Array], jax.Array]) -> Interval:
    """A function that is 1 at `peak` plus whole turns, -1 half a turn later, and monotone in between."""
    ends = [function(jnp.deg2rad(end)) for end in (degrees.lower, degrees.upper)]
    # The angle in radians is rounded twice, the function is off by a few units in the last place.
    largest = 1 + jnp.maximum(jnp.abs(degrees.lower), jnp.abs(degrees.upper)) / 57
    found = outward(jnp.minimum(*ends), jnp.maximum(*ends), largest)
    lower = jnp.where(_meets(degrees, peak + 180), -1, found.lower)
    return Interval(jnp.maximum(lower, -1), jnp.minimum(jnp.where(_meets(degrees, peak), 1, found.upper), 1))


def _meets(degrees: Interval, place: float) -> jax.Array:
    """Whether an interval contains a place, up to whole turns."""
    wide = outward(degrees.lower - place, degrees.upper - place, jnp.abs(degrees.lower) + jnp.abs(degrees.upper) + 360)
    return jnp.floor(wide.upper / 360) * 360 >= wide.lower


def _magnitude(interval: Interval) -> jax.Array:
    return jnp.maximum(jnp.abs(interval.lower), jnp.abs(interval.upper))


def _extremes(left: Interval, right: Interval) -> tuple[jax.Array, jax.Array]:
    corners = [x * y for x in (left.lower, left.upper) for y in (right.lower, right.upper)]
    below = jnp.minimum(jnp.minimum(corners[0], corners[1]), jnp.minimum(corners[2], corners[3]))
    above = jnp.maximum(jnp.maximum(corners[0], corners[1]), jnp.maximum(corners[2], corners[3]))
    return below, above
