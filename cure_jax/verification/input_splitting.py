"""Branch and bound on the inputs themselves, for networks of few.

A box of inputs is cut in two along one of its sides, and the halves are bounded by CROWN, many at once. Which side is
found by trial at first: the halves of each are bounded, and those of the best one are kept. Where that did not suffice
boxes are small, and the side is cut along which the linear bound changes most. All it needs are bounds that get tight
on small boxes, so it decides networks of any functions; but the number of boxes grows with a power that is the number
of inputs.
"""

import functools
import heapq
import itertools
import math
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from cure_jax import graph as graphs
from cure_jax.bounds.crown import relaxed
from cure_jax.bounds.folding import linear
from cure_jax.graph import Node
from cure_jax.regions import Box
from cure_jax.verification.outcome import Outcome
from cure_jax.verification.problem import Limits, Problem, Progress, Specification, worst_values
from cure_jax.verification.saved import Saved
from cure_jax.verification.verdict import Status
from cure_jax.verification.witness import Witness, confirmed

__all__ = ["split_inputs"]

# Sides of a box whose halves are bounded: those along which the linear bound changes most; and up to how many boxes.
_TRIED, _AT_FIRST = 8, 20_000
# Of sums, in units of the last place of their terms.
_ROUNDING = 4
# What a box that waits consists of.
_BOX = ("bound", "lower", "upper", "scores")
# A bound that is known, and the ends.
_Known = tuple[float, np.ndarray, np.ndarray]


class _Step(NamedTuple):
    """What one compiled step says of a batch of boxes.

    Attributes:
      bound: `[batch]`, of the specification that is least proved.
      points: `[batch, 2, *x]`, the middle, and the corner where the worst row seems least.
      values: `[batch, 2]`, the least greatest row of any specification there.
      scores: `[batch, *x]`, how much the linear bounds change along each side.
    """

    bound: Any
    points: Any
    values: Any
    scores: Any


@jax.jit
def bound_boxes(f: Partial, specifications: Specification, lower: jax.Array, upper: jax.Array) -> _Step:
    """Bounds a batch of boxes, `[batch, *x]`, by CROWN."""
    return jax.vmap(functools.partial(_bound_box, f, specifications))(lower, upper)


def _bound_box(f: Partial, specifications: Specification, lower: jax.Array, upper: jax.Array) -> _Step:
    region = Box(lower, upper)
    graph = graphs.trace(f, lower)
    assert isinstance(graph.output, Node)
    inside, output = relaxed(graph, region, "crown"), graph.output
    weights = jnp.asarray(specifications.weights).reshape(-1, *output.shape)

    def one(row: jax.Array) -> tuple[jax.Array, jax.Array]:
        found = linear.backsubstitute(graph, output, row, inside.relaxations)
        coefficients = found.coefficients[graph.input.index]
        assert isinstance(coefficients, jax.Array)
        return linear.concretize(found, graph, region, inside.intervals), coefficients

    least, coefficients = jax.vmap(one)(weights)
    # Some room for rounding, in proportion to the terms of the sum; it is not a bound of it.
    largest = jnp.maximum(jnp.abs(lower), jnp.abs(upper))
    terms = jnp.sum((jnp.abs(coefficients) * largest[None]).reshape(len(least), -1), axis=1) + jnp.abs(least)
    least = least - _ROUNDING * jnp.finfo(lower.dtype).eps * terms
    rows = least.reshape(specifications.offsets.shape) + specifications.offsets
    # What is not a number is no bound.
    rows = jnp.where(jnp.isfinite(rows), rows, -jnp.inf)
    of_specifications = jnp.max(rows, axis=1)
    worst = jnp.argmin(of_specifications)
    row = worst * rows.shape[1] + jnp.argmax(rows[worst])
    middle = region.center
    corner = jnp.where(coefficients[row] > 0, lower, jnp.where(coefficients[row] < 0, upper, middle))
    points = jnp.stack([middle, corner])
    values = jax.vmap(lambda x: jnp.min(worst_values(f, specifications, x)))(points)
    scores = jnp.max(jnp.abs(coefficients), axis=0) * (upper - lower)
    return _Step(of_specifications[worst], points, values, jnp.where(jnp.isfinite(scores), scores, 0))


