"""Domains that wait for their turn: the worst bound first."""

import heapq
import itertools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from cure_jax.verification.split_bound import Multipliers

__all__ = ["Domain", "Waiting", "halves", "unstacked"]


class Domain(NamedTuple):
    """A part of the problem.

    Attributes:
      specification: the number of the specification.
      sides: `[neurons]`, int8: 1 right of the kink, -1 left of it, 0 not split.
      bound: that is proved for it.
      neuron: to be split next.
      multipliers: that gave the bound, NumPy arrays, for its halves to start from.
    """

    specification: int
    sides: np.ndarray
    bound: float
    neuron: int
    multipliers: Multipliers

    @property
    def memory(self) -> int:
        """Bytes of its arrays."""
        return self.sides.nbytes + sum(leaf.nbytes for leaf in jax.tree.leaves(self.multipliers))


def halves(domain: Domain) -> tuple[Domain, Domain]:
    """The two domains on either side of the kink of the neuron to be split; each has the bound of the whole."""

    def half(side: int) -> Domain:
        sides, beta = domain.sides.copy(), domain.multipliers.beta.copy()
        sides[domain.neuron], beta[domain.neuron] = side, 0
        return domain._replace(sides=sides, multipliers=domain.multipliers._replace(beta=beta))

    return half(1), half(-1)


def unstacked(arrays: Mapping[str, np.ndarray]) -> list[Domain]:
    """The domains that `Waiting.stacked` made arrays of, those that go first last."""
    count = len(arrays.get("specification", ()))
    return [
        Domain(
            int(arrays["specification"][i]),
            arrays["sides"][i],
            float(arrays["bound"][i]),
            int(arrays["neuron"][i]),
            Multipliers(**{name: arrays[f"multipliers.{name}"][i] for name in Multipliers._fields}),
        )
        for i in reversed(range(count))
    ]


class Waiting:
    """A heap of domains."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Domain]] = []
        self._order = itertools.count()
        self.memory = 0

    def __len__(self) -> int:
        return len(self._heap)

    @property
    def worst(self) -> float:
        """The least bound of all; infinite if there is none."""
        return self._heap[0][0] if self._heap else np.inf

    def push(self, domain: Domain) -> None:
        """Adds a domain. What was added last goes first among equals, so that bounds which do not move are followed."""
        heapq.heappush(self._heap, (domain.bound, -next(self._order), domain))
        self.memory += domain.memory

    def pop(self, count: int) -> list[Domain]:
        """Takes the worst domains, at most so many."""
        taken = [heapq.heappop(self._heap)[2] for _ in range(min(count, len(self._heap)))]
        self.memory -= sum(domain.memory for domain in taken)
        return taken

    def stacked(self) -> dict[str, Any]:
        """All domains as arrays by the names of their fields, those that go first first; none for none."""
        domains = [domain for _, _, domain in sorted(self._heap, key=lambda item: item[:2])]
        if not domains:
            return {}
        fields = {
            name: np.stack([np.asarray(getattr(domain, name)) for domain in domains])
            for name in Domain._fields
            if name != "multipliers"
        }
        parts = jax.tree.map(lambda *leaves: np.stack(leaves), *[domain.multipliers for domain in domains])
        return fields | {f"multipliers.{name}": leaf for name, leaf in parts._asdict().items()}
