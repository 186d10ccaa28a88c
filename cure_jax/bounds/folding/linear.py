"""The one backward fold: linear lower bounds, substituted back through a graph.

To bound <c, y> from below over a region, start with the coefficients c on the node y and walk the equations backwards.
An affine equation moves the coefficients to its operands by `jax.vjp`; a relaxed nonlinear one replaces its output by
the lower line where the coefficient is positive and the upper line where it is negative. What remains is a linear
function of the input (and of nodes that were not relaxed), minimised exactly by the support function of the region.

Only LOWER bounds are substituted back: an upper bound of y is minus the lower bound of -y.

Source: Zhang et al., "Efficient Neural Network Robustness Certification with General Activation Functions", NeurIPS
2018, Theorem 3.2; Xu et al., "Automatic Perturbation Analysis", NeurIPS 2020, Theorem 1 for general graphs.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from cure_jax import numerics, rules
from cure_jax.bounds.folding import coefficients as forms
from cure_jax.bounds.folding.coefficients import Coefficients, Lines, Window
from cure_jax.bounds.folding.constants import Bases
from cure_jax.bounds.folding.free_lines import FreeLines, blended
from cure_jax.bounds.folding.selection import map_selected
from cure_jax.bounds.folding.vertices import ActivatedBall, AtVertices
from cure_jax.bounds.rounding import outward, outward_region
from cure_jax.bounds.rounding.arithmetic import lowered
from cure_jax.graph import Equation, Graph, Node
from cure_jax.regions import Box, Hull, Interval, L0Ball, LpBall, Region
from cure_jax.rules.local import moving_axes

__all__ = [
    "LinearBound",
    "backsubstitute",
    "bound_node",
    "bound_sides",
    "breadth",
    "chunk_size",
    "concretize",
    "concretized_output",
    "least_of_each",
    "pull_relaxed",
]

# Objectives are processed in chunks: of at most this many coefficients on the widest window or node, for one example,
# and of a share of all objectives: with 128 shares, not 32, CROWN took 13 % less time on a CPU, whose cache holds them.
_CHUNK_COEFFICIENTS = 2**22
_LEAST_CHUNK, _CHUNKS = 16, 128


class LinearBound(NamedTuple):
    """The lower bound `sum over nodes of <coefficients[node], node> + offset`.

    Attributes:
      coefficients: by node index.
      offset: scalar.
      widest: the most coefficients that any node had on the way, for the size of chunks.
      outward: whether the offset allows for rounding, and what is added to it must too.
      alphas: with which free lines were met, by index of the output node.
    """

    coefficients: dict[int, Coefficients]
    offset: jax.Array
    widest: int
    outward: bool
    alphas: dict[int, jax.Array]


def backsubstitute(
    graph: Graph,
    target: Node,
    coefficients: Coefficients,
    relaxations: Mapping[int, rules.Relaxation | FreeLines],
    intercepts: Mapping[int, outward.Intercepts | None] | None = None,
    alphas: Mapping[int, jax.Array] | None = None,
) -> LinearBound:
    """A linear lower bound of `<coefficients, target>` in terms of the input and of unrelaxed nonlinear nodes.

    Args:
      graph: the network.
      target: the node that is bounded.
      coefficients: on the target, one objective (vmap for more): `[*target]`, or a `Window` of it.
      relaxations: by index of the output node of each nonlinear equation to be relaxed; the fold stops at the others.
      intercepts: for outward rounding, by index of the output node of every affine and every relaxed equation.
      alphas: of free lines; None for those with which they start.

    Returns:
      The bound, with dense coefficients if those on the target are.

    Soundness:
      Holds on every set on which the relaxations hold; with no relaxation it is an identity. In real arithmetic, or,
      with intercepts, as computed.
    """
    pending: dict[int, Coefficients] = {target.index: coefficients}
    kept: dict[int, Coefficients] = {}
    met: dict[int, jax.Array] = {}
    # Outward rounding bounds what each equation adds, as computed.
    bases = Bases(graph) if intercepts is None else None
    offset = jnp.zeros((), target.dtype) if bases is None else bases.inner(coefficients, target)
    widest = forms.size(coefficients)
    for equation in reversed(graph.equations):
        index = equation.output.index
        if index not in pending:
            continue
        affine = isinstance(rules.lookup(equation), rules.Affine)
        if not affine and index not in relaxations:
            continue
        here, at_vertices = pending.pop(index), False
        if affine:
            pulled, constant = forms.pull(equation, here), None
        elif isinstance(lines := relaxations[index], FreeLines):
            met[index] = lines.start_for(here) if alphas is None else alphas[index]
            (pulled, constant), at_vertices = _pull_free(equation, lines, here, met[index], bases)
        else:
            pulled, constant = pull_relaxed(equation, lines, here, bases)
            at_vertices = isinstance(lines, AtVertices)
        if at_vertices:
            kept[index] = forms.negative(here)
        if intercepts is not None:
            offset = _plus(offset, here, intercepts[index])
        elif constant is not None:
            offset = offset + constant
        for node, part in zip(equation.bounded, pulled, strict=True):
            pending[node.index] = _merged(pending.get(node.index), part, node, intercepts is not None)
            widest = max(widest, forms.size(part))
    return LinearBound(pending | kept, offset, widest, intercepts is not None, met)


def _plus(least: jax.Array, coefficients: Coefficients, constant: outward.Intercepts | None) -> jax.Array:
    """A lower bound of the sum, as computed."""
    if constant is None:
        return least
    return lowered(least + outward.inner(coefficients, constant), constant.underflow)


def _merged(known: Coefficients | None, part: Coefficients, node: Node, rounded: bool) -> Coefficients:
    if known is None:
        return part
    if rounded:
        # What counts as exact must be the same number wherever it is used.
        known, part = _pinned(known), _pinned(part)
    return forms.add(known, part, node.shape)


def _pinned(coefficients: Coefficients) -> Coefficients:
    if isinstance(coefficients, Window):
        return dataclasses.replace(coefficients, value=numerics.pinned(coefficients.value))
    return numerics.pinned(coefficients)


def pull_relaxed(
    equation: Equation, relaxation: rules.Relaxation, coefficients: Coefficients, bases: Bases | None = None
) -> tuple[tuple[Coefficients, ...], jax.Array]:
    """Moves coefficients through a relaxed equation: its lower line where one is positive, else its upper line.

    Args:
      equation: with a nonlinear rule.
      relaxation: of it, on a box.
      coefficients: on its output.
      bases: of the operands; None for all 0.

    Returns:
      Coefficients on each bounded operand without its base, and the constant:
      `<coefficients, y> >= sum_i <pulled_i, x_i - base_i> + constant`.
    """
    if relaxation.elementwise:
        return forms.pull_lines(coefficients, *_lines(equation, relaxation, bases), masked=bases is not None)
    lower, upper = relaxation
    coefficients = forms.dense(coefficients, equation.output.shape)
    positive, negative = jnp.maximum(coefficients, 0), jnp.minimum(coefficients, 0)
    pulled = tuple(below + above for below, above in zip(lower.pull(positive), upper.pull(negative), strict=True))
    constant = numerics.total(positive * lower.intercept) + numerics.total(negative * upper.intercept)
    if bases is not None:
        constant = constant + sum(map(bases.inner, pulled, equation.bounded))
    return pulled, constant


def _pull_free(
    equation: Equation, lines: FreeLines, coefficients: Coefficients, alpha: jax.Array, bases: Bases | None
) -> tuple[tuple[tuple[Coefficients, ...], jax.Array], bool]:
    """The same with the lines at alpha; and whether they are those of a layer whose coefficients are kept."""
    if lines.ends is None or not isinstance(coefficients, Window):
        relaxation = lines.at(alpha)
        return pull_relaxed(equation, relaxation, coefficients, bases), isinstance(relaxation, AtVertices)
    zero, one = (_lines(equation, end, bases) for end in lines.ends)
    lower, upper = blended(zero, one, coefficients, alpha)
    return forms.pull_lines(coefficients, lower, upper, cut=True, masked=bases is not None), False


def _lines(equation: Equation, relaxation: rules.Relaxation, bases: Bases | None) -> tuple[Lines, Lines]:
    """The lower and the upper lines of an elementwise relaxation, of the operands without their bases."""
    lower, upper = relaxation if bases is None else bases.moved(equation, relaxation)
    assert lower.slopes is not None
    assert upper.slopes is not None
    return (lower.slopes, lower.intercept), (upper.slopes, upper.intercept)


def concretize(
    bound: LinearBound, graph: Graph, region: Region | ActivatedBall, intervals: Mapping[int, Interval]
) -> jax.Array:
    """The least value of a linear bound: over the region for the input, over their intervals for other nodes.

    Soundness:
      A lower bound of what `bound` bounds, for every input in the region.
    """
    if isinstance(region, ActivatedBall):
        return bound.offset + region.least(bound.coefficients, graph.input)
    if bound.outward:
        return _concretize_outward(bound, graph, region, intervals)
    least = bound.offset
    for index, coefficients in bound.coefficients.items():
        if index == graph.input.index:
            least = least - _support(region, coefficients, graph.input)
        else:
            box = intervals[index]
            least = least + forms.pull_lines(coefficients, ((), box.lower), ((), box.upper))[1]
    return least


def _concretize_outward(
    bound: LinearBound, graph: Graph, region: Region, intervals: Mapping[int, Interval]
) -> jax.Array:
    least = bound.offset
    for index, coefficients in bound.coefficients.items():
        if index == graph.input.index:
            least = lowered(least + outward_region.minimum(outward_region.check_region(region), coefficients))
        else:
            least = _plus(least, coefficients, outward.of_interval(intervals[index]))
    # What is not a number is no bound.
    return jnp.where(jnp.isnan(least), -jnp.inf, least)


def _support(region: Region, coefficients: Coefficients, node: Node) -> jax.Array:
    """The greatest value of minus a linear function over the region."""
    if isinstance(region, Hull):
        return jnp.max(jnp.stack([_support(member, coefficients, node) for member in region.members]))
    if isinstance(coefficients, Window) and isinstance(region, Box | LpBall | L0Ball):
        return _restricted(region, coefficients).support(-coefficients.value)
    return region.support(-forms.dense(coefficients, node.shape))


def bound_node(
    graph: Graph,
    target: Node,
    region: Region | ActivatedBall,
    relaxations: Mapping[int, rules.Relaxation],
    intervals: Mapping[int, Interval],
    intercepts: Mapping[int, outward.Intercepts | None] | None = None,
) -> Interval:
    """Bounds a node by back-substitution, from both sides.

    Args:
      graph: the network.
      target: the node.
      region: the set of inputs.
      relaxations: as for `backsubstitute`.
      intervals: as for `concretize`.
      intercepts: as for `backsubstitute`.

    Returns:
      Lower and upper `[*target]`.
    """
    signs = jnp.stack([jnp.ones(target.shape, target.dtype), jnp.full(target.shape, -1, target.dtype)])
    lower, negative_upper = _least(graph, target, region, relaxations, intervals, signs, None, intercepts)
    return Interval(lower, -negative_upper).without_overflow()


def bound_sides(  # noqa: PLR0913  (what a bound depends on)
    graph: Graph,
    target: Node,
    region: Region | ActivatedBall,
    relaxations: Mapping[int, rules.Relaxation],
    intervals: Mapping[int, Interval],
    above: jax.Array,
    selected: jax.Array,
    intercepts: Mapping[int, outward.Intercepts | None] | None = None,
) -> Interval:
    """As `bound_node`, some entries of a node and each from one side.

    Args:
      graph: as for `bound_node`, and so are the next four.
      target: the node.
      region: the set of inputs.
      relaxations: as for `backsubstitute`.
      intervals: as for `concretize`.
      above: `[*target]`, from which side.
      selected: `[*target]`, which entries are wanted.
      intercepts: as for `backsubstitute`.

    Returns:
      Lower or upper ends `[*target]`; all others are infinite.
    """
    signs = jnp.where(above, -1, 1).astype(target.dtype)
    least = _least(graph, target, region, relaxations, intervals, signs, selected, intercepts)
    lower, upper = jnp.where(above, -jnp.inf, least), jnp.where(above, -least, jnp.inf)
    return Interval(lower, upper).without_overflow()


def _least(  # noqa: PLR0913  (as above)
    graph: Graph,
    target: Node,
    region: Region | ActivatedBall,
    relaxations: Mapping[int, rules.Relaxation],
    intervals: Mapping[int, Interval],
    signs: jax.Array,
    selected: jax.Array | None,
    intercepts: Mapping[int, outward.Intercepts | None] | None,
) -> jax.Array:
    """Lower bounds of `signs * target`, `[..., *target]`; -inf where not selected."""

    def least(objective: Coefficients) -> tuple[jax.Array, int]:
        bound = backsubstitute(graph, target, objective, relaxations, intercepts)
        return concretize(bound, graph, region, intervals), breadth(bound, region)

    return least_of_each(graph, target, least, signs, selected)


def breadth(bound: LinearBound, region: Region | ActivatedBall) -> int:
    """The most numbers that one objective needed at a time, for the size of chunks."""
    return max(bound.widest, region.entries(bound.coefficients)) if isinstance(region, ActivatedBall) else bound.widest


def least_of_each(
    graph: Graph,
    target: Node,
    least: Callable[[Coefficients], tuple[jax.Array, int]],
    signs: jax.Array,
    selected: jax.Array | None,
) -> jax.Array:
    """A lower bound of each selected entry of `signs * target`.

    Args:
      graph: the network.
      target: the node.
      least: of an objective the bound, and how many numbers it needs at a time.
      signs: `[..., *target]`, 1 or -1.
      selected: `[..., *target]`; None for all.

    Returns:
      `[..., *target]`; -inf where not selected.
    """
    moving, widest, size = moving_axes(graph, target), 1, math.prod(target.shape)
    flat = signs.ravel()

    def of_row(row: jax.Array) -> jax.Array:
        nonlocal widest
        value, widest = least(forms.neuron(target, moving, row % size, flat[row]))
        # The last value tells entries that were computed, whatever a second evaluation of `selected` would say.
        return jnp.stack([value, jnp.ones((), target.dtype)])

    if selected is None:
        selected = jnp.ones(signs.shape, bool)
    values, computed = map_selected(of_row, selected.ravel(), 2, lambda: chunk_size(selected.size, widest)).T
    return jnp.where(computed > 0, values, -jnp.inf).reshape(signs.shape)


def chunk_size(objectives: int, widest: int) -> int:
    """How many objectives to process at once: a share of all, so that few selected ones do not cost as much as many.

    Args:
      objectives: how many there are.
      widest: the most coefficients that any node has on the way.
    """
    return max(1, min(_CHUNK_COEFFICIENTS // widest, max(_LEAST_CHUNK, objectives // _CHUNKS)))


def concretized_output(
    graph: Graph,
    region: Region | ActivatedBall,
    relaxations: Mapping[int, rules.Relaxation],
    intervals: Mapping[int, Interval],
    intercepts: Mapping[int, outward.Intercepts | None] | None = None,
) -> Interval:
    """Bounds of the output; an output that does not depend on the input is its own bound."""
    if not isinstance(graph.output, Node):
        return Interval(graph.output, graph.output)
    return bound_node(graph, graph.output, region, relaxations, intervals, intercepts=intercepts)


def _restricted(region: Box | LpBall | L0Ball, window: Window) -> Box | LpBall | L0Ball:
    """The region seen through a window, on whose outside coefficients are 0."""
    return jax.tree.map(window.cut, region)
