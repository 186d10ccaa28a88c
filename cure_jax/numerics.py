"""Arithmetic that everything else stands on: sums, numbers that no compiler fuses, safe norms, collectives.

Which form of a sum is compiled is decided when a program is lowered, for the platform that it is lowered for. A program
that is compiled or exported on one machine for another one has the form of the other.
"""

import math
from collections.abc import Callable, Hashable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Primitive
from jax.extend.core.primitives import reduce_sum_p
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array, Float

__all__ = ["dual", "lower_for_cpu", "norm", "pinned", "pmean", "psum", "root", "total", "unit_of"]

Tree = TypeVar("Tree")


def lower_for_cpu(primitive: Primitive, function: Callable[..., Array], on_cpu: Callable[..., Array]) -> None:
    """Says how a primitive is compiled: for CPU in a form of its own, for every other platform as JAX's own function.

    Args:
      primitive: of one result.
      function: of its operands and parameters.
      on_cpu: the same function, in the form that is fast there.
    """
    mlir.register_lowering(primitive, mlir.lower_fun(function, multiple_results=False))
    mlir.register_lowering(primitive, mlir.lower_fun(on_cpu, multiple_results=False), platform="cpu")


def total(x: Float[Array, "..."]) -> Float[Array, ""]:
    """Returns the sum of all entries of x.

    It is the primitive `total`, which has the parameters of `reduce_sum`. Compiled for CPU it is a product with ones:
    what XLA makes there of sums over several axes of a batch, `jax.vmap(jnp.sum)`, was measured to take up to 70 times
    as long (a batch of 49 arrays of shape [15, 15, 1]: 166 instead of 2.2 us).

    Args:
      x: an array of any shape.

    Returns:
      The sum, a scalar; rounded as a sum in some order is.

    Example:
      >>> print(total(jnp.array([[1.0, 2.0], [3.0, 4.0]])))
      10.0
    """
    return total_p.bind(jnp.asarray(x), axes=tuple(range(jnp.ndim(x))), out_sharding=None)


def _as_product(x: Array, *, axes: Sequence[int], out_sharding: None) -> Array:
    del out_sharding
    kept = [axis for axis in range(x.ndim) if axis not in axes]
    last = x.transpose(*kept, *axes).reshape(*(x.shape[axis] for axis in kept), math.prod(x.shape[i] for i in axes))
    return jnp.dot(last, jnp.ones(last.shape[-1], x.dtype), precision=lax.Precision.HIGHEST)


def _spread(cotangent: Array, x: Any, *, axes: Sequence[int], out_sharding: None) -> list[Array]:
    del out_sharding
    kept = [axis for axis in range(x.aval.ndim) if axis not in axes]
    return [lax.broadcast_in_dim(cotangent, x.aval.shape, kept)]


def _batch_of_totals(
    operands: Sequence[Array], batched: Sequence[int], *, axes: Sequence[int], out_sharding: None
) -> tuple[Array, int]:
    (x,), (axis,) = operands, batched
    return total_p.bind(jnp.moveaxis(x, axis, 0), axes=tuple(i + 1 for i in axes), out_sharding=out_sharding), 0


total_p = Primitive("total")
total_p.def_impl(jax.jit(total_p.bind, static_argnames=("axes", "out_sharding")))
total_p.def_abstract_eval(lambda x, **params: reduce_sum_p.abstract_eval(x, **params)[0])
lower_for_cpu(total_p, reduce_sum_p.bind, _as_product)
ad.deflinear2(total_p, _spread)
batching.primitive_batchers[total_p] = _batch_of_totals


