"""Affine primitives: one line each, grouped by what they do to magnitudes.

Let y = W x + b. Coefficients are pulled back by `jax.vjp` of the primitive, so a rule only says how the q-norms of
the rows of W diag(r) are computed (`registry.Affine.magnitude`):

* *moving* primitives copy entries: W is a selection, the norm of a row is the entry it selects;
* *summing* primitives have 0/1 rows with several ones: (sum of r^q)^(1/q), or the maximum for q = inf;
* *bilinear* ones carry weights: (|W|^q r^q)^(1/q), exact because each pair of an input and an output meets in one
  weight.
"""

import math

import jax
import jax.numpy as jnp
from jax import lax

from cure_jax.graph import Equation, Node
from cure_jax.rules.registry import Affine, Condition, register

__all__: list[str] = []


def _power(x: jax.Array, exponent: float) -> jax.Array:
    """|x|^exponent with gradient zero where x is 0 (a root has an infinite one there)."""
    if exponent == 1:
        return jnp.abs(x)
    positive = jnp.abs(x) > 0
    return jnp.where(positive, jnp.where(positive, jnp.abs(x), 1) ** exponent, 0)


def _moved(equation: Equation, q: float, *radii: jax.Array) -> jax.Array:
    del q
    return equation.replace_constants(_zeros_if_float).evaluate(*radii)


def _zeros_if_float(operand: jax.Array) -> jax.Array:
    """Constants that are values become 0; indices and predicates stay."""
    return jnp.zeros_like(operand) if jnp.issubdtype(operand.dtype, jnp.floating) else operand


def _added(equation: Equation, q: float, *radii: jax.Array) -> jax.Array:
    if len(radii) == 1:
        return jnp.broadcast_to(radii[0], equation.output.shape)
    if q == math.inf:
        return jnp.maximum(*radii)
    return _power(_power(radii[0], q) + _power(radii[1], q), 1 / q)


def _summed(equation: Equation, q: float, radius: jax.Array) -> jax.Array:
    if q < math.inf:
        return _power(equation.evaluate(_power(radius, q)), 1 / q)
    if equation.name == "reduce_sum":
        return jnp.max(radius, axis=equation.params["axes"])
    names = ("window_dimensions", "window_strides", "padding", "base_dilation", "window_dilation")
    dimensions, strides, padding, base, window = (equation.params[name] for name in names)
    return lax.reduce_window(
        radius, -jnp.inf, lax.max, dimensions, strides, padding, base_dilation=base, window_dilation=window
    )


def _weighted(equation: Equation, q: float, radius: jax.Array) -> jax.Array:
    if q == math.inf:
        return _row_maxima(equation.replace_constants(jnp.abs), radius)
    return _power(equation.replace_constants(lambda weight: _power(weight, q)).evaluate(_power(radius, q)), 1 / q)


def _row_maxima(equation: Equation, radius: jax.Array) -> jax.Array:
    """max_i |w_i| r_i for every output, in place of the sum that the primitive computes."""
    if equation.name in ("mul", "div"):
        return equation.evaluate(radius)
    left, right = (radius if isinstance(operand, Node) else operand for operand in equation.operands)
    if equation.name == "dot_general":
        return _maximum_product(left, right, equation.params["dimension_numbers"])
    return _maximum_convolution(equation, left, right)


def _maximum_product(left: jax.Array, right: jax.Array, dimension_numbers) -> jax.Array:
    """`dot_general` with the sum over contracted dimensions replaced by a maximum."""

    def grouped(x: jax.Array, contracted: tuple[int, ...], batch: tuple[int, ...]) -> tuple[jax.Array, tuple[int, ...]]:
        free = tuple(i for i in range(x.ndim) if i not in contracted and i not in batch)
        shape = tuple(x.shape[i] for i in free)
        sizes = (math.prod(x.shape[i] for i in axes) for axes in (batch, free, contracted))
        return x.transpose(*batch, *free, *contracted).reshape(*sizes), shape

    (left_contracted, right_contracted), (left_batch, right_batch) = dimension_numbers
    batch_shape = tuple(left.shape[i] for i in left_batch)
    left, left_shape = grouped(left, tuple(left_contracted), tuple(left_batch))
    right, right_shape = grouped(right, tuple(right_contracted), tuple(right_batch))
    maxima = jnp.max(left[:, :, None, :] * right[:, None, :, :], axis=-1)
    return maxima.reshape(*batch_shape, *left_shape, *right_shape)


def _maximum_convolution(equation: Equation, image: jax.Array, kernel: jax.Array) -> jax.Array:
    """A convolution with the sum over the window replaced by a maximum."""
    params = equation.params
    if params["feature_group_count"] != 1 or params["batch_group_count"] != 1:
        raise equation.unsupported("grouped, on an l_1 ball")
    numbers = params["dimension_numbers"]
    kernel = kernel.transpose(numbers.rhs_spec)
    patches = lax.conv_general_dilated_patches(
        image.transpose(numbers.lhs_spec),
        kernel.shape[2:],
        params["window_strides"],
        params["padding"],
        lhs_dilation=params["lhs_dilation"],
        rhs_dilation=params["rhs_dilation"],
        precision=lax.Precision.HIGHEST,
    )
    weights = kernel.reshape(kernel.shape[0], -1)
    spatial = (1,) * (patches.ndim - 2)
    maxima = jnp.max(patches[:, None] * weights.reshape(1, *weights.shape, *spatial), axis=2)
    return maxima.transpose(*(numbers.out_spec.index(i) for i in range(maxima.ndim)))


def _only(*positions: int) -> Condition:
    return lambda equation: equation.positions in [(position,) for position in positions]


def _widening(equation: Equation) -> bool:
    """A conversion that keeps every value: a narrowing one rounds, which is not affine."""
    if not jnp.issubdtype(equation.output.dtype, jnp.floating):
        return False
    source, target = jnp.finfo(equation.bounded[0].dtype), jnp.finfo(equation.output.dtype)
    return target.nmant >= source.nmant and target.maxexp >= source.maxexp


_MOVE = Affine(_moved, diagonal=True)
_MOVE_SEVERAL = Affine(_moved, diagonal=True, offset=True)
_SUM = Affine(_summed)
_WEIGH = Affine(_weighted)

register(("reshape", "transpose", "squeeze", "expand_dims", "rev", "slice", "copy"), _MOVE)
register("convert_element_type", _MOVE, when=_widening)
# Broadcasting and gathering may repeat a coordinate, and an l_p ball with a repeated coordinate is no ball.
register("broadcast_in_dim", _MOVE, when=lambda e: math.prod(e.output.shape) == math.prod(e.bounded[0].shape))
register(("broadcast_in_dim", "gather", "dynamic_slice"), Affine(_moved), when=_only(0))
register("select_n", _MOVE_SEVERAL, when=lambda equation: 0 not in equation.positions)
register("concatenate", _MOVE_SEVERAL)
register("pad", _MOVE_SEVERAL, when=_only(0))

register(("add", "add_any"), Affine(_added, diagonal=True, offset=True))
register("sub", Affine(_added, diagonal=True, offset=True))
register("neg", Affine(_added, diagonal=True))

register(("reduce_sum", "reduce_window_sum"), _SUM)

register("mul", Affine(_weighted, diagonal=True), when=_only(0, 1))
register("div", Affine(_weighted, diagonal=True), when=_only(0))
register("dot_general", _WEIGH, when=_only(0, 1))
register("conv_general_dilated", _WEIGH, when=_only(0))
