"""Lower bounds on a domain: a region, and for some neurons the side of their kink on which they are.

One bound serves all regions: `sdp_crown.layer_bound`. On a box [l, u] of its operand, and in a ball of radius rho
around xc, a layer of functions sigma of two straight pieces obeys, for ANY g and ANY lam >= 0,

    <c, sigma(t)> >= <g, t> + sum_i min over l_i <= t <= u_i of c_i sigma(t) - g_i t + lam/2 (t - xc_i)^2 - lam/2 rho^2.

A split cuts the box at the kink. Right of it, s the slope there, s c - g is the multiplier that beta-CROWN adds for the
constraint t >= kink; left of it likewise. So slopes (alpha) and multipliers (beta) are one free parameter. lam = 0 is
for boxes and l_1 balls, lam > 0 for l_2 balls. The region itself enters by its support. With every neuron split it is
the Lagrangian dual of a convex problem, which has no gap at lam = 0.

Sources: Wang et al., "Beta-CROWN: Efficient Bound Propagation with Per-neuron Split Constraints for Neural Network
Robustness Verification", NeurIPS 2021, Theorem 3.1; Chiu et al., "SDP-CROWN", ICML 2025, Theorem 4.1.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from cure_jax import numerics, rules
from cure_jax.bounds.box_ball import Ball
from cure_jax.bounds.folding.relaxed_layers import fold, room_for_rounding
from cure_jax.bounds.sdp_crown import Layer, layer_bound
from cure_jax.graph import Equation, Graph, Node
from cure_jax.regions import Interval, Region
from cure_jax.verification.problem import Specification

__all__ = [
    "Bounded",
    "Multipliers",
    "Network",
    "Root",
    "branching",
    "first",
    "free_of",
    "joined",
    "layer_sizes",
    "least",
    "maximise",
]

_B1, _B2, _RATES = 0.6, 0.9, (0.25, 0.05)
_LEAST_RADIUS = 1e-12
# Multipliers of balls that are tried at first, in units of |c|_2 / rho.
_FIRST_LEVELS = tuple(4.0**k for k in range(-6, 2))


class Root(NamedTuple):
    """What is known of a network on all of the region, or on a domain.

    Attributes:
      boxes: of the operands of the layers that can be split, in order of execution.
      balls: of the same; () where lam is 0 throughout.
      others: the intervals of the operands of all other nonlinear equations, in order of execution.
    """

    boxes: tuple[Interval, ...]
    balls: tuple[Ball, ...]
    others: tuple[Interval, ...]

    def on(self, boxes: Interval) -> "Root":
        """The same on a part of the region, of which boxes are known, `[neurons]`."""
        found, start = [], 0
        for box in self.boxes:
            own = jax.tree.map(
                lambda end, part=slice(start, start + box.lower.size), box=box: end[part].reshape(box.shape), boxes
            )
            found.append(box.intersect(own).ordered())
            start += box.lower.size
        return self._replace(boxes=tuple(found))

    def joined_boxes(self) -> Interval:
        """The boxes of all layers, `[neurons]`."""
        ends = (
            [end.ravel() for end in side]
            for side in ([box.lower for box in self.boxes], [box.upper for box in self.boxes])
        )
        dtype = self.boxes[0].dtype if self.boxes else jnp.float32
        return Interval(*(joined(side, dtype) for side in ends))


class Multipliers(NamedTuple):
    """The free parameters of a bound. Any values are sound.

    Attributes:
      share: `[neurons]`, of all layers: g = share * c where a neuron is not split (without balls: and c > 0).
      beta: `[neurons]`, what g differs by from the slope of its piece where it is split, in units of c; with balls,
        where it is not, too.
      level: `[layers]`, lam = exp(level) |c|_2 / rho; -inf for lam = 0.
      rows: `[rows]`, the logarithms of the weights of the rows of a specification.
    """

    share: jax.Array
    beta: jax.Array
    level: jax.Array
    rows: jax.Array


class Bounded(NamedTuple):
    """What a bound says of a domain.

    Attributes:
      bound: scalar.
      multipliers: that gave it.
      point: `[*x]`, the input of the region that attains the minimum of the linear bound.
      coefficients: `[neurons]`, c of all layers.
      slack: `[neurons]`, how far each neuron's relaxation is from exact at that input: all together are the gap between
        the bound and the value there.
    """

    bound: jax.Array
    multipliers: Multipliers
    point: jax.Array
    coefficients: jax.Array
    slack: jax.Array


def branching(graph: Graph) -> tuple[Equation, ...]:
    """The equations that can be split: elementwise functions of two straight pieces, in order of execution."""
    return tuple(equation for equation in graph.equations if rules.two_pieces(equation) is not None)


def layer_sizes(graph: Graph) -> tuple[int, ...]:
    """How many neurons each of these has."""
    return tuple(math.prod(equation.output.shape) for equation in branching(graph))


class Network:
    """A traced network on a region: the functions that depend on nothing else.

    Args:
      graph: from `graph.trace`.
      region: the set of inputs.
      root: bounds on it.
    """

    def __init__(self, graph: Graph, region: Region, root: Root) -> None:
        self.graph, self.region, self.root = graph, region, root
        self.curved = bool(root.balls)  # none without layers either
        equations = branching(graph)
        ends = np.cumsum(layer_sizes(graph)).tolist()
        self.slices = {
            equation.output.index: slice(end - math.prod(equation.output.shape), end)
            for equation, end in zip(equations, ends, strict=True)
        }
        self.layers = {
            equation.output.index: self._layer(equation, position) for position, equation in enumerate(equations)
        }
        self.positions = {index: position for position, index in enumerate(self.layers)}
        self.relaxations = self._relaxations()

    def _layer(self, equation: Equation, position: int) -> Layer:
        pieces = rules.two_pieces(equation)
        assert pieces is not None
        kink, (left, right) = pieces
        box = self.root.boxes[position]
        whole = lambda value: jnp.broadcast_to(value, box.shape)  # noqa: E731
        ball = self.root.balls[position] if self.curved else Ball(box.center, jnp.zeros((), box.dtype))
        return Layer(box, ball, whole(kink), (whole(left), whole(right)))

    def _relaxations(self) -> dict[int, rules.Relaxation]:
        found, given = {}, iter(self.root.others)
        for equation in self.graph.equations:
            rule = rules.lookup(equation)
            if isinstance(rule, rules.Nonlinear) and equation.output.index not in self.layers:
                operands = [next(given) for _ in equation.bounded]
                found[equation.output.index] = rule.relax(equation, operands, None)
        return found

    def cut(self, index: int, sides: jax.Array) -> Layer:
        """A layer whose box is cut at the kink: right of it where a side is 1, left of it where it is -1."""
        layer, side = self.layers[index], sides[self.slices[index]]
        side = side.reshape(layer.box.shape)
        lower = jnp.where(side > 0, jnp.maximum(layer.box.lower, layer.kink), layer.box.lower)
        upper = jnp.where(side < 0, jnp.minimum(layer.box.upper, layer.kink), layer.box.upper)
        return layer._replace(box=Interval(lower, upper))


def free_of(network: Network) -> jax.Array:
    """Which neurons can be split, `[neurons]`: all but those whose side of the kink is known, and straight ones.

    Those with a box that is not a number are among them.
    """
    free = []
    for layer in network.layers.values():
        known = (layer.box.lower >= layer.kink) | (layer.box.upper <= layer.kink)
        free.append((~known & (layer.slopes[0] != layer.slopes[1])).ravel())
    return joined(free, bool)


def joined(parts: Sequence[jax.Array], dtype: Any) -> jax.Array:
    """What belongs to the neurons of all layers, `[neurons]`; there may be none."""
    return jnp.concatenate(parts) if parts else jnp.zeros(0, dtype)


def _slopes(
    network: Network, index: int, layer: Layer, coefficients: jax.Array, sides: jax.Array, multipliers: Multipliers
) -> jax.Array:
    """The slopes g of a layer."""
    part, shape = network.slices[index], layer.box.shape
    side = sides[part].reshape(shape).astype(coefficients.dtype)
    share, beta = multipliers.share[part].reshape(shape), multipliers.beta[part].reshape(shape)
    left, right = layer.slopes
    known_right, known_left = layer.box.lower >= layer.kink, layer.box.upper <= layer.kink
    own = jnp.where(known_right, right, left) * coefficients
    unit = jax.lax.stop_gradient(numerics.norm(coefficients, 2) / math.sqrt(coefficients.size))
    between = share * coefficients
    if network.curved:
        between = between + beta * unit
    else:
        # Where sigma bends away from the bound, the chord is best.
        width = jnp.maximum(layer.box.upper - layer.box.lower, jnp.finfo(coefficients.dtype).tiny)
        rise = right * (layer.box.upper - layer.kink) + left * (layer.kink - layer.box.lower)
        between = jnp.where(coefficients * (right - left) < 0, rise / width * coefficients, between)
    return jnp.where(known_right | known_left, own - side * beta * unit, between)


def least(
    network: Network, specification: Specification, sides: jax.Array, multipliers: Multipliers
) -> tuple[jax.Array, tuple[jax.Array, jax.Array, jax.Array]]:
    """A lower bound of the greatest row on a domain.

    Args:
      network: with its bounds on the region.
      specification: one, `[rows, outputs]` and `[rows]`.
      sides: `[neurons]`, 1 right of the kink, -1 left of it, 0 not split.
      multipliers: any.

    Returns:
      The bound; and coefficients on the input, c `[neurons]`, and g `[neurons]`.

    Soundness:
      For every input of the region whose neurons are on these sides, and any multipliers, in real arithmetic. In
      floating point some room is left for rounding, in proportion to the terms of the sums; it is not a bound of it.
    """
    output = network.graph.output
    assert isinstance(output, Node)
    weights = jax.nn.softmax(multipliers.rows)
    row = jnp.dot(weights, specification.weights, precision=jax.lax.Precision.HIGHEST).reshape(output.shape)
    seen: dict[int, tuple[jax.Array, jax.Array]] = {}
    stop = jax.lax.stop_gradient

    def relax(equation: Equation, coefficients: jax.Array) -> tuple[jax.Array, jax.Array]:
        index = equation.output.index
        layer = network.cut(index, sides)
        slopes = _slopes(network, index, layer, coefficients, sides, multipliers)
        lam = jnp.zeros((), coefficients.dtype)
        if network.curved:
            size = numerics.norm(jnp.stack([coefficients, slopes]), 2)
            unit = jax.lax.stop_gradient(size / jnp.maximum(layer.ball.radius, _LEAST_RADIUS))
            lam = jnp.exp(multipliers.level[network.positions[index]]) * unit
        seen[index] = (coefficients.ravel(), slopes.ravel())
        return slopes, layer_bound(layer, coefficients, slopes, lam) - stop(room_for_rounding(layer.box, slopes))

    coefficients, constant = fold(network.graph, row, network.layers, network.relaxations, relax)
    offset = jnp.dot(weights, specification.offsets, precision=jax.lax.Precision.HIGHEST)
    bound = constant + offset - network.region.support(-coefficients)
    bound = bound - stop(room_for_rounding(network.region.bounding_box(), coefficients))
    nothing = (jnp.zeros(sides[part].shape, row.dtype) for part in network.slices.values())
    both = [seen.get(index, (zero, zero)) for index, zero in zip(network.layers, nothing, strict=True)]
    above, slopes = (joined([pair[i] for pair in both], row.dtype) for i in (0, 1))
    return bound, (coefficients, above, slopes)


def first(network: Network, specification: Specification) -> Multipliers:
    """Multipliers to start from: of CROWN, or, with balls, the slopes at their centers if that is better."""
    layers, dtype = network.layers.values(), network.graph.input.dtype
    zeros = jnp.zeros(sum(layer.box.lower.size for layer in layers), dtype)
    rows = jnp.zeros(specification.offsets.shape, dtype)
    crown = [_adaptive(layer).ravel() for layer in layers]
    flat = jnp.full(len(crown), -jnp.inf, dtype)
    start = Multipliers(joined(crown, dtype), zeros, flat, rows)
    if not network.curved or not network.layers:
        return start
    center = [jnp.where(y.ball.center > y.kink, y.slopes[1], y.slopes[0]).ravel() for y in layers]
    sides = jnp.zeros(zeros.shape, jnp.int8)
    levels = jnp.log(jnp.asarray(_FIRST_LEVELS, dtype))
    starts = [start._replace(share=joined(center, dtype), level=jnp.full(len(crown), value)) for value in levels]
    tried = jax.tree.map(lambda *leaves: jnp.stack(leaves), *starts)
    values = jax.lax.map(lambda one: least(network, specification, sides, one)[0], tried)
    best = jnp.argmax(jnp.where(jnp.isnan(values), -jnp.inf, values))
    return jax.tree.map(lambda leaf: leaf[best], tried)


def _adaptive(layer: Layer) -> jax.Array:
    """The slope of the longer piece."""
    return jnp.where(layer.box.upper - layer.kink > layer.kink - layer.box.lower, layer.slopes[1], layer.slopes[0])


def maximise(
    network: Network, specification: Specification, sides: jax.Array, start: Multipliers, steps: int
) -> Bounded:
    """The best bound on a domain that Adam finds from some multipliers.

    Args:
      network: with its bounds on the region.
      specification: one.
      sides: `[neurons]`.
      start: multipliers, those of the domain that this one is a part of.
      steps: of Adam.

    Returns:
      The best bound of all steps, with the multipliers that gave it; -inf where none was a number.
    """
    adam = optax.scale_by_adam(_B1, _B2)
    rates = jnp.asarray(np.geomspace(*_RATES, steps + 1), network.graph.input.dtype)
    bound = functools.partial(least, network, specification, sides)

    def step(carry: Any, rate: jax.Array) -> tuple[Any, None]:
        multipliers, state, best, kept = carry
        (value, linear), gradient = jax.value_and_grad(bound, has_aux=True)(multipliers)
        better, found = value > best, (multipliers, linear)
        kept = jax.tree.map(lambda new, old: jnp.where(better, new, old), found, kept)
        gradient = jax.tree.map(lambda leaf: jnp.where(jnp.isfinite(leaf), leaf, 0), gradient)
        updates, state = adam.update(gradient, state)
        multipliers = jax.tree.map(lambda old, update: old + rate * update, multipliers, updates)
        return (_allowed(network, multipliers), state, jnp.where(better, value, best), kept), None

    nothing = (network.graph.input.zeros(), jnp.zeros(sides.shape, rates.dtype), jnp.zeros(sides.shape, rates.dtype))
    carry = (start, adam.init(start), jnp.full((), -jnp.inf, rates.dtype), (start, nothing))
    (_, _, value, (kept, (coefficients, above, slopes))), _ = jax.lax.scan(step, carry, rates)
    point = jax.grad(network.region.support)(-coefficients)
    return Bounded(value, kept, point, above, _slack(network, sides, above, slopes, point))


def _allowed(network: Network, multipliers: Multipliers) -> Multipliers:
    """Without balls: the signs that multipliers of inequalities have, and slopes between those of the two pieces."""
    if network.curved or not network.layers:
        return multipliers
    ends = [[jnp.ravel(slope) for slope in layer.slopes] for layer in network.layers.values()]
    left, right = (jnp.concatenate(side) for side in zip(*ends, strict=True))
    share = jnp.clip(multipliers.share, jnp.minimum(left, right), jnp.maximum(left, right))
    return multipliers._replace(share=share, beta=jnp.maximum(multipliers.beta, 0))


def _slack(
    network: Network, sides: jax.Array, coefficients: jax.Array, slopes: jax.Array, point: jax.Array
) -> jax.Array:
    """By how much c sigma(t) - g t exceeds its minimum on the box, t the operand at the point, `[neurons]`."""
    values, found = {network.graph.input.index: point}, []
    for equation in network.graph.equations:
        operands = [values[node.index] for node in equation.bounded]
        values[equation.output.index] = equation.evaluate(*operands)
        index = equation.output.index
        if index not in network.layers:
            continue
        layer, part, operand = network.cut(index, sides), network.slices[index], operands[0].ravel()
        c, g = coefficients[part], slopes[part]
        ends = [layer.box.lower, jnp.clip(layer.kink, layer.box.lower, layer.box.upper), layer.box.upper]
        at_ends = [c * _sigma(layer, end).ravel() - g * end.ravel() for end in ends]
        lowest = functools.reduce(jnp.minimum, at_ends)
        found.append(c * values[index].ravel() - g * operand - lowest)
    return joined(found, point.dtype)


def _sigma(layer: Layer, t: jax.Array) -> jax.Array:
    return rules.piece(layer.kink, jnp.where(t > layer.kink, layer.slopes[1], layer.slopes[0]), t)
