"""The convex hull of several regions.

The hull of sets R_i is {sum_i w_i y_i : y_i in R_i, w_i >= 0, sum_i w_i = 1}, and its support function is the largest
of theirs. So one linear bound serves all members and what lies between them. The price: it is a stronger statement than
one certificate for each member, and harder to prove.

The hull of a WHOLE l_1 and a WHOLE l_inf ball holds an l_p ball for every p in between; Croce & Hein say of which
radius. Of balls cut by a box this is not true: let the hull be cut, not its members (`hull(..., within=...)`).
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Key

from cure_jax import numerics, pytrees
from cure_jax.regions import searches
from cure_jax.regions.ball import LpBall, lp_ball
from cure_jax.regions.cut_hull import CutHull
from cure_jax.regions.region import Interval, Region

__all__ = ["Hull", "hull"]

# Steps of the search for the nearest point. Measured in float64 on hulls of l_1 and l_inf balls in 2, 12 and 64
# dimensions, for the hardest points, those of the largest l_2 ball in the hull: after 20 steps 9 of 10 are reached to
# 1e-10 and the worst to 2e-3 of the radius of l_inf (in 12 dimensions), after 40 to 3e-4.
_STEPS = 20
_STEPS_OF_MEMBERSHIP = 40
# How far a point is moved on in the direction of its last step.
_MOMENTUM = 8
# Rounds over all pairs of points in each step.
_WEIGHT_ROUNDS = 2
# A member of smaller weight is moved as if it had this one; in a few steps it is at its extreme point.
_LEAST_WEIGHT = 0.01


@pytrees.register
@dataclasses.dataclass(frozen=True)
class Hull:
    """The convex hull of the union of regions; build it with `hull`, which checks that they fit together.

    Attributes:
        members: the regions, of inputs of one shape and dtype.
    """

    members: tuple[Region, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one input."""
        return self.bounding_box().shape

    @property
    def dtype(self) -> jnp.dtype:
        """The dtype of one input."""
        return self.bounding_box().dtype

    def support(self, coefficients: Float[Array, "*x"]) -> Float[Array, ""]:
        """Return h(a) = max over the hull of <a, x>: the largest support of a member.

        Its gradient is the maximiser of that member; where several attain the maximum, the mean of theirs.

        Args:
            coefficients: a, of the shape of an input.

        Returns:
            h(a).

        Soundness:
            A linear function is largest on a convex hull where it is largest on the sets; as sound as the members.

        References:
            Rockafellar, Convex Analysis (1970), theorem 16.5 (support functions of hulls).
            Croce & Hein, Provable robustness against all adversarial l_p-perturbations for p >= 1 (ICLR 2020),
            theorem 3.1, for the l_p balls in the hull of a whole l_1 and a whole l_inf ball.
        """
        return jnp.max(self._supports(coefficients))

    def bounding_box(self) -> Interval:
        """Return the smallest box that holds all members, and with them the hull."""
        return functools.reduce(Interval.union, [member.bounding_box() for member in self.members])

    def contains(self, x: Float[Array, "*x"], tolerance: float = 0.0) -> Bool[Array, ""]:
        """Return whether x is in a member, or within `tolerance` of the hull.

        Args:
            x: a point, of the shape of an input.
            tolerance: in pixel units: x may be off by as much in every pixel. With 0 the members alone are asked; what
                lies between them is found by the search of `project`, whose precision a tolerance has to allow for.

        Returns:
            True, which is always right: x is in a member, or a point of the hull is that near. Or False: for a point
            further away, for NaN, for every point if a member is empty (a radius that is negative or NaN, which only
            a traced one can be), and for a point that the search does not reach.
        """
        inside = jnp.any(jnp.stack([member.contains(x, tolerance) for member in self.members]))
        if tolerance > 0:
            inside |= jnp.all(jnp.abs(x - self._nearest(x, _STEPS_OF_MEMBERSHIP)) <= tolerance)
        boxes = [member.bounding_box() for member in self.members]
        return inside & jnp.all(jnp.stack([jnp.all(box.lower <= box.upper) for box in boxes]))

    def project(self, x: Float[Array, "*x"]) -> Float[Array, "*x"]:
        """Return the point of the hull nearest to x in the euclidean norm, up to the precision of a search.

        The point is kept as sum_i w_i y_i with y_i in member i, so that wherever the search stops, it is in the hull.
        With r what is missing to x, each step proposes three others for each y_i: y_i + r / w_i projected onto its
        member, which is the best move of y_i alone, a point far in the direction of r, and one further in that of its
        last step. Then it takes the best convex combination of all of them: the distance never grows, and it stops
        falling only where every y_i that has weight is farthest in the direction of r, as at the nearest point.

        Args:
            x: any finite point, of the shape of an input.

        Returns:
            A point of the hull, up to rounding; x itself where x is in a member, and otherwise almost so where x is in
            the hull.

        References:
            Wolfe, Finding the nearest point in a polytope (Mathematical Programming 1976), for the combination of
            corrections and best weights; there the corrections are vertices.
        """
        return self._nearest(x, _STEPS)

    def sample(self, key: Key[Array, ""]) -> Float[Array, "*x"]:
        """Return a random point: of the boundary, extreme in a random direction, or between samples of the members."""
        kind_key, weight_key, direction_key, *keys = jax.random.split(key, 3 + len(self.members))
        points = jnp.stack([member.sample(key) for member, key in zip(self.members, keys, strict=True)])
        # Cubes of exponential variables: often one member has nearly all the weight.
        weights = jax.random.exponential(weight_key, (len(self.members),), points.dtype) ** 3
        between = _combined(weights / jnp.sum(weights), points)
        boundary = jax.random.bernoulli(kind_key)
        return jnp.where(boundary, self._extreme_point(direction_key), between)

    def steepest(self, x: Float[Array, "*x"], gradient: Float[Array, "*x"]) -> Float[Array, "*x"]:
        """Return the step of the member that reaches farthest along `gradient`.

        Args:
            x: the current point, of the shape of an input.
            gradient: the direction to climb, finite.

        Returns:
            The offset in pixel units, of size 1 relative to that member.
        """
        steps = jnp.stack([member.steepest(x, gradient) for member in self.members])
        return steps[jnp.argmax(self._supports(gradient))]

    def _supports(self, coefficients: Array) -> Array:
        return jnp.stack([member.support(coefficients) for member in self.members])

    def _extreme_point(self, key: Array) -> Array:
        """Return the farthest point in a random direction, of any kind between that of one pixel and that of all."""
        direction_key, power_key = jax.random.split(key)
        normal = jax.random.normal(direction_key, self.shape, self.dtype)
        power = 8 * jax.random.uniform(power_key, (), self.dtype) ** 2
        direction = jnp.sign(normal) * jnp.abs(normal) ** power
        # Maximisers are of the region up to the precision of its search for the support; a projection removes the rest.
        farthest = jnp.stack([member.project(jax.grad(member.support)(direction)) for member in self.members])
        return farthest[jnp.argmax(self._supports(direction))]

    def _nearest(self, x: Array, steps: int) -> Array:
        nearest = jnp.stack([member.project(x) for member in self.members])
        distances = jnp.sum(jnp.square(nearest - x[None]).reshape(len(self.members), -1), axis=1)
        weights = jax.nn.one_hot(jnp.argmin(distances), len(self.members), dtype=nearest.dtype)
        diameter = 2 * numerics.norm(self.bounding_box().radius, 2.0)

        def approach(_: Array, now: _Combination) -> _Combination:
            missing = x - _combined(now.weights, now.points)
            extreme = 2 * diameter / searches.positive(numerics.norm(missing, 2.0))
            kinds = [now.points]
            for step in (1 / jnp.maximum(now.weights, _LEAST_WEIGHT), jnp.full_like(now.weights, extreme)):
                kinds.append(now.points + jnp.multiply.outer(step, missing))
            kinds.append(now.points + _MOMENTUM * (now.points - now.previous))
            proposed = [
                jax.vmap(member.project)(targets)
                for member, targets in zip(self.members, jnp.stack(kinds[1:], axis=1), strict=True)
            ]
            return _recombined(now, jnp.concatenate([now.points[None], jnp.stack(proposed, axis=1)]), missing)

        last = lax.fori_loop(0, steps, approach, _Combination(nearest, nearest, weights))
        return _combined(last.weights, last.points)


