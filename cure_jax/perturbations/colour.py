"""Contrast and brightness: c x and x + b, cut to [0, 1]. Of several, one after the other, the last result is cut."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from cure_jax.perturbations import intervals
from cure_jax.perturbations.enclosure import Enclosure, with_slopes
from cure_jax.regions import Interval

__all__ = ["COLOURS", "coloured", "coloured_over"]

COLOURS = ("contrast", "brightness")


def coloured(kinds: Sequence[str], x: jax.Array, parameters: jax.Array) -> jax.Array:
    """The image after changes of contrast and brightness."""
    for kind, parameter in zip(kinds, parameters, strict=True):
        x = parameter * x if kind == "contrast" else x + parameter
    return jnp.clip(x, 0, 1)


def coloured_over(kinds: Sequence[str], known: Enclosure, cell: Interval, middle: jax.Array) -> Enclosure:
    """The same over a cell of the parameters.

    Args:
      kinds: of changes, in the order in which they are applied.
      known: the image before them.
      cell: of their parameters.
      middle: of the cell.

    Soundness:
      Contrast multiplies pixels and slopes, its own slope is the pixel; brightness adds, its own slope is 1. Where a
      pixel may be cut, slopes may be 0. Rounding is accounted for.
    """
    for i, kind in enumerate(kinds):
        here, box = intervals.constant(middle[i]), Interval(cell.lower[i], cell.upper[i])
        known = _contrast(known, box, here) if kind == "contrast" else _brightness(known, box, here)
    return _cut(known)


def _contrast(known: Enclosure, box: Interval, middle: Interval) -> Enclosure:
    after = Enclosure(
        intervals.product(known.middle, middle),
        intervals.product(known.range, box),
        intervals.product(known.slopes, box),
    )
    return with_slopes(after, known.range)


def _brightness(known: Enclosure, box: Interval, middle: Interval) -> Enclosure:
    after = known._replace(middle=intervals.add(known.middle, middle), range=intervals.add(known.range, box))
    return with_slopes(after, intervals.constant(jnp.ones_like(known.range.lower)))


def _cut(known: Enclosure) -> Enclosure:
    inside, outside = (
        (known.range.lower >= 0) & (known.range.upper <= 1),
        ((known.range.upper < 0) | (known.range.lower > 1)),
    )
    dtype = known.range.dtype
    share = Interval(inside.astype(dtype), 1 - outside.astype(dtype))
    middle, values = (jax.tree.map(lambda end: jnp.clip(end, 0, 1), part) for part in (known.middle, known.range))
    return Enclosure(middle, values, intervals.product(known.slopes, jax.tree.map(lambda end: end[None], share)))
