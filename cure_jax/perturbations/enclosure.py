"""An image over a cell of parameters: its value at the middle, its values, and its slopes.

For every pixel p, as a function of the parameters t of a cell with middle m and radii r,

    p(t) = p(m) + sum over i of s_i (t_i - m_i)   for some s_i in the slopes,

by the mean value theorem, which holds for functions with kinks too, with the slopes on both sides of each. From that
follow lines in the parameters: with any numbers a_i, p(t) - sum a_i (t_i - m_i) moves by at most sum |s_i - a_i| r_i.

References:
  Balunovic et al., Certifying Geometric Robustness of Neural Networks (NeurIPS 2019), Section 4: lines in parameters;
  Moore, Kearfott & Cloud, Introduction to Interval Analysis (SIAM 2009), Section 6.4: the mean value form.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from cure_jax.perturbations.intervals import outward
from cure_jax.regions import Interval

__all__ = ["Enclosure", "PixelLines", "centre_and_radius", "lines", "of_image", "values", "with_slopes"]


class Enclosure(NamedTuple):
    """What is known of an image over a cell.

    Attributes:
      middle: `[*x]`, holds its pixels at the middle of the cell.
      range: `[*x]`, holds them on all of the cell.
      slopes: `[parameters, *x]`, holds their derivatives by the parameters so far, everywhere in the cell.
    """

    middle: Interval
    range: Interval
    slopes: Interval


class PixelLines(NamedTuple):
    """Pixels between two affine functions of the parameters t: `slopes . t + lower <= p <= slopes . t + upper`.

    Attributes:
      slopes: `[parameters, *x]`.
      lower: `[*x]`.
      upper: `[*x]`.
    """

    slopes: jax.Array
    lower: jax.Array
    upper: jax.Array


def of_image(x: Interval) -> Enclosure:
    """The image before anything is done to it: no parameters."""
    none = jnp.zeros((0, *x.shape), x.dtype)
    return Enclosure(x, x, Interval(none, none))


def with_slopes(enclosure: Enclosure, more: Interval) -> Enclosure:
    """The same with the slopes of one more parameter, `[*x]`."""
    slopes = jax.tree.map(lambda known, new: jnp.concatenate([known, new[None]]), enclosure.slopes, more)
    return enclosure._replace(slopes=slopes)


def centre_and_radius(cell: Interval) -> tuple[jax.Array, jax.Array]:
    """The middle of a cell, and a radius that reaches its ends in spite of rounding."""
    middle = jnp.clip(cell.center, cell.lower, cell.upper)
    reach = jnp.maximum(cell.upper - middle, middle - cell.lower)
    return middle, outward(reach, reach, reach).upper


def values(parts: Enclosure, cells: Interval) -> Interval:
    """The values of pixels on several cells together.

    Args:
      parts: with a first axis of cells.
      cells: `[cells, parameters]`.
    """
    _, radius = centre_and_radius(cells)
    largest = jnp.maximum(jnp.abs(parts.slopes.lower), jnp.abs(parts.slopes.upper))
    reach = jnp.sum(largest * _over_pixels(radius, largest), axis=1)
    centred = outward(parts.middle.lower - reach, parts.middle.upper + reach, _magnitude(parts.middle) + reach)
    both = _intersected(centred, parts.range)
    return Interval(jnp.min(both.lower, axis=0), jnp.max(both.upper, axis=0))


def lines(parts: Enclosure, cells: Interval, cell: Interval) -> PixelLines:
    """Lines for the pixels on a cell that is cut into parts: of their mean slopes.

    Args:
      parts: with a first axis of parts.
      cells: the parts, `[parts, parameters]`.
      cell: the whole, `[parameters]`.

    Soundness:
      Each part bounds what the common lines leave of the pixel on it, by the mean value theorem and by its values; the
      union of these holds on the cell, in real arithmetic: rounding is accounted for.
    """
    slopes = jnp.mean(parts.slopes.lower / 2 + parts.slopes.upper / 2, axis=0)
    slopes = jnp.where(jnp.isfinite(slopes), slopes, 0)
    middle, radius = centre_and_radius(cells)
    whole, _ = centre_and_radius(cell)
    away = _over_pixels(middle - whole[None], parts.slopes.lower)
    radius = _over_pixels(radius, parts.slopes.lower)
    moved, size = jnp.sum(slopes[None] * away, axis=1), jnp.sum(jnp.abs(slopes[None] * away), axis=1)
    off = jnp.maximum(jnp.abs(parts.slopes.lower - slopes[None]), jnp.abs(parts.slopes.upper - slopes[None]))
    reach, own = jnp.sum(off * radius, axis=1), jnp.sum(jnp.abs(slopes[None]) * radius, axis=1)
    centred = outward(
        parts.middle.lower - moved - reach,
        parts.middle.upper - moved + reach,
        _magnitude(parts.middle) + size + reach,
    )
    ranged = outward(
        parts.range.lower - moved - own, parts.range.upper - moved + own, _magnitude(parts.range) + size + own
    )
    left = _intersected(centred, ranged)
    lower, upper = jnp.min(left.lower, axis=0), jnp.max(left.upper, axis=0)
    shift = whole.reshape(-1, *(1,) * lower.ndim) * slopes
    magnitude = jnp.maximum(jnp.abs(lower), jnp.abs(upper)) + jnp.sum(jnp.abs(shift), axis=0)
    shift = jnp.sum(shift, axis=0)
    found = outward(lower - shift, upper - shift, magnitude)
    return PixelLines(slopes, found.lower, found.upper)


def _over_pixels(values: jax.Array, like: jax.Array) -> jax.Array:
    """`[parts, parameters]` beside `[parts, parameters, *x]`."""
    return values.reshape(*values.shape, *(1,) * (like.ndim - 2))


def _intersected(first: Interval, second: Interval) -> Interval:
    """What both hold; of the second alone where the first is not a number."""
    lower = jnp.where(first.lower > second.lower, first.lower, second.lower)
    return Interval(lower, jnp.where(first.upper < second.upper, first.upper, second.upper))


def _magnitude(interval: Interval) -> jax.Array:
    return jnp.maximum(jnp.abs(interval.lower), jnp.abs(interval.upper))
