"""Domains that wait for their turn: the worst bound first."""

import heapq
import itertools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from cure_jax.regions import Interval
from cure_jax.verification.split_bound import Multipliers

__all__ = ["Domain", "Waiting", "halves", "unstacked"]


class Domain(NamedTuple):
    """A part of the problem.

    Attributes:
      specification: the number of the specification.
      sides: `[neurons]`, int8: 1 right of the kink, -1 left of it, 0 not split.
      boxes: `[neurons]`, of the operands of the layers that can be split, on this part or one that holds it.
      bound: that is proved for it.
      neurons: `[layers]`, the candidate of each layer for the next split.
      slack: `[layers]`, what their relaxations are off by; -1 for none.
      multipliers: that gave the bound, NumPy arrays, for its halves to start from.
    """

    specification: int
    sides: np.ndarray
    boxes: Interval
    bound: float
    neurons: np.ndarray
    slack: np.ndarray
    multipliers: Multipliers

    @property
    def memory(self) -> int:
        """Bytes of its arrays."""
        return sum(leaf.nbytes for leaf in jax.tree.leaves((self.sides, self.boxes, self.multipliers)))


def halves(domain: Domain, layer: int) -> tuple[Domain, Domain]:
    """The two domains on either side of the kink of the candidate of a layer; each has the bound of the whole."""
    neuron = domain.neurons[layer]

    def half(side: int) -> Domain:
        sides, beta = domain.sides.copy(), domain.multipliers.beta.copy()
        sides[neuron], beta[neuron] = side, 0
        return domain._replace(sides=sides, multipliers=domain.multipliers._replace(beta=beta))

    return half(1), half(-1)


def unstacked(arrays: Mapping[str, np.ndarray]) -> list[Domain]:
    """The domains that `Waiting.stacked` made arrays of, those that go first last."""
    count = len(arrays.get("specification", ()))
    return [
        Domain(
            int(arrays["specification"][i]),
            arrays["sides"][i],
            Interval(arrays["boxes.lower"][i], arrays["boxes.upper"][i]),
            float(arrays["bound"][i]),
            arrays["neurons"][i],
            arrays["slack"][i],
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
            if name not in ("boxes", "multipliers")
        }
        stack = lambda trees: jax.tree.map(lambda *leaves: np.stack(leaves), *trees)  # noqa: E731
        boxes = stack([domain.boxes for domain in domains])
        fields |= {"boxes.lower": boxes.lower, "boxes.upper": boxes.upper}
        parts = stack([domain.multipliers for domain in domains])
        return fields | {f"multipliers.{name}": leaf for name, leaf in parts._asdict().items()}
