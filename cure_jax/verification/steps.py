"""What is compiled of branch and bound: steps on batches of domains."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from cure_jax.regions import Interval, Region
from cure_jax.verification.branching import Candidates, candidates, worth
from cure_jax.verification.domains import Domain
from cure_jax.verification.problem import Specification, worst_values
from cure_jax.verification.roots import narrowed, traced
from cure_jax.verification.split_bound import Multipliers, Network, Root, first, joined, least, maximise

__all__ = ["Batch", "Step", "batch_of", "bound_batch", "first_multipliers", "gains_of_splits", "known_sides"]


class Batch(NamedTuple):
    """Domains as arrays, see `Domain`.

    Attributes:
      specification: `[batch]`.
      sides: `[batch, neurons]`.
      boxes: `[batch, neurons]`.
      multipliers: `[batch, ...]`, to start from.
      neurons: `[batch, layers]`, candidates for a split.
    """

    specification: Any
    sides: Any
    boxes: Interval
    multipliers: Multipliers
    neurons: Any


class Step(NamedTuple):
    """What one compiled step says of a batch of domains.

    Attributes:
      bound: `[batch]`, in the dtype of the network.
      multipliers: `[batch, ...]`.
      point: `[batch, *x]`, where the linear bound is attained.
      value: `[batch]`, the least greatest row of any specification at that point.
      candidates: `[batch, layers]`, neurons to be split.
      boxes: `[batch, neurons]`, of the operands of the layers that can be split.
      known: `[batch, neurons]`, on which side of its kink a neuron is that cannot be split.
      empty: `[batch]`, whether the boxes say that there are no inputs. What is on a kink belongs to both of its sides.
    """

    bound: Any
    multipliers: Multipliers
    point: Any
    value: Any
    candidates: Candidates
    boxes: Any
    known: Any
    empty: Any


def batch_of(domains: Sequence[Domain]) -> Batch:
    """Domains that wait, as arrays."""
    which = np.asarray([domain.specification for domain in domains], np.int32)
    parts = [(domain.sides, domain.boxes, domain.multipliers, domain.neurons) for domain in domains]
    return Batch(which, *jax.tree.map(lambda *leaves: np.stack(leaves), *parts))


@functools.partial(jax.jit, static_argnames=("steps", "tried"))
def bound_batch(  # noqa: PLR0913  (what is compiled once takes everything else as an argument)
    f: Partial,
    region: Region,
    root: Root,
    specifications: Specification,
    domains: Batch,
    *,
    steps: int,
    tried: int,
) -> Step:
    """Bounds a batch of domains, and chooses what to split.

    Args:
      f: the network; its parameters are arguments of what is compiled.
      region: the set of inputs.
      root: bounds on it.
      specifications: all of them.
      domains: parts of the region.
      steps: of Adam.
      tried: neurons of each layer, of which the best becomes a candidate.
    """
    graph = traced(f, region)

    def one(domain: Batch) -> Step:
        specification = jax.tree.map(lambda leaf: leaf[domain.specification], specifications)
        own, empty = narrowed(graph, region, root.on(domain.boxes), domain.sides)
        network = Network(graph, region, own)
        found = maximise(network, specification, domain.sides, domain.multipliers, steps)
        best = candidates(network, specification, domain.sides, found, tried)
        value = jnp.min(worst_values(f, specifications, found.point))
        known = known_sides(network)
        return Step(found.bound, found.multipliers, found.point, value, best, own.joined_boxes(), known, empty)

    return jax.vmap(one)(domains)


@jax.jit
def gains_of_splits(f: Partial, region: Region, root: Root, specifications: Specification, domains: Batch) -> jax.Array:
    """What splits at the candidates of domains gain, the layers behind them bounded anew, `[batch, layers]`.

    Args:
      f: the network.
      region: the set of inputs.
      root: bounds on it.
      specifications: all of them.
      domains: parts of the region, with the multipliers that gave their bounds.
    """
    graph = traced(f, region)

    def one(domain: Batch) -> jax.Array:
        specification = jax.tree.map(lambda leaf: leaf[domain.specification], specifications)
        whole = root.on(domain.boxes)

        def bound(sides: jax.Array) -> jax.Array:
            own, empty = narrowed(graph, region, whole, sides)
            value = least(Network(graph, region, own), specification, sides, domain.multipliers)[0]
            return jnp.where(empty, 0, value)

        halves = jnp.asarray([1, -1], domain.sides.dtype)
        cut = jax.vmap(lambda neuron: jax.vmap(lambda side: domain.sides.at[neuron].set(side))(halves))(domain.neurons)
        # One after the other: of a whole batch of domains each is large enough.
        found = jax.lax.map(bound, cut.reshape(-1, cut.shape[-1])).reshape(-1, 2)
        before = least(Network(graph, region, whole), specification, domain.sides, domain.multipliers)[0]
        return jnp.maximum(worth(found[:, 0], found[:, 1]) - worth(before, before), 0)

    return jax.vmap(one)(domains)


@jax.jit
def first_multipliers(f: Partial, region: Region, root: Root, specifications: Specification) -> Multipliers:
    """What the search starts from, for each specification, `[specifications, ...]`."""
    network = Network(traced(f, region), region, root)
    return jax.lax.map(functools.partial(first, network), specifications)


def known_sides(network: Network) -> jax.Array:
    """On which side of its kink each neuron is that cannot be split, `[neurons]`."""
    right = [(layer.box.lower >= layer.kink).ravel() for layer in network.layers.values()]
    return jnp.where(joined(right, bool), 1, -1).astype(jnp.int8)
