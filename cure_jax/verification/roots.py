"""What is known of a network on all of the region, before anything is split."""

import functools
import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from cure_jax import graph as graphs
from cure_jax import rules
from cure_jax.bounds.alpha_crown import Ascent, has_free_slopes, optimized_layers
from cure_jax.bounds.box_ball import Ball, propagate_balls
from cure_jax.bounds.crown import Within, relaxed
from cure_jax.bounds.folding.vertices import vertices_of
from cure_jax.bounds.norms.spectral import norms_by_block
from cure_jax.bounds.sdp_crown import with_room
from cure_jax.bounds.vertex_crown import relaxed_at_vertices
from cure_jax.graph import Graph
from cure_jax.regions import Box, Interval, LpBall, Region
from cure_jax.verification.problem import Specification, all_rows
from cure_jax.verification.split_bound import Network, Root, branching

__all__ = ["has_balls", "is_box", "narrowed", "others", "root_bounds", "tightened", "traced"]


def traced(f: Partial, region: Region) -> Graph:
    """The network as a graph."""
    return graphs.trace(f, region.bounding_box().lower)


def has_balls(region: Region) -> bool:
    """Whether layers are relaxed on l_2 balls too: for the balls in between l_1 and l_inf."""
    return isinstance(region, LpBall) and 1 < region.p < math.inf


def is_box(region: Region) -> bool:
    """Whether the region is its own bounding box, up to rounding."""
    return isinstance(region, Box) or (isinstance(region, LpBall) and region.p == math.inf)


def others(graph: Graph) -> tuple[graphs.Equation, ...]:
    """The nonlinear equations that cannot be split, in order of execution."""
    return tuple(equation for equation in _nonlinear(graph) if rules.two_pieces(equation) is None)


@jax.jit
def root_bounds(f: Partial, region: Region) -> Root:
    """Bounds of all layers on the region: of CROWN, and the balls of `box_ball` where the region is a ball.

    Args:
      f: the network.
      region: the set of inputs.
    """
    graph = traced(f, region)
    if (vertices := vertices_of(region)) is not None:
        operands = relaxed_at_vertices(graph, region, vertices)[0].operands
    else:
        operands = relaxed(graph, region, "crown").operands
    balls: dict[int, Ball] = {}
    if has_balls(region):
        known = propagate_balls(graph, region, norms_by_block(graph, None), operands)
        balls, given = known.balls, iter(operands)
        nodes = (node for equation in _nonlinear(graph) for node in equation.bounded)
        operands = [
            known.intervals[node.index].intersect(interval) for node, interval in zip(nodes, given, strict=True)
        ]
    return _sorted(graph, list(operands), balls)


@functools.partial(jax.jit, static_argnames="steps")
def tightened(f: Partial, region: Region, root: Root, specifications: Specification, *, steps: int = 20) -> Root:
    """The same with tighter boxes of layers: slopes of neurons inside are optimised, as `alpha_crown` does.

    It takes many times as long as `root_bounds`.

    Args:
      f: the network.
      region: the set of inputs.
      root: from `root_bounds`.
      specifications: whose bounds are to become better, in the dtype of the region.
      steps: of Adam.
    """

    def rows(x: jax.Array) -> jax.Array:
        return all_rows(f, specifications, x).ravel()

    graph = graphs.trace(rows, region.bounding_box().lower)
    inside = relaxed(graph, region, "crown")
    if not has_free_slopes(graph):
        return root
    intervals = optimized_layers(graph, region, inside.intervals, Ascent(steps))
    # The rows are affine in the output of f: they add no nonlinear equation.
    found = _sorted(graph, [intervals[node.index] for e in _nonlinear(graph) for node in e.bounded], {})
    boxes = tuple(old.intersect(new.without_overflow()) for old, new in zip(root.boxes, found.boxes, strict=True))
    # Whether an output is defined is asked of the rows here, and of what f returns there.
    names = [equation.name for equation in others(graph) for _ in equation.bounded]
    rest = tuple(
        old if name == "defined" else old.intersect(new.without_overflow())
        for name, old, new in zip(names, root.others, found.others, strict=True)
    )
    return Root(boxes, root.balls, rest)


