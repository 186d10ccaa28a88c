"""The same networks as linen modules, as nnx modules and as pairs of functions, and their variables."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict

from cure_jax.convolution import convolution
from cure_jax.models.layers import flatten
from tests.training import tiny

KINDS = ("linen", "nnx", "functions")
# Of the layers in a linen module, their names in the others.
_NAMES = {
    True: {"Conv_0": ("conv",), "BatchNorm_0": ("norm",), "Dense_0": ("layers", "0")},
    # In TinyMLP the last layer is defined first.
    False: {"Dense_1": ("layers", "0"), "Dense_0": ("layers", "1")},
}


class NnxMLP(nnx.Module):
    """`tiny.TinyMLP`, with its layers in a list, whose keys are numbers."""

    def __init__(self, *, rngs: nnx.Rngs) -> None:
        self.layers = nnx.List([nnx.Linear(16, 6, rngs=rngs), nnx.Linear(6, tiny.CLASSES, rngs=rngs)])

    def __call__(self, images: jax.Array) -> jax.Array:
        return self.layers[1](nnx.relu(self.layers[0](flatten(images))))


class NnxConvNet(nnx.Module):
    """`tiny.TinyConvNet`, as somebody writes it who has never heard of `axis_name`."""

    def __init__(self, *, rngs: nnx.Rngs) -> None:
        fields: Any = {"padding": 1, "use_bias": False, "conv_general_dilated": convolution}
        self.conv = nnx.Conv(1, 2, (3, 3), strides=2, **fields, rngs=rngs)
        self.norm = nnx.BatchNorm(2, momentum=0.9, rngs=rngs)
        self.layers = nnx.List([nnx.Linear(8, tiny.CLASSES, rngs=rngs)])

    def __call__(self, images: jax.Array) -> jax.Array:
        return self.layers[0](flatten(nnx.relu(self.norm(self.conv(images)))))


def mlp(params: Any, images: jax.Array) -> jax.Array:
    """`tiny.TinyMLP`."""
    first, last = params["layers"]["0"], params["layers"]["1"]
    hidden = nn.relu(flatten(images) @ first["kernel"] + first["bias"][None])
    return hidden @ last["kernel"] + last["bias"][None]


def _everywhere(channels: jax.Array) -> jax.Array:
    return channels[None, None, None]


def conv_net(variables: Any, images: jax.Array, train: bool = False, axis_name: str | None = None) -> Any:
    """`tiny.TinyConvNet`, its BatchNorm by hand."""
    params, running = variables["params"], variables["batch_stats"]["norm"]
    shape: Any = {"dimension_numbers": ("NHWC", "HWIO", "NHWC")}
    x = jax.lax.conv_general_dilated(images, params["conv"]["kernel"], (2, 2), ((1, 1), (1, 1)), **shape)
    used = running
    if train:
        mean, square = x.mean((0, 1, 2)), (x * x).mean((0, 1, 2))
        if axis_name is not None:
            mean, square = jax.lax.pmean((mean, square), axis_name)
        used = {"mean": mean, "var": jnp.maximum(square - mean * mean, 0)}
        running = {name: 0.9 * running[name] + 0.1 * used[name] for name in running}
    norm, last = params["norm"], params["layers"]["0"]
    scale = jax.lax.rsqrt(used["var"] + 1e-5) * norm["scale"]
    x = (x - _everywhere(used["mean"])) * _everywhere(scale) + _everywhere(norm["bias"])
    logits = flatten(nn.relu(x)) @ last["kernel"] + last["bias"][None]
    return (logits, {"norm": running}) if train else logits


def twin(kind: str, batch_norm: bool, variables: Mapping[str, Any]) -> Any:
    """The network of a kind; one that comes with its variables has these, which are those of the linen module."""
    if kind == "linen":
        return tiny.TinyConvNet() if batch_norm else tiny.TinyMLP()
    renamed = as_twins(variables)
    if kind == "functions":
        given = renamed if batch_norm else renamed["params"]
        return (lambda key, images: given), (conv_net if batch_norm else mlp)
    module = (NnxConvNet if batch_norm else NnxMLP)(rngs=nnx.Rngs(7))
    for collection in renamed.values():
        nnx.update(module, jax.tree.map(jnp.asarray, _with_numbers(collection)))
    return module


def as_twins(variables: Mapping[str, Any]) -> dict[str, Any]:
    """The variables of a linen module by the names of its twins."""
    flat: Any = flatten_dict(dict(variables))
    names = _NAMES["Dense_1" not in variables["params"]]
    return unflatten_dict({(collection, *names[layer], name): leaf for (collection, layer, name), leaf in flat.items()})


def _with_numbers(collection: Mapping[str, Any]) -> dict[Any, Any]:
    """The keys of lists in an nnx module."""
    return {
        name: {int(key): leaf for key, leaf in value.items()} if name == "layers" else value
        for name, value in collection.items()
    }
