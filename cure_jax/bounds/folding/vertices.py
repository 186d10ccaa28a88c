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

The hull of an l_0 ball of k numbers is of the same kind: with o_i from the center to an end of the box, its offsets are
sum_i t_i k o_i with sum_i t_i <= 1 and t_i <= 1 / k. For k = 1 the vertices are points of the region; else they lie
outside of the box, and a layer may be looked at where no input is. A ball of k pixels with c channels lies in that of
k c numbers.
"""

import dataclasses
import math
import string
from collections.abc import Mapping
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


class AtVertices(rules.Relaxation):
    """A relaxation of a layer whose upper line is the value of sigma(u) at the center.

    What is missing of it, the changes on the way to a vertex, enters where linear bounds are concretized.
    """

    __slots__ = ()

    def with_lower(self, lower: rules.LinearMap) -> "AtVertices":
        """The same with another lower line."""
        return AtVertices(lower, self.upper)


class Vertices(NamedTuple):
    """A center, from which each pixel can go up or down, and the shares of these ways that add up to 1 at most.

    Attributes:
      center: `[*x]`.
      up: how far each pixel goes up, at least 0.
      down: how far down, at least 0.
      below: the largest share of the way down.
      above: the same of the way up.
    """

    center: jax.Array
    up: jax.Array
    down: jax.Array
    below: jax.Array
    above: jax.Array


def vertices_of(region: Region) -> Vertices | None:
    """The vertices behind an l_1 ball, or an l_0 ball; None for other regions."""
    if isinstance(region, LpBall) and region.p == 1:
        return Vertices(region.center, region.radius, region.radius, *region.room())
    if isinstance(region, L0Ball) and region.k:
        count = region.k * region.channels
        share = jnp.full_like(region.center, 1 / count)
        up, down = jnp.maximum(region.upper - region.center, 0), jnp.maximum(region.center - region.lower, 0)
        return Vertices(region.center, count * up, count * down, share, share)
    return None


@dataclasses.dataclass(frozen=True)
class Changes:
    """How sigma(u) of a layer changes when one pixel goes all of its way.

    Attributes:
      ways: `[*node, 2, *window]`, up and down, for every pixel that a neuron sees; 0 for neurons with relaxations of
        their own.
      axes: of the windows, moved by the position of the neuron; None if every neuron sees the whole input.
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

    def at_vertices(
        self, coefficients: Mapping[int, Coefficients], node: Node
    ) -> tuple[jax.Array, Coefficients, Coefficients]:
        """G of a linear function of the input and of what the layers add to their upper lines.

        Args:
          coefficients: by node index: on the input, and those that are not positive on the layers.
          node: the input.

        Returns:
          Its value at the center, and by how much it changes when each pixel goes all the way up, and down.
        """
        unknown = coefficients.keys() - {node.index} - self.layers.keys()
        assert not unknown, f"coefficients on the nodes {unknown}, which are neither the input nor kept layers"
        linear = coefficients.get(node.index, node.zeros())
        up, down = _scaled(linear, self.ball.up), _scaled(linear, -self.ball.down)
        for index, changes in self.layers.items():
            if index in coefficients:
                higher, lower = _spread(coefficients[index], changes, node)
                up, down = forms.add(up, higher, node.shape), forms.add(down, lower, node.shape)
        return forms.inner(linear, self.ball.center), up, down

    def least(self, coefficients: Mapping[int, Coefficients], node: Node) -> jax.Array:
        """A lower bound of that function on the ball.

        Args:
          coefficients: as for `at_vertices`.
          node: the input.

        Soundness:
          For every input in the ball and its box, in real arithmetic.
        """
        return self.least_of(*self.at_vertices(coefficients, node))

    def least_of(self, center: jax.Array, up: Coefficients, down: Coefficients) -> jax.Array:
        """A lower bound of a function on the ball, from what `at_vertices` says of it."""
        gains, caps = zip(_losses(up, self.ball.above), _losses(down, self.ball.below), strict=True)
        return center - knapsack(jnp.concatenate(gains), jnp.concatenate(caps))


def can_spread(axes: tuple[Axis, ...] | None) -> bool:
    """Whether windows of the input can be handled: no two of its axes move together."""
    sources = [axis.source for axis in axes or () if axis.stride]
    return len(set(sources)) == len(sources)


def _rank(coefficients: Coefficients) -> int:
    return (coefficients.value if isinstance(coefficients, Window) else coefficients).ndim


def _scaled(coefficients: Coefficients, factors: jax.Array) -> Coefficients:
    if isinstance(coefficients, Window):
        return dataclasses.replace(coefficients, value=coefficients.value * coefficients.cut(factors))
    return coefficients * factors


def _losses(changes: Coefficients, room: jax.Array) -> tuple[jax.Array, jax.Array]:
    """What is lost by moving each pixel all the way, and how much of the way there is."""
    if isinstance(changes, Window):
        return jnp.maximum(-changes.value, 0).ravel(), changes.cut(room).ravel()
    return jnp.maximum(-changes, 0).ravel(), room.ravel()


def _spread(coefficients: Coefficients, changes: Changes, node: Node) -> list[Coefficients]:
    """The sums over neurons of their coefficient times their changes, on the input: for ways up and down.

    Args:
      coefficients: on the layer.
      changes: of the layer.
      node: the input.
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
        for axis, size, extent in zip(axes, node.shape, placed.shape[1:], strict=True)
    ]
    return list(lax.pad(placed, jnp.zeros((), placed.dtype), [(0, 0, 0), *crops]))


def _placed(sums: jax.Array, axes: tuple[Axis, ...], moving: list[int]) -> jax.Array:
    """Adds up windows `[*positions, 2, *window]` where they lie, from the first entry of the first one on.

    One axis after the other. Rows that are written one behind the other, each `stride` longer than the sum of all, and
    read as rows of the length of that, have moved by `stride` each: few operations, however long the windows are.
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
