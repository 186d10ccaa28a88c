"""Elementwise nonlinearities of straight pieces: ReLU and its relatives.

ReLU reaches this table as `max(x, 0)`. Everything here is derived from two facts about a pre-activation in
[lower, upper]: `relu` lies above alpha * x for every alpha in [0, 1], and below the chord through its end points.
Source: Zhang et al., "Efficient Neural Network Robustness Certification with General Activation Functions" (CROWN),
NeurIPS 2018, Table 2; Xu et al., "Fast and Complete" (alpha-CROWN), ICLR 2021, Lemma 2.1 for free alpha.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from cure_jax.graph import Equation
from cure_jax.regions import Interval
from cure_jax.rules.registry import LinearMap, Nonlinear, Relaxation, elementwise_map, register

__all__ = ["piece", "relu_slopes", "two_pieces"]

_NARROWEST = 1e-16


def relu_slopes(lower: jax.Array, upper: jax.Array, alpha: jax.Array | None) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The two lines that enclose relu on [lower, upper].

    Args:
      lower: `[*node]`.
      upper: `[*node]`.
      alpha: slope below where the sign is not known, in [0, 1]; None takes 1 where upper > -lower and 0 elsewhere,
        which minimises the area between the lines (CROWN).

    Returns:
      `(lower_slope, upper_slope, upper_intercept)`: `lower_slope * x <= relu(x) <= upper_slope * x + upper_intercept`.

    Soundness:
      For every x in [lower, upper], every alpha in [0, 1], in real arithmetic.
    """
    active, unstable = lower >= 0, _unstable(lower, upper)
    if alpha is None:
        alpha = _least_area(lower, upper)
    # Of boxes so wide that their width overflows, the quarters; in those so narrow that the derivative of the chord
    # overflows, x - lower serves as well.
    scale = jnp.where(jnp.maximum(upper, -lower) > jnp.finfo(lower.dtype).max / 4, 0.25, 1).astype(lower.dtype)
    width = scale * upper - scale * lower
    wide = unstable & (width > _NARROWEST)
    chord = jnp.where(wide, scale * upper / jnp.where(wide, width, 1), 1)
    # What the line leaves at the upper end, where the chord is so flat that it counts as 0.
    rest = jnp.where(wide, -scale * lower / jnp.where(wide, width, 1), 0)
    at_lower, at_upper = -chord * lower, rest * upper
    intercept = jnp.where(at_upper > at_lower, at_upper, at_lower)
    stable_slope = active.astype(lower.dtype)
    lower_slope = jnp.where(unstable, alpha, stable_slope)
    upper_slope = jnp.where(unstable, chord, stable_slope)
    return lower_slope, upper_slope, jnp.where(unstable, intercept, 0)


def two_pieces(equation: Equation) -> tuple[jax.Array, tuple[jax.Array, jax.Array]] | None:
    """Kink and slopes of an elementwise function of two straight pieces; its value at the kink is the kink itself."""
    zero, one = jnp.zeros((), equation.output.dtype), jnp.ones((), equation.output.dtype)
    if equation.name == "abs":
        return equation.output.zeros(), (-one, one)
    if equation.name == "leaky_relu":
        return equation.output.zeros(), (_negative_slope(equation), one)
    if equation.name not in ("max", "min") or not _one_bounded(equation):
        return None
    values = _constant_of(equation)
    # The maximum with -inf and the minimum with +inf are their operand; softmax takes the first.
    neutral = values == (-math.inf if equation.name == "max" else math.inf)
    flat, kink = jnp.where(neutral, one, zero), jnp.where(neutral, 0, values)
    return kink, (flat, one) if equation.name == "max" else (one, flat)


def piece(kink: jax.Array, slope: jax.Array, x: jax.Array) -> jax.Array:
    """The straight piece of a slope at x; its value at the kink is the kink itself, as `two_pieces` has it.

    With slope 1 it is x, with slope 0 the kink, without rounding: of `kink + slope * (x - kink)` nothing is left of x
    where the kink is as far away as that of `jnp.maximum(x, -1e9)`.
    """
    return kink * (1 - slope) + slope * x


def _unstable(lower: jax.Array, upper: jax.Array) -> jax.Array:
    """Where the sign is not known."""
    return ~((lower >= 0) | (upper <= 0))