def pinned(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Returns the same number, which cannot be fused with what is done to it next: what outward rounding rests on.

    Args:
      x: an array of any shape.

    Returns:
      x, bit by bit. Its bits pass through the integers, with an exclusive or that is 0 for numbers, as no compiler can
      know.

    Raises:
      ValueError: when a program with it is compiled for another platform than CPU. There nothing is known of what is
        fused, and products may be rounded to narrower formats.
    """
    return pinned_p.bind(x)


def _through_integers(x: Array) -> Array:
    integers = jnp.dtype(f"int{x.dtype.itemsize * 8}")
    bits = lax.bitcast_convert_type(x, integers) ^ (x != x).astype(integers)
    return lax.bitcast_convert_type(bits, x.dtype)


def _refuse_to_pin(context: mlir.LoweringRuleContext, x: Any) -> Any:
    del x
    raise ValueError(
        f"arithmetic='outward' holds on CPU only; this program is compiled for {context.module_context.platforms[0]}, "
        "where convolutions may be computed by fast transforms and products in narrower formats. Compile it for CPU "
        "(JAX_PLATFORMS=cpu), or use arithmetic='float32'."
    )


pinned_p = Primitive("pinned")
pinned_p.def_impl(jax.jit(pinned_p.bind))
pinned_p.def_abstract_eval(lambda x: x)
mlir.register_lowering(pinned_p, _refuse_to_pin)
mlir.register_lowering(pinned_p, mlir.lower_fun(_through_integers, multiple_results=False), platform="cpu")
ad.deflinear2(pinned_p, lambda cotangent, x: [cotangent])
batching.defvectorized(pinned_p)


def norm(x: Float[Array, "..."], p: float | int) -> Float[Array, ""]:
    """Returns the p-norm of all entries of x, (sum_i |x_i|^p)^(1/p), with a gradient that is finite everywhere.

    The gradient at x = 0 is 0. The sum is taken of |x_i| / max_j |x_j|, so that powers neither overflow nor vanish.

    Args:
      x: an array of any shape.
      p: the exponent, 1 <= p <= infinity; not traced.

    Returns:
      The norm, a scalar.

    Raises:
      ValueError: If p is less than 1 or not a number.

    Example:
      >>> x = jnp.array([3.0, -4.0])
      >>> print(norm(x, 1), norm(x, 2), norm(x, math.inf))
      7.0 5.0 4.0
      >>> print(jax.grad(norm)(jnp.zeros(2), 2))
      [0. 0.]
    """
    _check_exponent(p)
    # The derivative of jnp.abs at 0 is 1; that of x sign(x) is 0.
    magnitude = x * jnp.sign(x)
    if p == 1:
        return total(magnitude)
    largest = jnp.max(magnitude, initial=0.0)
    if p == math.inf:
        return largest
    # The norm is homogeneous, so any constant serves as scale: no gradient has to pass through it.
    scale = lax.stop_gradient(unit_of(largest))
    relative = magnitude / scale
    power = total(jnp.square(relative) if p == 2 else relative**p)
    return scale * root(power, p)


def root(x: Float[Array, "..."], degree: float | int = 2) -> Float[Array, "..."]:
    """Returns x^(1/degree), element by element, with gradient 0 at 0, where that of a root is infinite.

    Args:
      x: at least 0.
      degree: at least 1; not traced.

    Returns:
      The root, of the shape of x.

    Example:
      >>> print(root(jnp.array([4.0, 0.0])), jax.grad(root)(0.0))
      [2. 0.] 0.0
    """
    # With 1 in the place of 0, `where` sends 0 back.
    is_zero = x == 0
    inside = jnp.where(is_zero, 1.0, x)
    return jnp.where(is_zero, 0.0, jnp.sqrt(inside) if degree == 2 else inside ** (1 / degree))


def unit_of(largest: Float[Array, ""]) -> Float[Array, ""]:
    """Returns a number to divide by, so that what is at most that large in magnitude becomes small: 1 in place of 0.

    XLA divides by a scalar by way of its reciprocal. For float32 that is subnormal from 2^126 on, and then 0: numbers
    near the largest one would vanish, and radii and norms with them. So this is 2^125 at most, and the quotients are 8
    at most. What is not a number stays that.

    Example:
      >>> print(unit_of(jnp.array(0.5)), unit_of(jnp.array(0.0)), unit_of(jnp.array(jnp.inf)) == 2.0**125)
      0.5 1.0 True
    """
    return jnp.where(largest == 0, 1.0, jnp.minimum(largest, 0.5 / jnp.finfo(largest.dtype).tiny))


def dual(p: float | int) -> float:
    """Returns the exponent q of the dual norm, 1/p + 1/q = 1.

    Args:
      p: an exponent, 1 <= p <= infinity.

    Returns:
      The dual exponent, from infinity (p = 1) to 1 (p = infinity).

    Raises:
      ValueError: If p is less than 1 or not a number.

    Example:
      >>> dual(1), dual(2), dual(math.inf)
      (inf, 2.0, 1.0)
    """
    _check_exponent(p)
    if p == math.inf:
        return 1.0
    return math.inf if p == 1 else p / (p - 1)


def _check_exponent(p: float | int) -> None:
    if not p >= 1:
        raise ValueError(f"The exponent of a norm must be at least 1; got p={p}. Use math.inf for the maximum norm.")


def psum(x: Tree, axis_name: Hashable | None) -> Tree:
    """Returns the sum of x over the devices of an axis.

    Args:
      x: a pytree of arrays.
      axis_name: name of an axis of `jax.pmap`, `jax.shard_map` or `jax.vmap`, or several; None for a single device.

    Returns:
      The sum, the same on every device; x itself if axis_name is None.
    """
    return x if axis_name is None else lax.psum(x, axis_name)


def pmean(x: Tree, axis_name: Hashable | None) -> Tree:
    """Returns the mean of x over the devices of an axis.

    Args:
      x: a pytree of arrays.
      axis_name: name of an axis of `jax.pmap`, `jax.shard_map` or `jax.vmap`, or several; None for a single device.

    Returns:
      The mean, the same on every device; x itself if axis_name is None.
    """
    return x if axis_name is None else lax.pmean(x, axis_name)
