"""A convolution whose gradients are laid out well: primitives `convolution` and, for pairs, `convolutions`.

`jax.lax.conv_general_dilated` differentiates into convolutions with permuted dimension numbers. XLA's
CPU backend runs those on one core, and inside `scan` and `fori_loop` with a naive kernel. For images x, kernel w,
cotangent g, stride s, input dilation a and kernel dilation d, both gradients are ordinary convolutions too:

* for x: of g, dilated by s, with w flipped in space and its channels swapped; stride a, kernel dilation d;
* for w: of x, dilated by a, with g as the kernel, dilated by s, examples in the place of channels; stride d.

On CPU the first one would mostly multiply by zeros where there are strides, and is slow for few channels: it is
compiled to a convolution for each phase of the stride, or to one matrix product and shifted sums. The second one has a
kernel as large as an image and a result as small as a kernel: where there are strides, or few examples or channels, it
is a matrix product with the few windows, in parts that fit into a cache.

This form is closed: gradients of gradients have it again. It is a primitive, not a `jax.custom_vjp`, because of
`jax.vmap`: a batched backward rule would compute one kernel gradient for every example, an array of shape
[batch, height, width, input, output], and sum them afterwards. The primitive merges the batch into the axis of examples
before it is differentiated, so a vmapped function of one example costs what a hand-batched one costs.

Which form is compiled is decided when a program is lowered, for the platform that it is lowered for. A program that is
compiled or exported on one machine for another one has the form of the other.
"""

import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Primitive
from jax.extend.core.primitives import conv_general_dilated_p
from jax.interpreters import ad, batching
from jax.sharding import AxisType
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Shaped

from cure_jax.numerics import lower_for_cpu

__all__ = ["convolution", "convolution_p", "convolutions_p"]

_LAYOUT = lax.ConvDimensionNumbers(lhs_spec=(0, 3, 1, 2), rhs_spec=(3, 2, 0, 1), out_spec=(0, 3, 1, 2))


def convolution(  # noqa: PLR0913  (the signature of jax.lax.conv_general_dilated)
    lhs: Shaped[ArrayLike, "..."],
    rhs: Shaped[ArrayLike, "..."],
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = None,
    feature_group_count: int = 1,
    batch_group_count: int = 1,
    precision: Any = None,
    preferred_element_type: DTypeLike | None = None,
    out_sharding: Any = None,
) -> Shaped[Array, "..."]:
    """`jax.lax.conv_general_dilated`, with gradients that are fast on CPU.

    The arguments are those of `jax.lax.conv_general_dilated`, from a call or from the parameters of its equation in a
    jaxpr; the values are the same. `flax.linen.Conv(conv_general_dilated=convolution)` takes it. A 2-D convolution of
    floating-point NHWC images with an HWIO kernel, without groups, becomes the primitive `convolution`, whose
    parameters are again those of `conv_general_dilated`; compiled for another platform than CPU it is that. Everything
    else is left to JAX: other layouts, meshes with explicit axes, and operands that vary over different axes of a
    `jax.shard_map` with `check_vma=True`.

    Args:
      lhs: images; [batch, height, width, input channels] in the fast form.
      rhs: kernel; [height, width, input channels, output channels] in the fast form.
      window_strides: step between windows, for each spatial axis.
      padding: "SAME", "SAME_LOWER", "VALID", or (low, high) for each spatial axis.
      lhs_dilation: distance between neighbouring pixels, for each spatial axis.
      rhs_dilation: distance between neighbouring entries of the kernel, for each spatial axis.
      dimension_numbers: layouts; ("NHWC", "HWIO", "NHWC") is the fast form, None is JAX's NCHW.
      feature_group_count: number of groups of channels; 1 in the fast form.
      batch_group_count: number of groups of examples; 1 in the fast form.
      precision: of the products, as in JAX; the gradients inherit it.
      preferred_element_type: element type of the result; that of the operands in the fast form.
      out_sharding: sharding of the result; None in the fast form.

    Returns:
      The convolved images.
    """
    lhs, rhs = jnp.asarray(lhs), jnp.asarray(rhs)
    params = {
        "window_strides": tuple(window_strides),
        "padding": padding,
        "lhs_dilation": tuple(lhs_dilation or (1,) * (lhs.ndim - 2)),
        "rhs_dilation": tuple(rhs_dilation or (1,) * (rhs.ndim - 2)),
        "dimension_numbers": lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers),
        "feature_group_count": feature_group_count,
        "batch_group_count": batch_group_count,
        "precision": precision,
        "preferred_element_type": preferred_element_type,
        "out_sharding": out_sharding,
    }
    if not _has_fast_form(lhs, rhs, params):
        return lax.conv_general_dilated(lhs, rhs, **params)
    if isinstance(padding, str):
        kernel = _dilated(rhs.shape[:2], params["rhs_dilation"])
        padding = lax.padtype_to_pads(lhs.shape[1:3], kernel, window_strides, padding)
    params["padding"] = tuple((low, high) for low, high in padding)
    return convolution_p.bind(lhs, rhs, **params)


