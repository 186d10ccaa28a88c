"""Schedules of a training run: functions of the step, which may be a Python integer or a traced array."""

import itertools
from collections.abc import Sequence

import jax.numpy as jnp
import optax
from jax.typing import ArrayLike
from jaxtyping import Scalar

# The power of the ramp and the fraction of it after which the straight line begins, as in auto_LiRPA.
_RAMP_POWER = 4
_RAMP_TURN = 0.25


def exponential_ramp(start_step: int, end_step: int) -> optax.Schedule:
    r"""Ramp of the perturbation radius from 0 to 1: slow at first as a power, then a straight line.

    With :math:`t` the fraction of the ramp that has passed,

    .. math::

      r(t) =
      \begin{cases}
        a \, t^4 & t \le 1/4, \\
        a \, (1/4)^4 + 4 \, a \, (1/4)^3 \, (t - 1/4) & t > 1/4,
      \end{cases}
      \qquad a = \frac{1}{(1/4)^4 + (3/4) \cdot 4 \, (1/4)^3} ,

    0 before the ramp and 1 after it. Value and slope are continuous at :math:`t = 1/4`.

    Args:
      start_step: The last step with value 0.
      end_step: The first step with value 1. If equal to `start_step`, that step has value 1.

    Returns:
      A function of the step whose values, scalars in [0, 1], multiply the final radius.

    Raises:
      ValueError: If the ramp ends before it starts.

    Examples:
      >>> ramp = exponential_ramp(100, 200)
      >>> [round(float(ramp(step)), 3) for step in (0, 100, 110, 125, 150, 200, 999)]
      [0.0, 0.0, 0.002, 0.077, 0.385, 1.0, 1.0]

    References:
      Xu et al., `Automatic Perturbation Analysis for Scalable Certified Robustness and Beyond
      <https://arxiv.org/abs/2002.12920>`_, 2020 (the smoothed scheduler of its code, auto_LiRPA)
    """
    if end_step < start_step:
        raise ValueError(
            f"exponential_ramp got start_step={start_step} and end_step={end_step}; an end not before the start was "
            "expected. Exchange them, or pass the same step twice for a jump."
        )
    slope = _RAMP_POWER * _RAMP_TURN ** (_RAMP_POWER - 1)
    scale = 1 / (_RAMP_TURN**_RAMP_POWER + (1 - _RAMP_TURN) * slope)

    def schedule(step: ArrayLike) -> Scalar:
        # Differences of integers are exact; float32 steps would not be, late in a long run.
        passed = (jnp.asarray(step) - start_step).astype(float)
        t = jnp.clip(passed / max(end_step - start_step, 1), 0, 1)
        power = scale * t**_RAMP_POWER
        # Written from the end of the ramp, where the line is exactly 1.
        line = 1 - scale * slope * (1 - t)
        value = jnp.where(t <= _RAMP_TURN, power, line)
        return jnp.where(jnp.asarray(step) >= end_step, 1, value)

    return schedule


def natural_weight(end_step: int, ramp_steps: int = 0, final: float = 0.0) -> optax.Schedule:
    r"""Weight :math:`\kappa` of the natural loss during the warm-up of certified training.

    The training loss is :math:`(1 - \kappa) \, L_\mathrm{certified} + \kappa \, L_\mathrm{natural}`. The weight is 1
    before `end_step` and `final` from there on, or from there on falls along a straight line to `final`.

    Args:
      end_step: The first step after the natural warm-up; 0 for none.
      ramp_steps: The number of steps after `end_step` in which the weight falls; 0 for a jump.
      final: The weight that stays, in [0, 1].

    Returns:
      A function of the step whose values are scalars in [0, 1].

    Raises:
      ValueError: If a number of steps is negative, or the final weight outside of [0, 1].

    Examples:
      >>> weight = natural_weight(10, ramp_steps=4)
      >>> [float(weight(step)) for step in (0, 9, 10, 11, 14, 99)]
      [1.0, 1.0, 1.0, 0.75, 0.0, 0.0]

    References:
      Gowal et al., `On the Effectiveness of Interval Bound Propagation for Training Verifiably Robust Models
      <https://arxiv.org/abs/1810.12715>`_, 2018
    """
    if end_step < 0 or ramp_steps < 0:
        raise ValueError(
            f"natural_weight got end_step={end_step} and ramp_steps={ramp_steps}; non-negative numbers of steps were "
            "expected. Pass 0 for no warm-up or no ramp."
        )

    if not 0 <= final <= 1:
        raise ValueError(f"natural_weight got final={final}; a weight in [0, 1] was expected. Pass 0 for none.")

    def schedule(step: ArrayLike) -> Scalar:
        passed = jnp.asarray(step) - end_step
        ramp = jnp.clip(1 - (1 - final) * passed.astype(float) / max(ramp_steps, 1), final, 1)
        return jnp.where(passed >= ramp_steps, final, jnp.where(passed < 0, 1, ramp))

    return schedule


