"""CROWN for l_1 balls, its first layer bounded at the vertices of the ball.

As `crown`, with one difference: where the operand of a convex activation (ReLU, |x|) is an affine function of the
input, negative coefficients on the activation do not meet its upper line. They are kept, and bounded together with
those on the input at the vertices of the ball (`bounds.vertices`), in every bound of a neuron inside of the network and
of the output. It is to the l_1 ball what `sdp_crown` is to the l_2 ball: neurons of a layer cannot all be at their
extremes at once.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from cure_jax import graph as graphs
from cure_jax import rules
from cure_jax.bounds import coefficients as forms
from cure_jax.bounds import linear
from cure_jax.bounds.alpha_crown import has_free_slopes, optimized_output
from cure_jax.bounds.coefficients import Window
from cure_jax.bounds.crown import crown, relaxed
from cure_jax.bounds.pieces import two_pieces
from cure_jax.bounds.vertices import ActivatedBall, AtVertices, Changes, can_spread
from cure_jax.graph import Equation, Graph
from cure_jax.regions import Interval, LpBall, Region
from cure_jax.rules.local import moving_axes

__all__ = ["vertex_crown"]


def vertex_crown(
    f: Callable[[jax.Array], jax.Array],
    steps: int = 20,
    *,
    lower_only: bool = False,
    precision: jax.lax.PrecisionLike = jax.lax.Precision.HIGHEST,
) -> Callable[[Region], Interval]:
    """Transforms a function of one example into bounds over l_1 balls, cut by a box or not.

    Args:
      f: `[*x] -> [*output]`, as for `crown`.
      steps: of Adam for the slopes of the output's bounds, as in `alpha_crown`; those of neurons inside are not
        optimised. May be 0.
      lower_only: whether only lower bounds are optimised, in half of the time.
      precision: of matrix products and convolutions; keep the default for certificates.

    Returns:
      A function `Region -> Interval` with lower and upper `[*output]`; it can be jitted and vmapped, and differentiated
      with steps=0.
      For other regions, and for networks whose first nonlinear layer is no ReLU or |x| of an affine function, what
      `crown` gives.

    Raises:
      UnsupportedPrimitive: naming primitive and source line.

    Soundness:
      As `crown`. Not always as tight: at a pixel that the box keeps from moving by its whole radius, the first layer is
      looked at outside of the box.

    Examples:
      >>> import jax, jax.numpy as jnp, cure_jax as cj
      >>> f = lambda x: 1.0 - jnp.sum(jax.nn.relu(x))
      >>> region = cj.l1_ball(jnp.zeros(4), 0.5)
      >>> [round(float(bound(f)(region).lower), 2) for bound in (cj.crown, cj.vertex_crown)]
      [-0.25, 0.5]
    """
    plain = crown(f, precision=precision)

    def bounds(region: Region) -> Interval:
        if not isinstance(region, LpBall) or region.p != 1:
            return plain(region)
        graph = graphs.trace(f, region.bounding_box().lower, precision=precision)
        first = _First(graph, ActivatedBall(region, {}))
        inside = relaxed(graph, region, "crown", first=first)
        found = linear.concretized_output(graph, first.ball, inside.relaxations, inside.intervals)
        if steps == 0 or not first.ball.layers or not has_free_slopes(graph):
            return found
        layers = {index: line for index, line in inside.relaxations.items() if isinstance(line, AtVertices)}
        return found.intersect(
            optimized_output(graph, first.ball, inside.intervals, steps, lower_only=lower_only, first=layers)
        )

    return bounds


class _First:
    """The layers that follow the input, met one by one while a network is relaxed."""

    def __init__(self, graph: Graph, ball: ActivatedBall) -> None:
        self.ball = ball
        self._graph = graph
        self._affine = {graph.input.index}
        for equation in graph.equations:
            is_affine = isinstance(rules.lookup(equation), rules.Affine)
            if is_affine and all(node.index in self._affine for node in equation.bounded):
                self._affine.add(equation.output.index)

    def relax(self, equation: Equation, operands: Sequence[Interval], relaxation: rules.Relaxation) -> rules.Relaxation:
        """Its relaxation for bounds at vertices, if it is such a layer."""
        pieces, slopes = two_pieces(equation), relaxation.upper.slopes
        if pieces is None or slopes is None or equation.name == "min":
            return relaxation
        if equation.bounded[0].index not in self._affine:
            return relaxation
        weights, axes = self._weights(equation)
        if not can_spread(axes):
            return relaxation
        kink, (left, right) = pieces
        (operand,), node = operands, equation.bounded[0]
        before = dataclasses.replace(self._graph, output=node).evaluate(self.ball.ball.center)
        # Where the pieces meet inside of the interval, and bend upward; elsewhere the relaxation is as good.
        bends = (operand.lower < kink) & (operand.upper > kink) & (left < right)
        at_center = equation.evaluate(before)

        def change(sign: float) -> jax.Array:
            def moved(weight: jax.Array) -> jax.Array:
                return jnp.where(bends, equation.evaluate(before + sign * weight) - at_center, 0)

            flat = weights.reshape(*node.shape, -1)
            return jax.vmap(moved, -1, -1)(flat).reshape(weights.shape)

        self.ball.layers[equation.output.index] = Changes(change(1.0), change(-1.0), axes)
        (slope,) = slopes
        upper = rules.elementwise_map(
            [jnp.where(bends, 0, slope)], jnp.where(bends, at_center, relaxation.upper.intercept)
        )
        return AtVertices(self._lower(equation, operands, before > kink, relaxation), upper)

    def _lower(
        self, equation: Equation, operands: Sequence[Interval], active: jax.Array, relaxation: rules.Relaxation
    ) -> rules.LinearMap:
        """The lower line that touches the function at the center, where most of it is lost otherwise."""
        rule = rules.lookup(equation)
        assert isinstance(rule, rules.Nonlinear)
        if rule.start is None:
            return relaxation.lower
        return rule.relax(equation, operands, active.astype(equation.output.dtype)).lower

    def _weights(self, equation: Equation) -> tuple[jax.Array, tuple | None]:
        """By what a pixel that moves by its radius moves each operand, `[*node, *window]`; and the windows."""
        graph, radius, node = self._graph, self.ball.ball.radius, equation.bounded[0]
        moving = moving_axes(graph, node)

        def row(index: jax.Array) -> forms.Coefficients:
            bound = linear.backsubstitute(graph, node, forms.neuron(node, moving, index, 1.0), {})
            return bound.coefficients[graph.input.index]

        rows = jax.vmap(row)(jnp.arange(math.prod(node.shape)))
        if isinstance(rows, Window):
            scaled = rows.value * jax.vmap(lambda window: window.cut(radius))(rows)
            return scaled.reshape(*node.shape, *scaled.shape[1:]), rows.axes
        return (rows * radius[None]).reshape(*node.shape, *radius.shape), None
