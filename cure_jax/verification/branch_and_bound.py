"""Branch and bound on the kinks of neurons."""

import dataclasses
import functools
import math
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from cure_jax.regions import Region
from cure_jax.verification.branching import choose
from cure_jax.verification.domains import Domain, Waiting, halves, unstacked
from cure_jax.verification.leaf import solve_leaf
from cure_jax.verification.outcome import Outcome
from cure_jax.verification.problem import Limits, Problem, Progress, Specification, worst_values
from cure_jax.verification.roots import is_box, tightened, traced
from cure_jax.verification.saved import Saved
from cure_jax.verification.split_bound import Multipliers, Network, Root, first, free_of, joined, maximise
from cure_jax.verification.verdict import Status
from cure_jax.verification.witness import Witness, confirmed

__all__ = ["Settings", "search"]


class Settings(NamedTuple):
    """How a search is done; none of it changes what is true.

    Attributes:
      batch_size: domains that are bounded at once.
      steps: of Adam, for each of them.
      candidates: neurons of which the best is split.
      patience: domains that are bounded before the layers of the whole region are bounded anew, with optimised slopes.
      root_rounds: how often the whole region is bounded before it is split, each time from where the last one ended.
    """

    batch_size: int = 64
    steps: int = 20
    candidates: int = 8
    patience: int = 1000
    root_rounds: int = 3


class Step(NamedTuple):
    """What one compiled step says of a batch of domains.

    Attributes:
      bound: `[batch]`, in the dtype of the network.
      multipliers: `[batch, ...]`.
      point: `[batch, *x]`, where the linear bound is attained.
      value: `[batch]`, the least greatest row of any specification at that point.
      neuron: `[batch]`, to be split.
      possible: `[batch]`, whether there is any.
    """

    bound: Any
    multipliers: Multipliers
    point: Any
    value: Any
    neuron: Any
    possible: Any


@functools.partial(jax.jit, static_argnames=("steps", "candidates"))
def bound_batch(  # noqa: PLR0913  (what is compiled once takes everything else as an argument)
    f: Partial,
    region: Region,
    root: Root,
    specifications: Specification,
    domains: tuple[jax.Array, jax.Array, Multipliers],
    *,
    steps: int,
    candidates: int,
) -> Step:
    """Bounds a batch of domains, and chooses what to split.

    Args:
      f: the network; its parameters are arguments of what is compiled.
      region: the set of inputs.
      root: bounds on it.
      specifications: all of them.
      domains: for each its specification, its sides and the multipliers to start from.
      steps: of Adam.
      candidates: see `Settings`.
    """
    network = Network(traced(f, region), region, root)

    def one(which: jax.Array, sides: jax.Array, start: Multipliers) -> Step:
        specification = jax.tree.map(lambda leaf: leaf[which], specifications)
        found = maximise(network, specification, sides, start, steps)
        choice = choose(network, specification, sides, found, candidates)
        value = jnp.min(worst_values(f, specifications, found.point))
        return Step(found.bound, found.multipliers, found.point, value, choice.neuron, choice.possible)

    return jax.vmap(one)(*domains)


@jax.jit
def first_multipliers(f: Partial, region: Region, root: Root, specifications: Specification) -> Multipliers:
    """What the search starts from, for each specification, `[specifications, ...]`."""
    network = Network(traced(f, region), region, root)
    return jax.lax.map(functools.partial(first, network), specifications)


@jax.jit
def free_neurons(f: Partial, region: Region, root: Root) -> tuple[jax.Array, jax.Array]:
    """Which neurons can be split, and on which side the others are, `[neurons]`."""
    network = Network(traced(f, region), region, root)
    right = [(layer.box.lower >= layer.kink).ravel() for layer in network.layers.values()]
    return free_of(network), jnp.where(joined(right, bool), 1, -1).astype(jnp.int8)


