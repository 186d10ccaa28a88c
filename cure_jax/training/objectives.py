"""Single-norm training objectives: which region, bounded how.

An objective looks at ONE example and answers with worst-case logits z: z_y = 0 and z_j = -m_j, m_j a bound (or, for
attacks, a sample) of the margin f_y - f_j over its region. What combines the norms, and how z becomes a loss, is
`multi_norm`.

    objective(network, x, label, scale, key) -> Worst(logits, layers)

`scale` in [0, 1] is where the ramp of the radius is. Sources: small boxes: Mueller et al., "Certified Training: Small
Boxes are All You Need" (SABR), ICLR 2023; PGD training: Madry et al., ICLR 2018; IBP: Gowal et al., 2018; dual norm:
Wong & Kolter, ICML 2018; Lipschitz margin: Leino et al. (GloRo), ICML 2021; box and ball: Lee et al., NeurIPS 2020;
CROWN-IBP: Zhang et al., ICLR 2020; CC-IBP, MTL-IBP, Exp-IBP: De Palma et al., "Expressive Losses for Verified
Robustness via Convex Combinations", ICLR 2024; distilled: "Improving Certified Robustness via Adversarial
Distillation" (AD-CERT), arXiv 2606.31653; noise: Cohen et al., ICML 2019, and Jeong & Shin, NeurIPS 2020.
"""

import math
from collections.abc import Callable
from typing import NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key

from cure_jax import attacks
from cure_jax.bounds import BlockNorms, crown
from cure_jax.bounds.box_ball import box_ball_margins_in_training
from cure_jax.bounds.ibp import Layers, ibp_margins_in_training
from cure_jax.certification.margins import margins, other_classes
from cure_jax.perturbations import Perturbation
from cure_jax.regions import Box, LpBall, Region, linf_ball
from cure_jax.smoothing import Noise

__all__ = [
    "COMBINATIONS",
    "Network",
    "Objective",
    "Worst",
    "adversarial",
    "box",
    "box_ball",
    "cells",
    "cross_entropy",
    "crown_ibp",
    "distilled",
    "dual_norm",
    "expressive",
    "lipschitz",
    "natural",
    "noisy",
    "small_box",
]

# Of an attacked and a bounded side: of their logits, of their losses, of the logarithms of their losses.
COMBINATIONS = ("cc", "mtl", "exp")

Ball = Callable[[jax.Array, jax.Array], LpBall]

# Half-width of the box that the warm-up regulariser looks at while the radius is still zero.
_LEAST_HALF_WIDTH = 1e-6
_LEAST_LOSS = 1e-12


class Network(NamedTuple):
    """The classifier of one training step, each form a function of one example.

    Attributes:
      certified: with the statistics of the clean batch; gradients flow.
      attacked: with the running statistics; what attacks look at.
      lipschitz: `[classes, classes]` estimated Lipschitz constants of logit differences, or None if no objective
        needs them.
      norms: estimated 2-norms of the affine blocks, likewise.
      precision: of the matrix products in bounds.
      teacher: the logits of another network, or None if no objective learns from one; no gradient flows.
    """

    certified: Callable[[jax.Array], jax.Array]
    attacked: Callable[[jax.Array], jax.Array]
    lipschitz: Float[Array, "classes classes"] | None = None
    norms: BlockNorms | None = None
    precision: jax.lax.PrecisionLike = None
    teacher: Callable[[jax.Array], jax.Array] | None = None


class Worst(NamedTuple):
    """What one objective says about one example.

    Attributes:
      logits: `[classes]` worst-case logits, 0 at the label.
      layers: intervals inside the network, for the warm-up regulariser; None if no box was propagated.
      loss: scalar, if it is another than the cross-entropy of the logits.
    """

    logits: Float[Array, "*batch classes"]
    layers: Layers | None = None
    loss: Float[Array, "*batch"] | None = None


@runtime_checkable
class Objective(Protocol):
    """A single-norm objective."""

    def __call__(
        self,
        network: Network,
        x: Float[Array, "*x"],
        label: Int[Array, ""],
        scale: Float[Array, ""],
        key: Key[Array, ""],
    ) -> Worst:
        """Worst-case logits of one example."""
        ...


def natural() -> Objective:
    """No perturbation: the margins at the example itself."""

    def objective(network: Network, x: jax.Array, label: jax.Array, scale: jax.Array, key: jax.Array) -> Worst:
        del scale, key
        return Worst(_worst_logits(margins(network.certified, label)(x), label))

    return objective


