"""An l_1 ball and the layers of a network: what the coefficients on both can reach, at the vertices of the ball.

A relaxation neuron by neuron adds up what every neuron may lose, though the budget of an l_1 ball is spent on few
pixels, and each of them is seen by few neurons. At the vertices of the ball, single pixels moved by the whole radius,
nothing needs to be relaxed. For convex sigma_j, d the offset from the center, and CONVEX functions u_j,

    G(d) = <a, d> + sum_j c_j sigma_j(u_j(d)),    c_j <= 0,

is concave if every sigma_j that stands on a u_j that is not affine does not decrease. An offset of the ball is
sum_i t_i r_i s_i e_i with signs s_i and shares t_i >= 0, sum_i t_i <= 1 (at most the room that the box leaves), so it
is a convex combination of the center and of the vertices, and

    G(d) >= G(0) + sum_i t_i (G(r_i s_i e_i) - G(0)),

whose least value is that of a fractional knapsack. So all layers together cost the largest change that ONE pixel makes,
not the sum of those of all neurons; for a linear G both are the same.

u_j is the neuron itself in the first layer, and an upper bound of it behind: a lower bound of -z_j is such a G, made
from the layers before, and u_j = -G is convex. The coefficients c_j > 0 meet the lower line of sigma_j, as in CROWN,
and are substituted back.

The hull of an l_0 ball of k pixels is of the same kind: with o_i from the center to any point of the box of pixel i,
its offsets are sum_i t_i k o_i with sum_i t_i <= 1 and t_i <= 1 / k. As G is concave, G(k o_i) is least at a corner of
that box; a pixel of c channels has 2^c of them, the ways it can go. For k = 1 the vertices are points of the region;
else they lie outside of the box, and a layer may be looked at where no input is. With more channels than
`_MOST_CHANNELS` the ball of k pixels is taken as one of k c numbers, which holds it.
"""

import dataclasses
import math
import string
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from cure_jax import rules
from cure_jax.bounds.folding import coefficients as forms
from cure_jax.bounds.folding.coefficients import Coefficients, Window
from cure_jax.graph import Node
from cure_jax.regions import L0Ball, LpBall, Region
from cure_jax.regions.searches import knapsack
from cure_jax.rules.local import Axis

__all__ = ["ActivatedBall", "AtVertices", "Changes", "Vertices", "can_spread", "vertices_of"]

# A pixel of 4 channels has 16 corners; the 4 numbers of which it consists have 8 ends.
_MOST_CHANNELS = 4


class AtVertices(rules.Relaxation):
    """A relaxation of a layer whose upper line is the value of sigma(u) at the center.

    What is missing of it, the changes on the way to a vertex, enters where linear bounds are concretized.
    """

    __slots__ = ()

    def with_lower(self, lower: rules.LinearMap) -> "AtVertices":
        """The same with another lower line."""
        return AtVertices(lower, self.upper)


class Vertices(NamedTuple):
    """A center, the ways that each pixel can go from it, and the shares of these ways, which add up to 1 at most.

    Attributes:
      center: `[*x]`.
      ways: `[ways, *x]`, how far each number goes when its pixel goes all of a way.
      shares: `[ways, *pixels]`, the largest share of each way, or `[1, *pixels]`, that of all ways of a pixel together.
        Pixels have the shape of x, with 1 for the last axis where that holds the channels of one pixel.
    """

    center: jax.Array
    ways: jax.Array
    shares: jax.Array

    @property
    def pixels(self) -> tuple[int, ...]:
        """The shape of the pixels."""
        return self.shares.shape[1:]


def vertices_of(region: Region) -> Vertices | None:
    """The vertices behind an l_1 ball, or an l_0 ball; None for other regions."""
    if isinstance(region, LpBall) and region.p == 1:
        below, above = region.room()
        radius = jnp.broadcast_to(region.radius, region.shape)
        return Vertices(region.center, jnp.stack([radius, -radius]), jnp.stack([above, below]))
    if isinstance(region, L0Ball) and region.k:
        return _vertices_of_pixels(region)
    return None


