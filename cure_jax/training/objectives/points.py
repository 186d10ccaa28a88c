"""Objectives at points: the example itself, an adversarial one, noisy views of it.

Sources: PGD training: Madry et al., ICLR 2018; noise: Cohen et al., ICML 2019, and Jeong & Shin, NeurIPS 2020.
"""

import math

import jax
import jax.numpy as jnp

from cure_jax.certification.margins import margins
from cure_jax.smoothing import Noise
from cure_jax.training.objectives.objective import Ball, Network, Objective, Worst, attacked_point, worst_logits

__all__ = ["adversarial", "natural", "noisy"]


def natural() -> Objective:
    """No perturbation: the margins at the example itself."""

    def objective(network: Network, x: jax.Array, label: jax.Array, scale: jax.Array, key: jax.Array) -> Worst:
        del scale, key
        return Worst(worst_logits(margins(network.certified, label)(x), label))

    return objective


def adversarial(ball: Ball, eps: float, *, steps: int = 8) -> Objective:
    """PGD training: the margins at an adversarial example.

    Args:
      ball: `(x, radius) -> region`, for example `functools.partial(l2_ball, within=(0.0, 1.0))`.
      eps: radius at the end of the ramp.
      steps: of the attack.
    """

    def objective(network: Network, x: jax.Array, label: jax.Array, scale: jax.Array, key: jax.Array) -> Worst:
        found = attacked_point(network, x, label, ball(x, eps * scale), key, steps)
        return Worst(worst_logits(margins(network.certified, label)(found), label))

    return objective


def noisy(noise: Noise, *, samples: int = 1, consistency: float | int = 0.0, entropy: float | int = 0.5) -> Objective:
    r"""Training of the base classifier of a smoothed one: on noisy views, that are to be classified alike.

    With F_i the softmax of the logits of view i of m, and F their mean, the loss is

    .. math::

      \frac{1}{m} \sum_i \left( -\log F_i(y) + \lambda \, KL(F \| F_i) \right) + \eta \, H(F) ,

    where H is the entropy; lambda = 0 leaves noise augmentation, without eta too. On the ramp the noise is scaled.

    Args:
      noise: of the smoothed classifier, from `cure_jax.smoothing`; images are rounded to its grid.
      samples: m, views of each example.
      consistency: lambda; needs two views or more.
      entropy: eta, where lambda is not 0.

    Raises:
      ValueError: for no view, one view with a consistency, or a negative weight.

    References:
      Cohen et al., ICML 2019, Section 3.3 (augmentation); Jeong and Shin, `Consistency Regularization for Certified
      Robustness of Smoothed Classifiers <https://arxiv.org/abs/2006.04062>`_, NeurIPS 2020, Section 3.2
    """
    if samples < 1 or not (consistency >= 0 and entropy >= 0) or (consistency and samples < 2):
        raise ValueError(
            f"noisy got samples={samples}, consistency={consistency}, entropy={entropy}; expected at least one view, "
            "two for a consistency, and weights of at least 0. Correct them."
        )

    def objective(network: Network, x: jax.Array, label: jax.Array, scale: jax.Array, key: jax.Array) -> Worst:
        image = jnp.rint(x * noise.levels).astype(jnp.int32)

        def view(key: jax.Array) -> jax.Array:
            return network.certified(x + scale * (noise.sample(image, key).astype(x.dtype) - x))

        logits = jax.vmap(view)(jax.random.split(key, samples))
        own = jnp.arange(logits.shape[1]) == label
        by_view = jax.nn.log_softmax(logits)
        loss = -jnp.mean(jax.vmap(lambda view: jnp.sum(jnp.where(own, view, 0.0)))(by_view))
        if consistency:
            log_mean = jax.nn.logsumexp(by_view, axis=0) - math.log(samples)
            divergences = jax.vmap(lambda view: jnp.sum(jnp.exp(log_mean) * (log_mean - view)))(by_view)
            loss = loss + consistency * jnp.mean(divergences) - entropy * jnp.sum(jnp.exp(log_mean) * log_mean)
        # Of the mean of the logits: for metrics alone.
        center = jnp.mean(logits, axis=0)
        return Worst(center - jnp.sum(jnp.where(own, center, 0.0)), loss=loss)

    return objective
