"""Float arithmetic whose errors are bounded: what `arithmetic="outward"` is built from, and bounds in float64.

One operation of a floating-point format errs by a factor in [1 - u, 1 + u], u the unit roundoff, so a sum of n products
errs by at most gamma(n) = n u / (1 - n u) times the sum of their magnitudes, in whatever order it is taken and whether
or not products and sums are fused. On top of that, XLA's CPU backend

* takes numbers below the least normal one for 0, as operands and as results;
* divides by scalars through their reciprocal and folds products of constants, which adds a few roundings and may
  underflow in between (`allowance`, some 10^7 times the least normal number, has room for that);
* fuses x * y + z into one rounding in one loop and not in another, so that a value that is computed twice may have two
  values: decisions must not depend on that, and do not where products are `pinned` or `kept` before they are added.

Source: Higham, "Accuracy and Stability of Numerical Algorithms", 2nd ed., SIAM 2002, Lemma 3.1 and Eq. 3.5.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from cure_jax.numerics import pinned
from cure_jax.regions import Interval

__all__ = [
    "ARITHMETICS",
    "SPARE",
    "allowance",
    "around",
    "check_arithmetic",
    "gamma",
    "in_float64",
    "kept",
    "lowered",
    "steps_of_total",
    "total",
    "unit",
    "widened",
]

Result = TypeVar("Result")

# How bounds are computed. "float64" is no mode of a bound: everything around it must be float64 too (`in_float64`).
ARITHMETICS = ("float32", "outward")

# Roundings allowed for beside those that are counted: eight for the few operations around a sum, and eight because
# constants that are computed under `jax.jit` may be off by four units in the last place (`reproducible`).
SPARE = 16

# Where longer sums would have errors that are no longer small, relative to the sum of magnitudes.
_LARGEST_ERROR = 0.05


def check_arithmetic(arithmetic: str, precision: jax.lax.PrecisionLike = jax.lax.Precision.HIGHEST) -> None:
    """Refuses an arithmetic that there is not, or one that does not hold.

    Raises:
      ValueError: for an unknown name; for "outward" below the highest precision. For other platforms than CPU
        `numerics.pinned` refuses to be compiled.
    """
    if arithmetic not in ARITHMETICS:
        raise ValueError(
            f"arithmetic must be one of {', '.join(ARITHMETICS)}; got {arithmetic!r}. For float64 wrap the call in "
            "cure_jax.bounds.in_float64, or certify_dataset with arithmetic='float64'."
        )
    if arithmetic == "outward" and precision != jax.lax.Precision.HIGHEST:
        raise ValueError(
            f"arithmetic='outward' needs the highest precision of products; got precision={precision}. Leave it out."
        )


def unit(dtype: Any) -> float:
    """The unit roundoff u: half of the distance from 1 to the next number."""
    return float(jnp.finfo(dtype).eps) / 2


def allowance(dtype: Any) -> float:
    """A bound of what one operation loses to underflow, with much to spare."""
    return float(jnp.finfo(dtype).tiny) * 2.0**26


def gamma(count: int, dtype: Any) -> float:
    """The relative error of `count` roundings, and of the `SPARE` ones around them.

    Raises:
      ValueError: if there are so many that nothing would be left to say.
    """
    error = (count + SPARE) * unit(dtype)
    if error > _LARGEST_ERROR:
        raise ValueError(
            f"arithmetic='outward' got a sum of {count} terms in {jnp.dtype(dtype).name}, whose rounding may be "
            f"{error:.0%} of it. Use float64 (cure_jax.bounds.in_float64)."
        )
    return error / (1 - error)


def widened(lower: jax.Array, upper: jax.Array, by: jax.Array) -> Interval:
    """[lower - by, upper + by], rounded outward.

    Soundness:
      With e an end, the sum t of `by` and the maximum is at least by + 2 u (|e| + by) in real arithmetic, whatever is
      rounded or fused, and by + `allowance` / 2; e -/+ t is rounded by at most u (|e| + t).
    """
    below, above = pinned(lower), pinned(upper)
    return Interval(below - _room(below, by), above + _room(above, by))


def around(value: jax.Array, by: jax.Array) -> Interval:
    """[value - by, value + by], rounded outward."""
    value = pinned(value)
    room = _room(value, by)
    return Interval(value - room, value + room)


def lowered(value: jax.Array, by: jax.Array | float = 0.0) -> jax.Array:
    """A computed sum of two numbers, less `by`, rounded down."""
    return value - _room(value, by)


def _room(end: jax.Array, by: jax.Array | float) -> jax.Array:
    return by + kept(4 * unit(end.dtype) * (jnp.abs(end) + 2 * by))


def kept(product: jax.Array) -> jax.Array:
    """A product for a sum of errors: neither fused with the sum nor lost to underflow."""
    return jnp.maximum(product, allowance(product.dtype))


def total(terms: jax.Array) -> jax.Array:
    """The sum of all entries, each of which goes through `steps_of_total` additions only: a sum of sums."""
    terms = terms.ravel()
    rows = math.isqrt(terms.size)
    if rows < 2:
        return jnp.sum(terms)
    columns = -(-terms.size // rows)
    terms = jnp.pad(terms, (0, rows * columns - terms.size)).reshape(rows, columns)
    # Pinned, or XLA makes one sum of the two.
    return jnp.sum(pinned(jnp.sum(terms, axis=1)))


def steps_of_total(size: int) -> int:
    """Through how many additions a term of `total` goes at most."""
    rows = math.isqrt(size)
    return size if rows < 2 else rows + -(-size // rows)


def in_float64(function: Callable[..., Result]) -> Callable[..., Result]:
    """Runs a function in float64: bounds, certificates, whole data sets.

    Every floating-point array among the arguments (images, regions, parameters in a `jax.tree_util.Partial`) is
    converted, exactly, and the results come back as NumPy arrays, which keep their dtype where JAX's 64-bit types are
    off. Regions should be made inside, or be arguments. What a function closes over stays float32; operations of
    `jax.numpy` and flax layers promote it when it meets x, so the network is that of the float32 parameters, and what
    it computes from them (BatchNorm's scale) is computed in float64 as far as x is involved. A network that casts to
    float32 itself is refused when it is traced.

    Args:
      function: takes and returns pytrees of arrays; it may contain `jax.jit`.

    Returns:
      The same function in float64.

    Raises:
      TypeError: when it is called under `jax.jit`, `jax.vmap` or `jax.grad`: 64-bit types are a mode of the whole
        trace. Put those inside: `in_float64(jax.jit(...))`.

    Soundness:
      Rounding errors are 5e8 times smaller than in float32, but not accounted for. `arithmetic="outward"` inside
      accounts for them.

    Examples:
      >>> import jax.numpy as jnp, cure_jax as cj
      >>> lower = lambda x: cj.crown(lambda x: x / 3.0)(cj.linf_ball(x, 0.0)).lower[0]
      >>> f"{lower(jnp.ones(1)):.12f}", f"{in_float64(lower)(jnp.ones(1)):.12f}"
      ('0.333333343267', '0.333333333333')
    """

    @functools.wraps(function)
    def wide(*args: Any, **kwargs: Any) -> Result:
        if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves((args, kwargs))):
            raise TypeError(
                "in_float64 got traced arrays: it cannot change the types of a function that is already being traced "
                "by jax.jit, jax.vmap or jax.grad. Put the transformation inside: in_float64(jax.jit(...))."
            )
        with jax.enable_x64(True):
            args, kwargs = jax.tree.map(_widest, (args, kwargs))
            return jax.tree.map(_on_host, function(*args, **kwargs))

    return wide


def _widest(leaf: Any) -> Any:
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jnp.floating):
        return jnp.asarray(np.asarray(leaf), jnp.float64)
    if isinstance(leaf, np.ndarray | np.floating) and np.issubdtype(leaf.dtype, np.floating):
        return leaf.astype(np.float64)
    return leaf


def _on_host(leaf: Any) -> Any:
    return np.asarray(leaf) if isinstance(leaf, jax.Array) else leaf