def split_inputs(problem: Problem, limits: Limits, batch_size: int, saved: Saved | None = None) -> Outcome:
    """Branch and bound on the inputs, the worst box first.

    Args:
      problem: its region must be its bounding box.
      limits: looked at between batches.
      batch_size: boxes that are bounded at once.
      saved: where the state is kept, and taken up again.

    Returns:
      VERIFIED if finite bounds above 0 cover the region; FALSIFIED with a witness; TIMEOUT where a limit was reached;
      UNKNOWN where a box is left that is too small to be cut.
    """
    box = problem.region.bounding_box()
    # A ball has its ends only up to a rounding.
    room = 0 if isinstance(problem.region, Box) else 1
    lower, upper = np.asarray(box.lower), np.asarray(box.upper)
    lower = np.nextafter(lower, -np.inf, dtype=lower.dtype) if room else lower
    upper = np.nextafter(upper, np.inf, dtype=upper.dtype) if room else upper
    search = _Search(problem, limits, batch_size)
    before = saved.load() if saved else None
    if before is None:
        outcome = search.run([(-math.inf, lower, upper)], saved)
    else:
        search.restore(before)
        outcome = search.run([], saved)
    if saved and outcome.status is Status.TIMEOUT:
        saved.keep(search.saved, now=True)
    elif saved:
        saved.forget()
    return outcome