def _vertices_of_pixels(region: L0Ball) -> Vertices:
    k, channels, pixels = region.k, region.channels, region.shape
    if channels > _MOST_CHANNELS:
        k, channels = k * channels, 1
    elif channels > 1:
        pixels = (*region.shape[:-1], 1)
    up, down = jnp.maximum(region.upper - region.center, 0), jnp.maximum(region.center - region.lower, 0)
    channel = jnp.arange(region.center.size).reshape(region.shape) % channels

    def corner(number: jax.Array) -> jax.Array:
        """Bit i of the number says whether channel i goes up."""
        return k * jnp.where((number >> channel) % 2 == 1, up, -down)

    shares = jnp.full((1, *pixels), 1 / k, region.dtype)
    return Vertices(region.center, jax.vmap(corner)(jnp.arange(2**channels)), shares)


@dataclasses.dataclass(frozen=True)
class Changes:
    """How sigma(u) of a layer changes when one pixel goes all of a way.

    Attributes:
      ways: `[*node, ways, *window]`, for every pixel that a neuron sees; 0 for neurons with relaxations of their own.
      axes: of the windows, moved by the position of the neuron; None if every neuron sees all pixels.
    """

    ways: jax.Array
    axes: tuple[Axis, ...] | None

    @property
    def positions(self) -> int:
        """How many places windows have."""
        return math.prod(self.ways.shape[axis.source] for axis in self.axes or () if axis.stride)


@dataclasses.dataclass(frozen=True)
class ActivatedBall:
    """An l_1 ball, or an l_0 ball, and what the layers of a network make of it.

    Attributes:
      ball: its vertices.
      layers: by index of the output node; filled while the network is relaxed.
    """

    ball: Vertices
    layers: dict[int, Changes]

    def entries(self, coefficients: Mapping[int, Coefficients]) -> int:
        """How many numbers one objective needs at most: in a window its part of a table, else what the table makes."""
        sizes = [
            math.prod(changes.ways.shape[_rank(coefficients[index]) :])
            * (forms.size(part) if isinstance(part := coefficients[index], Window) else changes.positions)
            for index, changes in self.layers.items()
            if index in coefficients
        ]
        return max(sizes, default=1)

    def at_vertices(self, coefficients: Mapping[int, Coefficients], node: Node) -> tuple[jax.Array, list[Coefficients]]:
        """G of a linear function of the input and of what the layers add to their upper lines.

        Args:
          coefficients: by node index: on the input, and those that are not positive on the layers.
          node: the input.

        Returns:
          Its value at the center, and for each way by how much it changes when each pixel goes all of it.
        """
        unknown = coefficients.keys() - {node.index} - self.layers.keys()
        assert not unknown, f"coefficients on the nodes {unknown}, which are neither the input nor kept layers"
        linear = coefficients.get(node.index, node.zeros())
        pixels = self.ball.pixels
        found = [_along(linear, way, pixels) for way in self.ball.ways]
        for index, changes in self.layers.items():
            if index in coefficients:
                more = _spread(coefficients[index], changes, pixels)
                found = [forms.add(side, part, pixels) for side, part in zip(found, more, strict=True)]
        return forms.inner(linear, self.ball.center), found

    def least(self, coefficients: Mapping[int, Coefficients], node: Node) -> jax.Array:
        """A lower bound of that function on the ball.

        Args:
          coefficients: as for `at_vertices`.
          node: the input.

        Soundness:
          For every input in the ball and its box, in real arithmetic.
        """
        return self.least_of(*self.at_vertices(coefficients, node))

    def least_of(self, center: jax.Array, changes: Sequence[Coefficients]) -> jax.Array:
        """A lower bound of a function on the ball, from what `at_vertices` says of it."""
        values = [side.value if isinstance(side, Window) else side for side in changes]
        losses = jnp.maximum(-jnp.stack(values), 0)
        if len(self.ball.shares) == 1:
            losses = jnp.max(losses, axis=0, keepdims=True)
        here = changes[0].cut if isinstance(changes[0], Window) else lambda shares: shares
        caps = jnp.stack([here(shares) for shares in self.ball.shares])
        return center - knapsack(losses.ravel(), caps.ravel())


def can_spread(axes: tuple[Axis, ...] | None) -> bool:
    """Whether windows of the input can be handled: no two of its axes move together."""
    sources = [axis.source for axis in axes or () if axis.stride]
    return len(set(sources)) == len(sources)


