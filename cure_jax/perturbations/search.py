"""Certification of perturbations: cells of many images in batches, and what is not proved is split.

The same loop as branch and bound on inputs, but over all images at once: a work item is a cell of an image. Every batch
goes through one compiled step. Images are decided in their order, several at a time where the cells of one do not fill
a batch.
"""

import dataclasses
import functools
import logging
import math
import time
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from cure_jax.certification.batches import (
    Batches,
    Model,
    as_pytree,
    check_divides,
    checked_examples,
    classified_right,
    divided,
    predicts,
    shown,
)
from cure_jax.certification.certificate import proves
from cure_jax.certification.margins import margins
from cure_jax.certification.methods import bound_method
from cure_jax.perturbations.perturbation import Perturbation

__all__ = ["PerturbationCertificate", "certify_perturbation"]

_LOGGER = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class PerturbationCertificate:
    """Per-example verdicts, in the order of the examples.

    Attributes:
      correct: `[examples]`, the prediction at the example itself is right.
      verified: `[examples]`, every perturbed image is proved to be classified as the label.
      falsified: `[examples]`, a perturbed image was found that is misclassified.
      unfinished: `[examples]`, given up because the number of cells or the time was over.
      margin: `[examples]`, the least lower bound of the margins, over the cells that were not split; of an example that
        is not verified, over those that were bounded. -inf where none was.
      cells: `[examples]`, how many were bounded.
      method: what proved them; several names with commas between them.
    """

    correct: np.ndarray
    verified: np.ndarray
    falsified: np.ndarray
    unfinished: np.ndarray
    margin: np.ndarray
    cells: np.ndarray
    method: str


def certify_perturbation(  # noqa: PLR0913  (the options of a long-running job)
    f: Model,
    images: np.ndarray,
    labels: np.ndarray,
    perturbation: Perturbation,
    *,
    method: str | Sequence[str] = "crown",
    last_resort: Sequence[str] = (),
    batch_size: int = 64,
    max_cells: int = 10_000,
    mesh: Mesh | None = None,
    timeout: float | int | None = None,
    show_progress: bool | None = None,
) -> PerturbationCertificate:
    """Tries to prove of many examples that all their perturbed images are classified as their label.

    Cells that are not proved are split until they are, until a perturbed image is misclassified, or until a cell cannot
    be split any more and no method of `last_resort` proves it. The first of these that happens decides an example; its
    other cells are dropped.

    Args:
      f: one example `[*x]` to logits `[classes]`; as for `certify_dataset`.
      images: `[examples, *x]`, pixels in [0, 1].
      labels: `[examples]`, integers in [0, classes).
      perturbation: the set of perturbed images of each image.
      method: by which each cell is bounded, as for `certify`; of several names the tightest for each margin.
      last_resort: methods for the cells that cannot be split any more, tried one after the other once all other cells
        are bounded. With a cheap `method`, tight ones then meet only what is hard: patches have an end of splitting.
      batch_size: cells at once; bounds its memory. With a mesh, a multiple of its number of devices.
      max_cells: at most so many cells of one example are bounded; then it is given up.
      mesh: as for `certify_dataset`.
      timeout: seconds for all examples, compilation included; looked at between batches. What is left is given up.
      show_progress: whether to show how many examples are decided; default: on a terminal and in a notebook.

    Returns:
      Verdicts in the order of the examples.

    Raises:
      ValueError: if examples or labels are out of range or do not fit together, the perturbation does not suit their
        shape, for an unknown method, or a batch_size, max_cells or timeout that is not positive.
      UnsupportedPrimitive: if `f` contains a primitive without a rule.

    Soundness:
      `verified` implies that every perturbed image is classified as the label by the network in real arithmetic, up to
      float32 rounding of the bounds themselves: cells cover the perturbation, parts of a cell cover it, and each was
      proved. `falsified` is what the network says in float32.
    """
    bound_method(method)
    stages = (method if isinstance(method, str) else tuple(method), *last_resort)
    for name in last_resort:
        bound_method(name)
    images, labels, _ = checked_examples(f, images, labels, batch_size)
    check_divides(batch_size, mesh)
    for name, value in (("max_cells", max_cells), ("timeout", timeout)):
        if value is not None and not value > 0:
            raise ValueError(f"{name} is {value}; expected a number above 0. Raise it, or leave it out.")
    f = as_pytree(f)
    batches = Batches((f, perturbation), (images, labels), batch_size, mesh)
    correct = classified_right(f, images, labels, batch_size, mesh)
    search = _Search(perturbation, images.shape[1:], correct, max_cells, len(stages))
    deadline = math.inf if timeout is None else time.monotonic() + timeout
    with shown(len(images), "certify", show_progress) as advance:
        while (work := search.take(batch_size)) is not None and time.monotonic() < deadline:
            stage, rows, cells = work
            before, bound = search.decided, functools.partial(_bounded, method=stages[stage], mesh=mesh)
            search.learn(stage, rows, cells, batches.apply(bound, rows, own=(cells,)))
            advance("cells", search.decided - before)
    search.give_up()
    if count := int(search.unfinished.sum()):
        _LOGGER.warning("%d examples are given up: the time or their number of cells is over.", count)
    name = ",".join((*((method,) if isinstance(method, str) else method), *last_resort))
    margin = np.where(search.bounded > 0, search.margin, -np.inf)
    return PerturbationCertificate(
        correct, search.verified, search.falsified, search.unfinished, margin, search.bounded, name
    )


