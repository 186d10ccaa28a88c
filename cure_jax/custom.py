"""`custom_bounds`: a function with bounds of its own, the users' way to extend the table of rules.

The function becomes the primitive `custom_bounds`, which computes, differentiates and batches like the function itself.
What it closes over becomes operands, so parameters may be traced. `cure_jax.rules.custom` reads the bounds from the
primitive's parameters.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import eval_jaxpr
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array, Shaped

__all__ = ["CustomBounds", "custom_bounds"]


@dataclasses.dataclass(frozen=True, eq=False)
class CustomBounds:
    """The bounds of one function, for `cure_jax.rules.custom`.

    Attributes:
      interval: see `custom_bounds`.
      relax: see `custom_bounds`; None for lines of slope 0.
      lipschitz: see `custom_bounds`.
      arguments: how many arguments the function has; the primitive's other operands, before them, are closed over.
      undecided: see `custom_bounds`.
      depth: how many leading axes of all arguments and of the result were put there by `jax.vmap`.
    """

    interval: Callable[..., Any]
    relax: Callable[..., Any] | None
    lipschitz: float
    arguments: int
    undecided: Callable[..., Any] | None = None
    depth: int = 0


def custom_bounds(
    fun: Callable[..., Shaped[Array, "..."]],
    *,
    interval: Callable[..., Any],
    relax: Callable[..., Any] | None = None,
    lipschitz: float = math.inf,
    undecided: Callable[..., Any] | None = None,
) -> Callable[..., Shaped[Array, "..."]]:
    """Gives a function bounds of its own, for what no rule covers or covers too loosely.

    Args:
      fun: maps one array, or several, to one array; traceable by JAX.
      interval: `(*intervals) -> Interval`: a box that holds every value of `fun` on the boxes of its arguments. An
        argument that does not depend on the network's input comes as a box of width 0.
      relax: `(*intervals) -> (lower, upper)`: two affine functions that enclose `fun` on the boxes. For an elementwise
        function of one argument each is a pair `(slope, intercept)` of arrays that broadcast to the result; of several
        arguments, `((slope, slope, ...), intercept)`. In general each is a `cure_jax.rules.LinearMap`. None takes the
        ends of `interval`.
      lipschitz: |fun(x) - fun(y)|_2 <= lipschitz * |x - y|_2, for training with a Lipschitz margin.
      undecided: `(*intervals) -> (mask, mask, ...)`, one of the shape of each argument: False where a tighter box of
        that entry would give no tighter lines, so that `crown` need not look for one. None: True everywhere.

    Returns:
      A function with the values and derivatives of `fun`, under `jax.jit` and `jax.vmap` too, that `ibp`, `crown` and
      all that builds on them bound as told.

    Raises:
      TypeError: if `fun` does not return one array.

    Soundness:
      As good as what `interval` and `relax` say; they are not checked. Allow for rounding. `fun`, not they, may close
      over traced values: pass those on as arguments.

    Examples:
      >>> import jax.numpy as jnp, cure_jax as cj
      >>> def cubed(x):
      ...     return jnp.where(x > 0, x**3, 0)
      >>> def interval(x):
      ...     return cj.Interval(cubed(x.lower), cubed(x.upper))
      >>> def relax(x):  # convex: the tangent at the center below, the chord above
      ...     tangent = 3 * jnp.maximum(x.center, 0) ** 2
      ...     chord = (cubed(x.upper) - cubed(x.lower)) / (x.upper - x.lower)
      ...     lower = tangent, cubed(x.center) - tangent * x.center
      ...     return lower, (chord, cubed(x.lower) - chord * x.lower)
      >>> activation = cj.custom_bounds(cubed, interval=interval, relax=relax)
      >>> f = lambda x: activation(x) - x
      >>> region = cj.linf_ball(jnp.array([1.0]), 0.5)
      >>> [round(float(bound(f)(region).upper[0]), 3) for bound in (cj.crown, cj.ibp)]
      [1.875, 2.875]
    """

    @functools.wraps(fun)
    def bounded(*arguments: Any) -> Array:
        values = [jnp.asarray(argument) for argument in arguments]
        # A new function each time: JAX keeps what it traced by identity, and what `fun` closes over may have changed.
        closed = jax.make_jaxpr(lambda *values: fun(*values))(*values)
        inner = getattr(closed, "jaxpr", closed)
        if len(inner.outvars) != 1:
            raise TypeError(
                f"A function with custom bounds must return one array; got {len(inner.outvars)} outputs from "
                f"{getattr(fun, '__name__', fun)}. Give each output a function of its own."
            )
        bounds = CustomBounds(interval, relax, lipschitz, len(values), undecided)
        return custom_bounds_p.bind(*closed.consts, *values, jaxpr=_Jaxpr(inner), bounds=bounds)

    return bounded


@dataclasses.dataclass(frozen=True)
class _Jaxpr:
    """A jaxpr that is called with its constants: opaque, so that nothing walks into it."""

    jaxpr: Any

    def __call__(self, *operands: Any) -> Array:
        count = len(self.jaxpr.constvars)
        (result,) = eval_jaxpr(self.jaxpr, operands[:count], *operands[count:])
        return result


def _evaluate(*operands: Any, jaxpr: _Jaxpr, bounds: CustomBounds) -> Array:
    del bounds
    return jaxpr(*operands)


def _abstract(*operands: Any, jaxpr: _Jaxpr, bounds: CustomBounds) -> Any:
    del operands, bounds
    return jaxpr.jaxpr.outvars[0].aval


def _derivative(primals: Sequence[Any], tangents: Sequence[Any], *, jaxpr: _Jaxpr, bounds: CustomBounds) -> Any:
    del bounds
    return jax.jvp(jaxpr, tuple(primals), tuple(map(ad.instantiate_zeros, tangents)))


def _batch(operands: Sequence[Any], axes: Sequence[int | None], *, jaxpr: _Jaxpr, bounds: CustomBounds) -> Any:
    """The mapped axis of all arguments first, so that those of an elementwise function keep the shape of the result."""
    (size,) = {operand.shape[axis] for operand, axis in zip(operands, axes, strict=True) if axis is not None}
    closed_over = len(operands) - bounds.arguments
    moved, mapped = [], []
    for i, (operand, axis) in enumerate(zip(operands, axes, strict=True)):
        if axis is not None:
            operand = jnp.moveaxis(operand, axis, 0)
        elif i >= closed_over:
            operand = jnp.broadcast_to(operand[None], (size, *operand.shape))
        moved.append(operand)
        mapped.append(None if axis is None and i < closed_over else 0)
    closed = jax.make_jaxpr(jax.vmap(jaxpr, tuple(mapped)))(*moved)
    batched = dataclasses.replace(bounds, depth=bounds.depth + 1)
    return custom_bounds_p.bind(*moved, jaxpr=_Jaxpr(getattr(closed, "jaxpr", closed)), bounds=batched), 0


custom_bounds_p = Primitive("custom_bounds")
custom_bounds_p.def_impl(lambda *operands, jaxpr, bounds: jax.jit(jaxpr)(*operands))
custom_bounds_p.def_abstract_eval(_abstract)
mlir.register_lowering(custom_bounds_p, mlir.lower_fun(_evaluate, multiple_results=False))
ad.primitive_jvps[custom_bounds_p] = _derivative
batching.primitive_batchers[custom_bounds_p] = _batch
