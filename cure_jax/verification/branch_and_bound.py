"""Branch and bound on the kinks of neurons."""

import dataclasses
import math
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.tree_util import Partial

from cure_jax.regions import Interval, Region
from cure_jax.verification.branching import Rates, worth
from cure_jax.verification.domains import Domain, Waiting, halves, unstacked
from cure_jax.verification.leaf import solve_leaf
from cure_jax.verification.outcome import Outcome
from cure_jax.verification.problem import Limits, Problem, Progress, Specification
from cure_jax.verification.roots import is_box, tightened
from cure_jax.verification.saved import Saved
from cure_jax.verification.split_bound import Root
from cure_jax.verification.steps import (
    Inside,
    Step,
    batch_of,
    bound_batch,
    first_multipliers,
    narrowed_batch,
    whole_batch,
)
from cure_jax.verification.verdict import Status
from cure_jax.verification.witness import Witness, confirmed

__all__ = ["Settings", "search"]

# Batches whose splits are tried, before rates are trusted; and one of how many later.
_TRIED_AT_FIRST, _TRIED_EVERY = 4, 8


class Settings(NamedTuple):
    """How a search is done; none of it changes what is true.

    Attributes:
      batch_size: domains that are bounded at once.
      steps: of Adam, for each of them.
      candidates: neurons of each layer that are tried; the best of each layer may be split.
      patience: domains that are bounded before the layers of the whole region are bounded anew, with optimised slopes.
      root_rounds: how often the whole region is bounded before it is split, each time from where the last one ended.
    """

    batch_size: int = 32
    steps: int = 20
    candidates: int = 4
    patience: int = 300
    root_rounds: int = 3


