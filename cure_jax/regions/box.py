"""A box given by its ends: {x : lower <= x <= upper}."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Key

from cure_jax import numerics, pytrees
from cure_jax.regions.ball import check_values
from cure_jax.regions.region import Interval

__all__ = ["Box", "box"]


@pytrees.register
@dataclasses.dataclass(frozen=True)
class Box:
    """The inputs between two ends, {x : lower <= x <= upper}, the ends included.

    What an l_inf ball of a radius per pixel is, too. But the ends of a ball are center -/+ radius, rounded; those of a
    box are what it was given. Build it with `box`, which checks its arguments.

    Attributes:
        lower: the least value of each pixel, finite.
        upper: the greatest, of the shape of lower and at least as large.
    """

    lower: Float[Array, "*x"]
    upper: Float[Array, "*x"]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one input."""
        return self.lower.shape

    @property
    def dtype(self) -> jnp.dtype:
        """The dtype of one input."""
        return self.lower.dtype

    @property
    def center(self) -> Float[Array, "*x"]:
        """The middle of the box."""
        return self.project(self.bounding_box().center)

    def support(self, coefficients: Float[Array, "*x"]) -> Float[Array, ""]:
        """Return h(a) = max over the box of <a, x>: each pixel at the end that the sign of its coefficient names.

        Its gradient is the maximiser, with pixels of coefficient 0 in the middle.

        Args:
            coefficients: a, of the shape of lower.

        Returns:
            h(a).

        Soundness:
            Exact up to the rounding of the sum.
        """
        end = jnp.where(coefficients > 0, self.upper, jnp.where(coefficients < 0, self.lower, self.center))
        return numerics.total(coefficients * end)

    def bounding_box(self) -> Interval:
        """Return the box itself."""
        return Interval(self.lower, self.upper)

    def contains(self, x: Float[Array, "*x"], tolerance: float = 0.0) -> Bool[Array, ""]:
        """Return whether every pixel of x lies between the ends, give or take `tolerance`; False for NaN."""
        return self.bounding_box().contains(x, tolerance)

    def project(self, x: Float[Array, "*x"]) -> Float[Array, "*x"]:
        """Return the nearest point of the box, exactly."""
        return jnp.clip(x, self.lower, self.upper)

    def sample(self, key: Key[Array, ""]) -> Float[Array, "*x"]:
        """Return a uniform random point."""
        share = jax.random.uniform(key, self.shape, self.dtype)
        # Not lower + share * (upper - lower): the width of a large box may overflow.
        return self.project((1 - share) * self.lower + share * self.upper)

    def steepest(self, x: Float[Array, "*x"], gradient: Float[Array, "*x"]) -> Float[Array, "*x"]:
        """Return half of the width of each pixel times the sign of its gradient."""
        del x
        return self.bounding_box().radius * jnp.sign(gradient)


def box(lower: ArrayLike, upper: ArrayLike) -> Box:
    """Return {x : lower <= x <= upper}, with exactly these ends.

    Values are checked where they are known; under `jax.jit` or `jax.vmap` only shapes and dtypes are.

    Args:
        lower: the least value of each pixel, floating point, any shape; the region keeps its dtype.
        upper: the greatest, of the same shape and dtype.

    Returns:
        The region.

    Raises:
        TypeError: the ends are not floating point, or not of one dtype.
        ValueError: they are not of one shape, have no pixels, are not finite, or lower > upper somewhere.

    Examples:
        >>> import jax.numpy as jnp, cure_jax as cj
        >>> region = cj.box(jnp.array([0.1, -1.0]), jnp.array([0.7, 3.0]))
        >>> bool(region.lower[0] == jnp.float32(0.1)), float(region.support(jnp.array([0.0, -2.0])))
        (True, 2.0)
    """
    low, high = jnp.asarray(lower), jnp.asarray(upper)
    if not jnp.issubdtype(low.dtype, jnp.floating) or low.dtype != high.dtype:
        raise TypeError(
            f"The ends have dtypes {low.dtype} and {high.dtype}; expected one floating-point dtype: convert them, e.g. "
            "with jnp.float32."
        )
    if low.shape != high.shape or low.size == 0:
        raise ValueError(
            f"The ends have shapes {low.shape} and {high.shape}; expected one shape, with one pixel at least: "
            "broadcast them."
        )
    check_values("lower", "ends must be finite", np.isfinite, low)
    check_values("upper", "ends must be finite", np.isfinite, high)
    check_values("lower", "it must not exceed upper", lambda low, high: low <= high, low, high)
    return Box(low, high)
