"""A network with its parameters, and as a function of one example: networks see batches, bounds see one example."""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Float

from cure_jax.equality import ByValue
from cure_jax.models.functional import Variables, functional

__all__ = ["Fitted", "apply_batch", "classifier", "initial_variables"]


@dataclasses.dataclass(frozen=True)
class Fitted:
    """A trained network.

    Attributes:
      model: what was trained: a linen module, an nnx module that holds what was trained, or a pair of functions.
      config: that it was trained with, an `ml_collections.ConfigDict`; its `radii` are those to certify.
      variables: parameters and running averages, what `model.apply` of a linen module takes.
      example_shape: of what the classifier takes.
      state: the last state of training, a `training.TrainState`; None for a network that is kept without it.
      history: metrics, one record for each compiled run of steps of THIS call of `training.fit`: means over its steps;
        `radius_scale` and `validation_accuracy` are those at its end.
    """

    model: Any
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
        """The network as a function of one example, for bounds, attacks and `certify`.

        It refuses images whose channels come first if those of the training came last: a network that flattens them
        would take them for others.
        """
        return Partial(ByValue(_OneExample(functional(self.model).apply, self.example_shape)), self.variables)

    def as_nnx(self) -> Any:
        """An nnx module of batches with the parameters and running averages, in inference mode.

        Of a linen module it is a `flax.nnx.bridge.ToNNX`, which takes the arguments of the linen module.

        Returns:
          A module of its own: training it changes nothing here.

        Raises:
          TypeError: for a pair of functions, which is no module.

        Examples:
          >>> from cure_jax import models
          >>> module = models.pretrained("digits/max").as_nnx()
          >>> module(jnp.zeros((1, 8, 8, 1))).shape, module.Dense_0["kernel"].shape
          ((1, 10), (64, 128))
        """
        from flax import nnx

        if isinstance(self.model, tuple):
            raise TypeError("The network is a pair of functions; expected a module of flax. Use fitted.classifier.")
        if not isinstance(self.model, nn.Module):
            return functional(self.model).module(self.variables)
        images = jnp.zeros((1, *self.example_shape))
        module: Any = nnx.eval_shape(lambda: nnx.bridge.ToNNX(self.model, rngs=nnx.Rngs(0)).lazy_init(images))
        # It draws no parameters any more.
        module.to_nnx__rngs = None
        for collection in self.variables.values():
            nnx.update(module, jax.tree.map(jnp.asarray, dict(collection)))
        return module


def classifier(model: Any, variables: Variables | None = None) -> Partial:
    """The network as a function of ONE example, in inference mode: what bounds, attacks and `certify` take.

    Args:
      model: a network of batches, `[batch, *x] -> [batch, classes]`, as `training.fit` takes it: a linen module, an nnx
        module or a pair of functions.
      variables: its parameters and running averages, `{"params": ..., "batch_stats": ...}`; those that an nnx module
        holds if None.

    Returns:
      `[*x] -> [classes]`, as a `jax.tree_util.Partial`: the variables are leaves of a pytree, not compiled in. What is
      compiled is found again for equal modules, by the values of their array fields too.

    Raises:
      TypeError: for what is no network, or one that holds no variables and got none.
    """
    network = functional(model)
    if variables is None:
        variables = getattr(network, "initial", None)
    if variables is None:
        raise TypeError(
            f"classifier got {network.name} without variables; expected them, as only nnx modules hold their own. Pass "
            "classifier(model, variables)."
        )
    return Partial(ByValue(_OneExample(network.apply)), variables)


def apply_batch(model: Any, variables: Variables, images: Float[Array, "batch *x"]) -> Float[Array, "batch classes"]:
    """Logits of a batch in inference mode, for networks with and without a `train` argument."""
    return functional(model).apply(variables, images)


def initial_variables(model: Any, streams: Any, images: jax.Array) -> dict[str, Any]:
    """Parameters and, with such a collection, `batch_stats`; other collections are left out."""
    return functional(model).init(streams, images)


@dataclasses.dataclass(frozen=True)
class _OneExample:
    apply: Callable[[Variables, jax.Array], jax.Array]
    trained_with: tuple[int, ...] = ()

    def __call__(self, variables: Variables, x: jax.Array) -> jax.Array:
        expected = self.trained_with
        if len(expected) == 3 and x.shape == (expected[2], *expected[:2]) != expected:
            raise ValueError(
                f"The network got an example of shape {x.shape}; expected {expected}, channels last. Transpose images, "
                "images.transpose(0, 2, 3, 1)."
            )
        return self.apply(variables, x[None])[0]