def _has_fast_form(lhs: Array, rhs: Array, params: dict[str, Any]) -> bool:
    return (
        params["dimension_numbers"] == _LAYOUT
        and params["feature_group_count"] == params["batch_group_count"] == 1
        and params["out_sharding"] is None
        and lhs.dtype == rhs.dtype == jnp.dtype(params["preferred_element_type"] or lhs.dtype)
        and jnp.issubdtype(lhs.dtype, jnp.floating)
        and jax.typeof(lhs).manual_axis_type == jax.typeof(rhs).manual_axis_type
        and AxisType.Explicit not in jax.typeof(lhs).sharding.mesh.axis_types
        # JAX refuses the one case in which the padding has no definition.
        and not (isinstance(params["padding"], str) and params["lhs_dilation"] != (1, 1))
    )


def _dilated(sizes: Sequence[int], dilation: Sequence[int]) -> list[int]:
    return [(size - 1) * step + 1 for size, step in zip(sizes, dilation, strict=True)]


def _extents(lhs: Any, rhs: Any, out: Any, params: dict[str, Any]) -> Iterator[tuple[int, int, int, int]]:
    """Yields the sizes of image, kernel and result when dilated, and the low padding, for each spatial axis."""
    return zip(
        _dilated(lhs.shape[1:3], params["lhs_dilation"]),
        _dilated(rhs.shape[:2], params["rhs_dilation"]),
        _dilated(out.shape[1:3], params["window_strides"]),
        [low for low, _ in params["padding"]],
        strict=True,
    )


def _image_gradient(cotangent: Array, lhs: Any, rhs: Array, **params: Any) -> Array:
    extents = _extents(lhs.aval, rhs, cotangent, params)
    window = {
        "window_strides": params["lhs_dilation"],
        "lhs_dilation": params["window_strides"],
        "padding": tuple((kernel - 1 - low, image - out + low) for image, kernel, out, low in extents),
    }
    return convolution_p.bind(cotangent, lax.rev(rhs, (0, 1)).swapaxes(2, 3), **params | window)


def _kernel_gradient(cotangent: Array, lhs: Array, rhs: Any, **params: Any) -> Array:
    extents = _extents(lhs, rhs.aval, cotangent, params)
    window = {
        "window_strides": params["rhs_dilation"],
        "rhs_dilation": params["window_strides"],
        "padding": tuple((low, out + kernel - 1 - image - low) for image, kernel, out, low in extents),
    }
    gradient = convolution_p.bind(lhs.transpose(3, 1, 2, 0), cotangent.transpose(1, 2, 0, 3), **params | window)
    return gradient.transpose(1, 2, 0, 3)


