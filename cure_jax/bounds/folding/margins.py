"""Margins of a classifier over its last affine block, for losses.

The rows of the block are those of the network, not of an example: under `jax.vmap` over examples they are computed
once. The rows of the margins of an example are differences of them, which XLA makes while it sums their products; the
margins as a function of the logits would be a matrix product for each example.
"""

import functools
from collections.abc import Mapping
from typing import cast

import jax
import jax.numpy as jnp

from cure_jax.bounds.folding.linear import backsubstitute
from cure_jax.bounds.norms.spectral import sources
from cure_jax.graph import Graph, Node
from cure_jax.regions import Interval, LpBall, Region

__all__ = ["least_margins"]


def least_margins(
    graph: Graph, label: jax.Array, region: Region, *inside: Mapping[int, Interval] | Mapping[int, LpBall]
) -> jax.Array:
    """Lower bounds of `logits[label] - logits[j]` for every class j; 0 for the label itself.

    Args:
      graph: of a network with logits `[classes]`.
      label: the class.
      region: the set of inputs.
      inside: where the values of nonlinear nodes lie, by index, one or several times; those are looked up of which the
        logits are an affine function.

    Returns:
      `[classes]`, for each margin the greatest.
    """
    output = graph.output
    assert isinstance(output, Node), "logits that do not depend on the input"
    nodes = [source.index for source in sources(graph, output)]

    def row(index: jax.Array) -> tuple[dict[int, jax.Array], jax.Array]:
        bound = backsubstitute(graph, output, jax.nn.one_hot(index, *output.shape, dtype=output.dtype), {})
        return {index: cast(jax.Array, bound.coefficients[index]) for index in nodes}, bound.offset

    (classes,) = output.shape
    own = jax.nn.one_hot(label, classes, dtype=output.dtype)

    def differences(rows: jax.Array) -> jax.Array:
        return jnp.tensordot(own[None], rows, 1, precision=jax.lax.Precision.HIGHEST) - rows

    rows, offsets = jax.tree.map(differences, jax.vmap(row)(jnp.arange(classes)))

    def least(known: Mapping[int, Interval] | Mapping[int, LpBall]) -> jax.Array:
        bounds = offsets
        for index, coefficients in rows.items():
            place = region if index == graph.input.index else known[index]
            bounds = bounds - jax.vmap(lambda c, place=place: _greatest(place, -c))(coefficients)
        return bounds

    return functools.reduce(jnp.maximum, map(least, inside))


def _greatest(place: Interval | Region, coefficients: jax.Array) -> jax.Array:
    if isinstance(place, Interval):
        return jnp.sum(coefficients * jnp.where(coefficients > 0, place.upper, place.lower))
    return place.support(coefficients)
