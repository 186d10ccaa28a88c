"""The same step on one device or many: three thin wrappers around one pure function.

The state is replicated and never stacked, so checkpoints and evaluation do not see which wrapper was used. Many steps
run in one compiled call. In one process the data lie on the device, and the host sends only the indices of each batch;
of several processes each one sends its devices the examples of their part of the batches, and no others.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, PartitionSpec

from cure_jax import distributed
from cure_jax.training.state import TrainState
from cure_jax.training.step import Metrics, Recipe, train_step

__all__ = ["MODES", "Run", "compile_steps"]

_AXIS = "data"

# (state, images [n, *x], labels [n], rows [steps, batch]) -> (state, metrics, each [steps])
Run = Callable[[TrainState, Any, Any, Any], tuple[TrainState, Metrics]]


def compile_steps(recipe: Recipe, parallel: str, devices: Sequence[Any] | None = None) -> Run:
    """Compiles runs of several training steps.

    Args:
      recipe: what is trained, and how.
      parallel: "jit" (one device), "shard_map" or "pmap"; all compute the same.
      devices: to divide each batch over; all of all processes by default, the first for "jit".

    Returns:
      `(state, images, labels, rows) -> (state, metrics)` with `rows` `[steps, global batch]` of indices into the
      data, the state replicated, metrics `[steps]`. With devices of several processes, every process calls it with the
      same arguments, images and labels being NumPy arrays.

    Raises:
      ValueError: for an unknown mode, "jit" in one of several processes, or (when called) a batch that does not divide
        over the devices.
    """
    if parallel not in MODES:
        raise ValueError(f"parallel must be one of {', '.join(MODES)}; got {parallel!r}. Choose one of these.")
    if parallel == "jit" and devices is None and jax.process_count() > 1:
        raise ValueError(
            f"parallel is 'jit', which runs on one device, and there are {jax.process_count()} processes. Choose "
            "shard_map or pmap."
        )
    return MODES[parallel](recipe, list(devices or distributed.ordered_devices()))


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
    mesh = Mesh(np.asarray(devices), (_AXIS,), axis_types=(AxisType.Auto,))
    several = distributed.spans_processes(devices)
    whole, divided = PartitionSpec(), PartitionSpec(None, _AXIS)
    examples = PartitionSpec(_AXIS) if several else whole
    # With check_vma=True, gradients of replicated parameters would arrive summed already.
    sharded = jax.jit(
        jax.shard_map(
            _scan(recipe, _AXIS),
            mesh=mesh,
            in_specs=(whole, examples, examples, divided),
            out_specs=whole,
            check_vma=False,
        )
    )

    def run(state: TrainState, images: Any, labels: Any, rows: np.ndarray) -> tuple[TrainState, Metrics]:
        _check_divides(rows.shape[1], len(devices))
        if not several:
            return sharded(*distributed.replicate((state, images, labels), mesh), rows)
        images, labels, rows = _own_part(images, labels, rows, devices)
        images, labels = (array.reshape(-1, *array.shape[2:]) for array in (images, labels))
        rows = distributed.divide(rows.reshape(rows.shape[0], -1), mesh, divided)
        return sharded(distributed.replicate(state, mesh), *distributed.divide((images, labels), mesh, examples), rows)

    return run


def _pmap(recipe: Recipe, devices: Sequence[Any]) -> Run:
    several = distributed.spans_processes(devices)
    examples = 0 if several else None
    mapped = jax.pmap(
        _scan(recipe, _AXIS), axis_name=_AXIS, in_axes=(None, examples, examples, 1), out_axes=None, devices=devices
    )

    def run(state: TrainState, images: Any, labels: Any, rows: np.ndarray) -> tuple[TrainState, Metrics]:
        _check_divides(rows.shape[1], len(devices))
        if several:
            return mapped(state, *_own_part(images, labels, rows, devices))
        return mapped(state, images, labels, rows.reshape(rows.shape[0], len(devices), -1))

    return run


def _own_part(
    images: np.ndarray, labels: np.ndarray, rows: np.ndarray, devices: Sequence[Any]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The examples that the devices of this process need for a run of steps.

    Returns:
      Images and labels `[own devices, examples, ...]`, and the rows of each device among its own,
      `[steps, own devices, batch of a device]`.
    """
    own = [position for position, device in enumerate(devices) if device.process_index == jax.process_index()]
    steps, batch = rows.shape[0], rows.shape[1] // len(devices)
    chosen = rows.reshape(steps, len(devices), batch)[:, own].transpose(1, 0, 2).reshape(len(own), -1)
    places = np.arange(steps * batch, dtype=rows.dtype).reshape(steps, 1, batch)
    return images[chosen], labels[chosen], np.broadcast_to(places, (steps, len(own), batch))


def _check_divides(batch: int, devices: int) -> None:
    if batch % devices:
        raise ValueError(f"batch_size {batch} does not divide over {devices} devices. Choose a multiple of {devices}.")


MODES: dict[str, Callable[[Recipe, Sequence[Any]], Run]] = {"jit": _jit, "shard_map": _shard_map, "pmap": _pmap}
