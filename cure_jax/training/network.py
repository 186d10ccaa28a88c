"""A network in training: `models.classifier` is what bounds see of it, with the statistics of BatchNorm held.

A bound must never see batch statistics that depend on its own example, so those of the CLEAN batch are computed first
and then held: `clean_statistics`. What remains of BatchNorm is an affine map, and gradients flow through the
statistics.

Only BatchNorm, of linen or of nnx, makes statistics of a batch, each with a momentum of its own. Everything else in
`batch_stats` (frozen BatchNorm, the vectors of `nn.SpectralNorm`, counters) stays what it was during a step, and then
becomes what flax makes of it. What another module makes of the images there is refused.

What kind of network it is, only `models.functional` knows; what is said of flax here holds for functions as well.
"""

import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax.errors import FlaxError
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Float

from cure_jax.models.fitted import apply_batch, classifier, initial_variables
from cure_jax.models.functional import Path, Variables, functional
from cure_jax.models.running_averages import AVERAGES, check_constant
from cure_jax.training.leaves import describe

__all__ = [
    "Statistics",
    "apply_batch",
    "check_network",
    "classifier",
    "clean_statistics",
    "initial_variables",
    "population_statistics",
    "running_statistics",
]

_LOGGER = logging.getLogger(__name__)


class Statistics(NamedTuple):
    """What a batch made of the collection `batch_stats`.

    Attributes:
      batch: what the network of one example is given: of BatchNorm the statistics of the batch itself, of everything
        else what was there before; empty without such a collection.
      momentum: what the old running average weighs, for each of the averages.
      kept: everything else, as flax keeps it after this batch.
    """

    batch: dict[str, Any]
    momentum: Any
    kept: dict[str, Any] | None = None


def clean_statistics(
    model: Any, variables: Variables, images: Float[Array, "batch *x"], axis_name: str | None = None
) -> Statistics:
    """The batch statistics of a clean batch itself.

    Flax returns running averages, m * old + (1 - m) * batch. From averages of 0 that is (1 - m) * batch, and 1 - m is
    what the same pass returns for statistics of 1, so that it holds for whatever flax makes of m: in `nn.vmap`,
    `nn.scan`, or where one BatchNorm is called twice. Its statistics are then those to which the running averages tend
    if every batch is this one.

    Args:
      model: the network, as `training.fit` takes it.
      variables: parameters and running averages.
      images: the clean batch of this device.
      axis_name: the device axis over which the statistics are averaged, None on one device.

    Raises:
      ValueError: naming the network, for a BatchNorm that is not averaged over the device axis, that an argument of
        another name than `train` may switch, or that has no statistics of its own; and for anything else in
        `batch_stats` that depends on the images, or changes its type or place.
    """
    if "batch_stats" not in variables:
        return Statistics({}, {}, {})
    network = functional(model)
    weights = network.averages(variables, images, axis_name)
    before = _flat(variables["batch_stats"])
    start = {path: jnp.zeros_like(leaf) if path in weights else leaf for path, leaf in before.items()}

    def updated(images: jax.Array) -> dict[Path, Any]:
        return _flat(network.update({**variables, "batch_stats": unflatten_dict(start)}, images, axis_name))

    after = updated(images)
    kept = {path: jax.lax.stop_gradient(leaf) for path, leaf in after.items() if path not in weights}
    _check_types(network.name, before, after)
    for path in kept:
        # What the pass left alone is the same object.
        if after[path] is not start[path]:
            _check_kept(network.name, lambda x, path=path: updated(x)[path], images, path)
    batch = {path: after[path] / weights[path] if path in weights else leaf for path, leaf in before.items()}
    momentum = {
        path: 1 - jnp.asarray(weight, jnp.promote_types(weight.dtype, jnp.float32)) for path, weight in weights.items()
    }
    return Statistics(unflatten_dict(batch), unflatten_dict(momentum), unflatten_dict(kept))


def running_statistics(running: Mapping[str, Any], clean: Statistics) -> dict[str, Any]:
    """The collection `batch_stats` after one more batch."""
    averages, old, new = (_flat(tree) for tree in (clean.momentum, running, clean.batch))
    for path, momentum in averages.items():
        # Averages of half precision round 1 - m by percents.
        before, batch = (jnp.asarray(tree[path], momentum.dtype) for tree in (old, new))
        moved = momentum * before + (1 - momentum) * jax.lax.stop_gradient(batch)
        old[path] = moved.astype(old[path].dtype)
    return unflatten_dict({**old, **_flat(clean.kept or {})})