def adversarial(ball: Ball, eps: float, *, steps: int = 8) -> Objective:
    """PGD training: the margins at an adversarial example.

    Args:
      ball: `(x, radius) -> region`, for example `functools.partial(l2_ball, within=(0.0, 1.0))`.
      eps: radius at the end of the ramp.
      steps: of the attack.
    """

    def objective(network: Network, x: jax.Array, label: jax.Array, scale: jax.Array, key: jax.Array) -> Worst:
        found = _attack(network, x, label, ball(x, eps * scale), key, steps)
        return Worst(_worst_logits(margins(network.certified, label)(found), label))

    return objective


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
        hull = _grown(ball, x, fraction * eps * scale).bounding_box()
        return _propagated(network, linf_ball(hull.center, hull.radius), label, shrinking)

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
        return _propagated(network, _grown(ball, x, fraction * eps * scale), label)

    return objective


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
        region = _grown(ball, x, attacked * scale)
        found = _attack(network, x, label, region, key, steps)
        hull = region.bounding_box()
        # On the ramp never so narrow that the box, and what the regulariser sees of it, is rounding.
        width = ratio * eps * scale
        half_width = jnp.full(x.shape, jnp.where(scale < 1, jnp.maximum(width, _LEAST_HALF_WIDTH), width), x.dtype)
        if inside:
            half_width = jnp.minimum(half_width, hull.radius)
        # Where the limits cross, the upper one wins.
        center = jnp.minimum(jnp.maximum(found, hull.lower + half_width), hull.upper - half_width)
        within = None if region.lower is None or region.upper is None else (region.lower, region.upper)
        return _propagated(network, linf_ball(center, half_width, within=within), label, shrinking)

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
        region = _grown(ball, x, fraction * eps * scale)
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
        region = _grown(ball, x, fraction * eps * scale)
        by_ibp = _propagated(network, region, label)
        bounds = crown(margins(network.certified, label), intermediate="ibp", precision=network.precision)
        by_crown = _worst_logits(bounds(region).lower, label)
        share = 1 - (1 - final) * scale
        return Worst(share * by_crown + (1 - share) * by_ibp.logits, by_ibp.layers)

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
        found = _attack(network, x, label, _grown(ball, x, attacked_eps * scale), key, steps)
        attacked = _worst_logits(margins(network.certified, label)(found), label)
        bounded = _propagated(network, _grown(ball, x, eps * scale), label)
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
        found = _attack(network, x, label, _grown(ball, x, attacked_eps * scale), key, steps)
        taught = jax.lax.stop_gradient(jax.nn.log_softmax(network.teacher(found)))
        learned = jax.nn.log_softmax(network.certified(found))
        divergence = optax.losses.kl_divergence_with_log_targets(learned, taught)
        bounded = _propagated(network, _grown(ball, x, eps * scale), label)
        loss = (1 - alpha) * divergence + alpha * cross_entropy(bounded.logits, label)
        return Worst(bounded.logits, bounded.layers, loss)

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


def _grown(ball: Ball, x: jax.Array, radius: jax.Array) -> LpBall:
    """The ball of this radius, the least one while the radius is 0."""
    return ball(x, jnp.maximum(radius, _LEAST_HALF_WIDTH))


def _attack(network: Network, x: jax.Array, label: jax.Array, region: Region, key: jax.Array, steps: int) -> jax.Array:
    return jax.lax.stop_gradient(attacks.pgd(network.attacked, x, label, region, key=key, steps=steps))


def cross_entropy(logits: Float[Array, "*batch classes"], labels: Int[Array, "*batch"]) -> Float[Array, "*batch"]:
    """Cross-entropy in nats."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


def _propagated(network: Network, region: Region, label: jax.Array, shrinking: float = 0.0) -> Worst:
    bounds = ibp_margins_in_training(network.certified, label, precision=network.precision, shrinking=shrinking)
    least, layers = bounds(region)
    return Worst(-least, layers)


def _worst_logits(lower_margins: jax.Array, label: jax.Array) -> jax.Array:
    """Margins m_j, j != label ascending, to logits with 0 at the label and -m_j elsewhere."""
    classes = lower_margins.shape[0] + 1
    placed = jax.nn.one_hot(other_classes(label, classes), classes, dtype=lower_margins.dtype)
    return -jnp.dot(lower_margins, placed, precision=jax.lax.Precision.HIGHEST)
