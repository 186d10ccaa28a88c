"""The operators of ONNX that move entries and change shapes. Where entries go is known before anything is traced."""

import itertools
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from cure_jax.interop.onnx.step import Operator, Step, integers

__all__ = ["OPERATORS"]


def _to_shape_of_result(step: Step, x: jax.Array, *others: np.ndarray | None) -> jax.Array:
    del others
    return jnp.reshape(x, step.shapes[0])


def _transpose(step: Step, x: jax.Array) -> jax.Array:
    return jnp.transpose(x, step.get("perm"))


def _expand(step: Step, x: jax.Array, shape: np.ndarray) -> jax.Array:
    del shape
    rank = len(step.shapes[0])
    return jnp.broadcast_to(jnp.reshape(x, (1,) * (rank - x.ndim) + x.shape), step.shapes[0])


def _concat(step: Step, *operands: jax.Array) -> jax.Array:
    return jnp.concatenate([jnp.asarray(operand) for operand in operands], axis=step.get("axis"))


def _axis(step: Step, x: jax.Array, default: int = 0) -> int:
    axis = step.get("axis", default)
    if not -x.ndim <= axis < x.ndim:
        raise step.refused(f"for axis {axis} of {x.ndim}")
    return axis % x.ndim


def _split(step: Step, x: jax.Array, sizes: np.ndarray | None = None) -> tuple[jax.Array, ...]:
    del sizes
    axis = _axis(step, x)
    ends = np.cumsum([0, *(shape[axis] for shape in step.shapes)]).tolist()
    return tuple(lax.slice_in_dim(x, start, end, axis=axis) for start, end in itertools.pairwise(ends))


def _slice(
    step: Step,
    x: jax.Array,
    starts: np.ndarray | None = None,
    ends: np.ndarray | None = None,
    axes: np.ndarray | None = None,
    steps: np.ndarray | None = None,
) -> jax.Array:
    first, last = integers(step, starts, "starts") or (), integers(step, ends, "ends") or ()
    along = integers(step, axes, "axes") or tuple(range(len(first)))
    strides = integers(step, steps, "steps") or (1,) * len(first)
    for start, end, axis, stride in zip(first, last, along, strides, strict=True):
        x = _sliced(x, range(x.shape[axis])[slice(start, end, stride)], axis % x.ndim)
    return x


def _sliced(x: jax.Array, places: range, axis: int) -> jax.Array:
    """The entries at evenly spaced places."""
    if not places:
        return lax.slice_in_dim(x, 0, 0, axis=axis)
    if places.step < 0:
        return lax.rev(_sliced(x, places[::-1], axis), (axis,))
    return lax.slice_in_dim(x, places[0], places[-1] + 1, places.step, axis)


def taken(x: jax.Array, places: np.ndarray, axis: int) -> jax.Array:
    """The entries at the given places of one axis, as a slice if they are evenly spaced."""
    steps = np.unique(np.diff(places))
    if places.size == 1 or (steps.size == 1 and steps[0] != 0):
        stride = int(steps[0]) if steps.size else 1
        end = int(places[-1]) + (1 if stride > 0 else -1)
        return _sliced(x, range(int(places[0]), end, stride), axis)
    return jnp.take(x, places, axis=axis, mode="clip")


def _gather(step: Step, x: jax.Array, indices: np.ndarray) -> jax.Array:
    axis = _axis(step, x)
    size = x.shape[axis]
    if not np.all((indices >= -size) & (indices < size)):
        raise step.refused(f"with indices outside of an axis of size {size}")
    return jnp.reshape(taken(x, np.ravel(indices) % size, axis), step.shapes[0])


def _pad(
    step: Step,
    x: jax.Array,
    pads: np.ndarray | None = None,
    value: jax.Array | None = None,
    axes: np.ndarray | None = None,
) -> jax.Array:
    amounts = integers(step, pads, "pads") or ()
    along = integers(step, axes, "axes") or tuple(range(x.ndim))
    pairs = {axis % x.ndim: pair for axis, pair in zip(along, _pairs(amounts), strict=True)}
    mode = step.get("mode", "constant")
    if mode == "constant":
        filling = jnp.asarray(step.get("value", 0.0), x.dtype) if value is None else jnp.reshape(value, ())
        return lax.pad(x, filling, [(*pairs.get(axis, (0, 0)), 0) for axis in range(x.ndim)])
    for axis, (low, high) in pairs.items():
        if (low, high) != (0, 0):
            x = taken(x, _padded_places(step, mode, x.shape[axis], low, high), axis)
    return x


def _pairs(amounts: Sequence[int]) -> list[tuple[int, int]]:
    half = len(amounts) // 2
    return list(zip(amounts[:half], amounts[half:], strict=True))


def _padded_places(step: Step, mode: str, size: int, low: int, high: int) -> np.ndarray:
    """Which entry stands at each place of a padded axis."""
    if mode not in ("reflect", "edge", "wrap"):
        raise step.refused(f"in the mode {mode!r}")
    inner = np.arange(max(-low, 0), size - max(-high, 0))
    return np.pad(inner, (max(low, 0), max(high, 0)), mode=mode)


def _depth_to_space(step: Step, x: jax.Array) -> jax.Array:
    examples, channels, height, width = x.shape
    size = step.get("blocksize")
    rest = channels // size**2
    if step.get("mode", "DCR") == "CRD":
        moved = x.reshape(examples, rest, size, size, height, width).transpose(0, 1, 4, 2, 5, 3)
    else:
        moved = x.reshape(examples, size, size, rest, height, width).transpose(0, 3, 4, 1, 5, 2)
    return moved.reshape(step.shapes[0])


def _space_to_depth(step: Step, x: jax.Array) -> jax.Array:
    examples, channels, height, width = x.shape
    size = step.get("blocksize")
    moved = x.reshape(examples, channels, height // size, size, width // size, size).transpose(0, 3, 5, 1, 2, 4)
    return moved.reshape(step.shapes[0])


def _tile(step: Step, x: jax.Array, repeats: np.ndarray) -> jax.Array:
    del step
    return jnp.tile(x, tuple(int(count) for count in repeats))


def _resize(step: Step, x: jax.Array, *operands: np.ndarray) -> jax.Array:
    """Axis by axis: which entry, or which weighted sum of entries, each result is, was found when it was read."""
    for axis in range(x.ndim):
        weights = operands[axis]
        if weights.ndim == 1:
            x = taken(x, weights, axis) if weights.size else x
        else:
            product = lax.dot_general(
                x, jnp.asarray(weights, x.dtype), (((axis,), (1,)), ((), ())), precision=lax.Precision.HIGHEST
            )
            x = jnp.moveaxis(product, -1, axis)
    return x


OPERATORS: Mapping[str, Operator] = {
    "Concat": Operator(_concat),
    "DepthToSpace": Operator(_depth_to_space),
    "Expand": Operator(_expand),
    "Flatten": Operator(_to_shape_of_result),
    "Gather": Operator(_gather),
    "Pad": Operator(_pad),
    "Reshape": Operator(_to_shape_of_result),
    "Resize": Operator(_resize, static=tuple(range(1, 9))),
    "Slice": Operator(_slice),
    "SpaceToDepth": Operator(_space_to_depth),
    "Split": Operator(_split),
    "Squeeze": Operator(_to_shape_of_result),
    "Tile": Operator(_tile),
    "Transpose": Operator(_transpose),
    "Unsqueeze": Operator(_to_shape_of_result),
    "Upsample": Operator(_resize, static=tuple(range(1, 9))),
}
