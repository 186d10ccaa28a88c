"""Objectives that bound a whole region, or a ball of a fraction of its radius.

Sources: IBP: Gowal et al., 2018; dual norm: Wong & Kolter, ICML 2018; box and ball: Lee et al., NeurIPS 2020;
CROWN-IBP: Zhang et al., ICLR 2020; Lipschitz margin: Leino et al. (GloRo), ICML 2021.
"""

import jax
import jax.numpy as jnp

from cure_jax.bounds import crown
from cure_jax.bounds.box_ball import box_ball_margins_in_training
from cure_jax.bounds.ibp import ibp_margins_in_training
from cure_jax.certification.margins import margins
from cure_jax.perturbations import Perturbation
from cure_jax.regions import Box, linf_ball
from cure_jax.training.objectives.objective import Ball, Network, Objective, Worst, grown, propagated, worst_logits

__all__ = ["box", "box_ball", "cells", "crown_ibp", "dual_norm", "lipschitz"]


def box(ball: Ball, eps: float, *, fraction: float = 1.0, shrinking: float = 0.0) -> Objective:
    """Plain IBP over the bounding box of the ball (for l_inf: over the ball itself).

    Args:
      ball: `(x, radius) -> region`.
      eps: radius at the end of the ramp.
      fraction: of the radius that is propagated.
      shrinking: of ReLUs, see `ibp_margins_in_training`.
    """

    def objective(network: Network, x: jax.Array, label: jax.Array, scale: jax.Array, key: jax.Array) -> Worst:
        del key
        hull = grown(ball, x, fraction * eps * scale).bounding_box()
        return propagated(network, linf_ball(hull.center, hull.radius), label, shrinking)

    return objective


def dual_norm(ball: Ball, eps: float, *, fraction: float = 1.0) -> Objective:
    """IBP behind the exact dual-norm bound of the first affine map: the sound l_2 and l_1 counterpart of IBP training.

    Args:
      ball: `(x, radius) -> region`.
      eps: radius at the end of the ramp.
      fraction: of the radius that is propagated; below 1 the loss is no bound, but the proof may be stronger than the
        loss.
    """

    def objective(network: Network, x: jax.Array, label: jax.Array, scale: jax.Array, key: jax.Array) -> Worst:
        del key
        return propagated(network, grown(ball, x, fraction * eps * scale), label)

    return objective


def box_ball(ball: Ball, eps: float, *, fraction: float = 1.0) -> Objective:
    """Intervals and l_2 balls side by side: as `cure_jax.bounds.box_ball`, with estimated norms.

    Args:
      ball: `(x, radius) -> region`.
      eps: radius at the end of the ramp.
      fraction: of the radius that is propagated.
    """

    def objective(network: Network, x: jax.Array, label: jax.Array, scale: jax.Array, key: jax.Array) -> Worst:
        del key
        if network.norms is None:
            raise ValueError(
                "The box_ball objective got a network without block norms; expected Network(norms=...). Compute them "
                "with cure_jax.bounds.lipschitz.estimated_norms."
            )
        region = grown(ball, x, fraction * eps * scale)
        bounds = box_ball_margins_in_training(network.certified, label, network.norms, precision=network.precision)
        return Worst(-bounds(region))

    return objective


def crown_ibp(ball: Ball, eps: float, *, fraction: float = 1.0, final: float = 0.0) -> Objective:
    """CROWN-IBP: linear bounds on the margins over IBP bounds inside, giving way to IBP while the radius grows.

    Args:
      ball: `(x, radius) -> region`.
      eps: radius at the end of the ramp.
      fraction: of the radius that is propagated.
      final: share of the linear bounds at the end of the ramp; 1 at its start.
    """

    def objective(network: Network, x: jax.Array, label: jax.Array, scale: jax.Array, key: jax.Array) -> Worst:
        del key
        region = grown(ball, x, fraction * eps * scale)
        by_ibp = propagated(network, region, label)
        bounds = crown(margins(network.certified, label), intermediate="ibp", precision=network.precision)
        by_crown = worst_logits(bounds(region).lower, label)
        share = 1 - (1 - final) * scale
        return Worst(share * by_crown + (1 - share) * by_ibp.logits, by_ibp.layers)

    return objective


def lipschitz(eps: float, *, fraction: float = 1.0) -> Objective:
    """The Lipschitz margin: every wrong logit is raised by what an l_2 perturbation could raise it.

    z_j = f_j(x) - f_y(x) + fraction * eps * L_yj with L from `cure_jax.bounds.lipschitz.pairwise_lipschitz`.

    Args:
      eps: l_2 radius at the end of the ramp.
      fraction: of the radius.
    """

    def objective(network: Network, x: jax.Array, label: jax.Array, scale: jax.Array, key: jax.Array) -> Worst:
        del key
        if network.lipschitz is None:
            raise ValueError(
                "The lipschitz objective got a network without Lipschitz constants; expected Network(lipschitz=...). "
                "Compute them with cure_jax.bounds.lipschitz.pairwise_lipschitz."
            )
        logits = network.certified(x)
        # By a mask: the derivative of an index is a scatter, on TPUs a loop over the examples.
        own = jnp.arange(logits.shape[0]) == label
        margin = jnp.sum(jnp.where(own, logits, 0.0))
        constants = jnp.sum(jnp.where(own[:, None], network.lipschitz, 0.0), axis=0)
        return Worst(logits - margin + fraction * eps * scale * constants)

    return objective


def cells(perturbation: Perturbation, *, count: int = 1) -> Objective:
    """IBP over random cells of a perturbation beyond norms: of an angle, of the places of a patch, and so on.

    On the ramp a cell shrinks: boxes of images towards the example, boxes of parameters towards their middle.

    Args:
      perturbation: from `cure_jax.perturbations`, whose cells are boxes.
      count: cells of each example in a step; the worst logits over these are trained.

    References:
      Yang et al., "Provable Defense Against Geometric Transformations", ICLR 2023, Section 4; Chiang et al., "Certified
      Defenses for Adversarial Patches", ICLR 2020, Section 4.2.
    """

    def objective(network: Network, x: jax.Array, label: jax.Array, scale: jax.Array, key: jax.Array) -> Worst:
        table = jnp.asarray(perturbation.cells(x.shape), x.dtype)

        def bounded(key: jax.Array) -> jax.Array:
            cell = table[jax.random.randint(key, (), 0, len(table))]
            region, transform, _ = perturbation.inputs(x, cell)
            whole = region.bounding_box()
            middle = x if whole.shape == x.shape else whole.center
            part = Box(middle + scale * (whole.lower - middle), middle + scale * (whole.upper - middle))

            def perturbed(point: jax.Array) -> jax.Array:
                return network.certified(transform(point))

            return -ibp_margins_in_training(perturbed, label, precision=network.precision)(part)[0]

        return Worst(jnp.max(jax.vmap(bounded)(jax.random.split(key, count)), axis=0))

    return objective
