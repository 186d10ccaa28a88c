"""The backward fold where whole layers are relaxed by a function, as `sdp_crown` and branch and bound do."""

from collections.abc import Callable, Collection, Mapping

import jax
import jax.numpy as jnp

from cure_jax import numerics, rules
from cure_jax.bounds.folding import coefficients as forms
from cure_jax.bounds.folding.constants import Bases
from cure_jax.bounds.folding.linear import pull_relaxed
from cure_jax.graph import Equation, Graph, Node
from cure_jax.regions import Interval

__all__ = ["Relax", "fold", "room_for_rounding"]

# From the equation of a layer and the coefficients on its output to those on its operand, and a constant.
Relax = Callable[[Equation, jax.Array], tuple[jax.Array, jax.Array]]
# Of sums, in units of the last place of their terms.
_ROUNDING = 4


def fold(
    graph: Graph, row: jax.Array, layers: Collection[int], relaxations: Mapping[int, rules.Relaxation], relax: Relax
) -> tuple[jax.Array, jax.Array]:
    """A linear lower bound of <row, output> on the input.

    Args:
      graph: the network; its output is a node.
      row: `[*output]`.
      layers: which equations `relax` treats, by the indices of their outputs.
      relaxations: of all other nonlinear equations.
      relax: a lower bound of a layer.

    Returns:
      Coefficients on the input, and a constant.
    """
    assert isinstance(graph.output, Node)
    bases = Bases(graph)
    pending, constant = {graph.output.index: row}, bases.inner(row, graph.output)
    for equation in reversed(graph.equations):
        index = equation.output.index
        if index not in pending:
            continue
        coefficients = pending.pop(index)
        if index in layers:
            slopes, least = relax(equation, coefficients)
            pulled, constant = (slopes,), constant + least + bases.inner(slopes, *equation.bounded)
        elif index in relaxations:
            pulled, least = pull_relaxed(equation, relaxations[index], coefficients, bases)
            constant = constant + least
        else:
            pulled = forms.pull(equation, coefficients)
        for node, part in zip(equation.bounded, pulled, strict=True):
            part = forms.dense(part, node.shape)
            pending[node.index] = pending[node.index] + part if node.index in pending else part
    return pending[graph.input.index], constant


def room_for_rounding(box: Interval, slopes: jax.Array) -> jax.Array:
    """What <g, x> may be off by on a box, as x and the pulled coefficients g are rounded in different ways.

    Not a bound of it. But without it large slopes cost nothing on regions that are narrower than the rounding of their
    layers, and many steps of an optimiser find those whose rounding pays.
    """
    largest = jnp.maximum(jnp.abs(box.lower), jnp.abs(box.upper))
    largest = jnp.where(jnp.isfinite(largest), largest, 0)
    return _ROUNDING * jnp.finfo(slopes.dtype).eps * numerics.total(jnp.abs(slopes) * largest)
