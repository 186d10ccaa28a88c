"""The operators of ONNX that move a window over an image: convolutions and pooling, `[batch, channels, *space]`."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from cure_jax.convolution import convolution
from cure_jax.interop.onnx.step import Operator, Step

__all__ = ["OPERATORS"]

_HIGHEST = lax.Precision.HIGHEST
Padding = tuple[tuple[int, int], ...]


class _Window(NamedTuple):
    """How a window moves, along each axis of space."""

    size: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    padding: Padding

    def extents(self) -> list[int]:
        """How far the window reaches."""
        return [(size - 1) * step + 1 for size, step in zip(self.size, self.dilations, strict=True)]


def _window(step: Step, space: Sequence[int], size: Sequence[int]) -> _Window:
    rank = len(space)
    strides = tuple(step.get("strides", (1,) * rank))
    dilations = tuple(step.get("dilations", (1,) * rank))
    pads = tuple(step.get("pads", (0,) * 2 * rank))
    lengths = {len(size), len(strides), len(dilations), len(pads) / 2}
    if lengths != {rank} or min(*size, *strides, *dilations) < 1 or min(pads) < 0:
        raise step.refused(f"with kernel {tuple(size)}, strides {strides}, dilations {dilations} and pads {pads}")
    window = _Window(tuple(size), strides, dilations, tuple(zip(pads[:rank], pads[rank:], strict=True)))
    return window._replace(padding=_automatic(step, space, window))


def _automatic(step: Step, space: Sequence[int], window: _Window) -> Padding:
    """The padding, which `auto_pad` may ask for in words."""
    mode = step.get("auto_pad", "NOTSET")
    if mode == "NOTSET":
        return window.padding
    if mode == "VALID":
        return ((0, 0),) * len(space)
    pairs = []
    for size, extent, stride in zip(space, window.extents(), window.strides, strict=True):
        total = max((-(-size // stride) - 1) * stride + extent - size, 0)
        pairs.append(_divided(total, step))
    return tuple(pairs)


def _divided(total: int, step: Step) -> tuple[int, int]:
    """An odd one goes to the end, or to the beginning for SAME_LOWER."""
    low = total // 2 if step.get("auto_pad") == "SAME_UPPER" else total - total // 2
    return low, total - low


def _convolution(step: Step, x: jax.Array, kernel: jax.Array, bias: jax.Array | None = None) -> jax.Array:
    window = _window(step, x.shape[2:], kernel.shape[2:])
    y = _convolved(x, kernel, window.strides, window.padding, (1,) * (x.ndim - 2), window.dilations, step)
    return y if bias is None else y + bias.reshape(1, -1, *(1,) * (x.ndim - 2))


def _convolved(  # noqa: PLR0913  (those of jax.lax.conv_general_dilated)
    x: jax.Array,
    kernel: jax.Array,
    strides: Sequence[int],
    padding: Padding,
    input_dilation: Sequence[int],
    kernel_dilation: Sequence[int],
    step: Step,
) -> jax.Array:
    groups = step.get("group", 1)
    last = x.ndim == 4 and groups == 1
    if last:
        # With channels last it has fast gradients on CPU (`cure_jax.convolution`): CROWN took a fifth of the time.
        x, kernel = x.transpose(0, 2, 3, 1), kernel.transpose(2, 3, 1, 0)
    y = convolution(
        x,
        kernel,
        strides,
        padding,
        input_dilation,
        kernel_dilation,
        ("NHWC", "HWIO", "NHWC") if last else None,
        feature_group_count=groups,
        precision=_HIGHEST,
    )
    return y.transpose(0, 3, 1, 2) if last else y


def _transposed(step: Step, x: jax.Array, kernel: jax.Array, bias: jax.Array | None = None) -> jax.Array:
    """A convolution of the image dilated by the strides, with the flipped kernel.

    The kernel comes as `[inputs, outputs / group, *space]`.
    """
    rank, groups = x.ndim - 2, step.get("group", 1)
    window = _window(step, x.shape[2:], kernel.shape[2:])
    extra = step.get("output_padding", (0,) * rank)
    pairs = []
    for axis, (extent, stride) in enumerate(zip(window.extents(), window.strides, strict=True)):
        low, high = _trimmed(step, x.shape[2 + axis], step.shapes[0][2 + axis], extent, stride, extra[axis], axis)
        pairs.append((extent - 1 - low, extent - 1 - high + extra[axis]))
    grouped = kernel.reshape(groups, kernel.shape[0] // groups, *kernel.shape[1:])
    flipped = lax.rev(grouped, tuple(range(3, 3 + rank))).swapaxes(1, 2)
    flipped = flipped.reshape(groups * kernel.shape[1], kernel.shape[0] // groups, *kernel.shape[2:])
    y = _convolved(x, flipped, (1,) * rank, tuple(pairs), window.strides, window.dilations, step)
    return y if bias is None else y + bias.reshape(1, -1, *(1,) * rank)


def _trimmed(  # noqa: PLR0913  (what one axis is made of)
    step: Step, size: int, result: int, extent: int, stride: int, extra: int, axis: int
) -> tuple[int, int]:
    """How much a transposed convolution leaves out at the ends of one axis."""
    if step.get("output_shape") is None and step.get("auto_pad", "NOTSET") in ("NOTSET", "VALID"):
        pads = step.get("pads", (0,) * 2 * (len(step.shapes[0]) - 2))
        return pads[axis], pads[len(pads) // 2 + axis]
    total = stride * (size - 1) + extra + extent - result
    if total < 0:
        raise step.refused(f"to {result} entries, more than the {result + total} that the kernel reaches")
    low = total // 2 if step.get("auto_pad") == "SAME_UPPER" else total - total // 2
    return low, total - low


def _reaching(step: Step, space: Sequence[int], window: _Window) -> _Window:
    """With padding at the end for the windows that `ceil_mode` adds."""
    pairs = []
    axes = zip(space, step.shapes[0][2:], window.extents(), window.strides, window.padding, strict=True)
    for size, result, extent, stride, (low, high) in axes:
        fits = (size + low + high - extent) // stride + 1 == result
        if (result - 1) * stride >= size + low:
            raise step.refused("with ceil_mode and a window that lies wholly in the padding at the end")
        pairs.append((low, high if fits else (result - 1) * stride + extent - size - low))
    return window._replace(padding=tuple(pairs))


def _reduce(x: jax.Array | np.ndarray, window: _Window, start: float, function: object, padding: Padding) -> jax.Array:
    ones = (1, 1)
    return lax.reduce_window(
        x,
        np.asarray(start, x.dtype),
        function,  # pyright: ignore[reportArgumentType]
        (*ones, *window.size),
        (*ones, *window.strides),
        ((0, 0), (0, 0), *padding),
        window_dilation=(*ones, *window.dilations),
    )


def _max_pool(step: Step, x: jax.Array) -> jax.Array:
    window = _reaching(step, x.shape[2:], _window(step, x.shape[2:], step.get("kernel_shape")))
    return _reduce(x, window, -math.inf, lax.max, window.padding)


def _average_pool(step: Step, x: jax.Array) -> jax.Array:
    asked = _window(step, x.shape[2:], step.get("kernel_shape"))
    window = _reaching(step, x.shape[2:], asked)
    sums = _reduce(x, window, 0.0, lax.add, window.padding)
    counts = _counts(x.shape[2:], window, asked.padding, bool(step.get("count_include_pad", 0)))
    if np.all(counts == counts.flat[0]):
        return sums / float(counts.flat[0])
    return sums / jnp.asarray(counts[None, None], x.dtype)


def _counts(space: Sequence[int], window: _Window, asked: Padding, with_padding: bool) -> np.ndarray:
    """How many entries each window averages, `[*space of the result]`: padding counts if it was asked for."""
    counts = np.ones((), int)
    for axis, size in enumerate(space):
        (low, high), (begin, end) = window.padding[axis], asked[axis]
        places = np.arange(-low, size + max(high, 0))
        counted = (places >= -begin) & (places < size + end) if with_padding else (places >= 0) & (places < size)
        stride, step = window.strides[axis], window.dilations[axis]
        results = (size + low + high - (window.size[axis] - 1) * step - 1) // stride + 1
        inside = np.arange(results)[:, None] * stride + np.arange(window.size[axis])[None, :] * step
        counts = counts[..., None] * counted[inside].sum(1)
    return counts


def _global(function) -> Operator:
    return Operator(lambda step, x: function(x, axis=tuple(range(2, x.ndim)), keepdims=True))


OPERATORS: Mapping[str, Operator] = {
    "AveragePool": Operator(_average_pool),
    "Conv": Operator(_convolution),
    "ConvTranspose": Operator(_transposed),
    "GlobalAveragePool": _global(jnp.mean),
    "GlobalMaxPool": _global(jnp.max),
    "MaxPool": Operator(_max_pool),
}