@dataclasses.dataclass
class _Search:
    """The state of a search.

    Attributes:
      margin: the least bound of what is proved.
      bounded: how many domains were.
      undecided: bounds of leaves that could not be decided.
    """

    problem: Problem
    root: Root
    settings: Settings
    splittable: bool
    waiting: Waiting = dataclasses.field(default_factory=Waiting)
    margin: float = math.inf
    bounded: int = 0
    tight: bool = False
    undecided: list[float] = dataclasses.field(default_factory=list)

    def __post_init__(self) -> None:
        self.known = self._known()

    def step(self, domains: Sequence[Domain]) -> Step:
        """One compiled step, on domains that are filled up to the size of a batch."""
        padded = [domains[min(i, len(domains) - 1)] for i in range(self.settings.batch_size)]
        which = np.asarray([domain.specification for domain in padded], np.int32)
        sides = np.stack([domain.sides for domain in padded])
        start = jax.tree.map(lambda *leaves: np.stack(leaves), *[domain.multipliers for domain in padded])
        options = {"steps": self.settings.steps, "candidates": self.settings.candidates}
        problem = self.problem
        batch = (problem.f, problem.region, self.root, problem.rounded, (which, sides, start))
        result = jax.device_get(bound_batch(*batch, **options))
        self.bounded += len(domains)
        return jax.tree.map(lambda leaf: np.asarray(leaf)[: len(domains)], result)

    def take(self, domains: Sequence[Domain], step: Step) -> Witness | None:
        """Enters what a step found; a counterexample ends the search."""
        witness = confirmed(self.problem, step.point[step.value <= 0][:4])
        if witness is not None:
            return witness
        for i, domain in enumerate(domains):
            # A part is bounded by what bounds the whole. What is not a finite number is no bound.
            bound = max(domain.bound, float(step.bound[i])) if np.isfinite(step.bound[i]) else domain.bound
            if 0 < bound < math.inf:
                self.margin = min(self.margin, bound)
            elif step.possible[i]:
                # Copies: a view would keep the whole batch.
                own = jax.tree.map(lambda leaf, i=i: np.array(leaf[i]), step.multipliers)
                self.waiting.push(domain._replace(bound=bound, neuron=int(step.neuron[i]), multipliers=own))
            elif self.splittable:
                witness = self._finish(domain, bound)
                if witness is not None:
                    return witness
            else:
                self.undecided.append(bound)
        return None

    def _finish(self, domain: Domain, bound: float) -> Witness | None:
        """Decides a domain in which every neuron is split."""
        problem = self.problem
        specification = jax.tree.map(lambda leaf: leaf[domain.specification], problem.specifications)
        split = domain.sides != 0
        sides = np.where(split, domain.sides, self.known[1])
        leaf = solve_leaf(problem.f, problem.region, specification, sides, split)
        if leaf.proved:
            self.margin = min(self.margin, leaf.bound)
            return None
        witness = confirmed(problem, leaf.points)
        if witness is None:
            self.undecided.append(bound)
        return witness

    def tighten(self) -> None:
        """Bounds the layers of the whole region anew, once; domains that wait stay as they are."""
        if self.tight or self.bounded < self.settings.patience or not is_box(self.problem.region):
            return
        self.tight = True
        root = tightened(self.problem.f, self.problem.region, self.root, self.problem.rounded)
        self.root = jax.block_until_ready(root)
        self.known = self._known()

    def _known(self) -> tuple[np.ndarray, np.ndarray]:
        return jax.device_get(free_neurons(self.problem.f, self.problem.region, self.root))

    def possible(self, domain: Domain) -> bool:
        """Whether a domain has inputs, as far as the boxes of the whole region tell: tighter ones may exclude a side.

        What lies on the kink itself belongs to the other side, too.
        """
        free, sides = self.known
        return not np.any((domain.sides != 0) & ~free & (domain.sides != sides))

    def saved(self) -> dict[str, Any]:
        """The state as arrays: all but the bounds of the layers, which are found anew."""
        known = {"margin": self.margin, "bounded": self.bounded, "undecided": self.undecided}
        return known | self.waiting.stacked()

    def restore(self, arrays: dict[str, np.ndarray]) -> None:
        """Goes on from what `saved` gave."""
        self.margin, self.bounded = float(arrays.pop("margin")), int(arrays.pop("bounded"))
        self.undecided = arrays.pop("undecided").tolist()
        for domain in unstacked(arrays):
            self.waiting.push(domain)

    def progress(self, limits: Limits) -> Progress:
        worst = min(self.waiting.worst, *self.undecided, self.margin)
        return Progress(self.bounded, len(self.waiting), worst, time.monotonic() - limits.start)

    def ended(self, status: Status, reason: str, witness: Witness | None = None) -> Outcome:
        margin = witness.margin if witness else min(self.waiting.worst, *self.undecided, self.margin)
        return Outcome(status, witness, margin, self.bounded, reason)