def population_statistics(
    model: Any, variables: Variables, batches: Iterable[Float[Array, "batch *x"]]
) -> dict[str, Any]:
    """The collection `batch_stats` with means over clean batches of one size instead of moving averages.

    Args:
      model: the network.
      variables: parameters, and the collection whose averages are replaced.
      batches: of the training set, in pixels of [0, 1].

    References:
      Wu and Johnson, `Rethinking "Batch" in BatchNorm <https://arxiv.org/abs/2105.07576>`_, 2021 (PreciseBN)
    """

    @jax.jit
    def mean(means: dict[str, Any], images: jax.Array, count: jax.Array) -> dict[str, Any]:
        clean = clean_statistics(model, variables, images)
        share = jax.tree.map(lambda momentum: (count / (count + 1)).astype(momentum.dtype), clean.momentum)
        return running_statistics(means, Statistics(clean.batch, share))

    means: dict[str, Any] = dict(variables["batch_stats"])
    for count, images in enumerate(batches):
        means = mean(means, images, jnp.asarray(count, jnp.float32))
    return means


def check_network(model: Any, images: jax.ShapeDtypeStruct) -> int:
    """Checks, before anything is trained, that a network can be trained: as a function of one example.

    Args:
      model: the network.
      images: shape and type of a batch.

    Returns:
      The number of classes.

    Raises:
      TypeError: for what is no network.
      ValueError: naming the network and what was expected of it, for Dropout, for one that needs other collections than
        `params` and `batch_stats` or changes them in inference, and where `clean_statistics` does.
    """
    network = functional(model)
    network.check(images)
    variables = jax.eval_shape(network.init, jax.random.key(0), images)
    try:
        traced = jax.make_jaxpr(network.apply)(variables, images)
        clean = jax.eval_shape(lambda variables, x: clean_statistics(network, variables, x), variables, images)
    except FlaxError as error:
        reason = str(error).partition(" (https://")[0].rstrip(".")
        raise ValueError(
            f"{network.name} cannot run on its parameters and batch_stats alone ({reason}); expected a network "
            "without other collections, which changes batch_stats only if `train`. Make constants fields of the module."
        ) from error
    held = _flat(clean.batch).keys() - _flat(clean.momentum).keys()
    if frozen := [_name(path) for path in sorted(held) if path[-1] in AVERAGES]:
        _LOGGER.warning("%s has a frozen BatchNorm; training leaves %s.", network.name, ", ".join(frozen))
    if last := _normalised(traced.jaxpr):
        _LOGGER.warning(
            "%s ends in %s; expected logits, as losses take the softmax themselves, and bounds have one layer less to "
            "enclose. Leave it out.",
            network.name,
            last,
        )
    return traced.out_avals[0].shape[-1]


def _normalised(jaxpr: Any) -> str | None:
    """What makes probabilities of the logits at the end of a network, if anything does."""
    maker = {id(variable): equation for equation in jaxpr.eqns for variable in equation.outvars}
    last = maker.get(id(jaxpr.outvars[0]))
    if last is None:
        return None
    if last.primitive.name == "div":
        numerator = maker.get(id(last.invars[0]))
        return "softmax" if numerator is not None and numerator.primitive.name == "exp" else None
    return {"logistic": "sigmoid", "log_softmax": "log_softmax"}.get(last.params.get("name", last.primitive.name))


def _check_types(name: str, before: Mapping[Path, Any], after: Mapping[Path, Any]) -> None:
    old, new = (jax.tree.map(lambda leaf: describe(jnp.asarray(leaf)), stats) for stats in (before, after))
    if wrong := [path for path in old | new if old.get(path) != new.get(path)]:
        path = wrong[0]
        raise ValueError(
            f"{name} makes {new.get(path, 'nothing')} of {_name(path)} in batch_stats in training; "
            f"expected {old.get(path, 'nothing')}, as in its initial variables. Keep its type, and make it where "
            "`train` is not set too."
        )


def _check_kept(name: str, kept: Callable[[jax.Array], Any], images: jax.Array, path: Path) -> None:
    """Refuses what depends on the images."""
    sentence = (
        f"{name} makes {_name(path)} in batch_stats of the images, and not by nn.BatchNorm; "
        "expected nothing else that depends on a batch, as bounds see one example. Use nn.BatchNorm, or leave it "
        "out."
    )
    check_constant(kept, images, sentence)


def _flat(tree: Mapping[str, Any]) -> dict[Path, Any]:
    flat: Any = flatten_dict(tree)
    return flat


def _name(path: Path) -> str:
    return ".".join(path)