def hull(*regions: Region, within: Sequence[ArrayLike] | None = None) -> Hull | CutHull:
    """Return the convex hull of the union of regions.

    Args:
        *regions: one or more, of inputs of the same shape and dtype.
        within: lower and upper limits of every pixel, that cut the hull; as for `lp_ball`. The regions are then a whole
            l_inf and a whole l_1 ball around one center in the box, and the cut hull holds every l_p ball in between
            that is cut by the same limits.

    Returns:
        The region.

    Raises:
        TypeError: something is not a region, or the dtypes differ; `within` is not a pair.
        ValueError: there is none, or the shapes differ; with `within`, they are not such balls.

    Examples:
        >>> from cure_jax import certify, l1_ball, linf_ball
        >>> x = jnp.full((4,), 0.5)
        >>> region = hull(linf_ball(x, 0.1), l1_ball(x, 0.2))
        >>> logits = lambda x: jnp.stack([jnp.sum(x), 1.5])
        >>> certificate = certify(logits, x, 0, region)
        >>> bool(certificate.verified), round(float(certificate.margin), 3)
        (True, 0.1)
        >>> hull(linf_ball(x, 0.1), l1_ball(x, 0.6), within=(0.0, 1.0)).bounding_box().upper.tolist()
        [1.0, 1.0, 1.0, 1.0]
    """
    if not regions:
        raise ValueError("hull got no regions; expected at least one, e.g. hull(linf_ball(x, 0.1), l1_ball(x, 1.0)).")
    for region in regions:
        if not isinstance(region, Region):
            raise TypeError(
                f"hull got {type(region).__name__!r}; expected regions, with the methods of cure_jax.Region: pass "
                "each as an argument of its own, hull(first, second)."
            )
    boxes = [region.bounding_box() for region in regions]
    if len({box.shape for box in boxes}) > 1:
        raise ValueError(
            f"hull got regions of the shapes {[box.shape for box in boxes]}; expected one shape: build all of them "
            "around inputs of the same shape, and use jax.vmap for batches."
        )
    if len({box.dtype for box in boxes}) > 1:
        raise TypeError(
            f"hull got regions of the dtypes {[str(box.dtype) for box in boxes]}; expected one dtype: convert the "
            "inputs that they are built around."
        )
    return Hull(regions) if within is None else _cut(regions, within)