def search(  # noqa: PLR0913  (a problem, what is known of it, and how to go on)
    problem: Problem,
    root: Root,
    limits: Limits,
    settings: Settings,
    *,
    stuck: str,
    numbers: Sequence[int],
    saved: Saved | None = None,
) -> Outcome:
    """Branch and bound on the kinks of neurons, the worst domain first.

    Args:
      problem: what is to be proved.
      root: bounds on all of its region.
      limits: looked at between batches.
      settings: see there.
      stuck: names the nonlinear functions that cannot be split; empty if all can be.
      numbers: of the specifications that are still to be proved.
      saved: where the state is kept, and taken up again.

    Returns:
      VERIFIED if every domain has a finite bound above 0; FALSIFIED with a witness; TIMEOUT where a limit was reached;
      UNKNOWN where a domain is left over that cannot be split.
    """
    state = _Search(problem, root, settings, splittable=not stuck)
    before = saved.load() if saved else None
    if before is not None:
        state.restore(before)
    elif (witness := _bound_whole(state, limits, _whole(problem, root, numbers))) is not None:
        return state.ended(Status.FALSIFIED, "a bound was attained at a counterexample", witness)
    outcome = _branch(state, limits, stuck, saved)
    if saved and outcome.status is Status.TIMEOUT:
        saved.keep(state.saved, now=True)
    elif saved:
        saved.forget()
    return outcome


def _bound_whole(state: _Search, limits: Limits, domains: Sequence[Domain]) -> Witness | None:
    """Bounds the whole region several times; what is not proved waits."""
    for _ in range(state.settings.root_rounds):
        for start in range(0, len(domains), state.settings.batch_size):
            part = domains[start : start + state.settings.batch_size]
            witness = state.take(part, state.step(part))
            if witness is not None:
                return witness
        domains = state.waiting.pop(len(state.waiting))
        if not domains or limits.exceeded(state.bounded, 0):
            break
    for domain in domains:
        state.waiting.push(domain)
    return None


def _whole(problem: Problem, root: Root, numbers: Sequence[int]) -> list[Domain]:
    start = jax.device_get(first_multipliers(problem.f, problem.region, root, problem.rounded))
    neurons = start.share.shape[-1]
    sides = np.zeros(neurons, np.int8)
    own = lambda number: jax.tree.map(lambda leaf: np.asarray(leaf)[number], start)  # noqa: E731
    return [Domain(number, sides, -math.inf, 0, own(number)) for number in numbers]


def _branch(state: _Search, limits: Limits, stuck: str, saved: Saved | None) -> Outcome:
    while len(state.waiting):
        limit = limits.exceeded(state.bounded, state.waiting.memory)
        if limit:
            return state.ended(Status.TIMEOUT, limit)
        state.tighten()
        parents = state.waiting.pop(max(1, state.settings.batch_size // 2))
        children = [half for parent in parents for half in halves(parent) if state.possible(half)]
        witness = state.take(children, state.step(children)) if children else None
        if witness is not None:
            return state.ended(Status.FALSIFIED, "branch and bound found a counterexample", witness)
        if saved:
            saved.keep(state.saved)
        limits.tell(state.progress(limits))
    if not state.undecided:
        return state.ended(Status.VERIFIED, "branch and bound proved every domain")
    why = f"nothing branches on {stuck}" if stuck else "the margin is within rounding of 0 on a leaf"
    return state.ended(Status.UNKNOWN, f"{len(state.undecided)} domains were left over: {why}")
