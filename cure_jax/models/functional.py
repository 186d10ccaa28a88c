"""A network as certification, training and export know it: variables, and functions of them and a batch.

Flax has modules of two kinds, and everybody else has functions. `functional` makes one thing of all of them, at the
door; nothing behind it asks what came.
"""

import inspect
import sys
from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeAlias, runtime_checkable

import flax.linen as nn
import jax

__all__ = ["Functional", "Path", "Variables", "functional", "mode"]

# `params`, and `batch_stats` where there are any.
Variables: TypeAlias = Mapping[str, Any]
# The place of a variable, or of a module, in a collection.
Path: TypeAlias = tuple[str, ...]


@runtime_checkable
class Functional(Protocol):
    """A network: variables, and functions of them and a batch.

    Nothing in it changes, and none of its methods changes what came: variables go in and come out. They are the
    collections `params` and, for what a batch changes, `batch_stats`.
    """

    @property
    def name(self) -> str:
        """For messages."""
        ...

    @property
    def apply(self) -> Callable[[Variables, jax.Array], jax.Array]:
        """Logits of a batch in inference mode; by `ByValue` equal for equal networks, whatever their variables."""
        ...

    def init(self, key: Any, images: jax.Array) -> dict[str, Any]:
        """The variables before training."""
        ...

    def check(self, images: jax.ShapeDtypeStruct) -> None:
        """Refuses, naming it, what makes the network no function of variables and one example, such as Dropout."""
        ...

    def averages(self, variables: Variables, images: jax.Array, axis_name: str | None) -> dict[Path, jax.Array]:
        """What the statistics of a batch weigh in each running average of a BatchNorm, 1 - m, by its path.

        Raises:
          ValueError: naming it, for a BatchNorm that is not understood.
        """
        ...

    def update(self, variables: Variables, images: jax.Array, axis_name: str | None) -> Mapping[str, Any]:
        """The collection `batch_stats` after a training pass, with gradients; over the devices of an axis, if any."""
        ...

    def fan_ins(self, images: Any) -> dict[Path, int]:
        """The fan-in of each dense or convolutional kernel by its path in `params`, in the order of execution."""
        ...

    def module(self, variables: Variables) -> Any:
        """What came; of a module that holds its parameters a copy that holds these."""
        ...


def functional(model: Any) -> Functional:
    """The network that a linen module, an nnx module or a pair of functions is.

    Args:
      model: as `training.fit` takes it; a `Functional` comes back as it is.

    Raises:
      TypeError: for anything else, a class among them.
    """
    # Here: they import this module.
    from cure_jax.models.linen_network import LinenNetwork
    from cure_jax.models.plain_network import PlainNetwork

    if isinstance(model, nn.Module):
        return LinenNetwork(model)
    if isinstance(model, tuple) and len(model) == 2 and all(map(callable, model)):
        init, apply = model
        return PlainNetwork(init, apply)
    # Before the protocol, which asks for attributes by name: flax deprecates the `module` of its own ToNNX.
    if _is_nnx(model):
        from cure_jax.models.nnx_network import nnx_network

        return nnx_network(model)
    if isinstance(model, Functional) and not isinstance(model, type):
        return model
    raise TypeError(
        f"The network is {_described(model)}; expected a flax.linen module, a flax.nnx module or a pair of functions "
        f"(init, apply). {_advice(model)}"
    )


def _is_nnx(model: Any) -> bool:
    # It takes long to import, and whoever has one of its modules has done so.
    nnx = sys.modules.get("flax.nnx")
    return nnx is not None and isinstance(model, nnx.Module)


def mode(call: Callable, *, train: bool) -> dict[str, Any]:
    """The argument `train` of a network, if it has one."""
    return {"train": train} if "train" in inspect.signature(call).parameters else {}


def _described(model: Any) -> str:
    if isinstance(model, type):
        return f"the class {model.__qualname__}"
    if inspect.isroutine(model):
        return f"the function {model.__qualname__}"
    return f"a {type(model).__name__}" + (f" of {len(model)}" if isinstance(model, tuple) else "")


def _advice(model: Any) -> str:
    if isinstance(model, type):
        return f"Make a module of it: {model.__qualname__}(...), of flax.nnx with rngs=nnx.Rngs(0)."
    if isinstance(model, Mapping):
        return "Pass what these are the parameters of; other parameters to start from go into config.start_from."
    return "Pass (init, apply) with init(key, images) -> params and apply(params, images) -> logits."
