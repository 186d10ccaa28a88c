"""One training step, as a pure function of the state and the examples of one device.

It knows only the name of a device axis. Means over the batch are means over all devices: losses are averaged with
`pmean` inside the differentiated function, and gradients are averaged once more, which is right because JAX transposes
a sum over devices into a sum over devices.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import optax

from cure_jax import graph as graphs
from cure_jax.bounds.lipschitz import estimated_norms, pairwise_lipschitz
from cure_jax.numerics import norm, pmean
from cure_jax.training.average import averaged
from cure_jax.training.multi_norm import BatchObjective, Outcome, alignment, cross_entropy
from cure_jax.training.network import Statistics, classifier, clean_statistics, running_statistics
from cure_jax.training.objectives import Network
from cure_jax.training.state import TrainState
from cure_jax.training.warmup import bound_regularizer

__all__ = ["Alignment", "Recipe", "train_step"]

Metrics: TypeAlias = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Alignment:
    """Bound alignment: `weight` times the mean over (lower, higher) of KL(lower || higher).

    As published there is one pair, and `lower` is the norm with the lower certified accuracy.
    """

    weight: float
    pairs: tuple[tuple[str, str], ...]


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Everything about a training run that does not change: values and pure functions.

    Attributes:
      model: the network.
      objective: the certified objective of a batch.
      optimizer: from `optax`; an update takes the natural gradients as `natural` if `projection_start` is not None.
      radius_scale: schedule of the ramp, step -> [0, 1].
      natural_weight: schedule of kappa, step -> [0, 1].
      alignment: bound alignment, or None.
      regularizer: weight of the warm-up regulariser at the start of the ramp.
      l1: weight of the l1 norm of the parameters.
      average: decay of their moving average; 0 for none.
      projection_start: first step of gradient projection, or None.
      natural_point: `(opt_state, params) -> params`, where natural gradients are taken.
      augment: `(key, image) -> image` for one example, or None.
      precision: of matrix products in bounds.
      needs_lipschitz: whether an objective uses estimated Lipschitz constants or norms.
      teacher: logits of one example by another network, for the objective that learns from them; or None.
    """

    model: Any
    objective: BatchObjective
    optimizer: optax.GradientTransformationExtraArgs
    radius_scale: optax.Schedule
    natural_weight: optax.Schedule
    alignment: Alignment | None = None
    regularizer: float = 0.0
    l1: float = 0.0
    average: float = 0.0
    projection_start: int | None = None
    natural_point: Callable[[Any, Any], Any] = lambda opt_state, params: params
    augment: Callable[[jax.Array, jax.Array], jax.Array] | None = None
    precision: jax.lax.PrecisionLike = None
    needs_lipschitz: bool = False
    teacher: Callable[[jax.Array], jax.Array] | None = None


def train_step(
    recipe: Recipe, state: TrainState, images: jax.Array, labels: jax.Array, axis_name: str | None
) -> tuple[TrainState, Metrics]:
    """One update.

    Args:
      recipe: what is trained, and how.
      state: before the update.
      images: `[batch of this device, *x]` in [0, 1].
      labels: `[batch of this device]`.
      axis_name: the device axis, or None on one device.

    Returns:
      The state after the update, and metrics averaged over all devices.
    """
    device = 0 if axis_name is None else jax.lax.axis_index(axis_name)
    indices = device * images.shape[0] + jnp.arange(images.shape[0], dtype=jnp.int32)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.fold_in(state.key, state.step), indices)
    if recipe.augment is not None:
        images = jax.vmap(recipe.augment)(jax.vmap(lambda key: jax.random.fold_in(key, 0))(keys), images)
    batch = (images, labels, jax.vmap(lambda key: jax.random.fold_in(key, 1))(keys))

    loss = jax.value_and_grad(_certified_loss, argnums=1, has_aux=True)
    (_, (metrics, clean, vectors)), gradients = loss(recipe, state.params, state, batch, axis_name)

    def natural_gradients(params: Any) -> Any:
        """Of this device: their mean over devices is the gradient."""
        return jax.grad(_natural_loss, argnums=1)(recipe, params, state, batch, axis_name)

    def or_zeros(needed: jax.Array, f: Callable[[], Any]) -> Any:
        return jax.lax.cond(needed, f, lambda: jax.tree.map(jnp.zeros_like, state.params))

    kappa = jnp.asarray(recipe.natural_weight(state.step))
    natural = or_zeros(kappa > 0, lambda: natural_gradients(state.params))
    # Added before the mean over devices: one reduction for both.
    gradients = jax.tree.map(lambda certified, natural: certified + kappa * natural, gradients, natural)
    gradients = pmean(gradients, axis_name)
    extra = {}
    if recipe.projection_start is not None:
        point = recipe.natural_point(state.opt_state, state.params)
        extra["natural"] = or_zeros(
            state.step >= recipe.projection_start, lambda: pmean(natural_gradients(point), axis_name)
        )
    updates, opt_state = recipe.optimizer.update(gradients, state.opt_state, state.params, **extra)
    params = optax.apply_updates(state.params, updates)
    new_state = TrainState(
        step=state.step + 1,
        params=params,
        batch_stats=running_statistics(state.batch_stats, clean),
        opt_state=opt_state,
        key=state.key,
        vectors=vectors,
        average=averaged(state.average, params, recipe.average, state.step),
    )
    return new_state, metrics | {"gradient_norm": optax.tree.norm(gradients)}


