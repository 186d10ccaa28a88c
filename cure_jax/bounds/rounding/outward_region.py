"""What `arithmetic="outward"` knows of a region: its box, its ball, and the least value of a linear function on it.

Supports are computed by the dual that `LpBall.support` uses, with roundings counted. Any multiplier is sound there, so
the search for the best one may be as imprecise as it likes.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from cure_jax import rules
from cure_jax.bounds.folding.coefficients import Coefficients, Window
from cure_jax.bounds.rounding.arithmetic import allowance, around, gamma, kept, lowered, steps_of_total, total, unit
from cure_jax.bounds.rounding.outward import LARGEST, constant_of, error_of, image, inner, of_interval
from cure_jax.bounds.rounding.primitives import TERMS
from cure_jax.graph import Equation
from cure_jax.regions import Interval, LpBall, Region, searches

__all__ = ["Ball", "ball_of", "box_of", "check_region", "minimum"]

# Multipliers below this share of the largest coefficient gain nothing.
_LEAST_MULTIPLIER = 2.0**-40


def check_region(region: Region) -> LpBall:
    """Refuses regions whose supports are not rounded here.

    Raises:
      ValueError: for anything but l_1, l_2 and l_inf balls.
    """
    if isinstance(region, LpBall) and region.p in (1, 2, float("inf")):
        return region
    kind = f"an l_{region.p} ball" if isinstance(region, LpBall) else type(region).__name__
    raise ValueError(
        f"arithmetic='outward' got {kind} as region; expected an l_1, l_2 or l_inf ball (cut by a box or not). Use "
        "one of these, or arithmetic='float32'."
    )


def box_of(region: LpBall) -> Interval:
    """A box that holds the region."""
    ball = around(region.center, region.radius)
    if region.lower is None or region.upper is None:
        return ball
    # Limits below the least normal number would count as 0.
    least = allowance(region.dtype)
    return ball.intersect(Interval(region.lower - least, region.upper + least))


def minimum(region: LpBall, coefficients: Coefficients) -> jax.Array:
    """The least value of a linear function on the region, or less."""
    box, value = box_of(region), coefficients.value if isinstance(coefficients, Window) else coefficients
    if isinstance(coefficients, Window):
        box, region = jax.tree.map(coefficients.cut, (box, region))
    ends = of_interval(box)
    least = lowered(inner(value, ends), ends.underflow)
    if region.p == float("inf"):
        return least
    center = of_interval(Interval(region.center, region.center))
    centered = lowered(inner(value, center) - _reach(region, value), center.underflow)
    # What is not a number is no bound.
    return jnp.fmax(least, centered)


def _reach(region: LpBall, value: jax.Array) -> jax.Array:
    """The greatest value of <-value, x - center> on a ball with p < inf, or more.

    Soundness:
      With s = |value| radius and the room of each coordinate in units of the radius, `cap`, the dual of
      `LpBall.support` at any multiplier; in units of the largest s, and with what underflows added at the end.
    """
    least, more = allowance(value.dtype), 1 + 8 * unit(value.dtype)
    radius = region.radius + least
    scaled = jnp.abs(value) * radius * more
    largest = jnp.max(scaled)
    # The reciprocal of a greater one may underflow.
    scale = jnp.where(largest < LARGEST, searches.positive(largest), jnp.inf)
    size = scaled / scale * more
    cap = _room(region, radius, value > 0)
    multiplier = jnp.maximum(_multiplier(size, cap, region), _LEAST_MULTIPLIER)
    # The multiplier enters once only: two computations of it might differ.
    if region.p == 1:
        terms = cap * jnp.maximum(size - multiplier, 0) + multiplier / size.size
    else:
        taken = jnp.minimum(size / multiplier, cap)
        terms = taken * (size - taken * multiplier / 2) + multiplier / (2 * size.size)
    error = gamma(steps_of_total(size.size), value.dtype)
    underflow = 8 * value.size * least * (1 + largest + jnp.max(radius))
    return scale * total(terms) * (1 + 2 * error) + underflow


def _room(region: LpBall, radius: jax.Array, down: jax.Array) -> jax.Array:
    """How far each pixel can go, in units of its radius: at most 1."""
    if region.lower is None or region.upper is None:
        return jnp.ones_like(radius)
    least, more = allowance(radius.dtype), 1 + 8 * unit(radius.dtype)
    room = jnp.where(down, region.center - region.lower, region.upper - region.center)
    return jnp.minimum((jnp.maximum(room, 0) * more + least) / radius * more, 1)


def _multiplier(size: jax.Array, cap: jax.Array, region: LpBall) -> jax.Array:
    """A multiplier that is about the best: from the maximiser, which is the derivative of the support."""
    if region.lower is None:
        return jnp.max(size) if region.p == 1 else jnp.sqrt(jnp.sum(jnp.square(size)))
    search = searches.knapsack if region.p == 1 else lambda size, cap: searches.water_filling(size, cap, 2.0)
    taken = jax.grad(search)(size, cap)
    free = taken < cap
    if region.p == 1:
        return jnp.max(jnp.where(free, size, 0))
    return jnp.sum(jnp.where(free, size * taken, 0)) / searches.positive(jnp.sum(jnp.where(free, taken**2, 0)))


class Ball(NamedTuple):
    """{center + radius * d + e : |d|_p <= 1, |e| <= error}, with e from rounding."""

    center: jax.Array
    radius: jax.Array
    error: jax.Array
    p: float

    def through(self, equation: Equation, rule: rules.Affine) -> "Ball | None":
        """The image under a diagonal map; under a product or convolution, a box around it; None for any other map."""
        if not rule.diagonal and equation.name not in ("dot_general", "conv_general_dilated"):
            return None
        error = error_of(equation)
        moved = image(equation, rule, self.error + kept(error * jnp.abs(self.center)))
        if rule.offset:
            moved = moved + kept(error * jnp.abs(constant_of(equation)))
        radius = image(equation, rule, self.radius) if rule.diagonal else _row_norms(equation, rule, self)
        return Ball(equation.evaluate(self.center), radius, moved, self.p)

    def box(self) -> Interval:
        """A box that holds it."""
        return around(self.center, self.radius + self.error)


def _row_norms(equation: Equation, rule: rules.Affine, ball: Ball) -> jax.Array:
    """The dual norms of the rows of W diag(radius), or more."""
    least, more = allowance(ball.radius.dtype), 1 + 8 * unit(ball.radius.dtype)
    count, largest = TERMS[equation.name](equation).forward, jnp.max(ball.radius)
    if ball.p == 1:
        return rule.magnitude(equation, float("inf"), ball.radius + least) * more + 8 * least * (1 + largest)
    # Squares of radii must not underflow; those of weights do, which the last term makes up for.
    squares = equation.replace_constants(jnp.square).evaluate(jnp.square(ball.radius + least**0.5))
    squares = squares * (1 + 2 * error_of(equation)) + 8 * count * least * (1 + largest) ** 2
    return jnp.sqrt(squares) * more


def ball_of(region: LpBall) -> Ball | None:
    """The ball that an l_1 or l_2 region is cut from; a box gains nothing from being one."""
    if region.p == float("inf"):
        return None
    return Ball(region.center, region.radius, jnp.zeros_like(region.radius), region.p)
