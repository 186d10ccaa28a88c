"""The coefficients of one linear function on one node, in two forms.

*Dense* coefficients are an array of the node's shape. The objectives that are neurons of a convolutional layer depend
on a window of the layers before it, and their coefficients are kept on this `Window` alone: behind five 3x3
convolutions on 28x28, of at most 15x15 entries. Both forms go through the same fold (`folding.linear`), which knows
them by the functions of this file: `pull`, `pull_lines`, `inner`, `add`.

Everything is written for ONE objective; `jax.vmap` over its position and row makes a batch of small convolutions of it.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jax import lax

from cure_jax import numerics
from cure_jax.graph import Equation, Node
from cure_jax.rules.local import Axis, Local, restrict, whole

__all__ = [
    "Coefficients",
    "Lines",
    "Window",
    "add",
    "dense",
    "inner",
    "masked_product",
    "negative",
    "neuron",
    "placed_neuron",
    "pull",
    "pull_lines",
    "size",
]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Window:
    """Coefficients on a window of a node; those outside of it are 0.

    Attributes:
      value: `[*sizes]`, 0 for entries that lie outside of the node.
      position: of the neuron that is the objective, `[coordinates]`, integers.
      axes: one for each axis of the node.
      counts: how many neurons there are along each coordinate.
    """

    value: jax.Array
    position: jax.Array
    axes: tuple[Axis, ...] = dataclasses.field(metadata={"static": True})
    counts: tuple[int, ...] = dataclasses.field(metadata={"static": True})

    def cut(self, array: jax.Array) -> jax.Array:
        """The window of an array of the node's shape; 1 outside of it."""
        before = [max(0, -axis.start) for axis in self.axes]
        after = [max(0, self._end(axis) - size) for axis, size in zip(self.axes, array.shape, strict=True)]
        one = jnp.ones((), array.dtype)
        padded = lax.pad(array, one, [(low, high, 0) for low, high in zip(before, after, strict=True)])
        return lax.dynamic_slice(padded, self._starts(before), [axis.size for axis in self.axes])

    def masked(self, shape: tuple[int, ...]) -> "Window":
        """The same with zeros outside of a node of that shape."""
        value = self.value
        for i, (axis, size) in enumerate(zip(self.axes, shape, strict=True)):
            if axis.start < 0 or self._end(axis) > size:
                place = self._starts([0] * len(shape))[i] + jnp.arange(axis.size)
                inside = (place >= 0) & (place < size)
                value = jnp.where(inside.reshape(-1, *(1,) * (len(shape) - 1 - i)), value, 0)
        return dataclasses.replace(self, value=value)

    def dense(self, shape: tuple[int, ...]) -> jax.Array:
        """The coefficients on the whole node, `[*shape]`."""
        before = [max(0, -axis.start) for axis in self.axes]
        extents = [low + max(self._end(axis), n) for low, axis, n in zip(before, self.axes, shape, strict=True)]
        buffer = lax.dynamic_update_slice(jnp.zeros(extents, self.value.dtype), self.value, self._starts(before))
        return lax.slice(buffer, before, [low + n for low, n in zip(before, shape, strict=True)])

    def covers(self, shape: tuple[int, ...]) -> bool:
        """Whether it is no smaller than the node."""
        return self.value.size >= math.prod(shape)

    def _end(self, axis: Axis) -> int:
        """The end of the window at the last position."""
        return axis.stride * (self.counts[axis.source] - 1) + axis.start + axis.size

    def _starts(self, before: Sequence[int]) -> list[jax.Array]:
        starts = [
            self.position[axis.source] * axis.stride + (axis.start + low)
            for axis, low in zip(self.axes, before, strict=True)
        ]
        return [jnp.asarray(start, jnp.int32) for start in starts]


Coefficients: TypeAlias = jax.Array | Window


def dense(coefficients: Coefficients, shape: tuple[int, ...]) -> jax.Array:
    """Coefficients on the whole of a node, `[*shape]`."""
    return coefficients.dense(shape) if isinstance(coefficients, Window) else coefficients


def inner(coefficients: Coefficients, values: jax.Array) -> jax.Array:
    """The inner product with an array of the node's shape, where 0 * infinity is 0: what a mask leaves out."""
    if isinstance(coefficients, Window):
        coefficients, values = coefficients.value, coefficients.cut(values)
    return numerics.total(masked_product(coefficients, values))


def masked_product(coefficients: jax.Array, values: jax.Array) -> jax.Array:
    """Entry by entry, where 0 * infinity is 0; without a derivative where a value is infinite."""
    finite = jnp.isfinite(values)
    infinite = lax.stop_gradient(jnp.where(coefficients == 0, 0, coefficients * values))
    return jnp.where(finite, coefficients * jnp.where(finite, values, 0), infinite)


def negative(coefficients: Coefficients) -> Coefficients:
    """Those that are not positive, 0 in place of the others."""
    if isinstance(coefficients, Window):
        return dataclasses.replace(coefficients, value=jnp.minimum(coefficients.value, 0))
    return jnp.minimum(coefficients, 0)


def size(coefficients: Coefficients) -> int:
    """How many there are."""
    return (coefficients.value if isinstance(coefficients, Window) else coefficients).size


# Slopes for each operand, and intercept: an elementwise affine function.
Lines: TypeAlias = tuple[Sequence[jax.Array], jax.Array]


