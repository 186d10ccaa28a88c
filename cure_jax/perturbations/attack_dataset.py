"""Attacks beyond norms on many examples."""

import dataclasses
import functools

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
    divided,
    predicts,
    shown,
)
from cure_jax.certification.margins import margins
from cure_jax.perturbations.attacks import geometric_attack, patch_attack, pixel_attack
from cure_jax.perturbations.geometric import Geometric
from cure_jax.perturbations.patch import Patch
from cure_jax.perturbations.perturbation import Perturbation
from cure_jax.perturbations.pixels import Pixels

__all__ = ["PerturbationAttack", "attack_perturbation"]

# Of a perturbation of the user's own.
_SAMPLES = 1000


@dataclasses.dataclass(frozen=True)
class PerturbationAttack:
    """The worst perturbed images that were found, in the order of the examples.

    Attributes:
      survived: `[examples]`: right at the example and at the worst image found.
      points: `[examples, *x]`, that image.
      margin: `[examples]`, the least margin there: no certificate can prove more.
    """

    survived: np.ndarray
    points: np.ndarray
    margin: np.ndarray


def attack_perturbation(  # noqa: PLR0913  (the options of a long-running job)
    f: Model,
    images: np.ndarray,
    labels: np.ndarray,
    perturbation: Perturbation,
    *,
    key: jax.Array,
    batch_size: int = 100,
    mesh: Mesh | None = None,
    show_progress: bool | None = None,
) -> PerturbationAttack:
    """Looks for perturbed images that are misclassified: an upper bound on what can be certified.

    By `geometric_attack`, `patch_attack` and `pixel_attack`; of other perturbations by 1000 random images.

    Args:
      f: one example `[*x]` to logits `[classes]`; as for `certify_dataset`.
      images: `[examples, *x]`, pixels in [0, 1].
      labels: `[examples]`, integers in [0, classes).
      perturbation: the set of perturbed images of each image.
      key: for random starts; each example draws its own.
      batch_size: examples at once.
      mesh: as for `certify_dataset`.
      show_progress: whether to show a progress bar; default: on a terminal and in a notebook.

    Returns:
      Which examples survived, and the worst images.

    Raises:
      ValueError: if examples or labels are out of range or do not fit together, the perturbation does not suit their
        shape, or a batch does not divide over the devices.
    """
    images, labels, _ = checked_examples(f, images, labels, batch_size)
    check_divides(batch_size, mesh)
    perturbation.cells(images.shape[1:])
    numbers = np.arange(len(images))
    batches = Batches((as_pytree(f), perturbation, key), (images, labels, numbers), batch_size, mesh)
    with shown(len(images), "attack", show_progress) as advance:
        attacked = functools.partial(_attacked, mesh=mesh)
        found = batches.apply(attacked, advance=functools.partial(advance, "perturbations"))
    return PerturbationAttack(found["survived"], found["points"], found["margin"])


@functools.singledispatch
def _worst(perturbation: Perturbation, f: Model, x: jax.Array, label: jax.Array, key: jax.Array) -> jax.Array:
    """The worst perturbed image that was found."""

    def harm(key: jax.Array) -> jax.Array:
        return -jnp.min(margins(f, label)(perturbation.sample(x, key)))

    keys = jax.random.split(key, _SAMPLES)
    return perturbation.sample(x, keys[jnp.argmax(jax.lax.map(harm, keys, batch_size=50))])


@_worst.register
def _(perturbation: Geometric, f: Model, x: jax.Array, label: jax.Array, key: jax.Array) -> jax.Array:
    return perturbation.apply(x, geometric_attack(f, x, label, perturbation, key=key))


@_worst.register
def _(perturbation: Patch, f: Model, x: jax.Array, label: jax.Array, key: jax.Array) -> jax.Array:
    return patch_attack(f, x, label, perturbation, key=key)


@_worst.register
def _(perturbation: Pixels, f: Model, x: jax.Array, label: jax.Array, key: jax.Array) -> jax.Array:
    del key
    return pixel_attack(f, x, label, perturbation.region(x))


@functools.partial(jax.jit, static_argnames="mesh")
def _attacked(  # noqa: PLR0913  (one argument for each thing that varies)
    f: Model,
    perturbation: Perturbation,
    key: jax.Array,
    x: jax.Array,
    label: jax.Array,
    number: jax.Array,
    *,
    mesh: Mesh | None,
) -> dict[str, jax.Array]:
    def batch(f: Model, perturbation: Perturbation, key: jax.Array, *examples: jax.Array) -> dict[str, jax.Array]:
        def one(x: jax.Array, label: jax.Array, number: jax.Array) -> dict[str, jax.Array]:
            worst = _worst(perturbation, f, x, label, jax.random.fold_in(key, number))
            survived = predicts(f, x, label) & predicts(f, worst, label)
            return {"survived": survived, "points": worst, "margin": jnp.min(margins(f, label)(worst))}

        return jax.vmap(one)(*examples)

    return divided(batch, mesh, 3)(f, perturbation, key, x, label, number)