def _cut(regions: Sequence[Region], within: Sequence[ArrayLike]) -> CutHull:
    balls = {ball.p: ball for ball in regions if isinstance(ball, LpBall) and ball.lower is None}
    if len(regions) != 2 or balls.keys() != {1.0, math.inf}:
        raise ValueError(
            "hull got `within`, and regions that are not one whole l_inf and one whole l_1 ball. Build these two "
            "without limits of their own, e.g. hull(linf_ball(x, 0.1), l1_ball(x, 1.0), within=(0., 1.))."
        )
    many, few = balls[math.inf], balls[1.0]
    centers = (many.center, few.center)
    known = not any(isinstance(center, jax.core.Tracer) for center in centers)
    if known and not np.array_equal(*centers):
        raise ValueError("hull got `within`, and balls around different centers. Build both around the same input.")
    # What cannot be seen while it is traced: nothing is known of such a region.
    radius = jnp.where(many.center == few.center, many.radius, jnp.nan)
    box = lp_ball(few.center, few.radius, 1.0, within)
    assert box.lower is not None
    assert box.upper is not None
    return CutHull(few.center, radius, few.radius, box.lower, box.upper)


class _Combination(NamedTuple):
    """A point of the hull: a point of each member (`[member, *x]`, and the one a step ago), and their weights."""

    points: Array
    previous: Array
    weights: Array


def _combined(weights: Array, points: Array) -> Array:
    return jnp.tensordot(weights, points, 1, precision=lax.Precision.HIGHEST)


def _recombined(now: _Combination, proposed: Array, missing: Array) -> _Combination:
    """Return the point nearest to the target that the proposals, `[kind, member, *x]`, the present one first, give."""
    kinds, members = proposed.shape[:2]
    before = jnp.zeros((kinds, members), proposed.dtype).at[0].set(now.weights)
    shares = _best_weights(proposed.reshape(-1, *missing.shape), missing, before.ravel()).reshape(before.shape)
    total = jnp.sum(shares, axis=0)
    # A point without weight goes on towards its extreme point, until it is worth some.
    idle = jnp.zeros_like(before).at[1].set(1)
    within = jnp.where(total[None] > 0, shares / searches.positive(total)[None], idle)
    points = jnp.einsum("km,km...->m...", within, proposed, precision=lax.Precision.HIGHEST)
    return _Combination(points, now.points, total / jnp.sum(total))


def _best_weights(points: Array, missing: Array, weights: Array) -> Array:
    """Return the weights of the point of conv(points) nearest to x, given those of the point x - missing.

    Weight is exchanged between two points at a time, as much as is best for these two (sequential minimal
    optimisation), which is exact however near to each other they are. Everything is relative to the present point, so
    that a small distance is not lost in rounding.
    """
    flat = points.reshape(len(points), -1)
    flat = flat - _combined(weights, flat)[None]
    gram = jnp.dot(flat, flat.T, precision=lax.Precision.HIGHEST)
    slopes = jnp.dot(flat, missing.ravel(), precision=lax.Precision.HIGHEST)
    pairs = np.array(list(itertools.combinations(range(len(points)), 2)), np.int32)

    def exchange(now: tuple[Array, Array], pair: Array) -> tuple[tuple[Array, Array], None]:
        (weights, slopes), (gains, loses) = now, pair
        change = gram[gains] - gram[loses]
        square = change[gains] - change[loses]
        best = jnp.where(square > 0, (slopes[gains] - slopes[loses]) / jnp.where(square > 0, square, 1), 0)
        amount = jnp.clip(best, -weights[gains], weights[loses])
        return (weights.at[gains].add(amount).at[loses].add(-amount), slopes - amount * change), None

    (weights, _), _ = lax.scan(exchange, (weights, slopes), jnp.asarray(np.tile(pairs, (_WEIGHT_ROUNDS, 1))))
    return jnp.maximum(weights, 0)