def _least_area(lower: jax.Array, upper: jax.Array) -> jax.Array:
    return (upper > -lower).astype(lower.dtype)


def _scaled(slope: jax.Array, intercept: jax.Array) -> LinearMap:
    return elementwise_map((slope,), intercept)


def _constant_of(equation: Equation) -> jax.Array:
    (constant,) = equation.constants
    return jnp.broadcast_to(constant, equation.output.shape)


def _share(weight: jax.Array, constant: jax.Array, neutral: float) -> jax.Array:
    """`weight * constant`, 0 for the neutral element of a maximum or minimum: softmax takes `max(x, -inf)`."""
    return weight * jnp.where(constant == neutral, 0, constant)


def _unless_infinite(difference: jax.Array, constant: jax.Array) -> jax.Array:
    """The maximum with -inf, or the minimum with +inf, is the operand, even where that is infinite too."""
    return jnp.where(jnp.isinf(constant), constant, difference)


def _monotone(equation: Equation, *intervals: Interval) -> Interval:
    """Non-decreasing in every bounded operand."""
    return Interval(
        equation.evaluate(*(interval.lower for interval in intervals)),
        equation.evaluate(*(interval.upper for interval in intervals)),
    )


def _mixed(weight: jax.Array, intercept: jax.Array) -> LinearMap:
    """Weight * x + (1 - weight) * y + intercept."""
    return elementwise_map((weight, 1 - weight), intercept)


def _abs_interval(equation: Equation, x: Interval) -> Interval:
    del equation
    nearest = jnp.maximum(jnp.maximum(x.lower, -x.upper), 0)
    return Interval(nearest, jnp.maximum(-x.lower, x.upper))


def _contraction(equation: Equation) -> float:
    """No element moves further than its operands do."""
    del equation
    return 1.0


def _one_bounded(equation: Equation) -> bool:
    return len(equation.bounded) == 1


def _two_bounded(equation: Equation) -> bool:
    return len(equation.bounded) == 2


class _ByRelu(NamedTuple):
    """A function written as an affine function of its operands and of relu of another affine function of them.

    Attributes:
      argument: `(equation, intervals) -> (lower, upper)` of what relu is taken of, `[*output]`.
      lines: `(equation, lower_slope, upper_slope, upper_intercept) -> Relaxation`, from the two lines of relu.
    """

    argument: Callable[[Equation, Sequence[Interval]], tuple[jax.Array, jax.Array]]
    lines: Callable[[Equation, jax.Array, jax.Array, jax.Array], Relaxation]

    def rule(
        self, interval: Callable[..., Interval], lipschitz: Callable[[Equation], float | jax.Array] = _contraction
    ) -> Nonlinear:
        return Nonlinear(interval, self.relax, lipschitz, self.start, self.undecided, blends=True)

    def relax(self, equation: Equation, intervals: Sequence[Interval], alpha: jax.Array | None) -> Relaxation:
        return self.lines(equation, *relu_slopes(*self.argument(equation, intervals), alpha))

    def start(self, equation: Equation, intervals: Sequence[Interval]) -> jax.Array:
        return _least_area(*self.argument(equation, intervals))

    def undecided(self, equation: Equation, intervals: Sequence[Interval]) -> tuple[jax.Array, ...]:
        return (_unstable(*self.argument(equation, intervals)),) * len(intervals)


def _max_constant(equation: Equation, below: jax.Array, above: jax.Array, intercept: jax.Array) -> Relaxation:
    """max(x, c) = c + relu(x - c)."""
    lower, upper = (_share(1 - slope, _constant_of(equation), -math.inf) for slope in (below, above))
    return Relaxation(_scaled(below, lower), _scaled(above, upper + intercept))


def _min_constant(equation: Equation, below: jax.Array, above: jax.Array, intercept: jax.Array) -> Relaxation:
    """min(x, c) = c - relu(c - x)."""
    lower, upper = (_share(1 - slope, _constant_of(equation), math.inf) for slope in (above, below))
    return Relaxation(_scaled(above, lower - intercept), _scaled(below, upper))