def pull_lines(
    coefficients: Coefficients, lower: Lines, upper: Lines, *, cut: bool = False, masked: bool = False
) -> tuple[tuple[Coefficients, ...], jax.Array]:
    """Moves coefficients through elementwise lines: the lower one where they are positive, else the upper one.

    Args:
      coefficients: on the output.
      lower: for each entry of the output.
      upper: likewise.
      cut: whether the lines are those of the entries in the window of the coefficients alone.
      masked: whether an infinite intercept times 0 is 0: what a mask leaves out (`constants.Bases` has made no numbers
        of the infinite intercepts of rules). Else it is no number.

    Returns:
      Coefficients on each operand, and the constant.
    """
    value = coefficients.value if isinstance(coefficients, Window) else coefficients
    here = coefficients.cut if isinstance(coefficients, Window) and not cut else lambda array: array
    # By sums, not by `where`: signs are random, and a branch for each costs three times as much.
    positive = jnp.maximum(value, 0)
    negative = value - positive

    def mixed(below: jax.Array, above: jax.Array) -> jax.Array:
        return positive * below + negative * above

    pulled = [mixed(here(below), here(above)) for below, above in zip(lower[0], upper[0], strict=True)]
    below, above = here(lower[1]), here(upper[1])
    if masked:
        left_out = (value == 0) & (jnp.isinf(below) | jnp.isinf(above))
        below, above = jnp.where(left_out, 0, below), jnp.where(left_out, 0, above)
    constant = numerics.total(mixed(below, above))
    if isinstance(coefficients, Window):
        return tuple(dataclasses.replace(coefficients, value=part) for part in pulled), constant
    return tuple(pulled), constant


def add(left: Coefficients, right: Coefficients, shape: tuple[int, ...]) -> Coefficients:
    """The sum: of two windows that move alike on the window that holds both, of anything else dense."""
    if isinstance(left, Window) and isinstance(right, Window):
        pairs = list(zip(left.axes, right.axes, strict=True))
        if all((a.source, a.stride) == (b.source, b.stride) for a, b in pairs):
            starts = [min(a.start, b.start) for a, b in pairs]
            ends = [max(a.start + a.size, b.start + b.size) for a, b in pairs]
            axes = tuple(
                a._replace(start=start, size=end - start)
                for (a, _), start, end in zip(pairs, starts, ends, strict=True)
            )
            return dataclasses.replace(left, value=_widened(left, axes) + _widened(right, axes), axes=axes)
    return dense(left, shape) + dense(right, shape)


def _widened(window: Window, axes: Sequence[Axis]) -> jax.Array:
    around = [
        (old.start - new.start, new.start + new.size - old.start - old.size, 0)
        for old, new in zip(window.axes, axes, strict=True)
    ]
    return lax.pad(window.value, jnp.zeros((), window.value.dtype), around)


def pull(equation: Equation, coefficients: Coefficients) -> tuple[Coefficients, ...]:
    """Moves coefficients on the output of an affine equation to its bounded operands, without its constant."""
    if isinstance(coefficients, Window):
        local = restrict(equation, coefficients.axes)
        if local is not None:
            return _pull_window(equation, coefficients, local)
        coefficients = coefficients.dense(equation.output.shape)
    _, transposed = jax.vjp(equation.evaluate, *(node.zeros() for node in equation.bounded))
    return transposed(coefficients)


def _pull_window(equation: Equation, window: Window, local: Local) -> tuple[Coefficients, ...]:
    sizes = [tuple(axis.size for axis in axes) for axes in local.operands]
    zeros = [jnp.zeros(size, node.dtype) for size, node in zip(sizes, equation.bounded, strict=True)]
    _, transposed = jax.vjp(lambda *values: local.linear(window.cut, *values), *zeros)
    pulled = []
    for node, axes, value in zip(equation.bounded, local.operands, transposed(window.value), strict=True):
        part = dataclasses.replace(window, value=value, axes=axes).masked(node.shape)
        pulled.append(part.dense(node.shape) if part.covers(node.shape) else part)
    return tuple(pulled)


def neuron(node: Node, moving: Sequence[int], index: jax.Array, sign: jax.Array | float) -> Coefficients:
    """The objective `sign * node[index]`: a window of one entry along the axes in `moving`, the whole of all others.

    Args:
      node: the node.
      moving: its axes along which a neuron sees a window; none for dense coefficients.
      index: which entry, in the order of the flattened node.
      sign: 1 or -1; it may be traced.
    """
    place, sizes = jnp.unravel_index(index, node.shape), _sizes(node, moving)
    member = jnp.ravel_multi_index(
        [jnp.minimum(i, n - 1) for i, n in zip(place, sizes, strict=True)], sizes, mode="clip"
    )
    return placed_neuron(node, moving, jnp.array(place, jnp.int32), member, sign)


def placed_neuron(
    node: Node, moving: Sequence[int], place: jax.Array, member: jax.Array, sign: jax.Array | float
) -> Coefficients:
    """The same neuron by its place and by its number among those of that place, which see one window.

    Under a `jax.vmap` over `member` alone the place is one for all, and what windows cut is cut once.

    Args:
      node: the node.
      moving: as for `neuron`.
      place: `[axes of the node]`; its coordinates along the axes that do not move are not looked at.
      member: in the order of the flattened node, without the axes that move.
      sign: as for `neuron`.
    """
    sizes = _sizes(node, moving)
    row = sign * jax.nn.one_hot(member, math.prod(sizes), dtype=node.dtype).reshape(sizes)
    if not moving:
        return row
    axes = tuple(Axis(i, 1, 0, 1) if i in moving else axis for i, axis in enumerate(whole(node.shape)))
    return Window(row, place.astype(jnp.int32), axes, node.shape)


def _sizes(node: Node, moving: Sequence[int]) -> list[int]:
    """Of the window of one neuron."""
    return [1 if i in moving else n for i, n in enumerate(node.shape)]