def _batch(operands: Sequence[Array], axes: Sequence[int | None], **params: Any) -> tuple[Array, int]:
    (lhs, rhs), (lhs_axis, rhs_axis) = operands, axes
    lhs = lhs if lhs_axis is None else jnp.moveaxis(lhs, lhs_axis, 0)
    if rhs_axis is None:
        out = convolution_p.bind(lax.collapse(lhs, 0, 2), rhs, **params)
        return out.reshape(*lhs.shape[:2], *out.shape[1:]), 0
    if lhs_axis is None:
        rhs = jnp.moveaxis(rhs, rhs_axis, 3)
        out = convolution_p.bind(lhs, lax.collapse(rhs, 3, 5), **params)
        return out.reshape(*out.shape[:3], *rhs.shape[3:]), 3
    return convolutions_p.bind(lhs, jnp.moveaxis(rhs, rhs_axis, 0), **params), 0


# With so few output channels, or with strides and products that fit into a cache, one matrix product and shifted sums
# are several times as fast as the library behind XLA.
_FEW_CHANNELS, _FEW_PRODUCTS = 4, 2**21
# A kernel that is so many times as large as the result is the cotangent in a kernel gradient. Where strides dilated it
# or the image, or there are few examples or channels, a matrix product with the few windows is faster.
_FEW_WINDOWS = 4
# So many numbers fit into a cache of a core.
_CACHED = 2**19


def _fastest(lhs: Array, rhs: Array, **params: Any) -> Array:
    """The same convolution in the form that is the fastest, mostly one that multiplies by fewer zeros of a dilation."""
    dilation, pads = params["lhs_dilation"], params["padding"]
    windows = jax.eval_shape(functools.partial(lax.conv_general_dilated, **params), lhs, rhs).shape[1:3]
    dilated = dilation != (1, 1) or params["rhs_dilation"] != (1, 1)
    thin = any(_at_most(size, _FEW_CHANNELS) for size in (lhs.shape[0], *rhs.shape[2:]))
    known = all(isinstance(size, int) for size in (*lhs.shape, *rhs.shape))
    if known and (dilated or thin) and 0 < _FEW_WINDOWS * math.prod(windows) <= math.prod(rhs.shape[:2]):
        return _gathered(lhs, rhs, windows, params)
    if params["window_strides"] != (1, 1) or params["rhs_dilation"] != (1, 1):
        return lax.conv_general_dilated(lhs, rhs, **params)
    products = math.prod(lhs.shape[:3]) * math.prod(rhs.shape[:2]) * rhs.shape[3]
    if rhs.shape[3] <= _FEW_CHANNELS or (dilation != (1, 1) and _at_most(products, _FEW_PRODUCTS)):
        whole = _scattered(lhs, rhs, params)
    elif dilation != (1, 1):
        whole = _interleaved(lhs, rhs, params)
    else:
        return lax.conv_general_dilated(lhs, rhs, **params)
    around = [(low - k + 1, high - k + 1, 0) for k, (low, high) in zip(rhs.shape[:2], pads, strict=True)]
    return lax.pad(whole, jnp.zeros((), whole.dtype), [(0, 0, 0), *around, (0, 0, 0)])


def _at_most(size: Any, limit: int) -> bool:
    """Whether a size is at most that; of one that is a symbol, as in exported programs, it is not known."""
    return isinstance(size, int) and size <= limit


