"""Networks by name."""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn

from cure_jax.models.cnn import CNN5, CNN7, CNN7_narrow, CNN7_wide
from cure_jax.models.convnet import ConvNet
from cure_jax.models.lipschitz_net import LipschitzNet
from cure_jax.models.mlp import MLP
from cure_jax.models.resnet import ResNet

_MODELS: dict[str, Callable[..., nn.Module]] = {
    "mlp": MLP,
    "conv_small": ConvNet,
    "conv_medium": functools.partial(ConvNet, dense=(1000,)),
    "conv_deep": functools.partial(ConvNet, convs=((32, 3, 2), (64, 3, 2), (64, 3, 1)), dense=(256,)),
    "lipschitz_net": LipschitzNet,
    "cnn5": CNN5,
    "cnn7": CNN7,
    "cnn7_narrow": CNN7_narrow,
    "cnn7_wide": CNN7_wide,
    "resnet": ResNet,
}


def create(name: str, num_classes: int, **kwargs: Any) -> nn.Module:
    """Creates a network by name.

    Args:
      name: One of `names()`.
      num_classes: Number of classes, at least 2.
      **kwargs: Fields of the network, such as width, mean, std or axis_name; lists become tuples.

    Returns:
      The flax module, without parameters.

    Raises:
      ValueError: The name is unknown, or there are fewer than two classes.
      TypeError: The network has no such field.

    Examples:
      >>> create("mlp", 10, features=[64]).features
      (64,)
    """
    if name not in _MODELS:
        raise ValueError(
            f"Unknown network {name!r}; expected one of {list(names())}. Correct the name, or build a flax module of "
            "your own and pass it instead."
        )
    if num_classes < 2:
        raise ValueError(f"Network {name!r} got num_classes {num_classes}; expected at least 2. Count the classes.")
    fields = [field for field in inspect.signature(_MODELS[name]).parameters if field not in _RESERVED]
    unknown = [field for field in kwargs if field not in fields]
    if unknown:
        raise TypeError(f"Network {name!r} got the fields {unknown}; expected some of {fields}. Correct or drop them.")
    return _MODELS[name](num_classes=num_classes, **with_tuples(kwargs))


def names() -> tuple[str, ...]:
    """Returns the names that `create` knows."""
    return tuple(_MODELS)


_RESERVED = ("num_classes", "parent", "name")


def with_tuples(value: Any) -> Any:
    """What was read from JSON, with tuples for lists: a module must be hashable to be a static argument of jax.jit."""
    if isinstance(value, Mapping):
        return {name: with_tuples(item) for name, item in value.items()}
    return tuple(with_tuples(item) for item in value) if isinstance(value, list | tuple) else value
