"""CROWN for l_1 and l_0 balls, its layers bounded at the vertices of the ball.

As `crown`, with one difference: negative coefficients on a convex activation (ReLU, leaky ReLU) do not meet its upper
line. They are kept, and bounded together with those on the input at the vertices of the ball (`folding.vertices`), in
every bound of a neuron inside of the network and of the output. It is to the l_1 ball what `sdp_crown` is to the l_2
ball: neurons of a layer cannot all be at their extremes at once.

That a convex function on a simplex is largest at a vertex was put to this use by Behl et al. (2021), who relax ReLUs on
simplices, and bring l_1 balls to them. For one layer of ReLUs on a whole ball the upper lines are theirs: each touches
the ReLU at the vertices. What differs lies behind the first layer, and at the pixels. They bound a weighted sum of each
layer's activations, so that a scaled layer lies in a simplex of its own, whose vertices are single neurons; here every
layer is looked at where single PIXELS are moved, through a convex upper bound of it as a function of the input. And
their ball is whole; here each vertex has the room that the box leaves to its pixel.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from cure_jax import graph as graphs
from cure_jax import rules
from cure_jax.bounds.alpha_crown import Ascent, has_free_slopes, optimized_output
from cure_jax.bounds.crown import Relaxed, crown, relaxed
from cure_jax.bounds.folding import coefficients as forms
from cure_jax.bounds.folding import linear
from cure_jax.bounds.folding.coefficients import Window
from cure_jax.bounds.folding.selection import map_selected
from cure_jax.bounds.folding.vertices import ActivatedBall, AtVertices, Changes, Vertices, can_spread, vertices_of
from cure_jax.bounds.transformation import transformation
from cure_jax.graph import Equation, Graph, Node
from cure_jax.regions import Interval, Region
from cure_jax.rules.local import Axis, moving_axes

__all__ = ["relaxed_at_vertices", "vertex_crown"]

# The neurons of as many places are bounded at once as have so many numbers: what a cache holds. With 2^22 of them
# bounds of a convolutional network took 1.4 times as long on a CPU, with 2^16 1.5 times.
_NUMBERS = 2**18


@transformation
def vertex_crown(
    f: Callable[[jax.Array], jax.Array],
    steps: int = 20,
    *,
    lower_only: bool = False,
    precision: jax.lax.PrecisionLike = jax.lax.Precision.HIGHEST,
) -> Callable[[Region], Interval]:
    """Transforms a function of one example into bounds over l_1 balls, cut by a box or not, and over l_0 balls.

    Args:
      f: `[*x] -> [*output]`, as for `crown`.
      steps: of Adam for the slopes of the output's bounds, as in `alpha_crown`; those of neurons inside are not
        optimised. May be 0.
      lower_only: whether only lower bounds are optimised, in half of the time.
      precision: of matrix products and convolutions; keep the default for certificates.

    Returns:
      A function `Region -> Interval` with lower and upper `[*output]`; it can be jitted and vmapped, and differentiated
      with steps=0.
      For other regions, and for networks without ReLU, leaky ReLU or |x|, what `crown` gives. |x| takes part where its
      operand is an affine function of the input.

    Raises:
      UnsupportedPrimitive: naming primitive and source line.

    Soundness:
      As `crown`. Not always as tight: at a pixel that the box keeps from moving by its whole radius, and for l_0 balls
      of more than one pixel, layers are looked at outside of the box. A pixel of more than four channels counts as so
      many numbers, which may lie anywhere.

    References:
      Behl, Kumar, Torr and Dvijotham, `Overcoming the Convex Barrier for Simplex Inputs
      <https://papers.neurips.cc/paper/2021/hash/26657d5ff9020d2abefe558796b99584-Abstract.html>`_, NeurIPS 2021: the
      tight relaxation on a simplex, see the top of this file for what differs.

    Examples:
      >>> import jax, jax.numpy as jnp, cure_jax as cj
      >>> f = lambda x: 1.0 - jnp.sum(jax.nn.relu(x))
      >>> region = cj.l1_ball(jnp.zeros(4), 0.5)
      >>> [round(float(bound(f)(region).lower), 2) for bound in (cj.crown, cj.vertex_crown)]
      [-0.25, 0.5]
    """
    plain = crown(f, precision=precision)

    def bounds(region: Region) -> Interval:
        vertices = vertices_of(region)
        if vertices is None:
            return plain(region)
        graph = graphs.trace(f, region.bounding_box().lower, precision=precision)
        inside, kept = relaxed_at_vertices(graph, region, vertices)
        found = linear.concretized_output(graph, kept.ball, inside.relaxations, inside.intervals)
        if steps == 0 or not kept.ball.layers or not has_free_slopes(graph):
            return found
        layers = {index: line for index, line in inside.relaxations.items() if isinstance(line, AtVertices)}
        optimized = optimized_output(
            graph, kept.ball, inside.intervals, Ascent(steps), lower_only=lower_only, kept=layers
        )
        return found.intersect(optimized.without_overflow())

    return bounds


def relaxed_at_vertices(graph: Graph, region: Region, vertices: Vertices) -> tuple[Relaxed, "_Kept"]:
    """Bounds and relaxes all nonlinear equations of a graph on a region; and the layers whose coefficients stay."""
    kept = _Kept(graph, ActivatedBall(vertices, {}))
    return relaxed(graph, region, "crown", kept=kept), kept


class _Above(NamedTuple):
    """Convex upper bounds of neurons of a layer.

    Attributes:
      known: `[*node]`, for which neurons there is one; what follows is 0 for the others.
      center: `[*node]`, their values at the center of the ball.
      ways: `[*node, ways, *window]`, how they change when a pixel goes all of a way.
      axes: of the windows; None if every neuron sees all pixels.
    """

    known: jax.Array
    center: jax.Array
    ways: jax.Array
    axes: tuple[Axis, ...] | None


class _Kept:
    """The layers whose negative coefficients are kept, met one by one while a network is relaxed."""

    def __init__(self, graph: Graph, ball: ActivatedBall) -> None:
        self.ball = ball
        self._graph = graph
        self._relaxations: dict[int, rules.Relaxation] = {}
        self._above: dict[int, _Above] = {}
        self._affine = {graph.input.index}
        for equation in graph.equations:
            is_affine = isinstance(rules.lookup(equation), rules.Affine)
            if is_affine and all(node.index in self._affine for node in equation.bounded):
                self._affine.add(equation.output.index)

    def refine(self, equation: Equation, operands: Sequence[Interval]) -> Sequence[Interval] | None:
        """Tighter intervals of a layer that may be kept, first from the ends nearer to 0, as in `crown`.

        A bound from above is made of what `_at_vertices` needs, so that is remembered.
        """
        rule = rules.lookup(equation)
        assert isinstance(rule, rules.Nonlinear)
        undecided = rule.undecided
        if rules.two_pieces(equation) is None or equation.name == "min" or undecided is None:
            return None
        (operand,), (node,) = operands, equation.bounded
        rows, nearer = _Rows(self._graph, self.ball, self._relaxations, node), operand.lower + operand.upper < 0

        def refined(at: tuple[Interval, jax.Array], other: jax.Array) -> tuple[tuple[Interval, jax.Array], None]:
            (interval, kept), from_above = at, nearer ^ other
            found = rows.of_neurons(from_above, undecided(equation, [interval])[0])
            computed = found[..., 0] > 0
            least = jnp.where(computed, found[..., 1], -jnp.inf)
            side = Interval(jnp.where(from_above, -jnp.inf, least), jnp.where(from_above, -least, jnp.inf))
            kept = jnp.where((from_above & computed)[..., None], found, kept)
            return (interval.intersect(side.without_overflow()), kept), None

        # A loop, so that both sides are one program.
        start = operand, jnp.zeros((*node.shape, rows.values), node.dtype)
        (interval, kept), _ = jax.lax.scan(refined, start, jnp.array([False, True]))
        self._above[equation.output.index] = rows.above(kept)
        return (interval,)

    def relax(self, equation: Equation, operands: Sequence[Interval], relaxation: rules.Relaxation) -> rules.Relaxation:
        """Its relaxation, for bounds at vertices if it is such a layer."""
        chosen = self._at_vertices(equation, operands, relaxation) or relaxation
        self._relaxations[equation.output.index] = chosen
        return chosen

    def _at_vertices(
        self, equation: Equation, operands: Sequence[Interval], relaxation: rules.Relaxation
    ) -> AtVertices | None:
        pieces, slopes = rules.two_pieces(equation), relaxation.upper.slopes
        above = self._above.pop(equation.output.index, None)
        if pieces is None or slopes is None or above is None or not can_spread(above.axes):
            return None
        kink, (left, right) = pieces
        (operand,), (node,) = operands, equation.bounded
        # Where the pieces meet inside of the interval, and bend upward; elsewhere the relaxation is as good.
        bends = above.known & (operand.lower < kink) & (operand.upper > kink) & (left < right)
        if node.index not in self._affine:
            # An upper bound of the operand is one of the output only if that does not decrease.
            bends &= left >= 0
        at_center = equation.evaluate(above.center)

        def moved(offset: jax.Array) -> jax.Array:
            return jnp.where(bends, equation.evaluate(above.center + offset) - at_center, 0)

        flat = above.ways.reshape(*node.shape, -1)
        ways = jax.vmap(moved, -1, -1)(flat).reshape(above.ways.shape)
        self.ball.layers[equation.output.index] = Changes(ways, above.axes)
        (slope,) = slopes
        upper = rules.elementwise_map(
            [jnp.where(bends, 0, slope)], jnp.where(bends, at_center, relaxation.upper.intercept)
        )
        return AtVertices(self._lower(equation, operands, kink, relaxation), upper)

    def _lower(
        self, equation: Equation, operands: Sequence[Interval], kink: jax.Array, relaxation: rules.Relaxation
    ) -> rules.LinearMap:
        """The lower line that touches the function at the center, where most of it is lost otherwise."""
        rule = rules.lookup(equation)
        assert isinstance(rule, rules.Nonlinear)
        if rule.start is None:
            return relaxation.lower
        at_center = dataclasses.replace(self._graph, output=equation.bounded[0]).evaluate(self.ball.ball.center)
        active = (at_center > kink).astype(equation.output.dtype)
        return rule.relax(equation, operands, active).lower


class _Rows:
    """Lower bounds of neurons and of their negations, as functions at the vertices and as numbers.

    Neurons that see one window of the layers before are bounded together: what the window cuts out of these layers is
    cut once, and pulled through them as a matrix.
    """

    def __init__(
        self, graph: Graph, ball: ActivatedBall, relaxations: Mapping[int, rules.Relaxation], node: Node
    ) -> None:
        self._graph, self._ball, self._relaxations, self._node = graph, ball, relaxations, node
        self._moving = moving_axes(graph, node)
        self._still = tuple(i for i in range(len(node.shape)) if i not in self._moving)
        # Without windows each neuron is a place of its own.
        places = self._moving or self._still
        self._places = tuple(node.shape[i] for i in places)
        self._members = math.prod(node.shape) // math.prod(self._places)
        self._widest, self._axes, self._window = 1, None, ()
        integer, number = jax.ShapeDtypeStruct((), jnp.int32), jax.ShapeDtypeStruct((), node.dtype)
        # How many numbers there are for each neuron.
        self.values = jax.eval_shape(self._row, integer, integer, number).size

    def of_neurons(self, above: jax.Array, selected: jax.Array) -> jax.Array:
        """`[*node, values]` of neurons or, where `above`, of their negations; 0 where nobody wants it.

        1 where there is something, the lower bound, the value at the center, the changes on the ways of the pixels.
        """
        signs, members = self._by_place(jnp.where(above, -1, 1).astype(self._node.dtype)), jnp.arange(self._members)

        def of_place(place: jax.Array) -> jax.Array:
            return jax.vmap(self._row, (None, 0, 0))(place, members, signs[place]).ravel()

        wanted = jnp.any(self._by_place(selected), axis=1)
        chunk = linear.chunk_size(len(wanted), self._widest)
        if self._moving:
            # Few places are many neurons already.
            chunk = max(1, min(chunk, _NUMBERS // self._widest))
        found = map_selected(of_place, wanted, self._members * self.values, chunk)
        return self._by_neuron(found)

    def above(self, rows: jax.Array) -> _Above:
        """The upper bounds in rows of negations, `[*node, values]`."""
        ways = -rows[..., 3:].reshape(*self._node.shape, -1, *self._window)
        return _Above(rows[..., 0] > 0, -rows[..., 2], ways, self._axes)

    def _row(self, place: jax.Array, member: jax.Array, sign: jax.Array) -> jax.Array:
        graph, node, ball = self._graph, self._node, self._ball
        if self._moving:
            coordinates = dict(zip(self._moving, jnp.unravel_index(place, self._places), strict=True))
            corner = jnp.stack([coordinates.get(i, jnp.zeros_like(place)) for i in range(len(node.shape))])
            objective = forms.placed_neuron(node, self._moving, corner, member, sign)
        else:
            objective = forms.neuron(node, (), place, sign)
        bound = linear.backsubstitute(graph, node, objective, self._relaxations)
        center, changes = ball.at_vertices(bound.coefficients, graph.input)
        values = jnp.stack([side.value if isinstance(side, Window) else side for side in changes])
        self._axes, self._window = changes[0].axes if isinstance(changes[0], Window) else None, values.shape[1:]
        entries = ball.entries(bound.coefficients)
        # `_NUMBERS` was measured for pixels that go up and down.
        self._widest = max(entries, self._members * max(bound.widest, values.size // 2))
        numbers = [jnp.ones((), node.dtype), bound.offset + ball.least_of(center, changes), bound.offset + center]
        return jnp.concatenate([jnp.stack(numbers), values.ravel()])

    def _by_place(self, array: jax.Array) -> jax.Array:
        """`[*node]` -> `[places, members]`."""
        if self._moving:
            array = jnp.moveaxis(array, self._moving, range(len(self._moving)))
        return array.reshape(-1, self._members)

    def _by_neuron(self, found: jax.Array) -> jax.Array:
        """`[places, members * values]` -> `[*node, values]`."""
        rest = [self._node.shape[i] for i in self._still] if self._moving else []
        found = found.reshape(*self._places, *rest, self.values)
        return jnp.moveaxis(found, range(len(self._moving)), self._moving) if self._moving else found
