"""The convex hull of an l_1 and an l_inf ball, cut by a box AFTERWARDS: it holds every l_p ball in between, cut alike.

A hull of balls that were cut before does not: near an edge of the box they leave out points of the balls between them.

With radii E (l_1) and e (l_inf) of each pixel, an offset t from the center is in the hull of the whole balls if, for
some w in [0, 1], it is the sum of one in w times the first ball and one in 1 - w times the second:

    sum_i (|t_i| - (1 - w) e_i)+ / E_i <= w.

This is convex in w and t together, so everything here is a search for w in one dimension, with a search for one
multiplier inside. Whatever shrinks |t_i| stays in the hull: clipping to a box around the center does.
"""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Key

from cure_jax import numerics, pytrees
from cure_jax.regions import searches
from cure_jax.regions.ball import LpBall
from cure_jax.regions.region import Interval

__all__ = ["CutHull"]


@pytrees.register
@dataclasses.dataclass(frozen=True)
class CutHull:
    """The points of a box in the convex hull of a whole l_1 and a whole l_inf ball around one center.

    Build it with `hull(..., within=...)`, which checks its arguments.

    Attributes:
        center: the input in the middle; it lies in the box.
        many: the radius e of each pixel in the l_inf ball, of the shape of center.
        few: the radius E of each pixel in the l_1 ball.
        lower: lower limits of the box.
        upper: upper limits of the box.
    """

    center: Float[Array, "*x"]
    many: Float[Array, "*x"]
    few: Float[Array, "*x"]
    lower: Float[Array, "*x"]
    upper: Float[Array, "*x"]

    @property
    def members(self) -> tuple[LpBall, LpBall]:
        """The two whole balls."""
        return LpBall(self.center, self.many, None, None, math.inf), LpBall(self.center, self.few, None, None, 1.0)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one input."""
        return self.center.shape

    @property
    def dtype(self) -> jnp.dtype:
        """The dtype of one input."""
        return self.center.dtype

    def support(self, coefficients: Float[Array, "*x"]) -> Float[Array, ""]:
        r"""Return h(a) = max over the region of <a, x>, exact up to rounding, with a maximiser as its gradient.

        With g the room of each pixel in the direction of a, and any c with 0 <= c_i <= |a_i|,

            h(a) <= <a, center> + max(max_i E_i c_i, sum_i e_i c_i) + sum_i (|a_i| - c_i) g_i

        as h is at most the support of the hull at c plus that of the box at the rest. The best c is min(|a_i|, lam /
        E_i) where g_i > (1 - w) e_i and 0 elsewhere, for the w at which both terms of the maximum are equal and the
        lam at which a knapsack of size w is full.

        Args:
            coefficients: a, of the shape of center.

        Returns:
            h(a), in the units of a times pixels.

        Soundness:
            An upper bound for every c, wherever the searches stop; up to the rounding of the sums.

        References:
            Rockafellar, Convex Analysis (1970), corollary 16.4.1: the support of an intersection.
        """
        room = self._room(coefficients > 0)
        size = lax.stop_gradient(searches.magnitude(coefficients))
        unit = numerics.unit_of(jnp.max(size))

        def excess(w: Array) -> Array:
            """How much more the first term of the maximum is than the second."""
            found = self._knapsack(size / unit, room, w)
            return found.multiplier - numerics.total(self.many * found.kept)

        low, high = self._root(lambda w: excess(w) > 0)
        # Clear of the jump that may be there, which other ways to round put elsewhere.
        clear = 32 * jnp.finfo(self.dtype).eps
        low, high = jnp.maximum(low - clear, 0), jnp.minimum(high + clear, 1)
        before, found = (self._knapsack(size / unit, room, w) for w in (low, high))
        # At the best w a pixel may be just about to leave the room of the other ball: c is in between.
        above, below = jnp.maximum(excess(low), 0), jnp.maximum(-excess(high), 0)
        share = jnp.where(above + below > 0, searches.quotient(above, above + below), 1)
        kept = before.kept + share * (found.kept - before.kept)
        hull = jnp.maximum(jnp.max(self.few * kept), numerics.total(self.many * kept))
        reach = unit * (hull + numerics.total((size / unit - kept) * room))
        # The box alone where radii are so large that the search overflowed.
        boxed = numerics.total(size * room)
        reach = lax.stop_gradient(jnp.where(reach < boxed, reach, boxed))
        maximiser = lax.stop_gradient(jnp.sign(coefficients) * found.taken)
        slope = numerics.total(coefficients * maximiser)
        # The value is the bound, the derivative that of the maximiser: a number minus itself is 0.
        return numerics.total(coefficients * self.center) + reach + (slope - lax.stop_gradient(slope))

    def bounding_box(self) -> Interval:
        """Return the smallest box that holds the region."""
        radius = jnp.maximum(self.many, self.few)
        ball = Interval(self.center - radius, self.center + radius)
        return ball.intersect(Interval(self.lower, self.upper))

    def contains(self, x: Float[Array, "*x"], tolerance: float = 0.0) -> Bool[Array, ""]:
        """Return whether x is in the region; False for NaN.

        Args:
            x: a point, of the shape of center.
            tolerance: in pixel units: all radii and both limits of the box are moved outward by as much.

        Returns:
            True or False.
        """
        few, many = self.few + tolerance, self.many + tolerance
        distance = jnp.abs(x - self.center)

        def spent(w: Array) -> tuple[Array, Array]:
            over = jnp.maximum(distance - (1 - w) * many, 0)
            steep = jnp.where(over > 0, searches.quotient(many, few), 0)
            return jnp.where(over > 0, jnp.where(few > 0, searches.quotient(over, few), jnp.inf), 0), steep

        # Convex in w: more of it helps as long as less than that is spent on what the other ball no longer covers.
        _, w = self._root(lambda w: numerics.total(spent(w)[1]) < 1)
        inside = numerics.total(spent(w)[0]) <= w + 4 * jnp.finfo(self.dtype).eps
        return inside & jnp.all(few >= 0) & jnp.all(many >= 0) & Interval(self.lower, self.upper).contains(x, tolerance)

    def project(self, x: Float[Array, "*x"]) -> Float[Array, "*x"]:
        """Return the point of the region nearest to x in the euclidean norm.

        For fixed w an offset d is moved to (1 - w) e + (d - (1 - w) e - nu / E)+ where it is larger than (1 - w) e, and
        cut by the box, for the least nu >= 0 that keeps what is spent of the l_1 ball at w.

        Args:
            x: any finite point, of the shape of center.

        Returns:
            A point of the region, up to rounding; x itself where x is inside.
        """
        offset = x - self.center
        room = self._room(offset > 0)
        distance = jnp.minimum(jnp.abs(offset), 1 / jnp.finfo(self.dtype).eps)

        def shrinkage(nu: Array) -> Array:
            return jnp.where(nu > 0, jnp.where(self.few > 0, searches.quotient(nu, self.few), jnp.inf), 0)

        def moved(w: Array, nu: Array) -> Array:
            free = jnp.minimum(self.many * (1 - w), distance)
            shrunk = jnp.maximum(distance - free - shrinkage(nu), 0)
            return jnp.minimum(free + jnp.where(self.few > 0, shrunk, 0), room)

        def spent(w: Array, nu: Array) -> Array:
            over = jnp.maximum(moved(w, nu) - self.many * (1 - w), 0)
            return numerics.total(jnp.where(over > 0, searches.quotient(over, self.few), 0))

        most = jnp.max(distance * self.few)

        def multiplier(w: Array) -> Array:
            found = searches.bisect(lambda nu: spent(w, nu) > w, most)[1]
            return jnp.where(spent(w, jnp.zeros_like(most)) > w, found, 0)

        def more_helps(w: Array) -> Array:
            nu = multiplier(w)
            over = (distance > self.many * (1 - w)) & (room > self.many * (1 - w))
            push = jnp.minimum(shrinkage(nu), distance - moved(w, nu))
            return numerics.total(jnp.where(over, self.many * push, 0)) < nu

        _, w = self._root(more_helps)
        target = self.center + jnp.sign(offset) * moved(w, multiplier(w))
        return jnp.where(self.contains(x), x, jnp.clip(target, self.lower, self.upper))

    def sample(self, key: Key[Array, ""]) -> Float[Array, "*x"]:
        """Return a random point: between samples of the two balls, clipped to the box."""
        kind_key, weight_key, *keys = jax.random.split(key, 4)
        many, few = (ball.sample(k) - self.center for ball, k in zip(self.members, keys, strict=True))
        weight = jax.random.uniform(weight_key, (), self.dtype)
        # One in two is a sample of one of the balls alone.
        weight = jnp.where(jax.random.bernoulli(kind_key), jnp.round(weight), weight)
        return jnp.clip(self.center + weight * many + (1 - weight) * few, self.lower, self.upper)

    def steepest(self, x: Float[Array, "*x"], gradient: Float[Array, "*x"]) -> Float[Array, "*x"]:
        """Return the step of the ball that reaches farthest along `gradient`, as `LpBall.steepest` does."""
        many, few = (dataclasses.replace(ball, lower=self.lower, upper=self.upper) for ball in self.members)
        farther = many.support(gradient) > few.support(gradient)
        return jnp.where(farther, many.steepest(x, gradient), few.steepest(x, gradient))

    def _room(self, up: Array) -> Array:
        """How far each pixel can go up, or down."""
        box = self.bounding_box()
        return jnp.maximum(jnp.where(up, box.upper - self.center, self.center - box.lower), 0)

    def _root(self, more_helps: Callable[[Array], Array]) -> tuple[Array, Array]:
        """A bracket of the w in [0, 1] at which more of it stops to help."""
        return searches.bisect(more_helps, jnp.ones((), self.dtype))

    def _knapsack(self, size: Array, room: Array, w: Array) -> "_Knapsack":
        """The best use of w times the l_1 ball, beside 1 - w times the l_inf ball."""
        free = jnp.minimum((1 - w) * self.many, room)
        left = jnp.where(self.few > 0, room - free, 0)
        worth, cap = size * self.few, searches.quotient(left, self.few)
        low, high = searches.critical_size(worth, cap, w)
        critical = (worth > low) & (worth <= high) & (cap > 0)
        rest = w - numerics.total(jnp.where(worth > high, cap, 0))
        share = jnp.clip(searches.quotient(rest, numerics.total(jnp.where(critical, cap, 0))), 0, 1)
        taken = jnp.where(size > 0, free + left * jnp.where(worth > high, 1, jnp.where(critical, share, 0)), 0)
        kept = jnp.minimum(size, jnp.where(self.few > 0, searches.quotient(high, self.few), jnp.inf))
        return _Knapsack(high, jnp.where(room > (1 - w) * self.many, kept, 0), taken)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Knapsack:
    """What one unit more of w is worth, c of `CutHull.support`, and how far each pixel goes."""

    multiplier: Array
    kept: Array
    taken: Array
