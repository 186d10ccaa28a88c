"""A network with its parameters, and as a function of one example: flax modules see batches, bounds see one example."""

import dataclasses
import inspect
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Float

from cure_jax.equality import ByValue

__all__ = ["Fitted", "apply_batch", "classifier", "initial_variables", "mode"]

Variables = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Fitted:
    """A trained network.

    Attributes:
      model: the flax module.
      config: that it was trained with, an `ml_collections.ConfigDict`; its `radii` are those to certify.
      variables: parameters and running averages, what `model.apply` takes.
      example_shape: of what the classifier takes.
      state: the last state of training, a `training.TrainState`; None for a network that is kept without it.
      history: metrics, one record for each compiled run of steps of THIS call of `training.fit`: means over its steps;
        `radius_scale` and `validation_accuracy` are those at its end.
    """

    model: nn.Module
    config: Any
    variables: Variables
    example_shape: tuple[int, ...]
    state: Any = None
    history: list[dict[str, float | int]] = dataclasses.field(default_factory=list)

    def __repr__(self) -> str:
        count = sum(leaf.size for leaf in jax.tree.leaves(self.variables.get("params", {})))
        radii = {} if self.config is None else dict(self.config.radii)
        norms = "".join(f", {norm} {eps:.4g}" for norm, eps in radii.items())
        trained = "" if self.state is None else f", step {int(self.state.step)}"
        return f"Fitted({type(self.model).__name__}, {count} parameters, inputs {self.example_shape}{norms}{trained})"

    @property
    def classifier(self) -> Partial:
        """The network as a function of one example, for bounds, attacks and `certify`."""
        return classifier(self.model, self.variables)


def classifier(model: nn.Module, variables: Variables) -> Partial:
    """The network as a function of ONE example, in inference mode: what bounds, attacks and `certify` take.

    Args:
      model: a flax (linen) module of batches, `[batch, *x] -> [batch, classes]`.
      variables: its parameters and running averages.

    Returns:
      `[*x] -> [classes]`, as a `jax.tree_util.Partial`: the variables are leaves of a pytree, not compiled in. What is
      compiled is found again for equal modules, by the values of their array fields too.
    """
    return Partial(ByValue(_OneExample(model)), variables)


def apply_batch(
    model: nn.Module, variables: Variables, images: Float[Array, "batch *x"]
) -> Float[Array, "batch classes"]:
    """Logits of a batch in inference mode, for modules with and without a `train` argument."""
    return jnp.asarray(model.apply(variables, images, **mode(model, train=False)))


def initial_variables(model: nn.Module, streams: Any, images: jax.Array) -> dict[str, Any]:
    """Parameters and, with such a collection, `batch_stats`; other collections are left out."""
    variables = model.init(streams, images, **mode(model, train=False))
    return {name: variables[name] for name in ("params", "batch_stats") if name in variables}


def mode(model: nn.Module, *, train: bool) -> dict[str, Any]:
    """The argument `train` of a module, if it has one."""
    return {"train": train} if "train" in inspect.signature(model.__call__).parameters else {}


@dataclasses.dataclass(frozen=True)
class _OneExample:
    model: nn.Module

    def __call__(self, variables: Variables, x: jax.Array) -> jax.Array:
        return apply_batch(self.model, variables, x[None])[0]