def milestones(learning_rate: float, steps: Sequence[int], factor: float = 0.2) -> optax.Schedule:
    """Learning rate that is multiplied by a factor at each of some steps.

    Args:
      learning_rate: The learning rate before the first milestone.
      steps: The milestones, increasing; the new rate holds from the milestone on. May be empty.
      factor: The factor by which every milestone multiplies the rate.

    Returns:
      A function of the step whose values are scalars.

    Raises:
      ValueError: If the milestones do not increase.

    Examples:
      >>> rate = milestones(0.5, [10, 20])
      >>> [round(float(rate(step)), 4) for step in (0, 9, 10, 20)]
      [0.5, 0.5, 0.1, 0.02]
    """
    if any(later <= earlier for earlier, later in itertools.pairwise(steps)):
        raise ValueError(
            f"milestones got the steps {list(steps)}; strictly increasing ones were expected. "
            "Sort them and drop repeated ones."
        )
    schedule = optax.piecewise_constant_schedule(learning_rate, dict.fromkeys(map(int, steps), factor))
    # As a float, so that optax mixes no dtypes.
    return lambda step: schedule(jnp.asarray(step).astype(float))


def cosine(learning_rate: float, steps: int) -> optax.Schedule:
    """Learning rate that falls to 0 along half a cosine.

    Args:
      learning_rate: The learning rate of step 0.
      steps: The first step with rate 0; at least 1.

    Returns:
      A function of the step whose values are scalars.

    Raises:
      ValueError: If the number of steps is not positive.

    Examples:
      >>> rate = cosine(0.5, 30)
      >>> [round(float(rate(step)), 4) for step in (0, 10, 15, 30)]
      [0.5, 0.375, 0.25, 0.0]

    References:
      Loshchilov & Hutter, `SGDR: Stochastic Gradient Descent with Warm Restarts
      <https://arxiv.org/abs/1608.03983>`_, ICLR 2017, Eq. 5
    """
    schedule = optax.cosine_decay_schedule(learning_rate, steps)
    return lambda step: schedule(jnp.asarray(step).astype(float))


def warmup(schedule: optax.Schedule, steps: int) -> optax.Schedule:
    """A schedule that rises to its values along a straight line: its value times min(1, (step + 1) / steps).

    Args:
      schedule: A function of the step.
      steps: The number of steps after which it is left as it is; 0 for none.

    Returns:
      A function of the step whose values are scalars.

    Raises:
      ValueError: If the number of steps is negative.

    Examples:
      >>> rate = warmup(milestones(0.5, [10], 0.1), 4)
      >>> [round(float(rate(step)), 4) for step in (0, 1, 3, 9, 10)]
      [0.125, 0.25, 0.5, 0.5, 0.05]
    """
    if steps < 0:
        raise ValueError(f"warmup got {steps} steps; a non-negative number was expected. Pass 0 for no warm-up.")
    if steps == 0:
        return schedule
    return lambda step: schedule(step) * jnp.minimum((jnp.asarray(step) + 1).astype(float) / steps, 1)