@dataclasses.dataclass
class _Search:
    """The state of a search.

    Attributes:
      margin: the least bound of what is proved.
      bounded: how many domains were.
      undecided: bounds of leaves that could not be decided.
      chosen: batches of domains whose splits were chosen.
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
    chosen: int = 0

    def __post_init__(self) -> None:
        self.rates = Rates(np.zeros((2, len(self.root.boxes))))

    @property
    def _question(self) -> tuple[Partial, Region, Root, Specification]:
        """What compiled steps take beside domains."""
        return self.problem.f, self.problem.region, self.root, self.problem.rounded

    def step(self, domains: Sequence[Domain]) -> tuple[Inside, Step]:
        """Compiled steps on domains that are filled up to the size of a batch."""
        filled = _filled(domains, self.settings.batch_size)
        # Nothing is compiled for what is not split yet.
        split = any(np.any(domain.sides) for domain in domains)
        batch = batch_of(filled)
        inside = self.narrowed(batch.boxes, batch.sides) if split else whole_batch(self.root, len(filled))
        options = {"steps": self.settings.steps, "tried": self.settings.candidates}
        result = bound_batch(*self._question, batch, inside, **options)
        self.bounded += len(domains)
        return jax.tree.map(lambda leaf: np.asarray(leaf)[: len(domains)], jax.device_get((inside, result)))

    def narrowed(self, boxes: Interval, sides: np.ndarray) -> Inside:
        """Bounds of the layers on parts of the region."""
        # A core is busy with one domain, an accelerator with many.
        at_once = None if jax.default_backend() == "cpu" else self.settings.batch_size
        return narrowed_batch(self.problem.f, self.problem.region, self.root, boxes, sides, at_once=at_once)

    def take(self, domains: Sequence[Domain], inside: Inside, step: Step) -> Witness | None:
        """Enters what a step found; a counterexample ends the search."""
        witness = confirmed(self.problem, step.point[step.value <= 0][:4])
        if witness is not None:
            return witness
        for i, domain in enumerate(domains):
            # A part is bounded by what bounds the whole. What is not a finite number is no bound.
            bound = max(domain.bound, float(step.bound[i])) if np.isfinite(step.bound[i]) else domain.bound
            if 0 < bound < math.inf:
                self.margin = min(self.margin, bound)
            elif np.any(step.candidates.slack[i] >= 0):
                # Copies: a view would keep the whole batch.
                parts = (inside.boxes, step.multipliers, step.candidates)
                boxes, multipliers, best = jax.tree.map(lambda leaf, i=i: np.array(leaf[i]), parts)
                self.waiting.push(
                    Domain(domain.specification, domain.sides, boxes, bound, best.neurons, best.slack, multipliers)
                )
            elif self.splittable:
                witness = self._finish(domain, bound, step.known[i])
                if witness is not None:
                    return witness
            else:
                self.undecided.append(bound)
        return None

    def split(self, parents: Sequence[Domain]) -> tuple[list[Domain], Inside, Step]:
        """Splits domains, by trial at first and now and then, else where trials have shown gains; bounds the halves."""
        slack = np.stack([parent.slack for parent in parents])
        tried = self.chosen < _TRIED_AT_FIRST or self.chosen % _TRIED_EVERY == 0
        self.chosen += 1
        if not tried:
            best = np.argmax(self.rates.gains(slack), axis=1).tolist()
            children = [half for parent, layer in zip(parents, best, strict=True) for half in halves(parent, layer)]
            return children, *self.step(children)
        places = np.argwhere(slack >= 0)
        children = [half for i, layer in places.tolist() for half in halves(parents[i], layer)]
        size = self.settings.batch_size
        found = [self.step(children[start : start + size]) for start in range(0, len(children), size)]
        inside, step = jax.tree.map(lambda *leaves: np.concatenate(leaves), *found)
        gains = np.full(slack.shape, -1.0)
        gains[tuple(places.T)] = _gains([parents[i].bound for i, _ in places], step)
        self.rates.learn(gains, slack)
        best = np.argmax(gains, axis=1)
        kept = np.flatnonzero(np.repeat(places[:, 1] == best[places[:, 0]], 2))
        return [children[i] for i in kept], *jax.tree.map(lambda leaf: leaf[kept], (inside, step))

    def _finish(self, domain: Domain, bound: float, known: np.ndarray) -> Witness | None:
        """Decides a domain in which every neuron is split, or known to be on one side."""
        problem = self.problem
        specification = jax.tree.map(lambda leaf: leaf[domain.specification], problem.specifications)
        split = domain.sides != 0
        sides = np.where(split, domain.sides, known)
        leaf = solve_leaf(problem.f, problem.region, specification, sides, split)
        if leaf.proved:
            self.margin = min(self.margin, leaf.bound)
            return None
        witness = confirmed(problem, leaf.points)
        if witness is None:
            self.undecided.append(bound)
        return witness

    def sharpen(self) -> None:
        """Bounds the layers of the whole region anew where balls made boxes smaller than CROWN knew them."""
        if not self.root.balls:
            return
        # Of what is to be bounded nothing is known.
        boxes = whole_batch(self.root, self.settings.batch_size).boxes
        boxes.lower[0], boxes.upper[0] = -np.inf, np.inf
        inside = self.narrowed(boxes, np.zeros(boxes.lower.shape, np.int8))
        first = jax.tree.map(lambda leaf: leaf[0], inside)
        self.root = self.root.on(first.boxes)._replace(others=first.others)

    def tighten(self) -> None:
        """Bounds the layers of the whole region anew, once; boxes of domains are cut with them."""
        if self.tight or self.bounded < self.settings.patience or not is_box(self.problem.region):
            return
        self.tight = True
        root = tightened(self.problem.f, self.problem.region, self.root, self.problem.rounded)
        self.root = jax.block_until_ready(root)

    def saved(self) -> dict[str, Any]:
        """The state as arrays: all but the bounds of the layers, which are found anew."""
        known = {"margin": self.margin, "bounded": self.bounded, "undecided": self.undecided, "chosen": self.chosen}
        return known | {"rates": self.rates.sums} | self.waiting.stacked()

    def restore(self, arrays: dict[str, np.ndarray]) -> None:
        """Goes on from what `saved` gave."""
        self.margin, self.bounded = float(arrays.pop("margin")), int(arrays.pop("bounded"))
        self.undecided, self.chosen = arrays.pop("undecided").tolist(), int(arrays.pop("chosen"))
        self.rates = Rates(arrays.pop("rates"))
        for domain in unstacked(arrays):
            self.waiting.push(domain)

    def progress(self, limits: Limits) -> Progress:
        worst = min(self.waiting.worst, *self.undecided, self.margin)
        return Progress(self.bounded, len(self.waiting), worst, time.monotonic() - limits.start)

    def ended(self, status: Status, reason: str, witness: Witness | None = None) -> Outcome:
        margin = witness.margin if witness else min(self.waiting.worst, *self.undecided, self.margin)
        return Outcome(status, witness, margin, self.bounded, reason)


def _gains(before: Sequence[float], step: Step) -> np.ndarray:
    """What the bounds of halves, one behind the other, are worth more than those of the domains."""
    whole = np.asarray(before)
    bounds = np.where(np.isfinite(step.bound), step.bound, -np.inf).reshape(-1, 2)
    right, left = np.maximum(bounds, whole[:, None]).T
    return np.asarray(worth(right, left) - worth(whole, whole))


def _filled(domains: Sequence[Domain], size: int) -> list[Domain]:
    """As many as are bounded at once. Those that are added have nothing to be bounded anew."""
    more = domains[-1]._replace(sides=np.zeros_like(domains[-1].sides))
    return [*domains, *[more] * (size - len(domains))]


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
      VERIFIED if every domain has a finite bound above 0, or is a leaf that is proved to be empty; FALSIFIED with a
      witness; TIMEOUT where a limit was reached; UNKNOWN where a domain is left over that cannot be split.
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
            witness = state.take(part, *state.step(part))
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
    sides = np.zeros(start.share.shape[-1], np.int8)
    boxes = jax.device_get(root.joined_boxes())
    none = np.zeros(len(root.boxes), np.int32), np.zeros(len(root.boxes), np.float32)
    own = lambda number: jax.tree.map(lambda leaf: np.asarray(leaf)[number], start)  # noqa: E731
    return [Domain(number, sides, boxes, -math.inf, *none, own(number)) for number in numbers]


def _branch(state: _Search, limits: Limits, stuck: str, saved: Saved | None) -> Outcome:
    if len(state.waiting):
        state.sharpen()
    while len(state.waiting):
        limit = limits.exceeded(state.bounded, state.waiting.memory)
        if limit:
            return state.ended(Status.TIMEOUT, limit)
        state.tighten()
        parents = state.waiting.pop(max(1, state.settings.batch_size // 2))
        witness = state.take(*state.split(parents))
        if witness is not None:
            return state.ended(Status.FALSIFIED, "branch and bound found a counterexample", witness)
        if saved:
            saved.keep(state.saved)
        limits.tell(state.progress(limits))
    if not state.undecided:
        return state.ended(Status.VERIFIED, "branch and bound proved every domain")
    why = f"nothing branches on {stuck}" if stuck else "the margin is within rounding of 0 on a leaf"
    return state.ended(Status.UNKNOWN, f"{len(state.undecided)} domains were left over: {why}")
