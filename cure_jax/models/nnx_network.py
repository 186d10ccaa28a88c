"""Modules of flax.nnx as networks: `functional.Functional`.

An nnx module holds its variables, and changes them when it is called. Here it is taken apart once: what is trained,
running averages, and the rest, which stays what it is. Every pass puts a module together anew, and throws it away.

`nnx.BatchNorm` passes no gradient to its running averages, and training needs the statistics with theirs. They are
those of `nn.BatchNorm`, the same function, at the place of each call.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict

from cure_jax.models.functional import Path, Variables, mode
from cure_jax.models.running_averages import AVERAGES, check_norm, check_present, check_switched, dropout_error

__all__ = ["NnxNetwork", "nnx_network"]

# (call, module, its path, args, kwargs) -> output
Interceptor = Callable[[Callable, Any, Path, tuple, dict], Any]


def nnx_network(module: Any) -> "NnxNetwork":
    """The network of an `nnx.Module`, which is left as it is.

    Raises:
      TypeError: for a module that cannot be called, or a variable that is no array.
    """
    if not callable(module):
        raise TypeError(f"{type(module).__name__} cannot be called; expected a module of batches. Give it a __call__.")
    module = nnx.clone(module)
    module.eval()
    graph, params, statistics, rest = nnx.split(module, nnx.Param, nnx.BatchStat, ...)
    collections = {"params": _leaves(params), "batch_stats": _leaves(statistics)}
    places = {name: tuple(leaves) for name, leaves in collections.items() if leaves}
    initial = {name: unflatten_dict(_named(leaves)) for name, leaves in collections.items() if leaves}
    structure = _Structure(graph, places, tuple(_leaves(rest).items()))
    return NnxNetwork(type(module).__name__, structure, {"params": {}, **initial})


@dataclasses.dataclass(frozen=True, eq=False)
class _Structure:
    """A module without what is trained; a value, by `ByValue`.

    Attributes:
      graph: its structure, in inference mode.
      places: of the variables of each collection, their keys in the module.
      rest: everything else in it, by such keys: constants.
    """

    graph: Any
    places: Mapping[str, tuple[tuple[Any, ...], ...]]
    rest: tuple[tuple[tuple[Any, ...], Any], ...]

    def merged(self, variables: Variables) -> Any:
        """A module of its own with these variables."""
        leaves = dict(self.rest)
        for collection, places in self.places.items():
            named: Any = flatten_dict(variables[collection])
            leaves |= {place: named[_name(place)] for place in places}
        return nnx.merge(self.graph, unflatten_dict(leaves))

    def apply(self, variables: Variables, images: jax.Array) -> jax.Array:
        """Logits of a batch in inference mode."""
        module = self.merged(variables)
        return jnp.asarray(module(images, **mode(module.__call__, train=False)))


@dataclasses.dataclass(frozen=True, eq=False)
class NnxNetwork:
    """A module of batches of flax.nnx, with and without an argument `train`.

    Attributes:
      name: its class.
      structure: the module without what is trained.
      initial: its parameters and running averages when it came.
    """

    name: str
    structure: _Structure
    initial: dict[str, Any]

    @property
    def apply(self) -> Callable[[Variables, jax.Array], jax.Array]:
        """Logits of a batch in inference mode."""
        return self.structure.apply

    def module(self, variables: Variables) -> Any:
        """A module with these variables, in inference mode."""
        return self.structure.merged(jax.tree.map(jnp.asarray, dict(variables)))

    def init(self, key: Any, images: jax.Array) -> dict[str, Any]:
        """What the module came with: its parameters were drawn when it was made."""
        del key, images
        return self.initial

    def check(self, images: jax.ShapeDtypeStruct) -> None:
        """Refuses Dropout, and what changes when it is called: in training all but `nnx.BatchStat`, else anything."""
        for _, layer in nnx.iter_modules(self.structure.merged(self.initial)):
            if isinstance(layer, nnx.Dropout) and layer.rate > 0:
                raise dropout_error(layer.rate)
        if not self.initial["params"]:
            raise ValueError(
                f"{self.name} has no nnx.Param; expected at least one, as nothing else is trained. Use it."
            )
        for train in (False, True):
            before, after = jax.jit(functools.partial(self._left, images, train))(self.initial)
            if changed := [place for place in before if not _same(before[place], after[place])]:
                raise ValueError(
                    f"{self.name} changes {'.'.join(changed[0])} when it is called "
                    f"{'in training' if train else 'after eval()'}; expected a network that changes nothing but "
                    "nnx.BatchStat, and these only in training. Make it a constant, or leave it out."
                )

    def update(self, variables: Variables, images: jax.Array, axis_name: str | None) -> Mapping[str, Any]:
        """The collection `batch_stats` after a training pass, with the gradients that nnx stops."""

        def move(call: Callable, norm: Any, path: Path, args: tuple, kwargs: dict) -> Any:
            del path
            old = {name: average[...] for name, average in _averages(norm).items()}
            output = call(*args, **kwargs)
            if not _is_frozen(norm, *args, **kwargs):
                for name, statistic in _batch_statistics(norm, old, *args, **kwargs).items():
                    _averages(norm)[name][...] = norm.momentum * old[name] + (1 - norm.momentum) * statistic
            return output

        return _statistics(self._trained(move, variables, images, axis_name))

    def averages(self, variables: Variables, images: jax.Array, axis_name: str | None) -> dict[Path, jax.Array]:
        """From averages of 0 a pass over statistics of 1 makes 1 - m of each."""
        averaging: set[Path] = set()
        frozen: set[Path] = set()

        def weigh(call: Callable, norm: Any, path: Path, args: tuple, kwargs: dict) -> Any:
            old = {name: average[...] for name, average in _averages(norm).items()}
            output = call(*args, **kwargs)
            if _is_frozen(norm, *args, **kwargs):
                frozen.add(path)
                return output
            averaging.add(path)
            check_norm(self.name, path, norm.momentum)
            for name, value in old.items():
                _averages(norm)[name][...] = norm.momentum * value + (1 - norm.momentum)
            return output

        before: Any = flatten_dict(variables["batch_stats"])
        start: Any = {path: jnp.zeros_like(leaf) if path[-1] in AVERAGES else leaf for path, leaf in before.items()}
        start = {**variables, "batch_stats": unflatten_dict(start)}
        after: Any = flatten_dict(_statistics(self._trained(weigh, start, images, axis_name)))
        check_switched(self.name, self.structure.merged(variables).__call__, averaging, frozen)
        return {path: after[path] for path in check_present(self.name, averaging, before)}

    def fan_ins(self, images: Any) -> dict[Path, int]:
        """Those of `nnx.Linear` and `nnx.Conv`, in the order of their last calls."""
        fan_ins: dict[Path, int] = {}

        def record(call: Callable, layer: Any, path: Path, args: tuple, kwargs: dict) -> Any:
            output = call(*args, **kwargs)
            # The kernel as the layer sees it: inside nnx.scan or nnx.vmap the stored one has one more axis.
            *inputs, _ = layer.kernel.shape
            fan_ins.pop((*path, "kernel"), None)
            fan_ins[(*path, "kernel")] = math.prod(inputs)
            return output

        def run(images: jax.Array) -> Any:
            module = self.structure.merged(self.initial)
            for base in (nnx.Linear, nnx.Conv):
                _intercept(module, base, record)
            return module(images, **mode(module.__call__, train=False))

        jax.eval_shape(run, images)
        return fan_ins

    def _trained(self, interceptor: Interceptor, variables: Variables, images: jax.Array, axis_name: str | None) -> Any:
        """A module after a training pass."""
        module = self.structure.merged(variables)
        module.train()
        for norm in _intercept(module, nnx.BatchNorm, interceptor):
            norm.axis_name, norm.axis_index_groups = axis_name, None
        module(images, **mode(module.__call__, train=True))
        return module

    def _left(
        self, images: jax.ShapeDtypeStruct, train: bool, variables: Variables
    ) -> tuple[dict[Path, jax.Array], dict[Path, jax.Array]]:
        """What a module holds before and after a pass; all else of the pass XLA drops."""
        noise = jax.random.uniform(jax.random.key(0), images.shape, images.dtype)
        module = self.structure.merged(variables)
        before = _named(_leaves(nnx.state(module)))
        if train:
            module = self._trained(_uninterrupted, variables, noise, None)
        else:
            module(noise, **mode(module.__call__, train=False))
        after = _named(_leaves(nnx.state(module)))
        averages = flatten_dict(variables.get("batch_stats", {})) if train else {}
        return before, {path: before[path] if path in averages else leaf for path, leaf in after.items()}


def _leaves(state: Any) -> dict[tuple[Any, ...], Any]:
    """Arrays by their keys in the module; those of NumPy are copied, as somebody may change them."""
    leaves = {}
    for place, leaf in nnx.to_flat_state(state):
        value: Any = leaf.get_value() if isinstance(leaf, nnx.Variable) else leaf
        if not isinstance(value, jax.Array | np.ndarray):
            raise TypeError(
                f"The variable {'.'.join(_name(place))} holds a {type(value).__name__}; expected an array. Make a "
                "variable of each array in it."
            )
        leaves[place] = jnp.array(value) if isinstance(value, np.ndarray) else value
    return leaves


def _name(place: tuple[Any, ...]) -> Path:
    """Keys as those of a checkpoint: numbers of lists are strings there."""
    return tuple(map(str, place))


def _statistics(module: Any) -> dict[str, Any]:
    return unflatten_dict(_named(_leaves(nnx.state(module, nnx.BatchStat))))


def _named(leaves: Mapping[tuple[Any, ...], Any]) -> dict[Path, Any]:
    return {_name(place): leaf for place, leaf in leaves.items()}


def _same(old: Any, new: Any) -> bool:
    if jnp.issubdtype(old.dtype, jax.dtypes.prng_key):
        old, new = jax.random.key_data(old), jax.random.key_data(new)
    return np.array_equal(old, new, equal_nan=jnp.issubdtype(old.dtype, jnp.inexact))


def _intercept(module: Any, base: type, interceptor: Interceptor) -> Iterator[Any]:
    """Puts an interceptor around the calls of all layers of a kind, below what their subclasses do; the layers."""
    layers: list[tuple[Any, Any]] = [item for item in nnx.iter_modules(module) if isinstance(item[1], base)]
    for path, layer in layers:
        layer.__class__ = _intercepted(type(layer), base)
        # Static: it is there after nnx.jit and its like took the module apart, which trace anew because of it.
        layer.interceptor = functools.partial(_around, interceptor, _name(path))
    return iter([layer for _, layer in layers])


def _uninterrupted(call: Callable, layer: Any, path: Path, args: tuple, kwargs: dict) -> Any:
    del layer, path
    return call(*args, **kwargs)


def _around(interceptor: Interceptor, path: Path, call: Callable, layer: Any, args: tuple, kwargs: dict) -> Any:
    return interceptor(call, layer, path, args, kwargs)


@functools.cache
def _intercepted(kind: type, base: type) -> type:
    """A class of layers of this kind; in its order of resolution the interceptor comes just before `base`."""

    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:
        return self.interceptor(functools.partial(base.__call__, self), self, args, kwargs)

    inner = type(base.__name__, (base,), {"__call__": __call__})
    return inner if kind is base else type(kind.__name__, (kind, inner), {})


def _averages(norm: Any) -> dict[str, Any]:
    return {"mean": norm.mean, "var": norm.var}


def _is_frozen(norm: Any, x: jax.Array, use_running_average: bool | None = None, **kwargs: Any) -> bool:
    del x, kwargs
    return bool(norm.use_running_average if use_running_average is None else use_running_average)


def _batch_statistics(
    norm: Any,
    old: Mapping[str, jax.Array],
    x: jax.Array,
    use_running_average: bool | None = None,
    *,
    mask: jax.Array | None = None,
) -> Mapping[str, jax.Array]:
    """What `nnx.BatchNorm` normalises by."""
    del use_running_average
    learned = [None if weight is None else weight[...] for weight in (norm.scale, norm.bias)]
    x, *_ = norm.promote_dtype((x, old["mean"], old["var"], *learned), dtype=norm.dtype)
    fields = ("axis", "epsilon", "dtype", "axis_name", "axis_index_groups", "use_fast_variance")
    linen = nn.BatchNorm(
        use_running_average=False,
        momentum=0.0,
        use_bias=False,
        use_scale=False,
        **{field: getattr(norm, field) for field in fields},
    )
    zeros = jax.tree.map(jnp.zeros_like, dict(old))
    _, updated = linen.apply({"batch_stats": zeros}, x, mask=mask, mutable=["batch_stats"])
    return updated["batch_stats"]
