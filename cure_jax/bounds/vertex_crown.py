"""CROWN for l_1 balls and l_0 balls of single numbers, its layers bounded at the vertices of the ball.

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
from collections.abc import Callable, Sequence
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
      For other regions (l_0 balls that count pixels of several channels among them), and for networks without ReLU,
      leaky ReLU or |x|, what `crown` gives. |x| takes part where its operand is an affine function of the input.

    Raises:
      UnsupportedPrimitive: naming primitive and source line.

    Soundness:
      As `crown`. Not always as tight: at a pixel that the box keeps from moving by its whole radius, and for l_0 balls
      with k > 1, layers are looked at outside of the box.

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
    """Convex upper bounds of neurons of a layer; 0 for those that are not selected.

    Attributes:
      center: `[*node]`, their values at the center of the ball.
      up: `[*node, *window]`, how they change when a pixel goes all the way up.
      down: the same when it goes down.
      axes: of the windows; None if every neuron sees the whole input.
    """

    center: jax.Array
    up: jax.Array
    down: jax.Array
    axes: tuple[Axis, ...] | None


class _Kept:
    """The layers whose negative coefficients are kept, met one by one while a network is relaxed."""

    def __init__(self, graph: Graph, ball: ActivatedBall) -> None:
        self.ball = ball
        self._graph = graph
        self._relaxations: dict[int, rules.Relaxation] = {}
        self._affine = {graph.input.index}
        for equation in graph.equations:
            is_affine = isinstance(rules.lookup(equation), rules.Affine)
            if is_affine and all(node.index in self._affine for node in equation.bounded):
                self._affine.add(equation.output.index)

    def relax(self, equation: Equation, operands: Sequence[Interval], relaxation: rules.Relaxation) -> rules.Relaxation:
        """Its relaxation, for bounds at vertices if it is such a layer."""
        chosen = self._at_vertices(equation, operands, relaxation) or relaxation
        self._relaxations[equation.output.index] = chosen
        return chosen

    def _at_vertices(
        self, equation: Equation, operands: Sequence[Interval], relaxation: rules.Relaxation
    ) -> AtVertices | None:
        pieces, slopes = rules.two_pieces(equation), relaxation.upper.slopes
        if pieces is None or slopes is None or equation.name == "min":
            return None
        kink, (left, right) = pieces
        (operand,), (node,) = operands, equation.bounded
        # Where the pieces meet inside of the interval, and bend upward; elsewhere the relaxation is as good.
        bends = (operand.lower < kink) & (operand.upper > kink) & (left < right)
        if node.index not in self._affine:
            # An upper bound of the operand is one of the output only if that does not decrease.
            bends &= left >= 0
        above = self._above(node, bends)
        if not can_spread(above.axes):
            return None
        at_center = equation.evaluate(above.center)

        def change(offsets: jax.Array) -> jax.Array:
            def moved(offset: jax.Array) -> jax.Array:
                return jnp.where(bends, equation.evaluate(above.center + offset) - at_center, 0)

            flat = offsets.reshape(*node.shape, -1)
            return jax.vmap(moved, -1, -1)(flat).reshape(offsets.shape)

        self.ball.layers[equation.output.index] = Changes(change(above.up), change(above.down), above.axes)
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

    def _above(self, node: Node, selected: jax.Array) -> _Above:
        """Of the selected neurons of a node: minus the lower bounds of their negations, which are concave."""
        graph, moving, widest, axes, window = self._graph, moving_axes(self._graph, node), 1, None, ()

        def below(index: jax.Array) -> jax.Array:
            nonlocal widest, axes, window
            bound = linear.backsubstitute(graph, node, forms.neuron(node, moving, index, -1.0), self._relaxations)
            widest = max(bound.widest, self.ball.entries(bound.coefficients))
            center, up, down = self.ball.at_vertices(bound.coefficients, graph.input)
            axes = up.axes if isinstance(up, Window) else None
            sides = [side.value if isinstance(side, Window) else side for side in (up, down)]
            window = sides[0].shape
            return jnp.concatenate([(bound.offset + center)[None], *(side.ravel() for side in sides)])

        values = jax.eval_shape(below, jax.ShapeDtypeStruct((), jnp.int32)).size
        chunk = linear.chunk_size(selected.size, widest)
        rows = -map_selected(below, selected.ravel(), values, chunk)
        center, offsets = rows[:, 0].reshape(node.shape), rows[:, 1:].reshape(*node.shape, 2, *window)
        up, down = (jnp.take(offsets, side, axis=len(node.shape)) for side in (0, 1))
        return _Above(center, up, down, axes)
