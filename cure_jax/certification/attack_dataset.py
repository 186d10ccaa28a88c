"""Attacks on many examples: a host loop around jitted one-example functions."""

import dataclasses
import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from cure_jax import attacks
from cure_jax.certification.batches import (
    Batches,
    MakeRegion,
    Model,
    as_pytree,
    check_divides,
    checked,
    classified_right,
    divided,
    in_all_norms,
    own_radii,
    predicts,
    shown,
)
from cure_jax.certification.margins import margins

__all__ = ["DatasetAttack", "attack_dataset"]

_LOSSES = ("cross_entropy", "margin")


@dataclasses.dataclass(frozen=True)
class DatasetAttack:
    """Which examples no attack could break, in the order of the examples.

    Attributes:
      survived: by norm, `[examples]`: right at the example and at every point the attack found.
      points: by norm, `[examples, *x]`: where survived is False, a point of the region that is not classified as its
        label; elsewhere the point of least margin among those the attack ended at. Empty if it was left out.
    """

    survived: dict[str, np.ndarray]
    points: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)

    @property
    def union(self) -> np.ndarray:
        """`[examples]`: not broken in any norm."""
        return in_all_norms(self.survived)

    def __repr__(self) -> str:
        shares = {norm: f"{100 * np.mean(standing):.1f}%" for norm, standing in self.survived.items()}
        shown = ", ".join(f"{norm} {share}" for norm, share in shares.items())
        return f"DatasetAttack of {len(self.union)} examples; survived: {shown}, union {100 * np.mean(self.union):.1f}%"


def attack_dataset(  # noqa: PLR0913  (the options of a long-running job)
    f: Model,
    images: np.ndarray,
    labels: np.ndarray,
    regions: Mapping[str, MakeRegion],
    *,
    key: jax.Array,
    radii: Mapping[str, np.ndarray] | None = None,
    steps: int = 40,
    restarts: int = 3,
    batch_size: int = 100,
    mesh: Mesh | None = None,
    show_progress: bool | None = None,
) -> DatasetAttack:
    """Attacks many examples in several norms: an upper bound on what can be certified.

    Args:
      f: as for `certify_dataset`.
      images: `[examples, *x]`, pixels in [0, 1].
      labels: `[examples]`.
      regions: as for `certify_dataset`.
      key: for random starts; each example and norm draws its own.
      radii: as for `certify_dataset`.
      steps: of projected gradient descent, for each of two losses (cross-entropy and margin).
      restarts: for each loss.
      batch_size: examples at once.
      mesh: as for `certify_dataset`.
      show_progress: whether to show a progress bar; default: on a terminal and in a notebook.

    Returns:
      Which examples survived, and the worst points found, in the order of the examples.

    Raises:
      ValueError: if examples, labels or radii are out of range or do not fit together, there is no region, or a batch
        does not divide over the devices.
    """
    images, labels, _ = checked(f, images, labels, regions, batch_size)
    own = own_radii(radii or {}, regions, images)
    check_divides(batch_size, mesh)
    f, survived, points = as_pytree(f), {}, {}
    # What is misclassified is broken already.
    correct = classified_right(f, images, labels, batch_size, mesh)
    rows, numbers = np.flatnonzero(correct), np.arange(len(images))
    attacked = functools.partial(_attacked, steps=steps, restarts=restarts, mesh=mesh)
    with shown(len(images), "attack", show_progress, parts=len(regions)) as advance:
        for index, (norm, make_region) in enumerate(regions.items()):
            whole = f, as_pytree(make_region), jax.random.fold_in(key, index)
            batches = Batches(whole, (images, labels, numbers, *own[norm]), batch_size, mesh)
            survived[norm], points[norm] = correct.copy(), images.copy()
            if others := len(images) - len(rows):
                advance(norm, others)
            if len(rows):
                advance(f"compiling {norm}", 0)
                found = batches.apply(attacked, rows, functools.partial(advance, norm))
                survived[norm][rows], points[norm][rows] = found["survived"], found["points"]
    return DatasetAttack(survived, points)


@functools.partial(jax.jit, static_argnames=("steps", "restarts", "mesh"))
def _attacked(  # noqa: PLR0913  (one argument for each thing that varies)
    f: Model,
    make_region: MakeRegion,
    key: jax.Array,
    x: jax.Array,
    label: jax.Array,
    number: jax.Array,
    *radius: jax.Array,
    steps: int,
    restarts: int,
    mesh: Mesh | None,
) -> dict[str, jax.Array]:
    def batch(f: Model, make_region: MakeRegion, key: jax.Array, *examples: jax.Array) -> dict[str, jax.Array]:
        def one(x: jax.Array, label: jax.Array, number: jax.Array, *radius: jax.Array) -> tuple[jax.Array, jax.Array]:
            standing, own = predicts(f, x, label), jax.random.fold_in(key, number)
            # A point that is broken ends the comparison; the example itself is one where it is misclassified.
            worst, least = x, jnp.where(standing, jnp.inf, -jnp.inf)
            for index, loss in enumerate(_LOSSES):
                folded, region = jax.random.fold_in(own, index), make_region(x, *radius)
                found = attacks.pgd(f, x, label, region, key=folded, steps=steps, restarts=restarts, loss=loss)
                still = predicts(f, found, label)
                margin = jnp.where(still, jnp.min(margins(f, label)(found)), -jnp.inf)
                worst, least = jnp.where(margin < least, found, worst), jnp.minimum(margin, least)
                standing &= still
            return standing, worst

        standing, worst = jax.vmap(one)(*examples)
        return {"survived": standing, "points": worst}

    return divided(batch, mesh, 3)(f, make_region, key, x, label, number, *radius)
