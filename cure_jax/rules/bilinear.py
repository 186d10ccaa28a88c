"""Products of two bounded operands: elementwise ones, matrix products and convolutions.

On the box [a, b] x [c, d] the product x y lies above two planes, (x - a)(y - c) >= 0 and (b - x)(d - y) >= 0, and below
two, (x - a)(d - y) >= 0 and (b - x)(y - c) >= 0. Alpha mixes the two of each pair; every mixture is sound.
Source: McCormick, "Computability of global solutions to factorable nonconvex programs: Part I", Mathematical
Programming 10, 1976, Section 3; for attention: Shi et al., "Robustness Verification for Transformers", ICLR 2020,
Section 3.3 and Appendix B.

A quotient x / y is recorded as x * y^-1 (`graph`), whose second factor has a rule in `smooth`.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from cure_jax.graph import Equation
from cure_jax.regions import Interval
from cure_jax.rules.registry import LinearMap, Nonlinear, Relaxation, elementwise_map, register
from cure_jax.rules.smooth import is_square

__all__: list[str] = []


def _product(x: jax.Array, y: jax.Array) -> jax.Array:
    """The product, with 0 * infinity = 0: an infinite end stands for values that are finite."""
    return jnp.where((x == 0) | (y == 0), 0, x * y)


def _interval(equation: Equation, x: Interval, y: Interval) -> Interval:
    """A bilinear function takes its extrema in the corners."""
    del equation
    corners = jnp.stack([_product(one, other) for one in (x.lower, x.upper) for other in (y.lower, y.upper)])
    largest = jnp.finfo(corners.dtype).max
    # What overflows is beyond the largest number, not beyond all.
    return Interval(jnp.minimum(jnp.min(corners, axis=0), largest), jnp.maximum(jnp.max(corners, axis=0), -largest))


def _middle(equation: Equation, intervals: Sequence[Interval]) -> jax.Array:
    del intervals
    return jnp.full(equation.output.shape, 0.5, equation.output.dtype)


def _relax(equation: Equation, intervals: Sequence[Interval], alpha: jax.Array | None) -> Relaxation:
    x, y = intervals
    alpha = _middle(equation, intervals) if alpha is None else alpha
    image = _interval(equation, x, y)
    ends = jnp.stack([x.lower, x.upper, y.lower, y.upper])
    # Corners that overflow leave no plane; the ends of the interval remain.
    usable = jnp.all(jnp.isfinite(ends), axis=0) & jnp.isfinite(image.lower) & jnp.isfinite(image.upper)
    a, b, c, d = jnp.where(usable, ends, 0)

    def plane(first: tuple[jax.Array, jax.Array], second: tuple[jax.Array, jax.Array], constant: jax.Array):
        """A mixture of the planes that touch the product in two opposite corners, (p, q): q x + p y - p q."""
        (p, q), (r, s) = first, second
        slopes = alpha * q + (1 - alpha) * s, alpha * p + (1 - alpha) * r
        intercept = -(alpha * p * q + (1 - alpha) * r * s)
        return elementwise_map(slopes, jnp.where(usable, intercept, constant))

    return Relaxation(plane((a, c), (b, d), image.lower), plane((a, d), (b, c), image.upper))


def _not_constant(equation: Equation, intervals: Sequence[Interval]) -> tuple[jax.Array, ...]:
    """Exact where one factor is known."""
    del equation
    x, y = intervals
    mask = (x.lower < x.upper) & (y.lower < y.upper)
    return mask, mask


def _unbounded(equation: Equation) -> float:
    del equation
    return math.inf


def _matrix_interval(equation: Equation, x: Interval, y: Interval) -> Interval:
    """The better of two enclosures by matrix products alone.

    Soundness:
      By center and radius: |x y - m n| <= |m| s + r |n| + r s for |x - m| <= r, |y - n| <= s. And by signs: x = x+ + x-
      with x+ = max(x, 0), the same for y, and each of the four products is monotone in both factors.
    Source: Rump, "Fast and parallel interval arithmetic", BIT 39, 1999, Section 3.
    """
    product = equation.evaluate
    center, m, n = product(x.center, y.center), jnp.abs(x.center), jnp.abs(y.center)
    radius = product(m, y.radius) + product(x.radius, n) + product(x.radius, y.radius)
    a, b, c, d = (jnp.maximum(end, 0) for end in (x.lower, x.upper, y.lower, y.upper))
    e, f, g, h = (jnp.minimum(end, 0) for end in (x.lower, x.upper, y.lower, y.upper))
    lower = product(a, c) + product(f, h) + product(b, g) + product(e, d)
    upper = product(b, d) + product(e, g) + product(a, h) + product(f, c)
    lower, upper = jnp.maximum(center - radius, lower), jnp.minimum(center + radius, upper)
    # Infinite ends, and corners that overflow, leave no number.
    return Interval(jnp.where(lower < jnp.inf, lower, -jnp.inf), jnp.where(upper > -jnp.inf, upper, jnp.inf))


def _matrix_relax(equation: Equation, intervals: Sequence[Interval], alpha: jax.Array | None) -> Relaxation:
    """McCormick planes of all products in a sum, with one alpha for each sum."""
    x, y = intervals
    alpha = _middle(equation, intervals) if alpha is None else alpha
    image = _matrix_interval(equation, x, y)
    usable = jnp.all(jnp.stack([jnp.all(jnp.isfinite(end)) for box in (x, y, image) for end in (box.lower, box.upper)]))
    a, b, c, d = (jnp.where(usable, end, 0) for end in (x.lower, x.upper, y.lower, y.upper))

    def pull(p: jax.Array, q: jax.Array, coefficients: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The transpose of (x, y) -> p y + x q: the derivative of the product."""
        _, transposed = jax.vjp(equation.evaluate, p, q)
        return transposed(coefficients)

    def plane(
        first: tuple[jax.Array, jax.Array], second: tuple[jax.Array, jax.Array], constant: jax.Array
    ) -> LinearMap:
        def mixed(coefficients: jax.Array) -> tuple[jax.Array, ...]:
            parts = pull(*first, alpha * coefficients), pull(*second, (1 - alpha) * coefficients)
            return tuple(one + other for one, other in zip(*parts, strict=True))

        intercept = -(alpha * equation.evaluate(*first) + (1 - alpha) * equation.evaluate(*second))
        return LinearMap(mixed, jnp.where(usable, intercept, constant))

    return Relaxation(plane((a, c), (b, d), image.lower), plane((a, d), (b, c), image.upper))


def _two_bounded(equation: Equation) -> bool:
    return len(equation.bounded) == 2 and not is_square(equation)


def _two_unrounded(equation: Equation) -> bool:
    return len(equation.bounded) == 2 and equation.output.dtype == equation.bounded[0].dtype


register("mul", Nonlinear(_interval, _relax, _unbounded, _middle, _not_constant), when=_two_bounded)
register(
    ("dot_general", "conv_general_dilated"),
    Nonlinear(_matrix_interval, _matrix_relax, _unbounded, _middle),
    when=_two_unrounded,
)
