"""Affine primitives: one line each, grouped by what they do to magnitudes.

Let y = W x + b. Coefficients are pulled back by `jax.vjp` of the primitive, so a rule only says how the q-norms of
the rows of W diag(r) are computed (`registry.Affine.magnitude`):

* *moving* primitives copy entries: W is a selection, the norm of a row is the entry it selects;
* *summing* primitives have 0/1 rows with several ones: (sum of r^q)^(1/q), or the maximum for q = inf;
* *bilinear* ones carry weights: (|W|^q r^q)^(1/q), exact because each pair of an input and an output meets in one
  weight.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
from jax import lax

from cure_jax import numerics
from cure_jax.graph import Equation, Node
from cure_jax.rules.registry import Affine, Condition, refuse, register

__all__: list[str] = []


def _power(x: jax.Array, exponent: float) -> jax.Array:
    """|x|^exponent with gradient zero where x is 0 (a root has an infinite one there)."""
    if exponent == 1:
        return jnp.abs(x)
    positive = jnp.abs(x) > 0
    return jnp.where(positive, jnp.where(positive, jnp.abs(x), 1) ** exponent, 0)


def _root_of_sum(
    sums: Callable[..., jax.Array], q: float, *radii: jax.Array, weight: jax.Array | float = 1
) -> jax.Array:
    """`weight * (sums of r^q)^(1/q)`, or slightly more; the sums have weights of about 1 at most.

    Radii are taken relative to the largest one. Of a row that is small beside it the powers underflow all the same, and
    a radius of 0 would be a false certificate: so each row gets back what may have been lost, three times the least
    normal number for each term (the power of the radius, that of its weight, and their product). That is a relative
    1e-17 (q = 2) of the largest radius, and nothing where all radii are 0.
    """
    if q == 1:
        return weight * sums(*radii)
    largest = jnp.max(jnp.stack([_largest(radius) for radius in radii]))
    unit = numerics.unit_of(largest)
    lost = 3 * sum(radius.size for radius in radii) * jnp.finfo(largest.dtype).tiny
    root = _power(sums(*(_power(radius / unit, q) for radius in radii)) + lost, 1 / q)
    return weight * jnp.where(largest == 0, 0, unit) * root


def _largest(x: jax.Array) -> jax.Array:
    """The largest magnitude, as a constant to divide by."""
    return lax.stop_gradient(jnp.max(jnp.abs(x), initial=0))


def _moved(equation: Equation, q: float, *radii: jax.Array) -> jax.Array:
    """The radii moved like tangents: zeros come in from constants, and from the fill value of a gather."""
    del q
    return jax.jvp(equation.evaluate, tuple(jnp.zeros_like(radius) for radius in radii), radii)[1]


def _added(equation: Equation, q: float, *radii: jax.Array) -> jax.Array:
    if len(radii) == 1:
        return jnp.broadcast_to(radii[0], equation.output.shape)
    if q == math.inf:
        return jnp.maximum(*radii)
    return _root_of_sum(jnp.add, q, *radii)


def _summed(equation: Equation, q: float, radius: jax.Array) -> jax.Array:
    if q < math.inf:
        return _root_of_sum(equation.evaluate, q, radius)
    if equation.name == "reduce_sum":
        return jnp.max(radius, axis=equation.params["axes"], initial=0)
    if equation.name == "cumsum":
        return lax.cummax(radius, equation.params["axis"], equation.params["reverse"])
    names = ("window_dimensions", "window_strides", "padding", "base_dilation", "window_dilation")
    dimensions, strides, padding, base, window = (equation.params[name] for name in names)
    maxima = lax.reduce_window(
        radius, -jnp.inf, lax.max, dimensions, strides, padding, base_dilation=base, window_dilation=window
    )
    # A window that lies in the padding alone has no maximum, and sums to 0.
    return jnp.maximum(maxima, 0)


def _scaled(equation: Equation, q: float, radius: jax.Array) -> jax.Array:
    """One weight a row, whose norms are all the same."""
    del q
    return equation.replace_constants(jnp.abs).evaluate(radius)


def _weighted(equation: Equation, q: float, radius: jax.Array) -> jax.Array:
    if q == 1:
        return equation.replace_constants(jnp.abs).evaluate(radius)
    if q == math.inf:
        return _row_maxima(equation.replace_constants(jnp.abs), radius)
    (weights,) = equation.constants
    largest = _largest(weights)
    unit = numerics.unit_of(largest)
    powers = equation.replace_constants(lambda weights: _power(weights / unit, q))
    return _root_of_sum(powers.evaluate, q, radius, weight=jnp.where(largest == 0, 0, unit))


def _scattered(equation: Equation, q: float, *radii: jax.Array) -> jax.Array:
    """Sums of what is there and of all that is added to it, or subtracted."""
    indices = int(0 not in equation.positions)
    combine = lax.scatter_max if q == math.inf else lax.scatter_add

    def sums(*values: jax.Array) -> jax.Array:
        remaining, operands = iter(values), equation.operands
        there, added = (next(remaining) if isinstance(x, Node) else jnp.zeros_like(x) for x in operands[::2])
        return combine(there, equation.constants[indices], added, **_scatter_options(equation))

    return sums(*radii) if q == math.inf else _root_of_sum(sums, q, *radii)


def _scatter_options(equation: Equation) -> dict[str, Any]:
    names = ("dimension_numbers", "indices_are_sorted", "unique_indices", "mode")
    options = {name: equation.params[name] for name in names}
    if options["mode"] == lax.GatherScatterMode.PROMISE_IN_BOUNDS:
        options["mode"] = lax.GatherScatterMode.FILL_OR_DROP
    return options


def _writes_once(equation: Equation) -> bool:
    """Whether no entry is written twice: which of the two values stays would be up to the compiler."""
    there, indices, updates = equation.operands
    if isinstance(indices, Node) or equation.params["update_jaxpr"] is not None:
        return False
    if equation.params["unique_indices"]:
        return True
    if isinstance(indices, jax.core.Tracer):
        return math.prod(indices.shape[:-1]) == 1
    with jax.ensure_compile_time_eval():
        zeros, ones = (jnp.full(x.shape, value, jnp.int32) for x, value in ((there, 0), (updates, 1)))
        written = lax.scatter_add(zeros, jnp.asarray(indices), ones, **_scatter_options(equation))
        return bool(jnp.max(written, initial=0) <= 1)


def _row_maxima(equation: Equation, radius: jax.Array) -> jax.Array:
    """max_i |w_i| r_i for every output, in place of the sum that the primitive computes."""
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
    if params["batch_group_count"] != 1:
        raise equation.unsupported("with groups of examples, on an l_1 ball; use groups of channels")
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
    # Channels are the outer part of a patch: each group of them meets its own group of outputs.
    groups, examples, positions = params["feature_group_count"], patches.shape[0], patches.shape[2:]
    weights = kernel.reshape(1, groups, kernel.shape[0] // groups, -1, *(1,) * len(positions))
    maxima = jnp.max(patches.reshape(examples, groups, 1, -1, *positions) * weights, axis=3)
    maxima = maxima.reshape(examples, kernel.shape[0], *positions)
    return maxima.transpose(*(numbers.out_spec.index(i) for i in range(maxima.ndim)))


def _only(*positions: int) -> Condition:
    return lambda equation: equation.positions in [(position,) for position in positions]


def _widening(equation: Equation) -> bool:
    """A result that can hold every value of the operand: a narrower one is rounded, which is not affine."""
    dtypes = (equation.bounded[0].dtype, equation.output.dtype)
    if not all(jnp.issubdtype(dtype, jnp.floating) for dtype in dtypes):
        return False
    source, target = map(jnp.finfo, dtypes)
    return target.nmant >= source.nmant and target.maxexp >= source.maxexp


def _weights_at(*positions: int) -> Condition:
    """The other operand is bounded, and the result is not rounded to `preferred_element_type`."""
    others = _only(*(1 - position for position in positions))
    return lambda equation: others(equation) and _widening(equation)


_INSTEAD_OF_PREDICATES = "use jnp.maximum, jnp.minimum, jnp.clip, a function of jax.nn, or cure_jax.custom_bounds"
_ROUNDED = "results may not be rounded to a narrower type; stay in float32 or float64"

_MOVE = Affine(_moved, diagonal=True)
_MOVE_SEVERAL = Affine(_moved, diagonal=True, offset=True)
_SUM = Affine(_summed)
_SCALE = Affine(_scaled, diagonal=True)
_WEIGH = Affine(_weighted)

register(("reshape", "transpose", "squeeze", "expand_dims", "rev", "slice", "copy"), _MOVE)
register("convert_element_type", _MOVE, when=_widening, otherwise=_ROUNDED)
# Broadcasting and gathering may repeat a coordinate, and an l_p ball with a repeated coordinate is no ball.
register("broadcast_in_dim", _MOVE, when=lambda e: math.prod(e.output.shape) == math.prod(e.bounded[0].shape))
register(("broadcast_in_dim", "tile", "dynamic_slice"), Affine(_moved), when=_only(0))
register("gather", Affine(_moved, offset=True), when=_only(0))
register(
    "select_n",
    _MOVE_SEVERAL,
    when=lambda equation: 0 not in equation.positions,
    otherwise="its predicate depends on the input; " + _INSTEAD_OF_PREDICATES,
)
refuse(("eq", "ge", "gt", "le", "lt", "ne"), "it compares values that depend on the input; " + _INSTEAD_OF_PREDICATES)
refuse(("argmax", "argmin", "argsort"), "which entry it selects depends on the input")
register(
    "scatter",
    _MOVE_SEVERAL,
    when=_writes_once,
    otherwise="where it writes depends on the input, or it may write an entry twice, or applies a function",
)
register(
    ("scatter-add", "scatter-sub"),
    Affine(_scattered, offset=True),
    when=lambda equation: 1 not in equation.positions,
    otherwise="where it adds depends on the input",
)
refuse(("scatter-max", "scatter-min", "scatter-mul"), "use .at[].set or .at[].add")
register(("concatenate", "stack"), _MOVE_SEVERAL)
register("pad", _MOVE_SEVERAL, when=_only(0))
register(
    "dynamic_update_slice",
    _MOVE_SEVERAL,
    when=lambda equation: max(equation.positions) <= 1,
    otherwise="where it writes depends on the input",
)

register(("add", "add_any"), Affine(_added, diagonal=True, offset=True))
register("sub", Affine(_added, diagonal=True, offset=True))
register("neg", Affine(_added, diagonal=True))

register(("reduce_sum", "reduce_window_sum", "cumsum"), _SUM)

register("mul", _SCALE, when=_only(0, 1))
register("div", _SCALE, when=_only(0))
register("dot_general", _WEIGH, when=_weights_at(0, 1), otherwise=_ROUNDED)
register(
    "conv_general_dilated",
    _WEIGH,
    when=_weights_at(0, 1),
    otherwise=_ROUNDED,
)
