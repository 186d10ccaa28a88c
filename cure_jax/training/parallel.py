"""The same step on one device or many: three thin wrappers around one pure function.

The state is replicated and never stacked, so checkpoints and evaluation do not see which wrapper was used. Many steps
run in one compiled call: the data lie on the device, and the host sends only the indices of each batch.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from cure_jax.training.state import TrainState
from cure_jax.training.step import Metrics, Recipe, train_step

__all__ = ["MODES", "Run", "compile_steps"]

_AXIS = "data"

# (state, images [n, *x], labels [n], rows [steps, batch]) -> (state, metrics, each [steps])
Run = Callable[[TrainState, jax.Array, jax.Array, Any], tuple[TrainState, Metrics]]


def compile_steps(recipe: Recipe, parallel: str, devices: Sequence[Any] | None = None) -> Run:
    """Compiles runs of several training steps.

    Args:
      recipe: what is trained, and how.
      parallel: "jit" (one device), "shard_map" or "pmap"; all compute the same.
      devices: to divide each batch over; all by default, the first for "jit".

    Returns:
      `(state, images, labels, rows) -> (state, metrics)` with `rows` `[steps, global batch]` of indices into the
      data, the state replicated, metrics `[steps]`.

    Raises:
      ValueError: for an unknown mode, or (when called) a batch that does not divide over the devices.
    """
    if parallel not in MODES:
        raise ValueError(f"parallel must be one of {', '.join(MODES)}; got {parallel!r}. Choose one of these.")
    return MODES[parallel](recipe, list(devices or jax.devices()))


def _scan(recipe: Recipe, axis_name: str | None) -> Run:
    def run(state: TrainState, images: jax.Array, labels: jax.Array, rows: jax.Array) -> tuple[TrainState, Metrics]:
        def one(state: TrainState, chosen: jax.Array) -> tuple[TrainState, Metrics]:
            return train_step(recipe, state, as_pixels(images[chosen]), labels[chosen], axis_name)

        return jax.lax.scan(one, state, rows)

    return run


def as_pixels(images: jax.Array) -> jax.Array:
    """uint8 images as float32 in [0, 1]; others as they are."""
    return images.astype(jnp.float32) / 255 if images.dtype == jnp.uint8 else images


def _jit(recipe: Recipe, devices: Sequence[Any]) -> Run:
    del devices
    return jax.jit(_scan(recipe, None))


def _shard_map(recipe: Recipe, devices: Sequence[Any]) -> Run:
    mesh = jax.make_mesh((len(devices),), (_AXIS,), axis_types=(AxisType.Auto,), devices=devices)
    whole, divided = PartitionSpec(), PartitionSpec(None, _AXIS)
    # With check_vma=True, gradients of replicated parameters would arrive summed already.
    sharded = jax.jit(
        jax.shard_map(
            _scan(recipe, _AXIS), mesh=mesh, in_specs=(whole, whole, whole, divided), out_specs=whole, check_vma=False
        )
    )

    def run(state: TrainState, images: jax.Array, labels: jax.Array, rows: np.ndarray) -> tuple[TrainState, Metrics]:
        _check_divides(rows.shape[1], len(devices))
        state, images, labels = jax.device_put((state, images, labels), NamedSharding(mesh, whole))
        return sharded(state, images, labels, rows)

    return run


def _pmap(recipe: Recipe, devices: Sequence[Any]) -> Run:
    mapped = jax.pmap(
        _scan(recipe, _AXIS), axis_name=_AXIS, in_axes=(None, None, None, 1), out_axes=None, devices=devices
    )

    def run(state: TrainState, images: jax.Array, labels: jax.Array, rows: np.ndarray) -> tuple[TrainState, Metrics]:
        _check_divides(rows.shape[1], len(devices))
        return mapped(state, images, labels, rows.reshape(rows.shape[0], len(devices), -1))

    return run


def _check_divides(batch: int, devices: int) -> None:
    if batch % devices:
        raise ValueError(f"batch_size {batch} does not divide over {devices} devices. Choose a multiple of {devices}.")


MODES: dict[str, Callable[[Recipe, Sequence[Any]], Run]] = {"jit": _jit, "shard_map": _shard_map, "pmap": _pmap}
