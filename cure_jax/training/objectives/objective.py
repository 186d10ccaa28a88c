"""What an objective is, and what all of them are made of: regions, attacks, bounds, worst-case logits."""

from collections.abc import Callable
from typing import NamedTuple, Protocol, TypeAlias, runtime_checkable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key

from cure_jax import attacks
from cure_jax.bounds import BlockNorms
from cure_jax.bounds.ibp import Layers, ibp_margins_in_training
from cure_jax.certification.margins import other_classes
from cure_jax.regions import LpBall, Region

__all__ = [
    "LEAST_HALF_WIDTH",
    "Ball",
    "Network",
    "Objective",
    "Worst",
    "attacked_point",
    "cross_entropy",
    "grown",
    "propagated",
    "worst_logits",
]

Ball: TypeAlias = Callable[[jax.Array, jax.Array], LpBall]

# Half-width of the box that the warm-up regulariser looks at while the radius is still zero.
LEAST_HALF_WIDTH = 1e-6


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


def grown(ball: Ball, x: jax.Array, radius: jax.Array) -> LpBall:
    """The ball of this radius, the least one while the radius is 0."""
    return ball(x, jnp.maximum(radius, LEAST_HALF_WIDTH))


def attacked_point(
    network: Network, x: jax.Array, label: jax.Array, region: Region, key: jax.Array, steps: int
) -> jax.Array:
    """An adversarial example from projected gradient descent, without a gradient."""
    return jax.lax.stop_gradient(attacks.pgd(network.attacked, x, label, region, key=key, steps=steps))


def propagated(network: Network, region: Region, label: jax.Array, shrinking: float = 0.0) -> Worst:
    """The worst-case logits by IBP over a region, see `ibp_margins_in_training`."""
    bounds = ibp_margins_in_training(network.certified, label, precision=network.precision, shrinking=shrinking)
    least, layers = bounds(region)
    return Worst(-least, layers)


def worst_logits(lower_margins: jax.Array, label: jax.Array) -> jax.Array:
    """Margins m_j, j != label ascending, to logits with 0 at the label and -m_j elsewhere."""
    classes = lower_margins.shape[0] + 1
    placed = jax.nn.one_hot(other_classes(label, classes), classes, dtype=lower_margins.dtype)
    return -jnp.dot(lower_margins, placed, precision=jax.lax.Precision.HIGHEST)


def cross_entropy(logits: Float[Array, "*batch classes"], labels: Int[Array, "*batch"]) -> Float[Array, "*batch"]:
    """Cross-entropy in nats."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)