def _max_pair(equation: Equation, below: jax.Array, above: jax.Array, intercept: jax.Array) -> Relaxation:
    """max(x, y) = y + relu(x - y)."""
    del equation
    return Relaxation(_mixed(below, jnp.zeros_like(intercept)), _mixed(above, intercept))


def _min_pair(equation: Equation, below: jax.Array, above: jax.Array, intercept: jax.Array) -> Relaxation:
    """min(x, y) = x - relu(x - y)."""
    del equation
    return Relaxation(_mixed(1 - above, -intercept), _mixed(1 - below, jnp.zeros_like(intercept)))


def _abs(equation: Equation, below: jax.Array, above: jax.Array, intercept: jax.Array) -> Relaxation:
    """|x| = 2 relu(x) - x."""
    del equation
    return Relaxation(_scaled(2 * below - 1, jnp.zeros_like(intercept)), _scaled(2 * above - 1, 2 * intercept))


def _negative_slope(equation: Equation) -> jax.Array:
    """The slope of leaky ReLU where x < 0: its value at -1 is minus that."""
    return -equation.evaluate(-jnp.ones(equation.bounded[0].shape, equation.bounded[0].dtype))


def _leaky(equation: Equation, below: jax.Array, above: jax.Array, intercept: jax.Array) -> Relaxation:
    """Leaky ReLU is a x + (1 - a) relu(x); the lines of relu change places where 1 - a is negative."""
    slope = _negative_slope(equation)
    rest = 1 - slope

    def mixed(share: jax.Array) -> jax.Array:
        """Slope + rest * share, but exact for shares 0 and 1: of 1 nothing is left beside a slope of 1e8."""
        return share + slope * (1 - share)

    lines = _scaled(mixed(below), jnp.zeros_like(intercept)), _scaled(mixed(above), rest * intercept)
    swapped = rest < 0

    def line(first: LinearMap, second: LinearMap) -> LinearMap:
        assert first.slopes is not None
        assert second.slopes is not None
        return _scaled(
            jnp.where(swapped, second.slopes[0], first.slopes[0]), jnp.where(swapped, second.intercept, first.intercept)
        )

    return Relaxation(line(*lines), line(*lines[::-1]))


def _leaky_interval(equation: Equation, x: Interval) -> Interval:
    """A function of two straight pieces takes its extrema at the ends and at the kink."""
    values = jnp.stack([equation.evaluate(point) for point in (x.lower, x.upper, jnp.clip(0, x.lower, x.upper))])
    return Interval(jnp.min(values, axis=0), jnp.max(values, axis=0))


def _leaky_lipschitz(equation: Equation) -> jax.Array:
    return jnp.maximum(1, jnp.max(jnp.abs(_negative_slope(equation))))


def _itself(equation: Equation, intervals: Sequence[Interval]) -> tuple[jax.Array, jax.Array]:
    del equation
    (x,) = intervals
    return x.lower, x.upper


def _minus_constant(equation: Equation, intervals: Sequence[Interval]) -> tuple[jax.Array, jax.Array]:
    (x,), constant = intervals, _constant_of(equation)
    return _unless_infinite(x.lower - constant, -constant), _unless_infinite(x.upper - constant, -constant)


def _constant_minus(equation: Equation, intervals: Sequence[Interval]) -> tuple[jax.Array, jax.Array]:
    (x,), constant = intervals, _constant_of(equation)
    return _unless_infinite(constant - x.upper, constant), _unless_infinite(constant - x.lower, constant)


def _difference(equation: Equation, intervals: Sequence[Interval]) -> tuple[jax.Array, jax.Array]:
    del equation
    x, y = intervals
    return x.lower - y.upper, x.upper - y.lower


register("max", _ByRelu(_minus_constant, _max_constant).rule(_monotone), when=_one_bounded)
register("max", _ByRelu(_difference, _max_pair).rule(_monotone), when=_two_bounded)
register("min", _ByRelu(_constant_minus, _min_constant).rule(_monotone), when=_one_bounded)
register("min", _ByRelu(_difference, _min_pair).rule(_monotone), when=_two_bounded)
register("abs", _ByRelu(_itself, _abs).rule(_abs_interval))
register("leaky_relu", _ByRelu(_itself, _leaky).rule(_leaky_interval, _leaky_lipschitz))
