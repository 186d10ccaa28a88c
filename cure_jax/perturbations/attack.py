"""An attack on geometric perturbations: a grid of parameters, and gradients from the worst of it."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from cure_jax import attacks
from cure_jax.certification.batches import Batches, Model, as_pytree, checked_examples, predicts
from cure_jax.certification.margins import margins
from cure_jax.perturbations.geometric import Geometric
from cure_jax.regions import Box

__all__ = ["GeometricAttack", "attack_geometric"]


@dataclasses.dataclass(frozen=True)
class GeometricAttack:
    """The worst parameters found for each example, in the order of the examples.

    Attributes:
      survived: `[examples]`: right at the example and at all parameters that were tried.
      parameters: `[examples, parameters]`, those of the least margin.
      margin: `[examples]`, the least margin there: no certificate can prove more.
    """

    survived: np.ndarray
    parameters: np.ndarray
    margin: np.ndarray


def attack_geometric(  # noqa: PLR0913  (the options of a long-running job)
    f: Model,
    images: np.ndarray,
    labels: np.ndarray,
    perturbation: Geometric,
    *,
    key: jax.Array,
    grid: int = 1000,
    steps: int = 20,
    restarts: int = 2,
    batch_size: int = 100,
) -> GeometricAttack:
    """Looks for perturbed images that are misclassified: an upper bound on what can be certified.

    The margin has many local minima in an angle, so a grid goes first. Then projected gradient descent searches the
    whole box of parameters, and the surroundings of the worst point of the grid.

    Args:
      f: one example `[*x]` to logits `[classes]`; as for `certify_dataset`.
      images: `[examples, *x]`, pixels in [0, 1].
      labels: `[examples]`, integers in [0, classes).
      perturbation: the set of perturbed images of each image.
      key: for random starts.
      grid: how many parameters there are on the grid, about; the ends of every interval are among them.
      steps: of gradient descent, for each restart.
      restarts: random starts, in the box and around the worst point each.
      batch_size: examples at once.

    Returns:
      Which examples survived, and the worst parameters.

    Raises:
      ValueError: if examples or labels are out of range or do not fit together, or an option is not positive.
    """
    images, labels, _ = checked_examples(f, images, labels, batch_size)
    if grid < 1:
        raise ValueError(f"grid is {grid}; expected at least 1. Raise it.")
    whole = perturbation.parameters(images.dtype)
    along = max(2, round(grid ** (1 / len(perturbation.kinds))))
    axes = [jnp.linspace(low, high, along) for low, high in zip(whole.lower, whole.upper, strict=True)]
    points = jnp.stack([axis.ravel() for axis in jnp.meshgrid(*axes, indexing="ij")], axis=-1)
    step = (whole.upper - whole.lower) / (along - 1)
    batches = Batches((as_pytree(f), perturbation, key, points, step), (images, labels), batch_size, None)
    found = batches.apply(functools.partial(_attacked, steps=steps, restarts=restarts))
    return GeometricAttack(found["survived"], found["parameters"], found["margin"])


@functools.partial(jax.jit, static_argnames=("steps", "restarts"))
def _attacked(  # noqa: PLR0913  (one argument for each thing that varies)
    f: Model,
    perturbation: Geometric,
    key: jax.Array,
    points: jax.Array,
    step: jax.Array,
    x: jax.Array,
    label: jax.Array,
    *,
    steps: int,
    restarts: int,
) -> dict[str, jax.Array]:
    whole = perturbation.parameters(x.dtype)

    def one(x: jax.Array, label: jax.Array) -> dict[str, jax.Array]:
        def perturbed(theta: jax.Array) -> jax.Array:
            return f(perturbation.apply(x, theta))

        def margin(theta: jax.Array) -> jax.Array:
            least = jnp.min(margins(perturbed, label)(theta))
            return jnp.where(predicts(perturbed, theta, label), least, jnp.minimum(least, 0))

        on_grid = jax.lax.map(margin, points, batch_size=16)
        start = points[jnp.argmin(on_grid)]
        around = Box(whole.project(start - step), whole.project(start + step))
        search = functools.partial(attacks.pgd, perturbed, start, label, steps=steps, restarts=restarts, loss="margin")
        candidates = jnp.stack([start, *(search(region, key=key) for region in (around, whole))])
        least = jax.vmap(margin)(candidates)
        worst = jnp.argmin(least)
        survived = predicts(f, x, label) & (least[worst] > 0)
        return {"survived": survived, "parameters": candidates[worst], "margin": least[worst]}

    return jax.vmap(one)(x, label)
