"""Gaussian blur: a convolution whose kernel depends on its standard deviation.

Along each axis pixel d away has the weight w_d = exp(-d^2 / (2 s^2)) / Z, d from -n to n, and Z such that the weights
sum to 1; s = 0 is no blur. Outside of the image there are zeros. With E = sum of w_d d^2, which grows with s,

    dw_d / ds = w_d (d^2 - E) / s^3    and so, by the sum of weights,    dw_0 / ds = - sum over d != 0 of dw_d / ds.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cure_jax.perturbations import intervals
from cure_jax.perturbations.enclosure import Enclosure, with_slopes
from cure_jax.perturbations.intervals import constant
from cure_jax.regions import Interval

__all__ = ["blurred", "blurred_over"]

# In place of 0, to divide by; the exponentials are 0 long before.
_LEAST = 1e-6
# 256 units in the last place of float32: the exponent, at most 90, is rounded twice, and there are other roundings.
_ROOM = 3e-5


def blurred(x: jax.Array, deviation: jax.Array, taps: int) -> jax.Array:
    """The image `[height, width, channels]` after a blur over `taps` pixels to each side."""
    exponents = -_squares(taps, x.dtype) / (2 * jnp.maximum(deviation, _LEAST) ** 2)
    weights = jnp.exp(exponents)
    weights = weights / jnp.sum(weights)
    for axis in (0, 1):
        x = jnp.sum(weights.reshape(-1, 1, 1, 1) * _shifted(x, axis, taps), axis=0)
    return x


def blurred_over(known: Enclosure, cell: Interval, middle: jax.Array, taps: int) -> Enclosure:
    """The same over an interval of the standard deviation.

    Args:
      known: the image before.
      cell: of the parameter, a scalar interval.
      middle: of the cell.
      taps: pixels to each side.

    Soundness:
      Weights sum to 1, and their derivatives to 0, so that any number may be taken off the pixels first: the middle of
      their range. Two passes, one along each axis, the parameter in both. Rounding is accounted for.
    """
    weights, slopes, at_middle = _weights(cell, taps), _slopes(cell, taps), _weights(constant(middle), taps)
    known = with_slopes(known, constant(jnp.zeros_like(known.range.lower)))
    for axis in (0, 1):
        average = functools.partial(_averaged, weights, axis=axis, taps=taps)
        own, carried = _summed(slopes, known.range, axis, taps, 0), jax.vmap(average)(known.slopes)
        last = intervals.add(jax.tree.map(lambda end: end[-1], carried), own)
        slopes_after = jax.tree.map(lambda end, new: end.at[-1].set(new), carried, last)
        known = Enclosure(_averaged(at_middle, known.middle, axis, taps), average(known.range), slopes_after)
    return known


def _averaged(weights: Interval, x: Interval, axis: int, taps: int) -> Interval:
    """The weighted mean, which no pixel under the kernel is above, nor below."""
    found = _summed(weights, x, axis, taps, 1)
    least, greatest = jnp.min(_shifted(x.lower, axis, taps), axis=0), jnp.max(_shifted(x.upper, axis, taps), axis=0)
    return Interval(jnp.maximum(found.lower, least), jnp.minimum(found.upper, greatest))


def _summed(weights: Interval, x: Interval, axis: int, taps: int, whole: int) -> Interval:
    """The sum of weights times pixels, for weights that sum to `whole`."""
    pixels = Interval(_shifted(x.lower, axis, taps), _shifted(x.upper, axis, taps))
    centre = jnp.min(pixels.lower, axis=0) / 2 + jnp.max(pixels.upper, axis=0) / 2
    off = intervals.add(pixels, constant(-centre[None]))
    found = intervals.total(jax.tree.map(lambda end: end.reshape(-1, 1, 1, 1), weights), off, axis=0)
    return intervals.add(found, constant(whole * centre))


def _weights(cell: Interval, taps: int) -> Interval:
    """Weights on a cell: 1 / sum over e of exp(-(e^2 - d^2) / (2 s^2)), each term of which is monotone in s."""
    squares = _squares(taps, cell.dtype)
    terms = [_power(squares[None] - squares[:, None], end) for end in (cell.lower, cell.upper)]
    sums = _roomy(*(jnp.sum(extreme(*terms), axis=1) for extreme in (jnp.minimum, jnp.maximum)))
    found = intervals.reciprocal(sums)
    return Interval(jnp.maximum(found.lower, 0), jnp.minimum(found.upper, 1))


def _slopes(cell: Interval, taps: int) -> Interval:
    """Derivatives of the weights: h_d w_0 (d^2 - E) with h_d = exp(-d^2 / (2 s^2)) / s^3, which has one peak."""
    squares = _squares(taps, cell.dtype)
    others = jnp.where(squares > 0, squares, 1)
    heights = [_power(others, end) / jnp.maximum(end, _LEAST) ** 3 for end in (cell.lower, cell.upper)]
    peak = jnp.sqrt(others / 3)
    inside = (peak >= cell.lower * (1 - _ROOM)) & (peak <= cell.upper * (1 + _ROOM))
    greatest = jnp.maximum(jnp.maximum(*heights), jnp.where(inside, jnp.exp(-1.5) / peak**3, 0))
    height = _roomy(jnp.minimum(*heights), greatest)
    powers = [_power(squares, end) for end in (cell.lower, cell.upper)]
    variance = _roomy(*(jnp.sum(squares * power) / jnp.sum(power) for power in powers))
    middle = jax.tree.map(lambda end: end[taps], _weights(cell, taps))
    excess = intervals.add(constant(squares), Interval(-variance.upper, -variance.lower))
    found = intervals.product(intervals.product(height, middle), excess)
    found = jax.tree.map(lambda end: jnp.where(squares > 0, end, 0), found)
    sums = intervals.total(found, constant(jnp.ones_like(squares)), axis=0)
    return jax.tree.map(lambda end, new: end.at[taps].set(new), found, Interval(-sums.upper, -sums.lower))


def _power(excess: jax.Array, deviation: jax.Array) -> jax.Array:
    return jnp.exp(-excess / (2 * jnp.maximum(deviation, _LEAST) ** 2))


def _roomy(lower: jax.Array, upper: jax.Array) -> Interval:
    """Sums of positive exponentials with room for rounding; what vanishes, below exp(-90), is less than 1e-30."""
    return Interval(lower * (1 - _ROOM), upper * (1 + _ROOM) + 1e-30)


def _squares(taps: int, dtype: Any) -> jax.Array:
    return jnp.asarray(np.arange(-taps, taps + 1) ** 2, dtype)


def _shifted(x: jax.Array, axis: int, taps: int) -> jax.Array:
    """The image moved by each tap, `[taps, *x]`, zeros from outside."""
    around = [(0, 0)] * x.ndim
    around[axis] = (taps, taps)
    padded = jnp.pad(x, around)
    return jnp.stack([jax.lax.dynamic_slice_in_dim(padded, i, x.shape[axis], axis) for i in range(2 * taps + 1)])
