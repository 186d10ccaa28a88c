"""Elementwise nonlinearities: ReLU and its relatives.

ReLU reaches this table as `max(x, 0)`. Everything here is derived from two facts about a pre-activation in
[lower, upper]: `relu` lies above alpha * x for every alpha in [0, 1], and below the chord through its end points.
Source: Zhang et al., "Efficient Neural Network Robustness Certification with General Activation Functions" (CROWN),
NeurIPS 2018, Table 2; Xu et al., "Fast and Complete" (alpha-CROWN), ICLR 2021, Lemma 2.1 for free alpha.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from cure_jax.graph import Equation, Node
from cure_jax.regions import Interval
from cure_jax.rules.registry import LinearMap, Nonlinear, Relaxation, register

__all__ = ["relu_slopes"]


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
    active, inactive = lower >= 0, upper <= 0
    unstable = ~(active | inactive)
    if alpha is None:
        alpha = (upper > -lower).astype(lower.dtype)
    chord = upper / jnp.where(unstable, upper - lower, 1)
    stable_slope = active.astype(lower.dtype)
    lower_slope = jnp.where(unstable, alpha, stable_slope)
    upper_slope = jnp.where(unstable, chord, stable_slope)
    return lower_slope, upper_slope, jnp.where(unstable, -chord * lower, 0)


def _scaled(slope: jax.Array, intercept: jax.Array) -> LinearMap:
    return LinearMap(lambda coefficients: (coefficients * slope,), intercept)


def _constant_of(equation: Equation) -> jax.Array:
    (constant,) = (operand for operand in equation.operands if not isinstance(operand, Node))
    return jnp.broadcast_to(constant, equation.output.shape)


def _monotone(equation: Equation, *intervals: Interval) -> Interval:
    """Non-decreasing in every bounded operand."""
    return Interval(
        equation.evaluate(*(interval.lower for interval in intervals)),
        equation.evaluate(*(interval.upper for interval in intervals)),
    )


def _relax_max_constant(equation: Equation, intervals: Sequence[Interval], alpha: jax.Array | None) -> Relaxation:
    """max(x, c) = c + relu(x - c)."""
    constant = _constant_of(equation)
    (x,) = intervals
    lower_slope, upper_slope, intercept = relu_slopes(x.lower - constant, x.upper - constant, alpha)
    return Relaxation(
        _scaled(lower_slope, (1 - lower_slope) * constant),
        _scaled(upper_slope, (1 - upper_slope) * constant + intercept),
    )


def _relax_min_constant(equation: Equation, intervals: Sequence[Interval], alpha: jax.Array | None) -> Relaxation:
    """min(x, c) = c - relu(c - x)."""
    constant = _constant_of(equation)
    (x,) = intervals
    lower_slope, upper_slope, intercept = relu_slopes(constant - x.upper, constant - x.lower, alpha)
    return Relaxation(
        _scaled(upper_slope, (1 - upper_slope) * constant - intercept),
        _scaled(lower_slope, (1 - lower_slope) * constant),
    )


def _relax_max_pair(equation: Equation, intervals: Sequence[Interval], alpha: jax.Array | None) -> Relaxation:
    """max(x, y) = y + relu(x - y)."""
    x, y = intervals
    lower_slope, upper_slope, intercept = relu_slopes(x.lower - y.upper, x.upper - y.lower, alpha)
    return Relaxation(_mixed(lower_slope, jnp.zeros_like(intercept)), _mixed(upper_slope, intercept))


def _relax_min_pair(equation: Equation, intervals: Sequence[Interval], alpha: jax.Array | None) -> Relaxation:
    """min(x, y) = x - relu(x - y)."""
    x, y = intervals
    lower_slope, upper_slope, intercept = relu_slopes(x.lower - y.upper, x.upper - y.lower, alpha)
    return Relaxation(_mixed(1 - upper_slope, -intercept), _mixed(1 - lower_slope, jnp.zeros_like(intercept)))


def _mixed(weight: jax.Array, intercept: jax.Array) -> LinearMap:
    """Weight * x + (1 - weight) * y + intercept."""
    return LinearMap(lambda coefficients: (coefficients * weight, coefficients * (1 - weight)), intercept)


def _abs_interval(equation: Equation, x: Interval) -> Interval:
    del equation
    nearest = jnp.maximum(jnp.maximum(x.lower, -x.upper), 0)
    return Interval(nearest, jnp.maximum(-x.lower, x.upper))


def _relax_abs(equation: Equation, intervals: Sequence[Interval], alpha: jax.Array | None) -> Relaxation:
    """|x| = 2 relu(x) - x."""
    del equation
    (x,) = intervals
    lower_slope, upper_slope, intercept = relu_slopes(x.lower, x.upper, alpha)
    return Relaxation(
        _scaled(2 * lower_slope - 1, jnp.zeros_like(intercept)), _scaled(2 * upper_slope - 1, 2 * intercept)
    )


def _contraction(equation: Equation) -> float:
    """No element moves further than its operands do."""
    del equation
    return 1.0


def _one_bounded(equation: Equation) -> bool:
    return len(equation.bounded) == 1


def _two_bounded(equation: Equation) -> bool:
    return len(equation.bounded) == 2


register("max", Nonlinear(_monotone, _relax_max_constant, _contraction), when=_one_bounded)
register("max", Nonlinear(_monotone, _relax_max_pair, _contraction), when=_two_bounded)
register("min", Nonlinear(_monotone, _relax_min_constant, _contraction), when=_one_bounded)
register("min", Nonlinear(_monotone, _relax_min_pair, _contraction), when=_two_bounded)
register("abs", Nonlinear(_abs_interval, _relax_abs, _contraction))
