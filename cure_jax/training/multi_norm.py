"""From single-norm objectives to the objective of a batch: Joint, Max, Random, and the alignment of their bounds.

A batch objective is a function

    objective(network, images, labels, scale, keys) -> Outcome(losses, worst)

`keys` holds one key for each example, folded by its global index, so that what is drawn at random does not depend on
how the batch is divided over devices.

Source: Jiang, Cheung & Singh, "Towards Generalized Certified Robustness with Multi-Norm Training" (CURE), arXiv
2410.03000, Sections 4.1 (Joint, Max, Random) and 4.2 (bound alignment).
"""

import math
from collections.abc import Mapping
from typing import NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from cure_jax.numerics import psum
from cure_jax.training.objectives import Network, Objective, Worst, cross_entropy

__all__ = ["BatchObjective", "Outcome", "alignment", "joint", "random_norm", "worst"]


class Outcome(NamedTuple):
    """What a batch objective says.

    Attributes:
      losses: `[batch]`, to be averaged.
      worst: by norm, with leading axis `batch`; empty for `random_norm`, whose norms see different examples.
      boxes: one `Worst` with layers, for the warm-up regulariser (its batch may be a part of the batch), or None.
    """

    losses: Float[Array, " batch"]
    worst: dict[str, Worst]
    boxes: Worst | None


@runtime_checkable
class BatchObjective(Protocol):
    """An objective of a batch."""

    def __call__(
        self,
        network: Network,
        images: Float[Array, "batch *x"],
        labels: Int[Array, " batch"],
        scale: Float[Array, ""],
        keys: Key[Array, " batch"],
    ) -> Outcome:
        """Losses of a batch."""
        ...


def joint(objectives: Mapping[str, Objective], weights: Mapping[str, float] | None = None) -> BatchObjective:
    """CURE-Joint: the weighted sum of the norms' losses.

    Args:
      objectives: by norm; one alone gives single-norm training.
      weights: by norm, at least 0, not all 0; equal shares if None.

    Raises:
      ValueError: if there is no objective, weights and objectives have different names, or a weight is out of range.
    """
    _check_some(objectives)
    shares = dict.fromkeys(objectives, 1 / len(objectives)) if weights is None else dict(weights)
    if set(shares) != set(objectives):
        raise ValueError(f"joint got weights for {sorted(shares)}; expected {sorted(objectives)}. Name the same norms.")
    if not (all(0 <= share < math.inf for share in shares.values()) and any(shares.values())):
        raise ValueError(f"joint got the weights {shares}; expected finite numbers, at least 0 and not all 0.")

    def objective(network, images, labels, scale, keys) -> Outcome:
        results = _every_norm(objectives, network, images, labels, scale, keys)
        losses = sum(shares[name] * _loss(result, labels) for name, result in results.items())
        return Outcome(jnp.asarray(losses), results, _with_layers(results))

    return objective


def worst(objectives: Mapping[str, Objective]) -> BatchObjective:
    """CURE-Max: for every example the larger of the norms' losses.

    Args:
      objectives: by norm.

    Raises:
      ValueError: if there is no objective.
    """
    _check_some(objectives)

    def objective(network, images, labels, scale, keys) -> Outcome:
        results = _every_norm(objectives, network, images, labels, scale, keys)
        losses = jnp.stack([_loss(result, labels) for result in results.values()])
        return Outcome(jnp.max(losses, axis=0), results, _with_layers(results))

    return objective


def random_norm(objectives: Mapping[str, Objective]) -> BatchObjective:
    """CURE-Random: the batch is partitioned at random into equal parts, one norm for each; half the cost for two norms.

    Every run of n consecutive examples (n norms, counted by global index) is dealt out by a random permutation, so
    all parts are equally large on every device, however many devices there are.

    Args:
      objectives: by norm.

    Raises:
      ValueError: if there is no objective; at trace time, if the batch of a device is no multiple of their number.
    """
    _check_some(objectives)
    names = list(objectives)

    def objective(network, images, labels, scale, keys) -> Outcome:
        count, size = len(names), images.shape[0]
        if size % count:
            raise ValueError(
                f"random_norm got {size} examples a device; expected a multiple of {count}. Change batch_size."
            )
        # The first key of a run deals it out: it is a function of the step and of the global index alone.
        dealing = jax.vmap(lambda key: jax.random.permutation(jax.random.fold_in(key, 1), count))(keys[::count])
        rows = jnp.argsort(dealing, axis=1) + jnp.arange(0, size, count)[:, None]
        losses, boxes = jnp.zeros(size, images.dtype), None
        for part, name in enumerate(names):
            chosen = rows[:, part]
            result = _one_norm(objectives[name], network, images[chosen], labels[chosen], scale, keys[chosen])
            losses = losses.at[chosen].set(_loss(result, labels[chosen]))
            boxes = result if result.layers is not None else boxes
        return Outcome(losses, {}, boxes)

    return objective


def alignment(
    lower: Float[Array, "batch classes"],
    higher: Float[Array, "batch classes"],
    labels: Int[Array, " batch"],
    axis_name: str | None,
) -> Float[Array, ""]:
    """Bound alignment: KL(softmax(lower) || softmax(higher)), averaged over the examples that `lower` gets right.

    Args:
      lower: worst-case logits in the norm with the lower certified accuracy.
      higher: worst-case logits in the other norm.
      labels: the classes.
      axis_name: the device axis, over which numerator and denominator are summed; None for one device.

    Returns:
      The mean over all devices; 0 where `lower` gets none right.

    References:
      CURE, arXiv 2410.03000, Section 4.2.
    """
    certified = jax.lax.stop_gradient(jnp.argmax(lower, axis=-1) == labels).astype(lower.dtype)
    log_lower, log_higher = jax.nn.log_softmax(lower), jax.nn.log_softmax(higher)
    divergence = jnp.sum(jnp.exp(log_lower) * (log_lower - log_higher), axis=-1)
    total = psum(jnp.sum(certified * divergence), axis_name)
    return total / jnp.maximum(psum(jnp.sum(certified), axis_name), 1)


def _loss(worst: Worst, labels: jax.Array) -> jax.Array:
    return cross_entropy(worst.logits, labels) if worst.loss is None else worst.loss


def _check_some(objectives: Mapping[str, Objective]) -> None:
    if not objectives:
        raise ValueError("Got no objectives; expected at least one norm. Pass e.g. {'linf': small_box(...)}.")


def _one_norm(
    objective: Objective, network: Network, images: jax.Array, labels: jax.Array, scale: jax.Array, keys: jax.Array
) -> Worst:
    return jax.vmap(lambda x, label, key: objective(network, x, label, scale, key))(images, labels, keys)


def _every_norm(
    objectives: Mapping[str, Objective],
    network: Network,
    images: jax.Array,
    labels: jax.Array,
    scale: jax.Array,
    keys: jax.Array,
) -> dict[str, Worst]:
    def folded(index: int) -> jax.Array:
        return jax.vmap(lambda key: jax.random.fold_in(key, index))(keys)

    return {
        name: _one_norm(objective, network, images, labels, scale, folded(index))
        for index, (name, objective) in enumerate(objectives.items())
    }


def _with_layers(results: Mapping[str, Worst]) -> Worst | None:
    boxes = [result for result in results.values() if result.layers is not None]
    return boxes[-1] if boxes else None
