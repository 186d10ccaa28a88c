"""What a set of inputs must answer (`Region`), and the simplest one, a box (`Interval`)."""

import dataclasses
from typing import Protocol, runtime_checkable

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from cure_jax import pytrees
from cure_jax.validation import described

__all__ = ["Interval", "Region", "check_region"]


@runtime_checkable
class Region(Protocol):
    """What bounds and attacks ask of a set of inputs [*x]; `LpBall` documents each method."""

    def support(self, coefficients: Float[Array, "*x"]) -> Float[Array, ""]:
        """Return max over the region of <coefficients, x>."""
        ...

    def bounding_box(self) -> "Interval":
        """Return the smallest box that holds the region."""
        ...

    def contains(self, x: Float[Array, "*x"], tolerance: float = 0.0) -> Bool[Array, ""]:
        """Return whether x is in the region, give or take `tolerance`; False for NaN."""
        ...

    def project(self, x: Float[Array, "*x"]) -> Float[Array, "*x"]:
        """Return the point of the region nearest to x."""
        ...

    def sample(self, key: Key[Array, ""]) -> Float[Array, "*x"]:
        """Return a random point of the region."""
        ...

    def steepest(self, x: Float[Array, "*x"], gradient: Float[Array, "*x"]) -> Float[Array, "*x"]:
        """Return a step of relative size 1 that climbs along `gradient`."""
        ...


@pytrees.register
@dataclasses.dataclass(frozen=True)
class Interval:
    """The box {x : lower <= x <= upper}, coordinate by coordinate.

    Attributes:
        lower: lower limits.
        upper: upper limits, of the same shape.
    """

    lower: Float[Array, "*x"]
    upper: Float[Array, "*x"]

    @classmethod
    def around(cls, center: Float[Array, "*x"], radius: Float[Array, "*x"]) -> "Interval":
        """Return the box of a computed center and radius; infinite limits where one of these overflowed."""
        return cls(center - radius, center + radius).without_overflow()

    @property
    def center(self) -> Float[Array, "*x"]:
        """The middle of the box."""
        total = self.lower + self.upper
        # The sum of two finite numbers may overflow; halves of the smallest ones would count as 0.
        return jnp.where(jnp.isfinite(total), total / 2, self.lower / 2 + self.upper / 2)

    @property
    def radius(self) -> Float[Array, "*x"]:
        """Half of the width of the box."""
        width = self.upper - self.lower
        return jnp.where(jnp.isfinite(width), width / 2, self.upper / 2 - self.lower / 2)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the limits."""
        return self.lower.shape

    @property
    def dtype(self) -> jnp.dtype:
        """The dtype of the limits."""
        return self.lower.dtype

    def intersect(self, other: "Interval") -> "Interval":
        """Return the box of the points in both; lower > upper somewhere when there are none."""
        return Interval(jnp.maximum(self.lower, other.lower), jnp.minimum(self.upper, other.upper))

    def union(self, other: "Interval") -> "Interval":
        """Return the smallest box that holds both."""
        return Interval(jnp.minimum(self.lower, other.lower), jnp.maximum(self.upper, other.upper))

    def ordered(self) -> "Interval":
        """Return the same with the ends exchanged where lower > upper, as after `intersect` of boxes far apart."""
        return Interval(jnp.minimum(self.lower, self.upper), jnp.maximum(self.lower, self.upper))

    def without_overflow(self) -> "Interval":
        """Return the same with infinite limits, which always hold, where the computation of a limit overflowed.

        It is not a number then, or infinite on the wrong side: a center beyond the largest number, less its radius.
        """
        lower = jnp.where(jnp.isnan(self.lower) | jnp.isposinf(self.lower), -jnp.inf, self.lower)
        return Interval(lower, jnp.where(jnp.isnan(self.upper) | jnp.isneginf(self.upper), jnp.inf, self.upper))

    def contains(self, x: Float[Array, "*x"], tolerance: float = 0.0) -> Bool[Array, ""]:
        """Return whether every coordinate of x is in the box, give or take `tolerance`; False for NaN."""
        return jnp.all((x >= self.lower - tolerance) & (x <= self.upper + tolerance))


def check_region(region: object, where: str) -> None:
    """Says what a region is to whoever gives something else.

    Args:
        region: what was given.
        where: to what, for the message.

    Raises:
        TypeError: if it is none.
    """
    if isinstance(region, Region):
        return
    advice = "Make one around an example: cj.linf_ball(x, 0.1, within=(0.0, 1.0)), and l2_ball, l1_ball, box."
    if isinstance(region, Interval):
        advice = "Make one of its limits: cj.box(interval.lower, interval.upper)."
    elif callable(region):
        advice = "Give it the example first: make_region(x)."
    raise TypeError(f"{where} got {described(region)}; expected a region, a set of inputs. {advice}")