def _certified_loss(
    recipe: Recipe, params: Any, state: TrainState, batch: tuple[jax.Array, ...], axis_name: str | None
) -> tuple[jax.Array, tuple[Metrics, Any, tuple[jax.Array, ...]]]:
    """The loss but for its natural part, whose gradients are taken only while it has a weight."""
    images, labels, keys = batch
    scale, kappa = (jnp.asarray(f(state.step)) for f in (recipe.radius_scale, recipe.natural_weight))
    f, clean = _clean_classifier(recipe, params, state, images, axis_name)
    lipschitz, norms, vectors = None, None, state.vectors
    if recipe.needs_lipschitz:
        graph = graphs.trace(f, images[0], precision=recipe.precision)
        norms, vectors = estimated_norms(graph, state.vectors)
        lipschitz = pairwise_lipschitz(graph, norms)
    attacked = classifier(recipe.model, jax.lax.stop_gradient(state.variables))
    network = Network(f, attacked, lipschitz, norms, recipe.precision, recipe.teacher)
    outcome = recipe.objective(network, images, labels, scale, keys)

    logits = jax.lax.stop_gradient(jax.vmap(f)(images))
    certified = pmean(jnp.mean(outcome.losses), axis_name)
    natural = pmean(jnp.mean(cross_entropy(logits, labels)), axis_name)
    metrics = {"radius_scale": scale, "certified_loss": certified, "natural_loss": natural}
    if recipe.alignment is not None:
        metrics["alignment"] = _alignment(recipe.alignment, outcome, labels, axis_name)
        certified = certified + metrics["alignment"]
    loss = (1 - kappa) * certified
    if recipe.regularizer and outcome.boxes is not None and outcome.boxes.layers is not None:
        metrics["regularizer"] = bound_regularizer(outcome.boxes.layers, axis_name)
        loss = loss + recipe.regularizer * (1 - scale) * metrics["regularizer"]
    if recipe.l1:
        # Not optax's norm: its gradient pushes parameters that are 0, as biases are at first.
        loss = loss + recipe.l1 * sum(norm(leaf, 1) for leaf in jax.tree.leaves(params))
    metrics |= {"loss": loss + kappa * natural, "accuracy": _accuracy(logits, labels, axis_name)}
    for name, worst in outcome.worst.items():
        metrics[f"worst_accuracy/{name}"] = _accuracy(worst.logits, labels, axis_name)
    return loss, (jax.lax.stop_gradient(metrics), clean, vectors)


def _natural_loss(
    recipe: Recipe, params: Any, state: TrainState, batch: tuple[jax.Array, ...], axis_name: str | None
) -> jax.Array:
    images, labels, *_ = batch
    f, _ = _clean_classifier(recipe, params, state, images, axis_name)
    return pmean(jnp.mean(cross_entropy(jax.vmap(f)(images), labels)), axis_name)


def _clean_classifier(
    recipe: Recipe, params: Any, state: TrainState, images: jax.Array, axis_name: str | None
) -> tuple[Callable[[jax.Array], jax.Array], Statistics]:
    """The network of one example, normalised by the statistics of the clean batch; and these."""
    variables = state.variables | {"params": params}
    clean = clean_statistics(recipe.model, variables, images, axis_name)
    return classifier(recipe.model, {**variables, **({"batch_stats": clean.batch} if clean.batch else {})}), clean


def _alignment(settings: Alignment, outcome: Outcome, labels: jax.Array, axis_name: str | None) -> jax.Array:
    logits = {name: worst.logits for name, worst in outcome.worst.items()}
    terms = [alignment(logits[lower], logits[higher], labels, axis_name) for lower, higher in settings.pairs]
    return settings.weight * jnp.mean(jnp.stack(terms))


def _accuracy(logits: jax.Array, labels: jax.Array, axis_name: str | None) -> jax.Array:
    return pmean(jnp.mean(jnp.argmax(logits, axis=-1) == labels), axis_name)