class _Search:
    def __init__(self, problem: Problem, limits: Limits, batch_size: int) -> None:
        self.problem, self.limits, self.batch_size = problem, limits, batch_size
        self.heap: list[tuple[float, int, np.ndarray, np.ndarray, np.ndarray]] = []
        self.order, self.bounded, self.margin, self.undecided = itertools.count(), 0, math.inf, math.inf

    def run(self, boxes: Sequence[_Known], saved: Saved | None) -> Outcome:
        """Bounds boxes, and cuts what is not proved."""
        bounds, scores, witness = self.bound(boxes)
        self.enter(boxes, bounds, scores)
        while witness is None:
            self.limits.tell(Progress(self.bounded, len(self.heap), self.worst, time.monotonic() - self.limits.start))
            if not self.heap:
                break
            waiting = len(self.heap) * 3 * self.heap[0][2].nbytes
            if limit := self.limits.exceeded(self.bounded, waiting):
                return Outcome(Status.TIMEOUT, None, self.worst, self.bounded, limit)
            if saved:
                saved.keep(self.saved)
            witness = self.split()
        if witness is not None:
            reason = "splitting inputs found a counterexample"
            return Outcome(Status.FALSIFIED, witness, witness.margin, self.bounded, reason)
        if self.undecided < math.inf:
            reason = "a box of inputs that cannot be cut any more was not proved"
            return Outcome(Status.UNKNOWN, None, self.worst, self.bounded, reason)
        return Outcome(Status.VERIFIED, None, self.margin, self.bounded, "splitting inputs proved every box")

    def saved(self) -> dict[str, Any]:
        """The state as arrays, the boxes that go first first."""
        boxes = [(bound, *arrays) for bound, _, *arrays in sorted(self.heap, key=lambda item: item[:2])]
        known = {"margin": self.margin, "undecided": self.undecided, "bounded": self.bounded}
        return known | {name: np.stack(part) for name, part in zip(_BOX, zip(*boxes, strict=True), strict=False)}

    def restore(self, arrays: dict[str, np.ndarray]) -> None:
        """Goes on from what `saved` gave."""
        self.margin, self.undecided = float(arrays["margin"]), float(arrays["undecided"])
        self.bounded = int(arrays["bounded"])
        for bound, *box in reversed(list(zip(*(arrays.get(name, ()) for name in _BOX), strict=True))):
            heapq.heappush(self.heap, (float(bound), -next(self.order), *box))

    @property
    def worst(self) -> float:
        """The least bound of anything."""
        return min(self.margin, self.undecided, self.heap[0][0] if self.heap else math.inf)

    def bound(self, boxes: Sequence[_Known]) -> tuple[np.ndarray, np.ndarray, Witness | None]:
        """Bounds of boxes, never below what is known, their scores; and a counterexample, if one is met."""
        bounds, scores = [], []
        for start in range(0, len(boxes), self.batch_size):
            part = boxes[start : start + self.batch_size]
            padded = [part[min(i, len(part) - 1)] for i in range(self.batch_size)]
            lower, upper = (np.stack([box[i] for box in padded]) for i in (1, 2))
            step = jax.device_get(bound_boxes(self.problem.f, self.problem.rounded, lower, upper))
            self.bounded += len(part)
            broken = (step.values[: len(part)] <= 0).ravel()
            points = step.points[: len(part)].reshape(-1, *lower.shape[1:])
            witness = confirmed(self.problem, points[broken][:4])
            known = np.asarray([box[0] for box in part])
            found = step.bound[: len(part)]
            bounds.append(np.where(np.isfinite(found), np.maximum(found, known), known))
            scores.append(step.scores[: len(part)])
            if witness is not None:
                return np.concatenate(bounds), np.concatenate(scores), witness
        return np.concatenate(bounds or [np.zeros(0)]), np.concatenate(scores or [np.zeros(0)]), None

    def enter(self, boxes: Sequence[_Known], bounds: np.ndarray, scores: np.ndarray) -> None:
        """Puts boxes aside that are proved, and the others on the heap."""
        for (_, low, high), bound, score in zip(boxes, bounds.tolist(), scores, strict=True):
            if 0 < bound < math.inf:
                self.margin = min(self.margin, bound)
            else:
                # A copy: a view would keep the whole batch.
                heapq.heappush(self.heap, (bound, -next(self.order), low, high, score.copy()))

    def split(self) -> Witness | None:
        """Cuts the worst boxes, each along the side whose halves have the best bounds."""
        halves, groups, tried = [], [], _TRIED if self.bounded < _AT_FIRST else 1
        while self.heap and 2 * (len(halves) + tried) <= max(self.batch_size, 2 * tried):
            bound, _, low, high, scores = heapq.heappop(self.heap)
            pairs = _halves(bound, low, high, scores, tried)
            if not pairs:
                self.undecided = min(self.undecided, bound)
                continue
            groups.append(slice(len(halves), len(halves) + len(pairs)))
            halves.extend(pairs)
        bounds, scores, witness = self.bound([half for pair in halves for half in pair])
        if witness is not None:
            return witness
        # What is left to be proved of both: with the worse of them alone, boxes were cut without end along one side.
        left = np.sum(np.minimum(bounds.reshape(-1, 2), 0), axis=1)
        for group in groups:
            # The widest side comes first where several are the same.
            best = group.start + int(np.argmax(left[group]))
            both = slice(2 * best, 2 * best + 2)
            self.enter(halves[best], bounds[both], scores[both])
        return None


def _halves(
    bound: float, low: np.ndarray, high: np.ndarray, scores: np.ndarray, most: int
) -> list[tuple[_Known, _Known]]:
    """The halves of a box along those of its sides that score best, so many at most; wide ones first."""
    middle, found = low + (high - low) / 2, []
    can = ((low < middle) & (middle < high)).ravel()
    widths = np.where(can, (high - low).ravel(), -1)
    tried = np.lexsort((-widths, -np.where(can, scores.ravel(), -1)))[: min(most, can.sum())]
    for side in sorted(tried.tolist(), key=lambda side: -widths[side]):
        ends = [(low, high.copy()), (low.copy(), high)]
        ends[0][1].flat[side] = ends[1][0].flat[side] = middle.flat[side]
        found.append(tuple((bound, *pair) for pair in ends))
    return found