class _Search:
    """The cells of all examples that wait, those to be taken next last, and what is known of each example.

    They wait by stage: for the method of all cells, or for one of the last resorts.
    """

    def __init__(
        self, perturbation: Perturbation, shape: tuple[int, ...], correct: np.ndarray, max_cells: int, stages: int
    ):
        self._perturbation, self._shape, self._max_cells = perturbation, shape, max_cells
        first = list(perturbation.cells(shape)[::-1])
        self._waiting = {int(row): [list(first), *([] for _ in range(1, stages))] for row in np.flatnonzero(correct)}
        self._stages = stages
        self.verified, self.falsified, self.unfinished = (np.zeros(len(correct), bool) for _ in range(3))
        self.margin, self.bounded = np.full(len(correct), np.inf), np.zeros(len(correct), np.int64)

    @property
    def decided(self) -> int:
        """How many examples are decided, by cells or without any."""
        return len(self.verified) - len(self._waiting)

    def take(self, count: int) -> tuple[int, np.ndarray, np.ndarray] | None:
        """The next cells, at most so many, their stage, and the examples that they belong to; None if there are none.

        A stage is begun when all cells of those before it are bounded, so that it has batches to fill.
        """
        for stage in range(self._stages):
            rows, cells = [], []
            for row, waiting in self._waiting.items():
                here = waiting[stage]
                allowed = min(count - len(rows), self._max_cells - int(self.bounded[row]), len(here))
                rows.extend([row] * allowed)
                cells.extend(here.pop() for _ in range(allowed))
                if len(rows) == count:
                    break
            if rows:
                return stage, np.array(rows), np.stack(cells)
        return None

    def learn(self, stage: int, rows: np.ndarray, cells: np.ndarray, found: Mapping[str, np.ndarray]) -> None:
        """Decides examples, splits their cells, or hands these to the next stage, by what was found for some cells."""
        np.add.at(self.bounded, rows, 1)
        for row, cell, lower, proved, right in zip(
            rows, cells, found["lower"], found["proved"], found["right"], strict=True
        ):
            if row not in self._waiting:
                continue
            if right and not proved and self._goes_on(stage, int(row), cell):
                continue
            self.margin[row] = min(self.margin[row], lower)
            if not (right and proved):
                self.falsified[row] = not right
                del self._waiting[row]
        for row in np.unique(rows):
            self._close(int(row))

    def _goes_on(self, stage: int, row: int, cell: np.ndarray) -> bool:
        """Lets parts of a cell wait, or the cell for the next stage; False if there are neither."""
        parts = self._perturbation.split(cell, self._shape)
        if len(parts):
            self._waiting[row][stage].extend(parts[::-1])
        elif stage + 1 < self._stages:
            self._waiting[row][stage + 1].append(cell)
        return len(parts) > 0 or stage + 1 < self._stages

    def _close(self, row: int) -> None:
        """Decides an example that has no cells left, or must not have any more of them bounded."""
        if row not in self._waiting:
            return
        left = any(self._waiting[row])
        self.verified[row] = not left
        self.unfinished[row] = left and self.bounded[row] >= self._max_cells
        if self.verified[row] or self.unfinished[row]:
            del self._waiting[row]

    def give_up(self) -> None:
        """The time is over for all that wait."""
        self.unfinished[list(self._waiting)] = True
        self._waiting.clear()


@functools.partial(jax.jit, static_argnames=("method", "mesh"))
def _bounded(  # noqa: PLR0913  (one argument for each thing that varies)
    f: Model,
    perturbation: Perturbation,
    x: jax.Array,
    label: jax.Array,
    cell: jax.Array,
    *,
    method: str | tuple[str, ...],
    mesh: Mesh | None,
) -> dict[str, jax.Array]:
    def batch(
        f: Model, perturbation: Perturbation, x: jax.Array, label: jax.Array, cell: jax.Array
    ) -> dict[str, jax.Array]:
        def one(x: jax.Array, label: jax.Array, cell: jax.Array) -> dict[str, jax.Array]:
            region, transform, point = perturbation.inputs(x, cell)

            def perturbed(point: jax.Array) -> jax.Array:
                return f(transform(point))

            lower = bound_method(method)(margins(perturbed, label))(region).lower
            right = predicts(perturbed, point, label)
            # Where its own point lies outside, the region is none of this image.
            return {"lower": jnp.min(lower), "proved": proves(lower) & region.contains(point), "right": right}

        return jax.vmap(one)(x, label, cell)

    return divided(batch, mesh, 2)(f, perturbation, x, label, cell)
