"""A network in training: `models.classifier` is what bounds see of it, with the statistics of BatchNorm held.

A bound must never see batch statistics that depend on its own example, so those of the CLEAN batch are computed first
and then held: `clean_statistics`. What remains of BatchNorm is an affine map, and gradients flow through the
statistics.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from cure_jax.models.fitted import Variables, apply_batch, classifier, mode

__all__ = ["Statistics", "apply_batch", "classifier", "clean_statistics", "running_statistics"]


class Statistics(NamedTuple):
    """What BatchNorm made of a batch.

    Attributes:
      batch: the statistics of the batch itself, as the collection `batch_stats`; empty without BatchNorm.
      momentum: what the old running average weighs, for each of them.
    """

    batch: dict[str, Any]
    momentum: Any


def clean_statistics(
    model: nn.Module, variables: Variables, images: Float[Array, "batch *x"], axis_name: str | None = None
) -> Statistics:
    """The batch statistics of a clean batch itself.

    Flax returns running averages, m * old + (1 - m) * batch. With a field `momentum` of the module that is solved by
    m = 0; else two runs, from averages of all 0 and others, give m as what they differ by.

    Args:
      model: the module; `axis_name` set on a field of that name synchronises the statistics over devices.
      variables: parameters and running averages.
      images: the clean batch of this device.
      axis_name: the device axis, None on one device.

    Raises:
      ValueError: on several devices, for a module that has BatchNorm but no field `axis_name`.
    """
    if "batch_stats" not in variables:
        return Statistics({}, {})
    fields = model.__dataclass_fields__
    if axis_name is not None:
        if "axis_name" not in fields:
            raise ValueError(
                f"{type(model).__name__} has BatchNorm but no field `axis_name`, so its statistics cannot be "
                "synchronised over devices. Add `axis_name: str | None = None`, pass it to nn.BatchNorm, or train with "
                "parallel='jit'."
            )
        model = model.clone(axis_name=axis_name)
    if "momentum" in fields:
        batch = _batch_stats(model.clone(momentum=0.0), variables, images)
        return Statistics(batch, jax.tree.map(lambda leaf: jnp.asarray(model.momentum, leaf.dtype), batch))
    zeros = jax.tree.map(jnp.zeros_like, variables["batch_stats"])
    from_zeros = _batch_stats(model, {**variables, "batch_stats": zeros}, images)
    held = jax.lax.stop_gradient(from_zeros)
    # Of the size of the statistics: from ones, m would be lost in the rounding errors of great ones.
    old = jax.tree.map(lambda zero: 1 + jnp.abs(zero), held)
    from_old = jax.lax.stop_gradient(_batch_stats(model, {**variables, "batch_stats": old}, images))
    momentum = jax.tree.map(lambda later, zero, start: (later - zero) / start, from_old, held, old)
    return Statistics(jax.tree.map(lambda zero, m: zero / (1 - m), from_zeros, momentum), momentum)


def running_statistics(running: Mapping[str, Any], clean: Statistics) -> dict[str, Any]:
    """The running averages after one more batch."""
    return jax.tree.map(
        lambda old, new, momentum: momentum * old + (1 - momentum) * jax.lax.stop_gradient(new),
        dict(running),
        clean.batch,
        clean.momentum,
    )


def _batch_stats(model: nn.Module, variables: Variables, images: jax.Array) -> dict[str, Any]:
    _, updated = model.apply(variables, images, **mode(model, train=True), mutable=["batch_stats"])
    return dict(updated["batch_stats"])