def narrowed(graph: Graph, region: Region, root: Root, boxes: Interval, sides: jax.Array) -> Root:
    """Bounds of all layers on a part of the region: CROWN's, with the layers before cut at their kinks.

    Only neurons are bounded anew that depend on one which is cut: most often the one that was split last.

    Args:
      graph: the network.
      region: the set of inputs.
      root: bounds on all of it.
      boxes: `[neurons]`, of the operands of the layers that can be split, on a part that holds this one.
      sides: `[neurons]`, the part: 1 right of the kink, -1 left of it, 0 not split.

    Returns:
      The bounds, cut at the kinks.

    Soundness:
      They hold for every input of the region whose neurons are on these sides, in real arithmetic. Ends that contradict
      each other say nothing: rounding can make them so where large terms cancel. They are exchanged, and a part without
      inputs is left to the bounds.
    """
    network = Network(graph, region, root.on(boxes))
    cut = {index: network.cut(index, sides).box for index in network.layers}
    rest, within = iter(root.others), []
    for equation in _nonlinear(graph):
        index = equation.output.index
        within.extend([cut[index]] if index in cut else [next(rest) for _ in equation.bounded])
    if not within:
        return network.root
    smaller = {
        index: ((box.lower.ravel() > boxes.lower[part]) | (box.upper.ravel() < boxes.upper[part])).reshape(box.shape)
        for (index, box), part in zip(cut.items(), network.slices.values(), strict=True)
    }
    known = Within(within, _reached(graph, smaller))
    found = _sorted(graph, list(relaxed(graph, region, "crown", within=known).operands), {})
    layers, rest = (tuple(box.ordered().without_overflow() for box in part) for part in (found.boxes, found.others))
    return Root(layers, root.balls, rest)


def _reached(graph: Graph, cut: Mapping[int, jax.Array]) -> list[jax.Array]:
    """Which entries of the operands of nonlinear equations depend on entries that were cut.

    Args:
      graph: the network.
      cut: by the index of the output node of an equation, which entries of its operand were.

    Returns:
      For every operand, in order of execution, `[*operand]`.
    """
    reached, found = {graph.input.index: jnp.zeros(graph.input.shape, bool)}, []
    for equation in graph.equations:
        rule, operands = rules.lookup(equation), [reached[node.index] for node in equation.bounded]
        if isinstance(rule, rules.Affine):
            radii = [entries.astype(equation.output.dtype) for entries in operands]
            reached[equation.output.index] = rule.magnitude(equation, 1.0, *radii) > 0
            continue
        found.extend(operands)
        output = equation.output
        # What can be split is elementwise; of anything else an entry may depend on all.
        reached[output.index] = (
            operands[0] | cut[output.index]
            if output.index in cut
            else jnp.broadcast_to(functools.reduce(jnp.logical_or, map(jnp.any, operands)), output.shape)
        )
    return found


def _nonlinear(graph: Graph) -> list[graphs.Equation]:
    return [equation for equation in graph.equations if isinstance(rules.lookup(equation), rules.Nonlinear)]


def _sorted(graph: Graph, operands: list[Interval], balls: dict[int, Ball]) -> Root:
    given, boxes, own, rest = iter(operands), [], [], []
    splits = {equation.output.index for equation in branching(graph)}
    for equation in _nonlinear(graph):
        intervals = [next(given) for _ in equation.bounded]
        if equation.output.index not in splits:
            rest.extend(intervals)
            continue
        boxes.append(intervals[0])
        if balls:
            own.append(with_room(balls[equation.bounded[0].index], intervals[0]))
    return Root(tuple(boxes), tuple(own), tuple(rest))
