"""Intervals and l_2 balls pushed through a network side by side.

Beside the interval of every node (`ibp`) this keeps, for the input and every nonlinear node, a ball around its value at
the center of the region. An affine block carries radius rho to |A|_2 rho, an elementwise nonlinearity to at most its
Lipschitz constant times that; and neither exceeds the reach of the box. In return, entry i of a block lies within
|row i|_2 rho of its center, which cuts the box. On an l_2 ball, boxes alone lose a factor of about the root of the
width in every layer; the ball does not. The last block is concretised on ball AND box together, as on an input region.

Sources: Lee et al., "Lipschitz-Certifiable Training with a Tight Outer Bound", NeurIPS 2020, Section 4 (box constraint
propagation); Huang et al., "Training Certifiably Robust Neural Networks with Efficient Local Lipschitz Bounds",
NeurIPS 2021, Section 3.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from cure_jax import graph as graphs
from cure_jax import numerics, rules
from cure_jax.bounds.folding import linear
from cure_jax.bounds.folding.margins import least_margins
from cure_jax.bounds.ibp import IN_TRAINING, Steps, propagate
from cure_jax.bounds.lipschitz import block_rows, enclosing_ball, reach
from cure_jax.bounds.norms.spectral import BlockNorms, norms_by_block, row_norms, sources
from cure_jax.bounds.transformation import transformation
from cure_jax.graph import Equation, Graph, Node
from cure_jax.regions import Interval, LpBall, Region

__all__ = ["Ball", "BoxBalls", "box_ball", "box_ball_margins_in_training", "concretized_on_balls", "propagate_balls"]


class Ball(NamedTuple):
    """The points within `radius` of `center` in the 2-norm."""

    center: jax.Array
    radius: jax.Array


class BoxBalls(NamedTuple):
    """What is known of the nodes of a network on a region.

    Attributes:
      intervals: of every node, by index.
      balls: of the input, of every nonlinear node and of their operands, by index.
    """

    intervals: dict[int, Interval]
    balls: dict[int, Ball]


@transformation
def box_ball(
    f: Callable[[jax.Array], jax.Array],
    *,
    norms: BlockNorms | None = None,
    intermediate: Sequence[Interval] | None = None,
    precision: jax.lax.PrecisionLike = jax.lax.Precision.HIGHEST,
) -> Callable[[Region], Interval]:
    """Transforms a function of one example into bounds by intervals and l_2 balls together.

    Args:
      f: `[*x] -> [*output]`, traceable by JAX, built from `cure_jax.rules.supported()`.
      norms: from `spectral.block_norms` of the same network; computed here if None.
      intermediate: from `intermediate_bounds` of the same network and region, to be used beside what is found here.
      precision: of matrix products and convolutions; keep the default for certificates.

    Returns:
      A function `Region -> Interval` with lower and upper `[*output]`, never looser than `ibp` up to rounding; it can
      be jitted, vmapped and differentiated.

    Raises:
      ValueError: if `norms` or `intermediate` do not fit the network.
      UnsupportedPrimitive: naming primitive and source line.

    Soundness:
      `lower <= f(x) <= upper` for every x of the region, in real arithmetic.

    Examples:
      >>> import jax, jax.numpy as jnp, cure_jax as cj
      >>> from cure_jax.bounds.box_ball import box_ball
      >>> rotate = jnp.array([[0.8, 0.6], [-0.6, 0.8]])
      >>> f = lambda x: rotate @ jnp.maximum(rotate @ x + 5.0, 0.0)
      >>> region = cj.l2_ball(jnp.zeros(2), 1.0)
      >>> [[round(float(u), 1) for u in jax.jit(bound(f))(region).upper] for bound in (box_ball, cj.ibp)]
      [[8.0, 2.0], [8.4, 2.4]]
    """

    def bounds(region: Region) -> Interval:
        graph = graphs.trace(f, region.bounding_box().lower, precision=precision)
        known = propagate_balls(graph, region, norms_by_block(graph, norms), intermediate)
        return concretized_on_balls(graph, region, known)

    return bounds


def box_ball_margins_in_training(
    f: Callable[[jax.Array], jax.Array],
    label: jax.Array,
    norms: BlockNorms,
    *,
    precision: jax.lax.PrecisionLike = None,
) -> Callable[[Region], jax.Array]:
    """The lower ends of `box_ball(margins(f, label))` with estimated norms, without room for rounding: for training.

    Args:
      f: of one example to logits `[classes]`, otherwise as for `box_ball`.
      label: the class.
      norms: from `lipschitz.estimated_norms`.
      precision: of matrix products and convolutions.

    Returns:
      A function from a region to the margins against every class, `[classes]`, 0 for the label.
    """

    def bounds(region: Region) -> jax.Array:
        graph = graphs.trace(f, region.bounding_box().lower, precision=precision)
        known = propagate_balls(graph, region, norms_by_block(graph, norms), in_training=True)
        return least_margins(graph, label, region, known.intervals, _both(graph, known))

    return bounds


def propagate_balls(
    graph: Graph,
    region: Region,
    norms: Mapping[tuple[int, int], jax.Array],
    intermediate: Sequence[Interval] | None = None,
    *,
    in_training: bool = False,
) -> BoxBalls:
    """Pushes intervals and balls through all equations of a graph.

    Args:
      graph: from `cure_jax.graph.trace`.
      region: the set of inputs.
      norms: of its blocks, from `spectral.norms_by_block`.
      intermediate: as for `box_ball`.
      in_training: for a loss: without room for rounding, and without what a network of finite numbers cannot need.

    Returns:
      Intervals and balls.

    Soundness:
      Each contains all values that its node takes on the region, if `intermediate` does; not `in_training`.
    """
    if intermediate is not None:
        _check_layers(graph, intermediate)
    given = iter(intermediate or ())
    around, cut = (_around_in_training, _cut_in_training) if in_training else (Interval.around, _cut)
    steps = _steps_in_training(region) if in_training else None
    center, radius = enclosing_ball(region)
    values = _values(graph, center)
    balls = {graph.input.index: Ball(center, radius)}

    def tightened(target: Node, box: Interval) -> Interval:
        middle, extent, radius = values[target.index], target.zeros(), jnp.zeros((), target.dtype)
        for source in sources(graph, target):
            before = balls[source.index].radius
            extent = extent + row_norms(graph, source, target) * before
            radius = radius + norms[source.index, target.index] * before
        box = box.intersect(around(middle, extent))
        if intermediate is not None:
            box = box.intersect(next(given))
        ball = Ball(middle, radius)
        # A loss leaves the cut to the ball behind the nonlinearity: its box has no corner that is further away.
        balls[target.index] = ball if in_training else cut(ball, box)
        return box

    def refine(equation: Equation, operands: Sequence[Interval]) -> Sequence[Interval]:
        rule = rules.lookup(equation)
        assert isinstance(rule, rules.Nonlinear)
        operands = [tightened(node, box) for node, box in zip(equation.bounded, operands, strict=True)]
        output, middle = equation.output, values[equation.output.index]
        moved = numerics.norm(jnp.stack([balls[node.index].radius for node in equation.bounded]), 2)
        moved = jnp.where(moved == 0, 0, rule.lipschitz(equation) * moved)
        balls[output.index] = cut(Ball(middle, moved), rule.interval(equation, *operands))
        return operands

    return BoxBalls(propagate(graph, region, refine, steps), balls)


def concretized_on_balls(graph: Graph, region: Region, known: BoxBalls) -> Interval:
    """Bounds of the output: its last block on the intersection of ball and box of each of its sources."""
    if not isinstance(graph.output, Node):
        return Interval(graph.output, graph.output)
    plain = linear.concretized_output(graph, region, {}, known.intervals)
    regions: dict[int, Region] = {**_both(graph, known), graph.input.index: region}

    def both(rows: dict[int, jax.Array], offset: jax.Array) -> tuple[jax.Array, jax.Array]:
        least = [regions[index].support(-row) for index, row in rows.items()]
        most = [regions[index].support(row) for index, row in rows.items()]
        return offset - jnp.sum(jnp.stack(least)), offset + jnp.sum(jnp.stack(most))

    lower, upper = block_rows(graph, graph.output, both)
    return plain.intersect(Interval(lower, upper).without_overflow())


def _both(graph: Graph, known: BoxBalls) -> dict[int, LpBall]:
    """The intersection of ball and box of each nonlinear node that the output is an affine function of, by index."""
    assert isinstance(graph.output, Node)
    found = {}
    for source in sources(graph, graph.output):
        if source.index != graph.input.index:
            box, ball = known.intervals[source.index], known.balls[source.index]
            radius = jnp.broadcast_to(ball.radius, source.shape)
            found[source.index] = LpBall(ball.center, radius, box.lower, box.upper, 2.0)
    return found


def _cut(ball: Ball, box: Interval) -> Ball:
    """A ball around the points of a box that lie in another one; where the center of that overflowed, the box alone.

    Where the center is not a number, neither is the radius: a network with such a weight has no bounds.
    """
    radius = jnp.where(jnp.all(jnp.isfinite(ball.center)), ball.radius, jnp.inf)
    number, center = ~jnp.any(jnp.isnan(ball.center)), jnp.where(jnp.isfinite(ball.center), ball.center, 0)
    return Ball(center, jnp.where(number, jnp.fmin(radius, reach(box, center)), jnp.nan))


def _cut_in_training(ball: Ball, box: Interval) -> Ball:
    furthest = jnp.maximum(box.upper - ball.center, ball.center - box.lower)
    return Ball(ball.center, jnp.minimum(ball.radius, numerics.root(numerics.total(jnp.square(furthest)))))


def _around_in_training(center: jax.Array, radius: jax.Array) -> Interval:
    return Interval(center - radius, center + radius)


def _steps_in_training(region: Region) -> Steps:
    """Those of losses: of an l_2 ball with one radius, rows of the first block say what its image does."""
    if isinstance(region, LpBall) and region.p == 2:
        return IN_TRAINING._replace(ball=lambda graph, region: None)
    return IN_TRAINING


def _check_layers(graph: Graph, intermediate: Sequence[Interval]) -> None:
    nonlinear = [equation for equation in graph.equations if isinstance(rules.lookup(equation), rules.Nonlinear)]
    expected = [node.shape for equation in nonlinear for node in equation.bounded]
    shapes = [interval.shape for interval in intermediate]
    if shapes != expected:
        raise ValueError(
            f"Got intermediate bounds of shapes {shapes}; the layers of f have {expected}. Compute them with "
            "intermediate_bounds for this network."
        )


def _values(graph: Graph, x: jax.Array) -> dict[int, jax.Array]:
    """The values of all nodes at one input."""
    values = {graph.input.index: x}
    for equation in graph.equations:
        values[equation.output.index] = equation.evaluate(*(values[node.index] for node in equation.bounded))
    return values
