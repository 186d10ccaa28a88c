"""Objectives between an attack and a bound.

Sources: small boxes: Mueller et al., "Certified Training: Small Boxes are All You Need" (SABR), ICLR 2023; CC-IBP,
MTL-IBP, Exp-IBP: De Palma et al., "Expressive Losses for Verified Robustness via Convex Combinations", ICLR 2024;
distilled: "Improving Certified Robustness via Adversarial Distillation" (AD-CERT), arXiv 2606.31653.
"""

import jax
import jax.numpy as jnp
import optax

from cure_jax.certification.margins import margins
from cure_jax.regions import linf_ball
from cure_jax.training.objectives.objective import (
    LEAST_HALF_WIDTH,
    Ball,
    Network,
    Objective,
    Worst,
    attacked_point,
    cross_entropy,
    grown,
    propagated,
    worst_logits,
)

__all__ = ["COMBINATIONS", "distilled", "expressive", "small_box"]

# Of an attacked and a bounded side: of their logits, of their losses, of the logarithms of their losses.
COMBINATIONS = ("cc", "mtl", "exp")

_LEAST_LOSS = 1e-12


def small_box(  # noqa: PLR0913  (a box has many sides)
    ball: Ball,
    eps: float,
    *,
    ratio: float,
    steps: int = 8,
    inside: bool = False,
    shrinking: float = 0.0,
    attack_eps: float | None = None,
) -> Objective:
    """SABR: IBP over a small box around an adversarial example, shifted into the bounding box of the ball.

    Args:
      ball: `(x, radius) -> region`.
      eps: radius at the end of the ramp.
      ratio: lambda, the half-width of the small box as a fraction of the radius; 0 is PGD training, 1 (l_inf) IBP.
      steps: of the attack.
      inside: cut the half-width so that the small box stays inside the bounding box where that is narrower (black and
        white pixels); as published, it sticks out there up to the pixel range.
      shrinking: of ReLUs, see `ibp_margins_in_training`.
      attack_eps: radius of the attack at the end of the ramp, in whose box the small one stays; `eps` if None.
    """
    attacked = eps if attack_eps is None else attack_eps

    def objective(network: Network, x: jax.Array, label: jax.Array, scale: jax.Array, key: jax.Array) -> Worst:
        # While the radius is 0: the least box around the example itself.
        region = grown(ball, x, attacked * scale)
        found = attacked_point(network, x, label, region, key, steps)
        hull = region.bounding_box()
        # On the ramp never so narrow that the box, and what the regulariser sees of it, is rounding.
        width = ratio * eps * scale
        half_width = jnp.full(x.shape, jnp.where(scale < 1, jnp.maximum(width, LEAST_HALF_WIDTH), width), x.dtype)
        if inside:
            half_width = jnp.minimum(half_width, hull.radius)
        # Where the limits cross, the upper one wins.
        center = jnp.minimum(jnp.maximum(found, hull.lower + half_width), hull.upper - half_width)
        within = None if region.lower is None or region.upper is None else (region.lower, region.upper)
        return propagated(network, linf_ball(center, half_width, within=within), label, shrinking)

    return objective


def expressive(
    ball: Ball,
    eps: float,
    *,
    combination: str = "mtl",
    alpha: float = 0.1,
    steps: int = 8,
    attack_eps: float | None = None,
) -> Objective:
    """CC-IBP, MTL-IBP, Exp-IBP: between an attack and a bound, by one number.

    With z the logits under attack and w those that IBP bounds, L the cross-entropy:
    "cc": L((1 - alpha) z + alpha w); "mtl": (1 - alpha) L(z) + alpha L(w); "exp": L(z)^(1 - alpha) L(w)^alpha.

    Args:
      ball: `(x, radius) -> region`; bounded as a whole.
      eps: radius at the end of the ramp.
      combination: of what.
      alpha: 0 is PGD training, 1 is IBP.
      steps: of the attack.
      attack_eps: radius of the attack at the end of the ramp; `eps` if None. De Palma et al. attack twice the radius
        that they bound on CIFAR-10 at 2/255.

    Raises:
      ValueError: for an unknown combination.
    """
    if combination not in COMBINATIONS:
        raise ValueError(f"Unknown combination {combination!r}; expected one of {', '.join(COMBINATIONS)}.")
    attacked_eps = eps if attack_eps is None else attack_eps

    def objective(network: Network, x: jax.Array, label: jax.Array, scale: jax.Array, key: jax.Array) -> Worst:
        found = attacked_point(network, x, label, grown(ball, x, attacked_eps * scale), key, steps)
        attacked = worst_logits(margins(network.certified, label)(found), label)
        bounded = propagated(network, grown(ball, x, eps * scale), label)
        if combination == "cc":
            return Worst((1 - alpha) * attacked + alpha * bounded.logits, bounded.layers)
        sides = cross_entropy(attacked, label), cross_entropy(bounded.logits, label)
        if combination == "mtl":
            loss = (1 - alpha) * sides[0] + alpha * sides[1]
        else:
            # By logarithms, kept away from that of 0.
            low, high = (jnp.log(jnp.maximum(side, _LEAST_LOSS)) for side in sides)
            loss = jnp.exp((1 - alpha) * low + alpha * high)
        return Worst(bounded.logits, bounded.layers, loss)

    return objective


def distilled(
    ball: Ball, eps: float, *, alpha: float = 0.1, steps: int = 8, attack_eps: float | None = None
) -> Objective:
    r"""AD-CERT: MTL-IBP whose attacked side learns the logits of a robust teacher instead of the label.

    With x' what an attack on the network finds, T and F the softmax of the teacher and of the network, and w the logits
    that IBP bounds, the loss is

    .. math::

      (1 - \alpha) \, KL(T(x') \| F(x')) + \alpha \, L(w) ,

    where L is the cross-entropy with the label.

    Args:
      ball: `(x, radius) -> region`; bounded as a whole.
      eps: radius at the end of the ramp.
      alpha: 0 is distillation alone, 1 is IBP.
      steps: of the attack.
      attack_eps: radius of the attack at the end of the ramp; `eps` if None.

    References:
      `Improving Certified Robustness via Adversarial Distillation <https://arxiv.org/abs/2606.31653>`_, 2026
    """
    attacked_eps = eps if attack_eps is None else attack_eps

    def objective(network: Network, x: jax.Array, label: jax.Array, scale: jax.Array, key: jax.Array) -> Worst:
        if network.teacher is None:
            raise ValueError(
                "The distilled objective got a network without a teacher; expected Network(teacher=...), a function of "
                "one example that returns logits."
            )
        found = attacked_point(network, x, label, grown(ball, x, attacked_eps * scale), key, steps)
        taught = jax.lax.stop_gradient(jax.nn.log_softmax(network.teacher(found)))
        learned = jax.nn.log_softmax(network.certified(found))
        divergence = optax.losses.kl_divergence_with_log_targets(learned, taught)
        bounded = propagated(network, grown(ball, x, eps * scale), label)
        loss = (1 - alpha) * divergence + alpha * cross_entropy(bounded.logits, label)
        return Worst(bounded.logits, bounded.layers, loss)

    return objective