def _rank(coefficients: Coefficients) -> int:
    return (coefficients.value if isinstance(coefficients, Window) else coefficients).ndim


def _along(coefficients: Coefficients, way: jax.Array, pixels: tuple[int, ...]) -> Coefficients:
    """The changes of a linear function of the input on the way of each pixel."""
    if not isinstance(coefficients, Window):
        changes = coefficients * way
        return changes if changes.shape == pixels else jnp.sum(changes, axis=-1, keepdims=True)
    changes, axes = coefficients.value * coefficients.cut(way), coefficients.axes
    if way.shape != pixels:
        changes, axes = jnp.sum(changes, axis=-1, keepdims=True), (*axes[:-1], Axis(0, 0, 0, 1))
    return dataclasses.replace(coefficients, value=changes, axes=axes)


def _spread(coefficients: Coefficients, changes: Changes, pixels: tuple[int, ...]) -> list[Coefficients]:
    """The sums over neurons of their coefficient times their changes, on the pixels: one for each way.

    Args:
      coefficients: on the layer.
      changes: of the layer.
      pixels: their shape.
    """
    table, axes = changes.ways, changes.axes
    rank, value, rows = _rank(coefficients), coefficients, table
    if isinstance(coefficients, Window):
        flat = table.reshape(*table.shape[:rank], -1)
        rows = jax.vmap(coefficients.cut, -1, -1)(flat).reshape(*coefficients.value.shape, *table.shape[rank:])
        value = coefficients.value
    moving = [i for i, axis in enumerate(axes or ()) if axis.stride]
    layer, window = string.ascii_lowercase[:rank], string.ascii_uppercase[: table.ndim - rank]
    positions = "".join(layer[axes[i].source] for i in moving) if axes else ""
    sums = jnp.einsum(f"{layer},{layer}{window}->{positions}{window}", value, rows, precision=lax.Precision.HIGHEST)
    if axes is None:
        return list(sums)
    placed = _placed(sums, axes, moving)
    if isinstance(coefficients, Window):
        return [_window_of(coefficients, way, axes) for way in placed]
    crops = [
        (axis.start, size - axis.start - extent, 0)
        for axis, size, extent in zip(axes, pixels, placed.shape[1:], strict=True)
    ]
    return list(lax.pad(placed, jnp.zeros((), placed.dtype), [(0, 0, 0), *crops]))


def _placed(sums: jax.Array, axes: tuple[Axis, ...], moving: list[int]) -> jax.Array:
    """Adds up windows `[*positions, ways, *window]` where they lie, from the first entry of the first one on.

    One axis after the other. Rows that are written one behind the other, each `stride` longer than the sum of all, and
    read as rows of the length of that, have moved by `stride` each: few operations, however long the windows are. With
    stride 1, the rows [a b] and [c d] make a sum of length 3, so they are written as a b 0 0 c d 0 0, four apart, and
    read as [a b 0] and [0 c d].
    """
    for done, i in enumerate(moving):
        # The positions along other axes, the ways, and the axes of the window before this one.
        place = len(moving) - done + 1 + i
        rows = jnp.moveaxis(sums, place, 1)
        count, size, *rest = rows.shape
        length = axes[i].stride * (count - 1) + size
        room = [(0, 0, 0), (0, length + axes[i].stride - size, 0), *((0, 0, 0),) * len(rest)]
        behind = lax.pad(rows, jnp.zeros((), rows.dtype), room).reshape(-1, *rest)
        moved = behind[: count * length].reshape(count, length, *rest)
        sums = jnp.moveaxis(jnp.sum(moved, axis=0), 0, place - 1)
    return sums


def _window_of(coefficients: Window, value: jax.Array, axes: tuple[Axis, ...]) -> Window:
    """The window of the input behind a window of the layer."""

    def behind(axis: Axis, size: int) -> Axis:
        if not axis.stride:
            return Axis(0, 0, axis.start, size)
        outer = coefficients.axes[axis.source]
        return Axis(outer.source, outer.stride * axis.stride, outer.start * axis.stride + axis.start, size)

    placed = tuple(behind(axis, size) for axis, size in zip(axes, value.shape, strict=True))
    return Window(value, coefficients.position, placed, coefficients.counts)
