"""Weights of PyTorch for the networks of flax: state dicts, as such or in files."""

import math
import os
import pickle
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

__all__ = ["load_torch_weights"]

_KINDS = {nn.Conv: "convolution", nn.Dense: "linear layer", nn.BatchNorm: "BatchNorm"}
# By the name in a state dict, where it goes: collection, and name there.
_PLACES = {
    "convolution": {"weight": ("params", "kernel"), "bias": ("params", "bias")},
    "linear layer": {"weight": ("params", "kernel"), "bias": ("params", "bias")},
    "BatchNorm": {
        "weight": ("params", "scale"),
        "bias": ("params", "bias"),
        "running_mean": ("batch_stats", "mean"),
        "running_var": ("batch_stats", "var"),
    },
}
_COUNTER = "num_batches_tracked"


class _Layer(NamedTuple):
    """A layer of a flax network.

    Attributes:
      path: of its variables.
      kind: one of `_PLACES`.
      map: `(height, width, channels)` that a linear layer sees flattened, or None.
    """

    path: tuple[str, ...]
    kind: str
    map: tuple[int, int, int] | None


def load_torch_weights(
    source: str | os.PathLike | Mapping[str, Any],
    model: nn.Module,
    example_shape: Sequence[int],
    *,
    names: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Puts the weights of a PyTorch network into a flax one of the same architecture.

    Layers correspond by kind (convolution, linear, BatchNorm) and order: that of the state dict, which is the order in
    which PyTorch's modules were defined, and the order in which the flax network calls its own. Safetensors files keep
    no order: there it is that of the names, numbers by their value. Two layers of one shape may be mistaken for each
    other: compare a few outputs. Kernels change their layout; a linear layer behind flattened channels-first images
    gets its columns in the order of channels-last ones.

    Args:
      source: a state dict, of tensors or arrays; or a file of one, `.safetensors` (needs safetensors), or as
        `torch.save` writes it (needs torch; read with weights_only=True). A dict with a "state_dict" is looked into.
      model: a flax (linen) module of batches of channels-last images, made of `nn.Conv`, `nn.Dense` and `nn.BatchNorm`
        as far as it has variables; those of `cure_jax.models`, for example. Its normalisation of pixels must be that of
        the PyTorch network, and the epsilon of its BatchNorm, which no state dict has (1e-5 in both by default).
      example_shape: of one image, `(height, width, channels)`.
      names: for layers that do not correspond by order: the path of a flax layer, such as "Conv_2" or "Block_0/Conv_1",
        to the prefix of its weights, such as "layer1.0.shortcut.0". The others correspond among themselves.

    Returns:
      The variables: `cure_jax.models.classifier(model, variables)` is the function of one example to bound.

    Raises:
      ValueError: if the layers or their shapes do not correspond, naming both, or the file is damaged.
      ImportError: if safetensors or torch is needed and not installed.
      OSError: if the file cannot be read.

    Examples:
      >>> import numpy as np
      >>> from cure_jax import models
      >>> state = {"0.weight": np.ones((10, 4)), "0.bias": np.arange(10.0)}
      >>> model = models.create("mlp", 10, features=())
      >>> variables = load_torch_weights(state, model, (2, 2, 1))
      >>> print(models.classifier(model, variables)(jnp.zeros((2, 2, 1))))
      [0. 1. 2. 3. 4. 5. 6. 7. 8. 9.]
    """
    state = _arrays(_read(source) if isinstance(source, str | os.PathLike) else source)
    variables, layers = _layers(model, example_shape)
    filled: dict[tuple[str, ...], jax.Array] = {}
    for layer, (prefix, weights) in _pairs(layers, _groups(state), dict(names or {})):
        for name, (collection, own) in _PLACES[layer.kind].items():
            key = (collection, *layer.path, own)
            if (name in weights) != (key in variables):
                which = f"{prefix}.{name} is in the state dict" if name in weights else f"The model has {_path(key)}"
                raise ValueError(f"{which}, but its counterpart is missing: {prefix} and {_path(layer.path)}.")
            if name in weights:
                value = _converted(weights[name], layer, name)
                if value.shape != variables[key].shape:
                    raise ValueError(
                        f"{prefix}.{name} has the shape {weights[name].shape}, which is {value.shape} in flax; "
                        f"{_path(key)} has {variables[key].shape}. Give the architecture that was trained, or `names`."
                    )
                filled[key] = jnp.asarray(value, variables[key].dtype)
    if missing := sorted(_path(key) for key in variables if key not in filled):
        raise ValueError(
            f"The model has variables that are no weights of a convolution, a linear layer or BatchNorm: "
            f"{', '.join(missing)}. Fill them yourself: model.init gives variables of the right shapes."
        )
    return flax.traverse_util.unflatten_dict(filled)


def _read(path: str | os.PathLike) -> Mapping[str, Any]:
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}; expected a state dict.")
    if path.suffix == ".safetensors":
        try:
            import safetensors
            from safetensors.numpy import load_file
        except ModuleNotFoundError as error:
            raise ImportError("safetensors is not installed. Run: pip install safetensors") from error
        try:
            state = load_file(path)
        except (safetensors.SafetensorError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is no safetensors file that NumPy can hold: {error}. Save it again.") from error
        return dict(sorted(state.items(), key=lambda item: _natural(item[0])))
    try:
        import torch  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError as error:
        raise ImportError(
            f"torch is not installed, and {path} is no .safetensors file. Run: pip install torch, or save the weights "
            "with safetensors.torch.save_file."
        ) from error
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(f"{path} is no file of weights alone: {error}. Save model.state_dict().") from error


def _natural(name: str) -> list[tuple[int, str]]:
    """A key that sorts "layer10" behind "layer2"."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def _arrays(state: Mapping[str, Any]) -> dict[str, np.ndarray]:
    inner = state.get("state_dict")
    if isinstance(inner, Mapping):
        state = inner
    arrays = {}
    for name, value in state.items():
        array = value.detach().cpu().numpy() if hasattr(value, "detach") else np.asarray(value)
        if array.dtype.kind not in "fiu":
            raise ValueError(f"{name} is {type(value).__name__}; expected a state dict, of numbers by name.")
        arrays[name] = array
    return arrays


def _groups(state: Mapping[str, np.ndarray]) -> list[tuple[str, dict[str, np.ndarray]]]:
    """Weights by layer, in order."""
    groups: dict[str, dict[str, np.ndarray]] = {}
    for name, array in state.items():
        prefix, _, own = name.rpartition(".")
        if own != _COUNTER:
            groups.setdefault(prefix, {})[own] = array
    return list(groups.items())


def _kind(prefix: str, weights: Mapping[str, np.ndarray]) -> str:
    dimensions = weights["weight"].ndim if "weight" in weights else 0
    kind = {4: "convolution", 2: "linear layer"}.get(dimensions, "BatchNorm" if "running_mean" in weights else "")
    if not kind or set(weights) - set(_PLACES[kind]):
        shapes = ", ".join(f"{name} {array.shape}" for name, array in weights.items())
        raise ValueError(
            f"{prefix or 'The state dict'} has {shapes}; expected a 2-D convolution, a linear layer or BatchNorm."
        )
    return kind


def _layers(
    model: nn.Module, example_shape: Sequence[int]
) -> tuple[dict[tuple[str, ...], jax.ShapeDtypeStruct], list[_Layer]]:
    """The variables of a network by path, and its layers in the order of their calls."""
    found: list[_Layer] = []
    last: tuple[int, int, int] | None = None

    def watch(call: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        nonlocal last
        result = call(*args, **kwargs)
        kind = _KINDS.get(type(context.module))
        if kind is not None and context.method_name == "__call__":
            flattened = None
            if kind == "linear layer" and last is not None:
                flattened, last = _flattened(last, args[0].shape[-1]), None
            elif result.ndim == 4:
                last = result.shape[1:]
            found.append(_Layer(context.module.path, kind, flattened))
        return result

    batch = jax.ShapeDtypeStruct((1, *example_shape), jnp.float32)
    with nn.intercept_methods(watch):
        variables = jax.eval_shape(model.init, jax.random.key(0), batch)
    if len({layer.path for layer in found}) < len(found):
        raise ValueError("The model calls a layer twice; expected each of them once. Fill its variables yourself.")
    flat: Any = flax.traverse_util.flatten_dict(dict(variables))
    return flat, found


def _flattened(last: tuple[int, int, int], inputs: int) -> tuple[int, int, int] | None:
    """The image behind `last`, which pooling may have made smaller, that a linear layer sees as a vector."""
    height, width, channels = last
    pixels, rest = divmod(inputs, channels)
    if pixels == 1 and rest == 0:
        return None
    shrunk = math.isqrt(pixels * height // width)
    if rest or shrunk == 0 or pixels % shrunk or shrunk * width != pixels // shrunk * height:
        raise ValueError(
            f"A linear layer of {inputs} inputs follows images of {last}; expected as many, or those of smaller images "
            "of the same shape. Their order is unknown: fill its variables yourself."
        )
    return shrunk, pixels // shrunk, channels


def _pairs(
    layers: Sequence[_Layer], groups: Sequence[tuple[str, dict[str, np.ndarray]]], names: dict[str, str]
) -> list[tuple[_Layer, tuple[str, dict[str, np.ndarray]]]]:
    weights = dict(groups)
    unknown = [f"{own} -> {prefix}" for own, prefix in names.items() if prefix not in weights]
    unknown += [own for own in names if own not in {_path(layer.path) for layer in layers}]
    if unknown:
        raise ValueError(
            f"names has {', '.join(unknown)}; the model has {', '.join(_path(layer.path) for layer in layers)}, the "
            f"state dict {', '.join(weights)}."
        )
    pairs = [
        (layer, (names[_path(layer.path)], weights[names[_path(layer.path)]]))
        for layer in layers
        if _path(layer.path) in names
    ]
    left = [layer for layer in layers if _path(layer.path) not in names]
    others = [group for group in groups if group[0] not in names.values()]
    for kind in _PLACES:
        ours = [layer for layer in left if layer.kind == kind]
        theirs = [group for group in others if _kind(*group) == kind]
        if len(ours) != len(theirs):
            raise ValueError(
                f"The model has {len(ours)} layers of the kind {kind} ({', '.join(_path(x.path) for x in ours)}), the "
                f"state dict {len(theirs)} ({', '.join(prefix for prefix, _ in theirs)}). Give the same architecture."
            )
        pairs += zip(ours, theirs, strict=True)
    return pairs


def _converted(array: np.ndarray, layer: _Layer, name: str) -> np.ndarray:
    if name != "weight" or layer.kind == "BatchNorm":
        return array
    if layer.kind == "convolution":
        return array.transpose(2, 3, 1, 0)
    if layer.map is not None:
        height, width, channels = layer.map
        if array.shape[1] == height * width * channels:
            array = array.reshape(-1, channels, height, width).transpose(0, 2, 3, 1).reshape(array.shape)
    return array.T


def _path(path: Sequence[str]) -> str:
    return "/".join(path)
