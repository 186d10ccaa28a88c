"""Bilinear interpolation, of an image and over a box of places; outside of the image there are zeros.

Between four pixels the interpolated image is bilinear, so on a box of places it is least and greatest at corners: those
of the box, and where lines of pixels cut it. That is the exact range on the box: narrower than the sum of intervals of
weights times pixels, which forgets that weights sum to 1.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from cure_jax.perturbations.intervals import outward
from cure_jax.regions import Interval

__all__ = ["Interpolated", "interpolate", "interpolate_over"]

# Pixels under a box of places along each axis: boxes are at most two pixels wide, or nothing is known but the image.
_SUPPORT = 3
# The pixels begin before a place that is nearer than this to their line: more than places may be rounded differently.
_SHIFT = 1e-3


class Interpolated(NamedTuple):
    """The interpolated image over boxes of places.

    Attributes:
      range: its values, `[height, width, channels]`.
      by_row: its derivatives along the rows.
      by_column: along the columns.
    """

    range: Interval
    by_row: Interval
    by_column: Interval


def interpolate(x: jax.Array, rows: jax.Array, columns: jax.Array) -> jax.Array:
    """The image `[height, width, channels]` at places `[height, width]`."""
    (pixels,), row_lines, column_lines = _patch([x], rows, columns)
    weights = _hats(rows[..., None], row_lines), _hats(columns[..., None], column_lines)
    return jnp.squeeze(_at_points(*weights, pixels), (2, 3))


def interpolate_over(x: Interval, rows: Interval, columns: Interval) -> Interpolated:
    """The image over boxes of places.

    Args:
      x: the image, or an interval that holds it, `[height, width, channels]`.
      rows: of the box of each pixel, `[height, width]`.
      columns: likewise.

    Soundness:
      Holds at all places of the boxes, rounding accounted for. The derivatives are those of all squares of pixels that
      a box meets; on a line of pixels, of both sides.
    """
    (lower, upper), *lines = _patch([x.lower, x.upper], rows.lower - _SHIFT, columns.lower - _SHIFT)
    row_weights, column_weights = (
        _hats(_points(places, at), at) for places, at in zip((rows, columns), lines, strict=True)
    )
    corners = [_at_points(row_weights, column_weights, end) for end in (lower, upper)]
    magnitude = jnp.max(jnp.maximum(jnp.abs(lower), jnp.abs(upper)), axis=(2, 3))
    found = outward(jnp.min(corners[0], axis=(2, 3)), jnp.max(corners[1], axis=(2, 3)), magnitude)
    # What is known of places that are further apart: pixels of the image, and zeros.
    least, greatest = jnp.minimum(jnp.min(x.lower), 0), jnp.maximum(jnp.max(x.upper), 0)
    first_row, first_column = (at[..., 0] for at in lines)
    narrow = (rows.upper - first_row <= _SUPPORT - 1) & (columns.upper - first_column <= _SUPPORT - 1)
    known = narrow[..., None]
    across = greatest - least
    by_row = _slopes(lower, upper, column_weights, rows.upper > first_row + 1, magnitude)
    swapped = lower.swapaxes(2, 3), upper.swapaxes(2, 3)
    by_column = _slopes(*swapped, row_weights, columns.upper > first_column + 1, magnitude)
    return Interpolated(
        _where(known, found, least, greatest),
        _where(known, by_row, -across, across),
        _where(known, by_column, -across, across),
    )


def _where(known: jax.Array, interval: Interval, least: jax.Array, greatest: jax.Array) -> Interval:
    return Interval(jnp.where(known, interval.lower, least), jnp.where(known, interval.upper, greatest))


def _patch(
    images: Sequence[jax.Array], rows: jax.Array, columns: jax.Array
) -> tuple[list[jax.Array], jax.Array, jax.Array]:
    """The pixels from the ones before the given places on, and the rows and columns that they are in.

    Every pixel brings its own row and column with it, out of the same gather. XLA may compute a place anew for each
    use and round it differently: on a line of pixels the weights would then be those of other pixels.

    Returns:
      Of each image `[height, width, _SUPPORT, _SUPPORT, channels]`; rows and columns, `[height, width, _SUPPORT]`.
    """
    height, width, channels = images[0].shape
    padded = [jnp.pad(image, [(_SUPPORT, _SUPPORT)] * 2 + [(0, 0)]) for image in images]
    ranges = [jnp.arange(-_SUPPORT, size + _SUPPORT, dtype=images[0].dtype) for size in (height, width)]
    places = jnp.stack(jnp.meshgrid(*ranges, indexing="ij"), axis=-1)
    along = jnp.arange(_SUPPORT, dtype=jnp.int32)
    # Further out all pixels are zeros.
    starts = [
        jnp.nan_to_num(jnp.clip(jnp.floor(start), -_SUPPORT, size)).astype(jnp.int32) + _SUPPORT
        for start, size in ((rows, height), (columns, width))
    ]
    row_indices, column_indices = (start[..., None] + along[None, None] for start in starts)
    gathered = jnp.concatenate([*padded, places], axis=-1)[row_indices[..., :, None], column_indices[..., None, :]]
    *pixels, there = jnp.split(gathered, [channels * (i + 1) for i in range(len(images))], axis=-1)
    return pixels, there[:, :, :, 0, 0], there[:, :, 0, :, 1]


def _points(places: Interval, at: jax.Array) -> jax.Array:
    """The two ends of an interval of places and the line of pixels in between."""
    return jnp.stack([places.lower, jnp.clip(at[..., 1], places.lower, places.upper), places.upper], axis=-1)


def _hats(points: jax.Array, at: jax.Array) -> jax.Array:
    """Weights of the pixels at `[..., pixels]` for points `[..., points]`: `[..., points, pixels]`."""
    return jnp.maximum(1 - jnp.abs(points[..., :, None] - at[..., None, :]), 0)


def _at_points(row_weights: jax.Array, column_weights: jax.Array, pixels: jax.Array) -> jax.Array:
    """The values at all pairs of points, `[height, width, points, points, channels]`."""
    highest = jax.lax.Precision.HIGHEST
    along = jnp.einsum("hwqj,hwijc->hwiqc", column_weights, pixels, precision=highest)
    return jnp.einsum("hwpi,hwiqc->hwpqc", row_weights, along, precision=highest)


def _slopes(
    lower: jax.Array, upper: jax.Array, weights: jax.Array, crosses: jax.Array, magnitude: jax.Array
) -> Interval:
    """The range of differences of neighbours along the first axis of a patch, interpolated along the second."""
    highest = jax.lax.Precision.HIGHEST
    least, greatest = lower[:, :, 1:] - upper[:, :, :-1], upper[:, :, 1:] - lower[:, :, :-1]
    least = jnp.min(jnp.einsum("hwqj,hwijc->hwiqc", weights, least, precision=highest), axis=3)
    greatest = jnp.max(jnp.einsum("hwqj,hwijc->hwiqc", weights, greatest, precision=highest), axis=3)
    second = crosses[..., None]
    low = jnp.where(second, jnp.minimum(least[:, :, 0], least[:, :, 1]), least[:, :, 0])
    high = jnp.where(second, jnp.maximum(greatest[:, :, 0], greatest[:, :, 1]), greatest[:, :, 0])
    return outward(low, high, 2 * magnitude)
