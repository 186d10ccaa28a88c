"""Scalar searches behind a ball cut by a box: the multiplier of its support, and that of its projection.

All work on magnitudes in units of the radius, each with a `cap`, the room that the box leaves it; `ball.LpBall` says
what they are for. Searches have a limit of steps and are not differentiated.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from cure_jax import numerics

__all__ = ["bisect", "critical_size", "knapsack", "magnitude", "positive", "power", "shrink_into_ball", "water_filling"]

# Newton steps of the support of a cut ball. Measured on random and black/white images of 64 and 784 pixels, normal
# coefficients and their fifth powers: p = 2 is exact after 10 steps, from any start; most are at rest after 4.
_WATER_FILLING_STEPS = 12
# By how many units of the last place a step may still move what rests.
_AT_REST = 4
# The same for other p, where they start from a bracket: for p near 1 a step alone moves mu by a few percent only.
_STEPS_FROM_BRACKET = 4
# Newton steps of the projection onto an l_2 ball cut by a box; what is left after them is scaled into the ball.
_SECULAR_STEPS = 8


def positive(value: Array) -> Array:
    """Return the value with 1 in place of 0, to divide by."""
    return jnp.where(value > 0, value, 1)


def quotient(value: Array, divisor: Array) -> Array:
    """Return value / divisor for divisor >= 0, the value where that is 0.

    XLA divides by one number for many by way of its reciprocal, which counts as 0 where the number is near the largest
    one (see `numerics.unit_of`): both are an eighth then.
    """
    scale = jnp.where(divisor > 1, 0.125, 1).astype(divisor.dtype)
    return (value * scale) / (positive(divisor) * scale)


def magnitude(x: Array) -> Array:
    """Return |x| with derivative 0 at 0, where that of `jnp.abs` is 1 and would point out of the region."""
    return x * jnp.sign(x)


def power(base: Array, exponent: float) -> Array:
    """Return base ** exponent for base >= 0, without the general power where the norms of practice need none."""
    if exponent == 1:
        return base
    return jnp.square(base) if exponent == 2 else jnp.power(base, exponent)


def _normalised(size: Array) -> tuple[Array, Array]:
    """Return size in units of about its largest entry, and that unit, as a constant."""
    unit = lax.stop_gradient(numerics.unit_of(jnp.max(size)))
    return size / unit, unit


def _lost_in_products(size: Array) -> Array:
    """Return what products of these numbers and of ones up to 1 may lose by counting as 0, and such factors too."""
    return jnp.asarray(16 * size.size * jnp.finfo(size.dtype).tiny, size.dtype)


@functools.partial(jax.jit, static_argnames="p")
def water_filling(size: Array, cap: Array, p: float) -> Array:
    """Return max of <size, t> over |t|_p <= 1, 0 <= t <= cap <= 1, for 1 < p < inf, by the dual of `LpBall.support`.

    The maximiser is t = min((size mu)^(q-1), cap) with mu = 1 / lam. m = mu^q solves sum_i min(size_i^q m, cap_i^p) =
    1, whose left side is concave and increasing: Newton's steps from the left never pass the root, and reach it after
    finitely many. These may be very many for p near 1, so for p other than 2 they begin where bisection of log mu ends.
    """
    size, unit = _normalised(size)
    q = numerics.dual(p)
    tiny, eps = jnp.finfo(size.dtype).tiny, jnp.finfo(size.dtype).eps
    huge = 1 / eps**4
    constant, limit = lax.stop_gradient(size), lax.stop_gradient(cap)
    volume, threshold = power(limit, p), power(limit, p - 1)

    def filled_to(mu: Array) -> Array:
        # Of a bare product XLA makes constant^q mu^q when it folds constants: 0 times infinity where constant is 0.
        return jnp.where(constant > 0, constant * mu, 0)

    def contents(mu: Array) -> tuple[Array, Array]:
        """Of the coordinates that are at their caps, and of the others."""
        level = filled_to(mu)
        full = level >= threshold
        return numerics.total(jnp.where(full, volume, 0)), numerics.total(jnp.where(full, 0, power(level, q)))

    def underfull(mu: Array) -> Array:
        filled, rising = contents(mu)
        return filled + rising < 1

    def newton(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        mu, _, number = state
        filled, rising = contents(mu)
        growth = jnp.clip((1 - filled) / jnp.maximum(rising, tiny), 1, huge)
        return jnp.minimum(mu * jnp.power(growth, 1 / q), huge), growth > 1 + _AT_REST * eps, number + 1

    def bracketed(least: Array) -> Array:
        most = jnp.max(jnp.where(constant > 0, threshold / positive(constant), 0))
        width = jnp.log(jnp.clip(most / least, 1, huge))
        return least * jnp.exp(bisect(lambda step: underfull(least * jnp.exp(step)), width)[0])

    mu = 1 / jnp.maximum(numerics.norm(constant, q), 1)
    mu = mu if p == 2 else bracketed(mu)
    steps = _WATER_FILLING_STEPS if p == 2 else _STEPS_FROM_BRACKET
    moving = lambda state: state[1] & (state[2] < steps)  # noqa: E731
    mu, _, _ = lax.while_loop(moving, newton, (mu, jnp.ones((), bool), jnp.zeros((), jnp.int32)))
    t = jnp.minimum(power(filled_to(mu), q - 1), cap)
    value = (1 - numerics.total(power(t, p))) / (mu * p) + numerics.total(size * t)
    return unit * (value + _lost_in_products(size))


@jax.jit
def knapsack(size: Array, cap: Array) -> Array:
    """Return max of <size, t> over sum t <= 1, 0 <= t <= cap <= 1, the fractional knapsack, by its dual.

    The best lam is the size of the item at which the caps of the larger items fill the knapsack. Bisection brackets it;
    lam is then made the mean, weighted by cap, of the sizes in the bracket, so that its derivative fills the room that
    is left with them.
    """
    size, unit = _normalised(size)
    constant, limit = lax.stop_gradient(size), lax.stop_gradient(cap)

    low, high = critical_size(constant, limit, jnp.ones((), size.dtype))
    critical = (constant > low) & (constant <= high)
    weight = jnp.where(critical, limit, 0)
    lam = numerics.total(size * weight / positive(numerics.total(weight)))
    taken = numerics.total(jnp.where(constant > high, cap * (size - lam), 0))
    # Sizes in the bracket differ by less than its width; counting them keeps the bound sound to the last digit.
    remainder = lax.stop_gradient(numerics.total(jnp.where(critical, cap * jnp.maximum(size - lam, 0), 0)))
    return unit * (lam + taken + remainder + _lost_in_products(size))


def critical_size(size: Array, cap: Array, room: Array) -> tuple[Array, Array]:
    """Return a bracket of the size down to which the caps of the larger items fill the room; 0 above if none do."""

    def overfull(lam: Array) -> Array:
        return numerics.total(jnp.where(size > lam, cap, 0)) > room

    low, high = bisect(overfull, jnp.max(size))
    return low, jnp.where(overfull(jnp.zeros_like(low)), high, 0)


@functools.partial(jax.jit, static_argnames="p")
def shrink_into_ball(distance: Array, cap: Array, radius: Array, p: float) -> Array:
    """Return the t of `LpBall.project` for p < inf: t <= cap with |t|_p <= 1, in units of the radius."""
    eps = jnp.finfo(distance.dtype).eps
    # Radii enter relative to the largest; one below rounding moves its pixel by less than rounding anyway.
    weight = 1 / jnp.square(jnp.maximum(radius / numerics.unit_of(jnp.max(radius)), eps))

    def at(nu: Array) -> Array:
        return jnp.minimum(_shrink(distance, nu * weight, p), cap)

    def outside(nu: Array) -> Array:
        return numerics.total(power(at(nu), p)) > 1

    def bisected() -> Array:
        return bisect(outside, numerics.norm(distance / weight, numerics.dual(p)))[1]

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
        room = jnp.sqrt(jnp.maximum(1 - numerics.total(jnp.where(free, 0, cap**2)), tiny))
        square = numerics.total(jnp.where(free, t**2, 0))
        slope = numerics.total(jnp.where(free, t**2 * weight / (1 + nu * weight), 0))
        return jnp.maximum(nu + (jnp.sqrt(square) / room - 1) * square / jnp.maximum(slope, tiny), 0)

    start = jnp.maximum(numerics.norm(distance, 2.0) - 1, 0)
    return lax.fori_loop(0, _SECULAR_STEPS, newton, start)


def _shrink(distance: Array, weight: Array, p: float) -> Array:
    """Return the t >= 0 with t + weight * t^(p-1) = distance; for p = 1 the soft threshold."""
    if p == 1:
        return jnp.maximum(distance - weight, 0)
    if p == 2:
        return distance / (1 + weight)
    # In s = t for p > 2 and s = t^(p-1) for p < 2, the equation reads linear * s + leading * s^e = distance with e > 1:
    # convex, so that Newton's method falls monotonically from the right. The start is at most twice the root.
    e = max(p - 1, 1 / (p - 1))
    linear, leading = (jnp.ones_like(weight), weight) if p > 2 else (weight, jnp.ones_like(weight))
    start = jnp.minimum(distance / positive(linear), jnp.power(distance / positive(leading), 1 / e))
    start = jnp.where(linear > 0, start, jnp.power(distance, 1 / e))
    start = jnp.where(leading > 0, start, distance)

    def newton(_: Array, s: Array) -> Array:
        raised = leading * jnp.power(s, e - 1)
        return jnp.maximum(s - (linear * s + raised * s - distance) / positive(linear + e * raised), 0)

    root = lax.fori_loop(0, 10, newton, start)
    return root if p > 2 else jnp.power(root, 1 / (p - 1))


def bisect(above: Callable[[Array], Array], high: Array) -> tuple[Array, Array]:
    """Return a bracket in [0, high] of the place where `above` turns from True to False; high is taken to be False."""

    def halve(_: Array, bracket: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bracket
        middle = (low + high) / 2
        return jnp.where(above(middle), middle, low), jnp.where(above(middle), high, middle)

    return lax.fori_loop(0, jnp.finfo(high.dtype).nmant + 10, halve, (jnp.zeros_like(high), high))
