"""Affine primitives on windows: which part of its operands a part of the output depends on.

A neuron of a convolutional layer sees a window of the layers before it, so its linear bound has few coefficients. An
`Axis` says which entries of one axis of a node a window holds, as a function of where the neuron stands; `restrict`
says how an affine primitive maps windows of its operands to a window of its output. Entries of a window that lie
outside of the node stand for the zeros of a padding: they have no coefficient.

There is one entry for each kind of primitive that keeps windows windows; after any other, coefficients are dense.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from cure_jax.convolution import convolution
from cure_jax.graph import Equation, Graph, Node

__all__ = ["Axis", "Cut", "Local", "moving_axes", "restrict", "whole"]


class Axis(NamedTuple):
    """The entries `position[source] * stride + start` and the `size - 1` after it, of one axis of a node.

    Attributes:
      source: which coordinate of the neuron's position moves the window.
      stride: how far it moves for each step of the neuron; 0 for a window that stands still.
      start: where it begins for a neuron at position 0; negative in a padding.
      size: how many entries it holds.
    """

    source: int
    stride: int
    start: int
    size: int


Axes = tuple[Axis, ...]
# Takes an array of the shape of the output and its window out of it.
Cut = Callable[[jax.Array], jax.Array]


class Local(NamedTuple):
    """An affine equation between windows.

    Attributes:
      operands: the window of each bounded operand.
      linear: `(cut, *values) -> value`: the linear part, from windows of the bounded operands to that of the output.
    """

    operands: tuple[Axes, ...]
    linear: Callable[..., jax.Array]


def whole(shape: tuple[int, ...]) -> Axes:
    """The window that holds everything; each axis is its own source."""
    return tuple(Axis(i, 0, 0, size) for i, size in enumerate(shape))


def moving_axes(graph: Graph, target: Node) -> tuple[int, ...]:
    """The axes of a node along which its entries see windows of the layers before; none if they see everything."""
    produced = {equation.output.index: equation for equation in graph.equations}
    node, axes = target, whole(target.shape)
    while node.index in produced:
        equation = produced[node.index]
        if equation.name == "conv_general_dilated" and equation.positions == (0,):
            return tuple(axes[i].source for i in equation.params["dimension_numbers"].out_spec[2:])
        if equation.name == "reduce_window_sum":
            windows = equation.params["window_dimensions"]
            return tuple(axis.source for axis, size in zip(axes, windows, strict=True) if size > 1)
        local = restrict(equation, axes)
        if local is None:
            return ()
        node, axes = equation.bounded[0], local.operands[0]
    return ()


def restrict(equation: Equation, axes: Axes) -> Local | None:
    """What an affine equation does between windows, or None if the window of an operand would be no window.

    Args:
      equation: with an affine rule.
      axes: the window of its output.
    """
    rule = _LOCAL.get(equation.name)
    return None if rule is None else rule(equation, axes)


def _elementwise(equation: Equation, axes: Axes) -> Local:
    def linear(cut: Cut, *values: jax.Array) -> jax.Array:
        shape = equation.output.shape
        windows = equation.replace_constants(lambda constant: cut(jnp.broadcast_to(constant, shape)))
        zeros = (jnp.zeros_like(value) for value in values)
        return jax.jvp(windows.evaluate, tuple(zeros), values)[1]

    return Local((axes,) * len(equation.bounded), linear)


def _is_whole(axis: Axis, size: int) -> bool:
    return (axis.stride, axis.start, axis.size) == (0, 0, size)


def _through_window(axis: Axis, stride: int, extent: int, low: int) -> Axis:
    """The entries under windows of an extent, a stride apart, the first one beginning `low` before the axis does."""
    size = (axis.size - 1) * stride + extent
    # Paddings that stand for "SAME" are NumPy integers.
    return Axis(axis.source, axis.stride * stride, axis.start * stride - int(low), size)


def _convolution(equation: Equation, axes: Axes) -> Local | None:
    params: dict[str, Any] = dict(equation.params)
    if equation.positions != (0,) or params["batch_group_count"] != 1 or set(params["lhs_dilation"]) != {1}:
        return None
    images, kernel = equation.operands
    numbers, strides = params["dimension_numbers"], params["window_strides"]
    assert isinstance(images, Node)
    assert not isinstance(kernel, Node)
    if not _is_whole(axes[numbers.out_spec[1]], equation.output.shape[numbers.out_spec[1]]):
        return None
    extents = [
        (kernel.shape[i] - 1) * dilation + 1
        for i, dilation in zip(numbers.rhs_spec[2:], params["rhs_dilation"], strict=True)
    ]
    padding = params["padding"]
    if isinstance(padding, str):
        padding = lax.padtype_to_pads([images.shape[i] for i in numbers.lhs_spec[2:]], extents, strides, padding)
    operand = [Axis(0, 0, 0, size) for size in images.shape]
    operand[numbers.lhs_spec[0]] = axes[numbers.out_spec[0]]
    spatial = zip(numbers.lhs_spec[2:], numbers.out_spec[2:], strides, extents, padding, strict=True)
    for into, out, stride, extent, (low, _) in spatial:
        operand[into] = _through_window(axes[out], stride, extent, low)
    params |= {"padding": ((0, 0),) * len(strides), "precision": lax.Precision.HIGHEST}

    def linear(cut: Cut, window: jax.Array) -> jax.Array:
        del cut
        return convolution(window, kernel, **params)

    return Local((tuple(operand),), linear)


def _window_sum(equation: Equation, axes: Axes) -> Local | None:
    params = equation.params
    if set(params["base_dilation"]) != {1}:
        return None
    sizes, strides, dilation = (params[n] for n in ("window_dimensions", "window_strides", "window_dilation"))
    (node,) = equation.bounded
    operand = tuple(
        axis
        if _is_whole(axis, size) and window == stride == 1 and low == high == 0
        else _through_window(axis, stride, (window - 1) * step + 1, low)
        for axis, size, window, stride, step, (low, high) in zip(
            axes, node.shape, sizes, strides, dilation, params["padding"], strict=True
        )
    )

    def linear(cut: Cut, window: jax.Array) -> jax.Array:
        del cut
        return lax.reduce_window(window, 0.0, lax.add, sizes, strides, "VALID", None, dilation)

    return Local((operand,), linear)


def _pad(equation: Equation, axes: Axes) -> Local | None:
    (node,), config = equation.bounded, equation.params["padding_config"]
    if any(interior for _, _, interior in config):
        return None
    still = [_is_whole(axis, size) for axis, size in zip(axes, equation.output.shape, strict=True)]
    operand = tuple(
        axis._replace(size=size) if stays else axis._replace(start=axis.start - int(low))
        for axis, size, stays, (low, _, _) in zip(axes, node.shape, still, config, strict=True)
    )
    around = [(low, high, 0) if stays else (0, 0, 0) for stays, (low, high, _) in zip(still, config, strict=True)]
    return Local((operand,), lambda cut, window: lax.pad(window, jnp.zeros((), window.dtype), around))


def _slice(equation: Equation, axes: Axes) -> Local:
    starts, limits = equation.params["start_indices"], equation.params["limit_indices"]
    strides = equation.params["strides"] or (1,) * len(starts)
    (node,) = equation.bounded
    operand, steps = [], []
    for axis, size, start, limit, stride in zip(axes, node.shape, starts, limits, strides, strict=True):
        untouched = (start, limit, stride) == (0, size, 1)
        operand.append(axis if untouched else _through_window(axis, stride, 1, -int(start)))
        steps.append(stride)

    def linear(cut: Cut, window: jax.Array) -> jax.Array:
        del cut
        return lax.slice(window, [0] * window.ndim, window.shape, steps)

    return Local((tuple(operand),), linear)


def _transpose(equation: Equation, axes: Axes) -> Local:
    permutation = equation.params["permutation"]
    operand = tuple(axes[permutation.index(i)] for i in range(len(axes)))
    return Local((operand,), lambda cut, window: window.transpose(permutation))


def _reshape(equation: Equation, axes: Axes) -> Local | None:
    """Axes of size 1 come and go."""
    (node,), shape = equation.bounded, equation.output.shape
    if [n for n in node.shape if n != 1] != [n for n in shape if n != 1]:
        return None
    if any(axis.size != 1 for axis, size in zip(axes, shape, strict=True) if size == 1):
        return None
    remaining = iter(axis for axis, size in zip(axes, shape, strict=True) if size != 1)
    operand = tuple(Axis(0, 0, 0, 1) if size == 1 else next(remaining) for size in node.shape)
    sizes = tuple(axis.size for axis in axes)
    return Local((operand,), lambda cut, window: window.reshape(sizes))


def _broadcast(equation: Equation, axes: Axes) -> Local:
    """Copies of an entry are summed."""
    (node,), dimensions = equation.bounded, equation.params["broadcast_dimensions"]
    operand = tuple(
        axes[out] if size == equation.output.shape[out] else Axis(0, 0, 0, 1)
        for out, size in zip(dimensions, node.shape, strict=True)
    )
    sizes = tuple(axis.size for axis in axes)
    return Local((operand,), lambda cut, window: lax.broadcast_in_dim(window, sizes, dimensions))


def _concatenate(equation: Equation, axes: Axes) -> Local | None:
    along = equation.params["dimension"]
    if not _is_whole(axes[along], equation.output.shape[along]):
        return None
    sizes = [node.shape[along] for node in equation.bounded]
    operands = tuple((*axes[:along], axes[along]._replace(size=size), *axes[along + 1 :]) for size in sizes)

    def linear(cut: Cut, *windows: jax.Array) -> jax.Array:
        del cut
        remaining, parts = iter(windows), []
        for operand in equation.operands:
            sizes = [axis.size for axis in axes]
            sizes[along] = operand.shape[along]
            parts.append(next(remaining) if isinstance(operand, Node) else jnp.zeros(sizes, equation.output.dtype))
        return jnp.concatenate(parts, along)

    return Local(operands, linear)


_LOCAL: dict[str, Callable[[Equation, Axes], Local | None]] = {
    **dict.fromkeys(("add", "add_any", "sub", "neg", "mul", "div", "copy", "convert_element_type"), _elementwise),
    **dict.fromkeys(("reshape", "squeeze", "expand_dims"), _reshape),
    "broadcast_in_dim": _broadcast,
    "conv_general_dilated": _convolution,
    "reduce_window_sum": _window_sum,
    "pad": _pad,
    "slice": _slice,
    "transpose": _transpose,
    "concatenate": _concatenate,
}
