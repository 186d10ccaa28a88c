"""Sets of inputs, known by their support function.

A region R is a set of inputs of ONE example; bounds see it only through h(a) = max over x in R of <a, x>. `LpBall` is
the ball of a norm around an input, with a radius for each pixel, cut by a box such as the range of pixels. All methods
take one example and work under `jax.jit`, `jax.vmap` and `jax.grad`; `jax.vmap` over regions gives batches. Inputs and
radii are in the units of the network's input, pixels in [0, 1].
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Key

# Newton steps of the support of a cut ball. Measured on random and black/white images of 64 and 784 pixels, normal
# coefficients and their fifth powers: p = 2 is exact after 10, p = 5 to 3e-11; p = 1.2 to 2e-4 at worst (16: exact).
_WATER_FILLING_STEPS = 12
# Newton steps of the projection onto an l_2 ball cut by a box; what is left after them is scaled into the ball.
_SECULAR_STEPS = 8


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


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Interval:
    """The box {x : lower <= x <= upper}, coordinate by coordinate.

    Attributes:
        lower: lower limits.
        upper: upper limits, of the same shape.
    """

    lower: Float[Array, "*x"]
    upper: Float[Array, "*x"]

    @property
    def center(self) -> Float[Array, "*x"]:
        """The middle of the box."""
        return (self.lower + self.upper) / 2

    @property
    def radius(self) -> Float[Array, "*x"]:
        """Half of the width of the box."""
        return (self.upper - self.lower) / 2

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

    def contains(self, x: Float[Array, "*x"], tolerance: float = 0.0) -> Bool[Array, ""]:
        """Return whether every coordinate of x is in the box, give or take `tolerance`; False for NaN."""
        return jnp.all((x >= self.lower - tolerance) & (x <= self.upper + tolerance))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LpBall:
    """The ball of a norm cut by a box: {x : |(x - center) / radius|_p <= 1 and lower <= x <= upper}.

    Build it with `linf_ball`, `l2_ball`, `l1_ball` or `lp_ball`, which check their arguments. A pixel of radius 0 is
    fixed.

    Attributes:
        center: the input in the middle; it lies in the box.
        radius: the radius of each pixel, in pixel units, finite and at least 0, of the shape of center.
        lower: lower limits of the box, of the shape of center, or None for no box.
        upper: upper limits of the box, or None together with lower.
        p: the norm, 1 <= p <= inf; static.
    """

    center: Float[Array, "*x"]
    radius: Float[Array, "*x"]
    lower: Float[Array, "*x"] | None
    upper: Float[Array, "*x"] | None
    p: float = dataclasses.field(metadata={"static": True})

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one input."""
        return self.center.shape

    @property
    def dtype(self) -> jnp.dtype:
        """The dtype of one input."""
        return self.center.dtype

    def support(self, coefficients: Float[Array, "*x"]) -> Float[Array, ""]:
        r"""Return h(a) = max over the region of <a, x>, exact up to rounding, with the maximiser as its gradient.

        With b = radius * a, the ball alone gives <a, center> + |b|_q, q the dual norm (1/p + 1/q = 1). With a box, the
        room of coordinate i in the direction of b_i is cap_i, in units of the radius, and for every lam > 0

            h(a) <= <a, center> + lam / p + sum_i max over 0 <= t <= cap_i of (|b_i| t - lam / p t^p)    1 < p < inf
            h(a) <= <a, center> + lam + sum_i cap_i max(|b_i| - lam, 0)                                  p = 1

        by Lagrangian duality, with equality for the best lam: water filling (Newton's method on a concave function,
        from the left) for p > 1, a fractional knapsack by bisection for p = 1. For p = inf the region is a box. The
        search is not differentiated; by the envelope theorem the derivatives are those of the formula at that lam.

        Args:
            coefficients: a, of the shape of center.

        Returns:
            h(a), in the units of a times pixels; never more than for the ball alone (the first lam tried is the best
            one without a box) or for the box alone.

        Soundness:
            An upper bound on the maximum for every lam, so also where the search stops early; up to the rounding of
            the sums.

        References:
            Boyd & Vandenberghe, Convex Optimization (2004): dual norm, appendix A.1.6; weak duality, section 5.1.3;
            water filling, example 5.2.
            Croce & Hein, Mind the box: l1-APGD for sparse adversarial attacks on image classifiers (ICML 2021), for
            ball and box together as the threat model.
        """
        if self.p == math.inf:
            # Without a box the center and the radius are exact, those of the bounding box rounded.
            box = self if self.lower is None else self.bounding_box()
            return jnp.sum(coefficients * box.center) + jnp.sum(_magnitude(coefficients) * box.radius)
        scaled = coefficients * self.radius
        linear = jnp.sum(coefficients * self.center)
        if self.lower is None:
            return linear + _norm(scaled, _dual(self.p))
        below, above = self._room()
        size, cap = _magnitude(scaled), jnp.where(scaled > 0, above, below)
        cut = _knapsack(size, cap) if self.p == 1 else _water_filling(size, cap, self.p)
        return linear + jnp.minimum(cut, jnp.sum(size * cap))

    def bounding_box(self) -> Interval:
        """Return the smallest box that holds the region: center -/+ radius cut by the box."""
        ball = Interval(self.center - self.radius, self.center + self.radius)
        if self.lower is None or self.upper is None:
            return ball
        return ball.intersect(Interval(self.lower, self.upper))

    def contains(self, x: Float[Array, "*x"], tolerance: float = 0.0) -> Bool[Array, ""]:
        """Return whether x is in the region; False for NaN.

        Args:
            x: a point, of the shape of center.
            tolerance: in pixel units: every radius and both limits of the box are moved outward by as much. Rounding
                alone can put a point of the boundary outside a tolerance of 0.

        Returns:
            True or False.
        """
        room = self.radius + tolerance
        offset = jnp.abs(x - self.center)
        # Nothing is in a ball whose radius is negative or NaN, which only a traced one can be.
        fixed = (room == 0) & (offset == 0)
        relative = jnp.where(room > 0, offset / jnp.where(room > 0, room, 1), jnp.where(fixed, 0, jnp.inf))
        inside = _norm(relative, self.p) <= 1
        if self.lower is None or self.upper is None:
            return inside
        return inside & Interval(self.lower, self.upper).contains(x, tolerance)

    def project(self, x: Float[Array, "*x"]) -> Float[Array, "*x"]:
        """Return the point of the region nearest to x in the euclidean norm, for every p.

        With t the distance from center in units of the radius, coordinate by coordinate t is the lesser of cap and the
        root of t + nu / radius^2 t^(p-1) = |x - center| / radius. nu is 0 where that is inside, else it puts the norm
        of t at 1 and is found by bisection, or by Newton's method for p = 2 with one radius. What the search leaves
        outside is removed by a scaling towards the center, which stays inside.

        Args:
            x: any finite point, of the shape of center.

        Returns:
            A point of ball and box, up to the rounding of center + offset; x itself where x is inside.
        """
        box = self.bounding_box()
        nearest = jnp.clip(x, box.lower, box.upper)
        if self.p == math.inf:
            return nearest
        radius = _positive(self.radius)
        inside = _norm((nearest - self.center) / radius, self.p) <= 1
        below, above = self._room()
        offset = x - self.center
        # Past this the coordinate is at its cap or the others are negligible: keeps tiny radii from overflowing.
        distance = jnp.minimum(jnp.abs(offset) / radius, 1 / jnp.finfo(self.dtype).eps ** 2)
        distance = jnp.where(self.radius > 0, distance, 0)
        moved = _shrink_into_ball(distance, jnp.where(offset > 0, above, below), self.radius, self.p)
        moved = moved / jnp.maximum(_norm(moved, self.p), 1)
        surface = jnp.clip(self.center + self.radius * jnp.sign(offset) * moved, box.lower, box.upper)
        return jnp.where(inside, nearest, surface)

    def sample(self, key: Key[Array, ""]) -> Float[Array, "*x"]:
        """Return a random point: uniform in the ball, then clipped to the box; for p = inf uniform in the region."""
        box = self.bounding_box()
        if self.p == math.inf:
            fraction = jax.random.uniform(key, self.shape, self.dtype)
            return jnp.clip(box.lower + fraction * (box.upper - box.lower), box.lower, box.upper)
        offset = _uniform_in_ball(key, self.shape, self.p, self.dtype)
        return jnp.clip(self.center + self.radius * offset, box.lower, box.upper)

    def steepest(self, x: Float[Array, "*x"], gradient: Float[Array, "*x"]) -> Float[Array, "*x"]:
        """Return an ascent step s with |s / radius|_p = 1; zeros where the gradient is zero.

        p = inf: s = radius * sign(gradient), p = 2: s = radius * b / |b|_2 with b = radius * gradient; both have the
        largest <gradient, s> of their norm. Other p > 1: s = radius * b / |b|_p, as the step with the largest inner
        product, projected in the euclidean norm, comes to rest away from the maximum of a linear function. p = 1: the
        best step moves one pixel only; it is spread equally over the 1 % of the pixels (one at least) with the largest
        |b| among those that can still move. (Over 5 %, attacks on a random ReLU network of 784 pixels raised the margin
        by 0.66 instead of 0.80 in 8 steps, and by 0.72 instead of 0.87 in 40.)

        Args:
            x: the current point, of the shape of center; only p = 1 looks at it, to leave out pixels at their limit.
            gradient: the direction to climb, of the shape of center; finite.

        Returns:
            The offset in pixel units, of relative size 1: scale it by the step size and project.

        References:
            Tramer & Boneh, Adversarial training and robustness for multiple perturbations (NeurIPS 2019), for p = 1.
        """
        scaled = self.radius * gradient
        if self.p == math.inf:
            return self.radius * jnp.sign(scaled)
        if self.p == 1:
            box = self.bounding_box()
            stuck = jnp.where(scaled > 0, x >= box.upper, x <= box.lower)
            score = jnp.where(stuck, 0, jnp.abs(scaled))
            threshold = lax.top_k(score.ravel(), max(1, score.size // 100))[0][-1]
            chosen = ((score >= threshold) & (score > 0)).astype(self.dtype)
            return self.radius * jnp.sign(scaled) * chosen / jnp.maximum(jnp.sum(chosen), 1)
        return self.radius * (scaled / _positive(_norm(scaled, self.p)))

    def _room(self) -> tuple[Float[Array, "*x"], Float[Array, "*x"]]:
        """Return how far each pixel can go down and up, in units of its radius: in [0, 1], 0 where the radius is 0."""
        radius = _positive(self.radius)
        if self.lower is None or self.upper is None:
            room = self.radius / radius
            return room, room
        below = jnp.minimum(self.center - self.lower, self.radius) / radius
        above = jnp.minimum(self.upper - self.center, self.radius) / radius
        return jnp.maximum(below, 0), jnp.maximum(above, 0)


def lp_ball(x: ArrayLike, eps: ArrayLike, p: float, within: Sequence[ArrayLike] | None = None) -> LpBall:
    """Return {x' : |(x' - x) / eps|_p <= 1}, cut by the box `within`.

    Values are checked where they are known; under `jax.jit` or `jax.vmap` only shapes and dtypes are, and `certify`
    looks again.

    Args:
        x: one example, floating point, any shape; the region keeps its dtype.
        eps: the radius, in the units of x (pixels in [0, 1]): a scalar, or an array that broadcasts to x for a radius
            per pixel.
        p: the norm, 1 <= p <= inf, a Python number.
        within: lower and upper limits of every pixel, scalars or arrays that broadcast to x, e.g. (0., 1.); or None.

    Returns:
        The region.

    Raises:
        TypeError: x is not floating point, or `within` is not a pair.
        ValueError: p < 1; eps negative, not finite or of a shape that does not fit; lower > upper in `within`, or x
            outside.
    """
    center = jnp.asarray(x)
    if not jnp.issubdtype(center.dtype, jnp.floating):
        raise TypeError(f"x has dtype {center.dtype}; a region needs a floating-point input: convert it, e.g. x / 255.")
    if not p >= 1:
        raise ValueError(f"p is {p}; a norm needs 1 <= p <= inf: give 1, 2, math.inf or another number in between.")
    radius = _fit("eps", eps, center)
    _check("eps", "radii must be finite and at least 0", lambda eps: np.isfinite(eps) & (eps >= 0), eps)
    if within is None:
        return LpBall(center, radius, None, None, float(p))
    if not isinstance(within, tuple | list) or len(within) != 2:
        raise TypeError(f"within is {within!r}; expected a pair (lower, upper): give e.g. within=(0., 1.) or None.")
    low, high = within
    lower, upper = _fit("within[0]", low, center), _fit("within[1]", high, center)
    limits = "lower limits must not exceed the upper ones"
    _check("within[0]", limits, lambda low, high: low <= high, low, high)
    around = "the center must lie in `within`"
    _check("x", around, lambda x, low, high: (low <= x) & (x <= high), center, low, high)
    return LpBall(center, radius, lower, upper, float(p))


def linf_ball(x: ArrayLike, eps: ArrayLike, within: Sequence[ArrayLike] | None = None) -> LpBall:
    """Return {x' : max_i |x'_i - x_i| / eps_i <= 1}, cut by the box `within`; see `lp_ball`."""
    return lp_ball(x, eps, math.inf, within)


def l2_ball(x: ArrayLike, eps: ArrayLike, within: Sequence[ArrayLike] | None = None) -> LpBall:
    """Return the euclidean ball of radius eps around x, cut by the box `within`; see `lp_ball`."""
    return lp_ball(x, eps, 2.0, within)


def l1_ball(x: ArrayLike, eps: ArrayLike, within: Sequence[ArrayLike] | None = None) -> LpBall:
    """Return {x' : sum_i |x'_i - x_i| / eps_i <= 1}, cut by the box `within`; see `lp_ball`."""
    return lp_ball(x, eps, 1.0, within)


def _fit(name: str, value: ArrayLike, center: Float[Array, "*x"]) -> Float[Array, "*x"]:
    """Return the value as an array of the shape and dtype of center."""
    array = jnp.asarray(value)
    try:
        return jnp.broadcast_to(array.astype(center.dtype), center.shape)
    except ValueError as error:
        raise ValueError(
            f"{name} has shape {array.shape}, which does not broadcast to x of shape {center.shape}: "
            "give a scalar or an array of the shape of x."
        ) from error


def _check(name: str, requirement: str, holds: Callable[..., np.ndarray], *values: ArrayLike) -> None:
    """Raise with the first value, of the first of `values`, for which `holds` is not true; traced values pass."""
    if any(isinstance(value, jax.core.Tracer) for value in values):
        return
    # In the dtype of the first, as the region will hold them: 0.3 is a limit that float32(0.3) keeps.
    dtype = np.asarray(values[0]).dtype
    arrays = np.broadcast_arrays(*(np.asarray(value).astype(dtype) for value in values))
    valid = holds(*arrays)
    if not np.all(valid):
        place = tuple(int(i) for i in np.argwhere(~valid)[0])
        raise ValueError(f"{name} is {arrays[0][place]} at {place}; {requirement}: correct or clip {name}.")


def _positive(value: Array) -> Array:
    """Return the value with 1 in place of 0, to divide by."""
    return jnp.where(value > 0, value, 1)


def _uniform_in_ball(key: Array, shape: tuple[int, ...], p: float, dtype: jnp.dtype) -> Array:
    """Return a uniform point of |x|_p <= 1, p < inf, as `jax.random.ball`, whose general sampler is 25 times slower.

    References:
        Barthe et al., A probabilistic approach to the geometry of the l_p^n-ball (Annals of Probability 2005).
    """
    direction_key, size_key = jax.random.split(key)
    if p == 1:
        direction = jax.random.laplace(direction_key, shape, dtype)
    elif p == 2:
        direction = jax.random.normal(direction_key, shape, dtype) / math.sqrt(2)
    else:
        direction = jax.random.generalized_normal(direction_key, p, shape, dtype)
    total = jnp.sum(_power(jnp.abs(direction), p)) + jax.random.exponential(size_key, (), dtype)
    return direction / jnp.power(total, 1 / p)


def _magnitude(x: Array) -> Array:
    """Return |x| with derivative 0 at 0, where that of `jnp.abs` is 1 and would point out of the region."""
    return x * jnp.sign(x)


def _power(base: Array, exponent: float) -> Array:
    """Return base ** exponent for base >= 0, without the general power where the norms of practice need none."""
    if exponent == 1:
        return base
    return jnp.square(base) if exponent == 2 else jnp.power(base, exponent)


def _dual(p: float) -> float:
    """Return q with 1/p + 1/q = 1, for p < inf."""
    return math.inf if p == 1 else p / (p - 1)


def _norm(x: Array, p: float) -> Array:
    """Return |x|_p over all axes, free of overflow and with gradient 0 at 0."""
    size = _magnitude(x)
    if p == math.inf:
        return jnp.max(size)
    if p == 1:
        return jnp.sum(size)
    largest = lax.stop_gradient(jnp.max(size))
    total = jnp.sum(_power(size / jnp.where(largest == 0, 1, largest), p))
    root = jnp.where(total == 0, 1, total)
    return jnp.where(total == 0, 0, largest * (jnp.sqrt(root) if p == 2 else jnp.power(root, 1 / p)))


def _normalised(size: Array) -> tuple[Array, Array]:
    """Return size divided by its largest entry, and that entry, as a constant."""
    largest = lax.stop_gradient(jnp.max(size))
    return size / jnp.where(largest == 0, 1, largest), largest


@functools.partial(jax.jit, static_argnames="p")
def _water_filling(size: Array, cap: Array, p: float) -> Array:
    """Return max of <size, t> over |t|_p <= 1, 0 <= t <= cap <= 1, for 1 < p < inf, by the dual of `LpBall.support`.

    The maximiser is t = min((size mu)^(q-1), cap) with mu = 1 / lam. m = mu^q solves sum_i min(size_i^q m, cap_i^p) =
    1, whose left side is concave and increasing: Newton's steps from the left never pass the root, and reach it after
    finitely many.
    """
    size, largest = _normalised(size)
    q = _dual(p)
    tiny, huge = jnp.finfo(size.dtype).tiny, 1 / jnp.finfo(size.dtype).eps ** 4
    constant, limit = lax.stop_gradient(size), lax.stop_gradient(cap)
    volume, threshold = _power(limit, p), _power(limit, p - 1)

    def newton(_: Array, mu: Array) -> Array:
        level = constant * mu
        full = level >= threshold
        filled = jnp.sum(jnp.where(full, volume, 0))
        rising = jnp.sum(jnp.where(full, 0, _power(level, q)))
        growth = jnp.clip((1 - filled) / jnp.maximum(rising, tiny), 1, huge)
        return jnp.minimum(mu * jnp.power(growth, 1 / q), huge)

    mu = lax.fori_loop(0, _WATER_FILLING_STEPS, newton, 1 / jnp.maximum(_norm(constant, q), 1))
    t = jnp.minimum(_power(constant * mu, q - 1), cap)
    return largest * ((1 - jnp.sum(_power(t, p))) / (mu * p) + jnp.sum(size * t))


@jax.jit
def _knapsack(size: Array, cap: Array) -> Array:
    """Return max of <size, t> over sum t <= 1, 0 <= t <= cap <= 1, the fractional knapsack, by its dual.

    The best lam is the size of the item at which the caps of the larger items fill the knapsack. Bisection brackets it;
    lam is then made the mean, weighted by cap, of the sizes in the bracket, so that its derivative fills the room that
    is left with them.
    """
    size, largest = _normalised(size)
    constant, limit = lax.stop_gradient(size), lax.stop_gradient(cap)

    def load(lam: Array) -> Array:
        return jnp.sum(jnp.where(constant > lam, limit, 0))

    def overfull(lam: Array) -> Array:
        return load(lam) > 1

    low, high = _bisect(overfull, jnp.ones((), size.dtype))
    high = jnp.where(overfull(jnp.zeros_like(low)), high, 0)
    critical = (constant > low) & (constant <= high)
    weight = jnp.where(critical, limit, 0)
    lam = jnp.sum(size * weight / _positive(jnp.sum(weight)))
    taken = jnp.sum(jnp.where(constant > high, cap * (size - lam), 0))
    # Sizes in the bracket differ by less than its width; counting them keeps the bound sound to the last digit.
    remainder = lax.stop_gradient(jnp.sum(jnp.where(critical, cap * jnp.maximum(size - lam, 0), 0)))
    return largest * (lam + taken + remainder)


@functools.partial(jax.jit, static_argnames="p")
def _shrink_into_ball(distance: Array, cap: Array, radius: Array, p: float) -> Array:
    """Return the t of `LpBall.project` for p < inf: t <= cap with |t|_p <= 1, in units of the radius."""
    eps = jnp.finfo(distance.dtype).eps
    # Radii enter relative to the largest; one below rounding moves its pixel by less than rounding anyway.
    weight = 1 / jnp.square(jnp.maximum(radius / _positive(jnp.max(radius)), eps))

    def at(nu: Array) -> Array:
        return jnp.minimum(_shrink(distance, nu * weight, p), cap)

    def outside(nu: Array) -> Array:
        return jnp.sum(_power(at(nu), p)) > 1

    def bisected() -> Array:
        return _bisect(outside, _norm(distance / weight, _dual(p)))[1]

    if p != 2:
        return at(bisected())
    # Widely spread radii need more of Newton's steps than there are: exact only where all that can move are the same.
    same = jnp.all((radius == jnp.max(radius)) | (radius == 0))
    return at(lax.cond(same, lambda: _secular_root(distance, cap, weight), bisected))


def _secular_root(distance: Array, cap: Array, weight: Array) -> Array:
    """Return the nu that puts t = min(distance / (1 + nu weight), cap) at |t|_2 = 1; weight >= 1.

    Newton's method on 1 / |t| over the coordinates below their cap, which is linear in nu where all weights are equal:
    then every step solves its set of such coordinates exactly. It starts inside the ball and stays there.

    References:
        More & Sorensen, Computing a trust region step (SIAM J. Sci. Stat. Comput. 1983), section 3.
    """
    tiny = jnp.finfo(distance.dtype).tiny

    def newton(_: Array, nu: Array) -> Array:
        t = distance / (1 + nu * weight)
        free = t < cap
        room = jnp.sqrt(jnp.maximum(1 - jnp.sum(jnp.where(free, 0, cap**2)), tiny))
        square = jnp.sum(jnp.where(free, t**2, 0))
        slope = jnp.sum(jnp.where(free, t**2 * weight / (1 + nu * weight), 0))
        return jnp.maximum(nu + (jnp.sqrt(square) / room - 1) * square / jnp.maximum(slope, tiny), 0)

    start = jnp.maximum(_norm(distance, 2.0) - 1, 0)
    return lax.fori_loop(0, _SECULAR_STEPS, newton, start)


def _shrink(distance: Array, weight: Array, p: float) -> Array:
    """Return the t >= 0 with t + weight * t^(p-1) = distance; for p = 1 the soft threshold."""
    if p == 1:
        return jnp.maximum(distance - weight, 0)
    if p == 2:
        return distance / (1 + weight)
    # In s = t for p > 2 and s = t^(p-1) for p < 2, the equation reads linear * s + power * s^e = distance with e > 1:
    # convex, so that Newton's method falls monotonically from the right. The start is at most twice the root.
    e = max(p - 1, 1 / (p - 1))
    linear, power = (jnp.ones_like(weight), weight) if p > 2 else (weight, jnp.ones_like(weight))
    start = jnp.minimum(distance / _positive(linear), jnp.power(distance / _positive(power), 1 / e))
    start = jnp.where(linear > 0, start, jnp.power(distance, 1 / e))
    start = jnp.where(power > 0, start, distance)

    def newton(_: Array, s: Array) -> Array:
        raised = power * jnp.power(s, e - 1)
        return jnp.maximum(s - (linear * s + raised * s - distance) / _positive(linear + e * raised), 0)

    root = lax.fori_loop(0, 10, newton, start)
    return root if p > 2 else jnp.power(root, 1 / (p - 1))


def _bisect(above: Callable[[Array], Array], high: Array) -> tuple[Array, Array]:
    """Return a bracket in [0, high] of the place where `above` turns from True to False; high is taken to be False."""

    def halve(_: Array, bracket: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bracket
        middle = (low + high) / 2
        return jnp.where(above(middle), middle, low), jnp.where(above(middle), high, middle)

    return lax.fori_loop(0, jnp.finfo(high.dtype).nmant + 10, halve, (jnp.zeros_like(high), high))
