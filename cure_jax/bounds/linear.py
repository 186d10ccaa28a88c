"""The one backward fold: linear lower bounds, substituted back through a graph.

To bound <c, y> from below over a region, start with the coefficients c on the node y and walk the equations backwards.
An affine equation moves the coefficients to its operands by `jax.vjp`; a relaxed nonlinear one replaces its output by
the lower line where the coefficient is positive and the upper line where it is negative. What remains is a linear
function of the input (and of nodes that were not relaxed), minimised exactly by the support function of the region.

Only LOWER bounds are substituted back: an upper bound of y is minus the lower bound of -y.

Source: Zhang et al., "Efficient Neural Network Robustness Certification with General Activation Functions", NeurIPS
2018, Theorem 3.2; Xu et al., "Automatic Perturbation Analysis", NeurIPS 2020, Theorem 1 for general graphs.
"""

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from cure_jax import rules
from cure_jax.graph import Equation, Graph, Node
from cure_jax.regions import Interval, Region

__all__ = ["LinearBound", "backsubstitute", "bound_node", "concretize", "concretized_output", "pull_affine"]

# Objectives are processed in chunks of at most this many coefficients of the widest node, for one example.
_CHUNK_COEFFICIENTS = 2**22


class LinearBound(NamedTuple):
    """The lower bound `sum over nodes of <coefficients[node], node> + offset`.

    Attributes:
      coefficients: by node index, each of the node's shape.
      offset: scalar.
    """

    coefficients: dict[int, jax.Array]
    offset: jax.Array


def backsubstitute(
    graph: Graph, target: Node, coefficients: jax.Array, relaxations: Mapping[int, rules.Relaxation]
) -> LinearBound:
    """A linear lower bound of `<coefficients, target>` in terms of the input and of unrelaxed nonlinear nodes.

    Args:
      graph: the network.
      target: the node that is bounded.
      coefficients: `[*target]`; one objective (vmap for more).
      relaxations: by index of the output node of each nonlinear equation to be relaxed; the fold stops at the others.

    Returns:
      The bound.

    Soundness:
      Holds on every set on which the relaxations hold; with no relaxation it is an identity.
    """
    pending = {target.index: coefficients}
    offset = jnp.zeros((), coefficients.dtype)
    for equation in reversed(graph.equations):
        index = equation.output.index
        if index not in pending:
            continue
        if isinstance(rules.lookup(equation), rules.Affine):
            pulled, constant = pull_affine(equation, pending.pop(index))
        elif index in relaxations:
            pulled, constant = _through_relaxation(relaxations[index], pending.pop(index))
        else:
            continue
        offset = offset + constant
        for node, part in zip(equation.bounded, pulled, strict=True):
            assert part.shape == node.shape, (equation.name, part.shape, node.shape)
            pending[node.index] = pending[node.index] + part if node.index in pending else part
    return LinearBound(pending, offset)


def pull_affine(equation: Equation, coefficients: jax.Array) -> tuple[tuple[jax.Array, ...], jax.Array]:
    """Moves coefficients through an affine equation, whole nodes at once.

    Args:
      equation: with an affine rule.
      coefficients: `[*output]`.

    Returns:
      Coefficients on each bounded operand, and the constant: `<coefficients, y> = sum_i <pulled_i, x_i> + constant`.
    """
    rule = rules.lookup(equation)
    assert isinstance(rule, rules.Affine)
    value, pull = jax.vjp(equation.evaluate, *(node.zeros() for node in equation.bounded))
    constant = jnp.sum(coefficients * value) if rule.offset else jnp.zeros((), coefficients.dtype)
    return pull(coefficients), constant


def _through_relaxation(
    relaxation: rules.Relaxation, coefficients: jax.Array
) -> tuple[tuple[jax.Array, ...], jax.Array]:
    positive, negative = jnp.maximum(coefficients, 0), jnp.minimum(coefficients, 0)
    pulled = tuple(
        below + above
        for below, above in zip(relaxation.lower.pull(positive), relaxation.upper.pull(negative), strict=True)
    )
    constant = jnp.sum(positive * relaxation.lower.intercept) + jnp.sum(negative * relaxation.upper.intercept)
    return pulled, constant


def concretize(bound: LinearBound, graph: Graph, region: Region, intervals: Mapping[int, Interval]) -> jax.Array:
    """The least value of a linear bound: over the region for the input, over their intervals for other nodes.

    Soundness:
      A lower bound of what `bound` bounds, for every input in the region.
    """
    least = bound.offset
    for index, coefficients in bound.coefficients.items():
        if index == graph.input.index:
            least = least - region.support(-coefficients)
        else:
            box = intervals[index]
            corner = jnp.maximum(coefficients, 0) * box.lower + jnp.minimum(coefficients, 0) * box.upper
            least = least + jnp.sum(corner)
    return least


def bound_node(
    graph: Graph,
    target: Node,
    region: Region,
    relaxations: Mapping[int, rules.Relaxation],
    intervals: Mapping[int, Interval],
) -> Interval:
    """Bounds every entry of a node by back-substitution: lower and upper `[*target]`."""

    def least(row: jax.Array) -> jax.Array:
        return concretize(backsubstitute(graph, target, row, relaxations), graph, region, intervals)

    def both(index: jax.Array) -> tuple[jax.Array, jax.Array]:
        row = jax.nn.one_hot(index, size, dtype=target.dtype).reshape(target.shape)
        return least(row), -least(-row)

    size = math.prod(target.shape)
    lower, upper = _map_in_chunks(both, size, _widest(graph))
    return Interval(lower.reshape(target.shape), upper.reshape(target.shape))


def concretized_output(
    graph: Graph, region: Region, relaxations: Mapping[int, rules.Relaxation], intervals: Mapping[int, Interval]
) -> Interval:
    """Bounds of the output; an output that does not depend on the input is its own bound."""
    if not isinstance(graph.output, Node):
        return Interval(graph.output, graph.output)
    return bound_node(graph, graph.output, region, relaxations, intervals)


def _widest(graph: Graph) -> int:
    return max(math.prod(node.shape) for node in (graph.input, *(equation.output for equation in graph.equations)))


def _map_in_chunks(
    function: Callable[[jax.Array], tuple[jax.Array, jax.Array]], size: int, width: int
) -> tuple[jax.Array, jax.Array]:
    chunk = max(1, _CHUNK_COEFFICIENTS // width)
    indices = jnp.arange(size)
    if chunk >= size:
        return jax.vmap(function)(indices)
    return jax.lax.map(function, indices, batch_size=chunk)
