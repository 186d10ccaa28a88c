"""Rotation, translation, scaling and shear: where the pixels of the perturbed image come from.

Pixels have coordinates (u, v) from the middle of the image, u to the right and v upwards, one unit a pixel. A
transformation moves what is at q to T q; so the perturbed image has at q what the image has at T^-1 q. Of several
transformations, one after the other, the matrices of T^-1 are multiplied, and the image is interpolated once.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from cure_jax.perturbations import intervals
from cure_jax.perturbations.intervals import constant
from cure_jax.regions import Interval

__all__ = ["INVERSES", "Inverse", "Sources", "multiplied", "placed", "sources", "sources_over"]


class Inverse(NamedTuple):
    """The matrix of T^-1, `[3, 3]` on (u, v, 1), as a function of one parameter.

    Attributes:
      matrix: of a number.
      matrix_over: of an interval of the parameter: an interval that holds all of them.
      derivative_over: likewise, of their derivatives.
    """

    matrix: Callable[[jax.Array], jax.Array]
    matrix_over: Callable[[Interval], Interval]
    derivative_over: Callable[[Interval], Interval]


def _matrix(rows: Sequence[Sequence[jax.Array]]) -> jax.Array:
    return jnp.stack([jnp.stack(list(row)) for row in rows])


def _matrix_over(rows: Sequence[Sequence[Interval]]) -> Interval:
    return intervals.joined(*(intervals.joined(*row) for row in rows))


def _negative(x: Interval) -> Interval:
    return Interval(-x.upper, -x.lower)


def _like(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    return jnp.zeros_like(x), jnp.ones_like(x)


def _units(x: Interval) -> tuple[Interval, Interval]:
    zero, one = _like(x.lower)
    return constant(zero), constant(one)


def _rotation(angle: jax.Array) -> jax.Array:
    (zero, one), radians = _like(angle), jnp.deg2rad(angle)
    cos, sin = jnp.cos(radians), jnp.sin(radians)
    return _matrix([(cos, sin, zero), (-sin, cos, zero), (zero, zero, one)])


def _rotation_over(angle: Interval) -> Interval:
    (zero, one), cos, sin = _units(angle), intervals.cosine(angle), intervals.sine(angle)
    return _matrix_over([(cos, sin, zero), (_negative(sin), cos, zero), (zero, zero, one)])


def _rotation_slope(angle: Interval) -> Interval:
    zero, _ = _units(angle)
    cos, sin = (intervals.scaled(f(angle), math.pi / 180) for f in (intervals.cosine, intervals.sine))
    return _matrix_over([(_negative(sin), cos, zero), (_negative(cos), _negative(sin), zero), (zero, zero, zero)])


def _scaling(factor: jax.Array) -> jax.Array:
    zero, one = _like(factor)
    return _matrix([(1 / factor, zero, zero), (zero, 1 / factor, zero), (zero, zero, one)])


def _scaling_over(factor: Interval) -> Interval:
    (zero, one), inverse = _units(factor), intervals.reciprocal(factor)
    return _matrix_over([(inverse, zero, zero), (zero, inverse, zero), (zero, zero, one)])


def _scaling_slope(factor: Interval) -> Interval:
    (zero, _), inverse = _units(factor), intervals.reciprocal(factor)
    slope = _negative(intervals.product(inverse, inverse))
    return _matrix_over([(slope, zero, zero), (zero, slope, zero), (zero, zero, zero)])


def _linear(row: int, column: int, sign: int) -> Inverse:
    """A parameter that stands, with a sign, in one entry of the matrix."""

    def placed(value: jax.Array) -> jax.Array:
        return jnp.zeros((3, 3), value.dtype).at[row, column].set(value)

    def matrix(value: jax.Array) -> jax.Array:
        return jnp.eye(3, dtype=value.dtype) + placed(sign * value)

    def matrix_over(value: Interval) -> Interval:
        ends = (value.lower, value.upper) if sign > 0 else (value.upper, value.lower)
        return Interval(*(matrix(end) for end in ends))

    return Inverse(matrix, matrix_over, lambda value: constant(placed(sign * jnp.ones_like(value.lower))))


# By kind of transformation. Positive angles turn anticlockwise; rows count downwards, so that v falls.
INVERSES: Mapping[str, Inverse] = {
    "rotation": Inverse(_rotation, _rotation_over, _rotation_slope),
    "scaling": Inverse(_scaling, _scaling_over, _scaling_slope),
    "shear": _linear(0, 1, -1),
    "columns": _linear(0, 2, -1),
    "rows": _linear(1, 2, 1),
}


class Sources(NamedTuple):
    """Where pixels come from over a cell, in rows and columns from the first pixel.

    Attributes:
      middle: rows and columns at the middle of the cell, each `[height, width]`.
      range: likewise, on all of the cell.
      slopes: likewise, their derivatives by the parameters, `[parameters, height, width]`.
    """

    middle: tuple[Interval, Interval]
    range: tuple[Interval, Interval]
    slopes: tuple[Interval, Interval]


def sources(kinds: Sequence[str], parameters: jax.Array, shape: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    """Rows and columns, `[height, width]`, where the pixels come from."""
    matrix = jnp.eye(3, dtype=parameters.dtype)
    for kind, parameter in zip(kinds, parameters, strict=True):
        matrix = jnp.matmul(matrix, INVERSES[kind].matrix(parameter), precision=jax.lax.Precision.HIGHEST)
    u, v = _grid(shape, parameters.dtype)
    across, along = (matrix[i, 0] * u + matrix[i, 1] * v + matrix[i, 2] for i in range(2))
    return (shape[0] - 1) / 2 - along, across + (shape[1] - 1) / 2


def sources_over(
    kinds: Sequence[str], cell: Interval, middle: jax.Array, radius: jax.Array, shape: tuple[int, ...]
) -> Sources:
    """Where the pixels come from over a cell of parameters.

    Args:
      kinds: of transformations, in the order in which they are applied.
      cell: of their parameters.
      middle: of the cell.
      radius: that reaches its ends.
      shape: height and width.

    Soundness:
      By the mean value theorem, which is tighter than the product of the matrices; rounding is accounted for.
    """
    points = [Interval(value, value) for value in middle]
    boxes = [Interval(low, high) for low, high in zip(cell.lower, cell.upper, strict=True)]
    at_middle = placed(multiplied([INVERSES[k].matrix_over(p) for k, p in zip(kinds, points, strict=True)]), shape)
    matrices, slopes = [INVERSES[k].matrix_over(b) for k, b in zip(kinds, boxes, strict=True)], []
    for i, (kind, box) in enumerate(zip(kinds, boxes, strict=True)):
        derivative = [*matrices[:i], INVERSES[kind].derivative_over(box), *matrices[i + 1 :]]
        slopes.append(_moved(multiplied(derivative), shape))
    by_axis = intervals.joined(*(rows for rows, _ in slopes)), intervals.joined(*(columns for _, columns in slopes))
    reached = _reached(at_middle[0], by_axis[0], radius), _reached(at_middle[1], by_axis[1], radius)
    return Sources(at_middle, reached, by_axis)


def _reached(middle: Interval, slopes: Interval, radius: jax.Array) -> Interval:
    largest = jnp.maximum(jnp.abs(slopes.lower), jnp.abs(slopes.upper))
    reach = jnp.sum(largest * radius[:, None, None], axis=0)
    return intervals.outward(middle.lower - reach, middle.upper + reach, jnp.abs(middle.upper) + reach)


def multiplied(matrices: Sequence[Interval]) -> Interval:
    """The product of matrices."""
    result, *rest = matrices
    for matrix in rest:
        left = jax.tree.map(lambda end: end[:, :, None], result)
        result = intervals.total(left, jax.tree.map(lambda end: end[None], matrix), axis=1)
    return result


def _moved(matrix: Interval, shape: tuple[int, ...]) -> tuple[Interval, Interval]:
    """Rows and columns of the products with (u, v, 1), from the middle of the image."""
    u, v = _grid(shape, matrix.dtype)
    point = constant(jnp.stack([*jnp.broadcast_arrays(u, v), jnp.ones(shape, matrix.dtype)])[None])
    across_and_along = intervals.total(jax.tree.map(lambda end: end[:2, :, None, None], matrix), point, axis=1)
    across, along = (jax.tree.map(lambda end, i=i: end[i], across_and_along) for i in range(2))
    return _negative(along), across


def placed(matrix: Interval, shape: tuple[int, ...]) -> tuple[Interval, Interval]:
    """Rows and columns, from the first pixel, of the places that a matrix takes the pixels to."""
    moved, places = _moved(matrix, shape), [jnp.full((1, 1), (size - 1) / 2, matrix.dtype) for size in shape]
    rows, columns = (intervals.add(part, constant(place)) for part, place in zip(moved, places, strict=True))
    return rows, columns


def _grid(shape: tuple[int, ...], dtype: Any) -> tuple[jax.Array, jax.Array]:
    """The coordinates u `[1, width]` and v `[height, 1]`; halves of integers, so exact."""
    height, width = shape
    u = jnp.arange(width, dtype=dtype) - (width - 1) / 2
    v = (height - 1) / 2 - jnp.arange(height, dtype=dtype)
    return u[None], v[:, None]
