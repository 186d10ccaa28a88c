"""The l_0 ball cut by a box: the inputs that differ from one in few pixels, by as much as the box allows.

It is not convex. Linear functions do not see that: they are largest at its corners, which are those of its convex hull.
So `support` is that of the hull as well, and every bound that rests on it holds on the hull. `contains`, `project` and
`sample` are about the ball itself, so that what an attack returns differs in few pixels.
"""

import dataclasses
import math
import operator
from collections.abc import Sequence
from typing import SupportsIndex

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Key

from cure_jax import numerics, pytrees
from cure_jax.regions.ball import check_values, lp_ball
from cure_jax.regions.region import Interval

__all__ = ["L0Ball", "l0_ball"]


@pytrees.register
@dataclasses.dataclass(frozen=True)
class L0Ball:
    """The inputs of a box that differ from center in at most k pixels, or in at most k numbers.

    Build it with `l0_ball`, which checks its arguments.

    Attributes:
        center: the input in the middle; it lies in the box.
        lower: the least value of each pixel, finite, of the shape of center.
        upper: the greatest.
        k: how many may differ; static.
        per: what is counted: "pixel", all channels of a place together, or "channel", every number alone; static.
    """

    center: Float[Array, "*x"]
    lower: Float[Array, "*x"]
    upper: Float[Array, "*x"]
    k: int = dataclasses.field(metadata={"static": True})
    per: str = dataclasses.field(metadata={"static": True})

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one input."""
        return self.center.shape

    @property
    def dtype(self) -> jnp.dtype:
        """The dtype of one input."""
        return self.center.dtype

    @property
    def channels(self) -> int:
        """How many numbers count as one pixel."""
        return self.shape[-1] if _has_channels(self.shape, self.per) else 1

    def support(self, coefficients: Float[Array, "*x"]) -> Float[Array, ""]:
        """Return h(a) = max over the region of <a, x>, with a maximiser as its gradient.

        A pixel gains most at the corner of its box that the signs of its coefficients name, whatever others do, so the
        best k are those with the largest gains.

        Args:
            coefficients: a, of the shape of center.

        Returns:
            h(a) = <a, center> + the sum of the k largest gains of single pixels; that of the convex hull as well.

        Soundness:
            Exact up to the rounding of the sums.

        References:
            Chiang et al., Certified defenses for adversarial patches (ICLR 2020), section 4.4, for the first layer of a
            network; arXiv 2511.10576, for the hull where single numbers are counted.
        """
        end = jnp.where(coefficients > 0, self.upper, jnp.where(coefficients < 0, self.lower, self.center))
        gains = self._by_pixel(coefficients * (end - self.center)).ravel()
        # No pixel has to change: where the center is outside of the limits, a change may lose.
        best = lax.top_k(jnp.maximum(gains, 0), min(self.k, gains.size))[0]
        return numerics.total(coefficients * self.center) + numerics.total(best)

    def bounding_box(self) -> Interval:
        """Return the smallest box that holds the region: limits and center; the center alone if nothing may differ."""
        center = Interval(self.center, self.center)
        return Interval(self.lower, self.upper).union(center) if self.k else center

    def contains(self, x: Float[Array, "*x"], tolerance: float = 0.0) -> Bool[Array, ""]:
        """Return whether x is in the region; False for NaN.

        Args:
            x: a point, of the shape of center.
            tolerance: in pixel units: numbers that are that near to those of center do not differ, and the limits are
                moved outward by as much.

        Returns:
            True or False.
        """
        differs = (jnp.abs(x - self.center) > tolerance).astype(jnp.int32)
        changed = jnp.sum(self._by_pixel(differs) > 0, dtype=jnp.int32)
        return (changed <= self.k) & Interval(self.lower, self.upper).contains(x, tolerance)

    def project(self, x: Float[Array, "*x"]) -> Float[Array, "*x"]:
        """Return a point of the region nearest to x in the euclidean norm, exactly.

        Args:
            x: any finite point, of the shape of center.

        Returns:
            The center with k pixels of x, clipped to the box: those that bring it nearest to x.
        """
        clipped = jnp.clip(x, self.lower, self.upper)
        # (x - center)^2 - (x - clipped)^2, in units in which neither overflows.
        unit = numerics.unit_of(jnp.maximum(jnp.max(jnp.abs(x)), jnp.max(jnp.abs(self.center))))
        gains = (clipped - self.center) * ((x / unit - self.center / unit) + (x / unit - clipped / unit))
        return jnp.where(self._best(gains), clipped, self.center)

    def sample(self, key: Key[Array, ""]) -> Float[Array, "*x"]:
        """Return a random point: k random pixels, uniform in the box, or one time in two at random corners of it."""
        place_key, value_key, corner_key = jax.random.split(key, 3)
        share = jax.random.uniform(value_key, self.shape, self.dtype)
        share = jnp.where(jax.random.bernoulli(corner_key), jnp.round(share), share)
        value = jnp.clip((1 - share) * self.lower + share * self.upper, self.lower, self.upper)
        return jnp.where(self._best(jax.random.uniform(place_key, self.shape, self.dtype)), value, self.center)

    def steepest(self, x: Float[Array, "*x"], gradient: Float[Array, "*x"]) -> Float[Array, "*x"]:
        """Return the step from x to the point of the region that is farthest along `gradient`.

        As steps in a few new pixels are undone by `project` unless they reach farther than those made before, a step of
        size 1 is the one to take.

        Args:
            x: the current point.
            gradient: the direction to climb, finite.

        Returns:
            The offset in pixel units.
        """
        end = jnp.where(gradient > 0, self.upper, jnp.where(gradient < 0, self.lower, x))
        gains = gradient * (end - self.center)
        return jnp.where(self._best(gains), end, self.center) - x

    def _by_pixel(self, values: Array) -> Array:
        """The sums over what counts as one."""
        return jnp.sum(values, axis=-1) if _has_channels(values.shape, self.per) else values

    def _best(self, scores: Array) -> Bool[Array, "*x"]:
        """Which numbers belong to the k pixels of the largest total score."""
        totals = self._by_pixel(scores)
        places = lax.top_k(totals.ravel(), min(self.k, totals.size))[1]
        chosen = jnp.zeros(totals.size, bool).at[places].set(True).reshape(totals.shape)
        return jnp.broadcast_to(chosen[..., None], self.shape) if totals.ndim < len(self.shape) else chosen


def _has_channels(shape: Sequence[int], per: str) -> bool:
    return per == "pixel" and len(shape) > 2


def l0_ball(x: ArrayLike, k: SupportsIndex, within: Sequence[ArrayLike] = (0.0, 1.0), per: str = "pixel") -> L0Ball:
    """Return the inputs that differ from x in at most k pixels, each of which may have any value in `within`.

    Args:
        x: one example, floating point, any shape; the region keeps its dtype. With three axes or more,
            `[height, width, channels]`, the last one holds channels; with fewer, every number is a pixel.
        k: how many pixels may differ, a Python integer from 0 to the number of pixels.
        within: lower and upper limits of every pixel, finite, scalars or arrays that broadcast to x. With
            `(jnp.maximum(x - eps, 0), jnp.minimum(x + eps, 1))` each pixel moves by eps at most.
        per: what is counted: "pixel", all channels of a place together, or "channel", every number alone.

    Returns:
        The region. It is not convex: bounds hold on its convex hull, `cj.verify` and attacks look for points of the
        region itself.

    Raises:
        TypeError: x is not floating point, k is no integer, or `within` is not a pair.
        ValueError: k is negative or above the number of pixels, `per` is neither of the two; the limits are not finite,
            of a shape that does not fit, lower > upper somewhere, or x outside.

    Examples:
        >>> import jax.numpy as jnp, cure_jax as cj
        >>> region = cj.l0_ball(jnp.array([0.5, 0.2, 0.9]), 2)
        >>> round(float(region.support(jnp.array([1.0, -3.0, 2.0]))), 3)  # 1.7, and the gains 0.6 and 0.5
        2.8
        >>> bool(region.contains(jnp.array([0.0, 0.2, 1.0]))), bool(region.contains(jnp.array([0.0, 0.3, 1.0])))
        (True, False)
    """
    if within is None:
        raise TypeError("within is None; a pixel that may have any value is no bounded region: give e.g. (0., 1.).")
    box = lp_ball(x, 0.0, math.inf, within)
    assert box.lower is not None
    assert box.upper is not None
    check_values("within[0]", "limits must be finite", np.isfinite, box.lower)
    check_values("within[1]", "limits must be finite", np.isfinite, box.upper)
    if per not in ("pixel", "channel"):
        raise ValueError(f"per is {per!r}; expected 'pixel' or 'channel': choose what is counted.")
    try:
        number = operator.index(k)
    except TypeError as error:
        raise TypeError(f"k is {k!r}; expected a Python integer, the number of pixels that may differ.") from error
    shape = box.center.shape
    pixels = math.prod(shape[:-1] if _has_channels(shape, per) else shape)
    if not 0 <= number <= pixels:
        raise ValueError(
            f"k is {number} for x of shape {shape}, which has {pixels} {per}s; expected 0 <= k <= {pixels}: correct k."
        )
    return L0Ball(box.center, box.lower, box.upper, number, per)
