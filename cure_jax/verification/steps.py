"""What is compiled of branch and bound: steps on batches of domains."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from cure_jax.regions import Interval, Region
from cure_jax.verification.branching import Candidates, candidates
from cure_jax.verification.domains import Domain
from cure_jax.verification.problem import Specification, worst_values
from cure_jax.verification.roots import narrowed, traced
from cure_jax.verification.split_bound import Multipliers, Network, Root, first, joined, maximise

__all__ = [
    "Batch",
    "Inside",
    "Step",
    "batch_of",
    "bound_batch",
    "first_multipliers",
    "known_sides",
    "narrowed_batch",
    "whole_batch",
]


class Batch(NamedTuple):
    """Domains as arrays, see `Domain`.

    Attributes:
      specification: `[batch]`.
      sides: `[batch, neurons]`.
      boxes: `[batch, neurons]`.
      multipliers: `[batch, ...]`, to start from.
    """

    specification: Any
    sides: Any
    boxes: Interval
    multipliers: Multipliers


class Inside(NamedTuple):
    """Bounds of layers on each domain of a batch.

    Attributes:
      boxes: `[batch, neurons]`, of the operands of the layers that can be split.
      others: `[batch, ...]`, of the operands of all other nonlinear equations.
    """

    boxes: Interval
    others: tuple[Interval, ...]


class Step(NamedTuple):
    """What one compiled step says of a batch of domains.

    Attributes:
      bound: `[batch]`, in the dtype of the network.
      multipliers: `[batch, ...]`.
      point: `[batch, *x]`, where the linear bound is attained.
      value: `[batch]`, the least greatest row of any specification at that point.
      candidates: `[batch, layers]`, neurons to be split.
      known: `[batch, neurons]`, on which side of its kink a neuron is that cannot be split.
    """

    bound: Any
    multipliers: Multipliers
    point: Any
    value: Any
    candidates: Candidates
    known: Any


def batch_of(domains: Sequence[Domain]) -> Batch:
    """Domains that wait, as arrays."""
    which = np.asarray([domain.specification for domain in domains], np.int32)
    parts = [(domain.sides, domain.boxes, domain.multipliers) for domain in domains]
    return Batch(which, *jax.tree.map(lambda *leaves: np.stack(leaves), *parts))


@functools.partial(jax.jit, static_argnames="at_once")
def narrowed_batch(
    f: Partial, region: Region, root: Root, boxes: Interval, sides: jax.Array, *, at_once: int | None = None
) -> Inside:
    """Bounds the layers of a batch of domains anew, see `narrowed`.

    Args:
      f: the network; its parameters are arguments of what is compiled.
      region: the set of inputs.
      root: bounds on it.
      boxes: `[batch, neurons]`, of parts that hold the domains.
      sides: `[batch, neurons]`.
      at_once: domains that go through the layers together, each for as long as the slowest of them; None: one after the
        other, each as long as what was cut makes it.
    """
    graph = traced(f, region)

    def one(part: tuple[Interval, jax.Array]) -> Inside:
        own = narrowed(graph, region, root, *part)
        return Inside(own.joined_boxes(), own.others)

    return jax.lax.map(one, (boxes, sides), batch_size=at_once)


def whole_batch(root: Root, size: int) -> Inside:
    """The same of domains that are all of the region."""
    boxes, others = jax.tree.map(lambda leaf: np.stack([leaf] * size), (root.joined_boxes(), root.others))
    return Inside(boxes, others)


@functools.partial(jax.jit, static_argnames=("steps", "tried"))
def bound_batch(  # noqa: PLR0913  (what is compiled once takes everything else as an argument)
    f: Partial,
    region: Region,
    root: Root,
    specifications: Specification,
    domains: Batch,
    inside: Inside,
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
      inside: bounds of their layers.
      steps: of Adam.
      tried: neurons of each layer, of which the best becomes a candidate.
    """
    graph = traced(f, region)

    def one(domain: Batch, inside: Inside) -> Step:
        specification = jax.tree.map(lambda leaf: leaf[domain.specification], specifications)
        network = Network(graph, region, root.on(inside.boxes)._replace(others=inside.others))
        found = maximise(network, specification, domain.sides, domain.multipliers, steps)
        best = candidates(network, specification, domain.sides, found, tried)
        value = jnp.min(worst_values(f, specifications, found.point))
        return Step(found.bound, found.multipliers, found.point, value, best, known_sides(network))

    return jax.vmap(one)(domains, inside)


@jax.jit
def first_multipliers(f: Partial, region: Region, root: Root, specifications: Specification) -> Multipliers:
    """What the search starts from, for each specification, `[specifications, ...]`."""
    network = Network(traced(f, region), region, root)
    return jax.lax.map(functools.partial(first, network), specifications)


def known_sides(network: Network) -> jax.Array:
    """On which side of its kink each neuron is that cannot be split, `[neurons]`."""
    right = [(layer.box.lower >= layer.kink).ravel() for layer in network.layers.values()]
    return jnp.where(joined(right, bool), 1, -1).astype(jnp.int8)