def _gathered(lhs: Array, rhs: Array, counts: Sequence[int], params: dict[str, Any]) -> Array:
    """A matrix product: the windows of an image, so many down and across, with the kernel.

    The sum over input channels, the examples of a kernel gradient, is cut so that the windows fit into a cache.
    """
    zero, (height, width, inputs, outputs), (rows, columns) = jnp.zeros((), lhs.dtype), rhs.shape, counts
    around = [
        (low, high, step - 1) for (low, high), step in zip(params["padding"], params["lhs_dilation"], strict=True)
    ]
    (down, right), (below, beside) = params["window_strides"], params["rhs_dilation"]
    high, wide = _dilated((height, width), (below, beside))

    def product(image: Array, kernel: Array) -> Array:
        channels = image.shape[0]
        image = lax.pad(image.transpose(3, 0, 1, 2), zero, [(0, 0, 0), (0, 0, 0), *around])
        windows = jnp.stack(
            [
                lax.slice(image, (0, 0, y, x), (len(image), channels, y + high, x + wide), (1, 1, below, beside))
                for y in range(0, rows * down, down)
                for x in range(0, columns * right, right)
            ],
            1,
        )
        size = channels * height * width
        windows, kernel = windows.reshape(len(image) * rows * columns, size), kernel.reshape(size, outputs)
        return jnp.dot(windows, kernel, precision=params["precision"])

    # In a kernel gradient this undoes the transposition of images and cotangents: examples come first again.
    image, kernel = lhs.transpose(3, 1, 2, 0), rhs.transpose(2, 0, 1, 3)
    most = max(1, _CACHED // max(1, len(lhs) * rows * columns * height * width))
    count = next((count for count in range(1, inputs + 1) if inputs % count == 0 and inputs // count <= most), 1)
    if count == 1:
        products = product(image, kernel)
    else:
        cut = [operand.reshape(count, -1, *operand.shape[1:]) for operand in (image, kernel)]
        nothing = jnp.zeros((len(lhs) * rows * columns, outputs), lhs.dtype)
        products, _ = lax.scan(lambda sum, pair: (sum + product(*pair), None), nothing, cut)
    return products.reshape(len(lhs), rows, columns, outputs)


def _scattered(lhs: Array, rhs: Array, params: dict[str, Any]) -> Array:
    """The convolution of a dilated image padded by a kernel less one: one matrix product, and shifted sums.

    For a dilation s, pixel p and entry a of the kernel meet in pixel s p + k - 1 - a of the result: in one phase of it.
    """
    (height, width, _, outputs), (down, right) = rhs.shape, params["lhs_dilation"]
    rows, columns = -(-height // down), -(-width // right)
    products = jnp.einsum("nhwi,abio->nhwabo", lhs, rhs, precision=params["precision"])
    zero = jnp.zeros((), products.dtype)
    empty = jnp.zeros((lhs.shape[0], lhs.shape[1] + rows - 1, lhs.shape[2] + columns - 1, outputs), products.dtype)
    phases = [[empty] * right for _ in range(down)]
    for a in range(height):
        below, i = divmod(height - 1 - a, down)
        for b in range(width):
            beside, j = divmod(width - 1 - b, right)
            around = [(0, 0, 0), (below, rows - 1 - below, 0), (beside, columns - 1 - beside, 0), (0, 0, 0)]
            phases[i][j] = phases[i][j] + lax.pad(products[:, :, :, a, b], zero, around)
    return _woven(jnp.stack([jnp.stack(row, 3) for row in phases], 3), lhs, rhs, params)


def _interleaved(lhs: Array, rhs: Array, params: dict[str, Any]) -> Array:
    """The same as `_scattered`: one convolution of the undilated image for all phases, each with s times fewer taps.

    Pixel s m + a of the result meets every s-th entry of the kernel only.
    """
    (height, width, inputs, outputs), (down, right) = rhs.shape, params["lhs_dilation"]
    rows, columns = -(-height // down), -(-width // right)
    # Entries missing at the far end of the kernel are those of the near end of the flipped one.
    missing = [(rows * down - height, 0, 0), (columns * right - width, 0, 0), (0, 0, 0), (0, 0, 0)]
    kernel = lax.pad(rhs, jnp.zeros((), rhs.dtype), missing).reshape(rows, down, columns, right, inputs, outputs)
    kernel = kernel[:, ::-1, :, ::-1].transpose(0, 2, 4, 1, 3, 5).reshape(rows, columns, inputs, -1)
    window = {"lhs_dilation": (1, 1), "padding": ((rows - 1, rows - 1), (columns - 1, columns - 1))}
    phases = lax.conv_general_dilated(lhs, kernel, **params | window)
    return _woven(phases.reshape(*phases.shape[:3], down, right, outputs), lhs, rhs, params)


def _woven(phases: Array, lhs: Array, rhs: Array, params: dict[str, Any]) -> Array:
    """Phases `[batch, high, wide, down, right, outputs]` side by side, as large as the result."""
    batch, high, wide, down, right, outputs = phases.shape
    whole = phases.transpose(0, 1, 3, 2, 4, 5).reshape(batch, high * down, wide * right, outputs)
    height, width = (
        k + (size - 1) * step for size, step, k in zip(lhs.shape[1:3], params["lhs_dilation"], rhs.shape, strict=False)
    )
    return whole[:, :height, :width]


convolution_p = Primitive("convolution")
convolution_p.def_impl(lax.conv_general_dilated)
convolution_p.def_abstract_eval(lambda lhs, rhs, **params: conv_general_dilated_p.abstract_eval(lhs, rhs, **params)[0])
lower_for_cpu(convolution_p, lax.conv_general_dilated, _fastest)
ad.defbilinear(convolution_p, _image_gradient, _kernel_gradient)
batching.primitive_batchers[convolution_p] = _batch


# A convolution for each pair of images and a kernel, `[pairs, ...]` both: what `jax.vmap` over both makes.


def _in_pairs(lhs: Array, rhs: Array, **params: Any) -> Array:
    return jax.vmap(functools.partial(lax.conv_general_dilated, **params))(lhs, rhs)


def _in_a_loop(lhs: Array, rhs: Array, **params: Any) -> Array:
    """Mostly two to five times as fast on CPU as the grouped convolution that JAX makes of them."""
    return lax.map(lambda pair: convolution_p.bind(*pair, **params), (lhs, rhs))


def _shape_of_pairs(lhs: Any, rhs: Any, **params: Any) -> Any:
    one = jax.eval_shape(
        functools.partial(lax.conv_general_dilated, **params),
        *(jax.ShapeDtypeStruct(operand.shape[1:], operand.dtype) for operand in (lhs, rhs)),
    )
    return lhs.update(shape=(lhs.shape[0], *one.shape))


class _Unknown(NamedTuple):
    """The operand of a bilinear map that its gradient is for: known by its shape alone."""

    aval: jax.ShapeDtypeStruct


def _one(operand: Any) -> _Unknown:
    return _Unknown(jax.ShapeDtypeStruct(operand.aval.shape[1:], operand.aval.dtype))


def _image_gradients(cotangent: Array, lhs: Any, rhs: Array, **params: Any) -> Array:
    return jax.vmap(lambda cotangent, rhs: _image_gradient(cotangent, _one(lhs), rhs, **params))(cotangent, rhs)


def _kernel_gradients(cotangent: Array, lhs: Array, rhs: Any, **params: Any) -> Array:
    return jax.vmap(lambda cotangent, lhs: _kernel_gradient(cotangent, lhs, _one(rhs), **params))(cotangent, lhs)


def _batch_of_pairs(operands: Sequence[Array], axes: Sequence[int | None], **params: Any) -> tuple[Array, int]:
    (size,) = {operand.shape[axis] for operand, axis in zip(operands, axes, strict=True) if axis is not None}
    whole = [
        jnp.broadcast_to(operand, (size, *operand.shape)) if axis is None else jnp.moveaxis(operand, axis, 0)
        for operand, axis in zip(operands, axes, strict=True)
    ]
    out = convolutions_p.bind(*(lax.collapse(operand, 0, 2) for operand in whole), **params)
    return out.reshape(size, -1, *out.shape[1:]), 0


convolutions_p = Primitive("convolutions")
convolutions_p.def_impl(_in_pairs)
convolutions_p.def_abstract_eval(_shape_of_pairs)
lower_for_cpu(convolutions_p, _in_pairs, _in_a_loop)
ad.defbilinear(convolutions_p, _image_gradients, _kernel_gradients)
batching.primitive_batchers[convolutions_p] = _batch_of_pairs
