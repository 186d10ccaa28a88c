"""Linen modules as networks: `functional.Functional`.

Only `nn.BatchNorm` makes statistics of a batch, each with a momentum of its own; what they are is asked of flax itself,
through its interceptors.
"""

import dataclasses
import inspect
import itertools
import math
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from cure_jax.models.functional import Path, Variables, mode
from cure_jax.models.running_averages import AVERAGES, check_norm, check_present, check_switched, dropout_error

__all__ = ["LinenNetwork"]

# Of `nn.BatchNorm` itself: a subclass that calls it is one, one that does not is none.
_BATCH_NORM = inspect.unwrap(nn.BatchNorm.__call__)
_passes = itertools.count()


@dataclasses.dataclass(frozen=True)
class LinenNetwork:
    """A linen module of batches, with and without an argument `train`.

    Attributes:
      model: the module.
    """

    model: nn.Module

    @property
    def name(self) -> str:
        """The class of the module."""
        return type(self.model).__name__

    def module(self, variables: Variables) -> nn.Module:
        """The module, which holds no variables."""
        del variables
        return self.model

    def init(self, key: Any, images: jax.Array) -> dict[str, Any]:
        """Parameters and, with such a collection, `batch_stats`; other collections are left out."""
        variables = self.model.init(key, images, **mode(self.model.__call__, train=False))
        return {name: variables[name] for name in ("params", "batch_stats") if name in variables}

    def apply(self, variables: Variables, images: jax.Array) -> jax.Array:
        """Logits of a batch in inference mode."""
        return jnp.asarray(self.model.apply(variables, images, **mode(self.model.__call__, train=False)))

    def check(self, images: jax.ShapeDtypeStruct) -> None:
        """Refuses Dropout."""
        with nn.intercept_methods(_refuse_dropout):
            jax.eval_shape(self.init, _streams(), images)

    def update(self, variables: Variables, images: jax.Array, axis_name: str | None) -> Mapping[str, Any]:
        """The collection `batch_stats` after a training pass; `axis_name` is set on a field of that name."""
        return self._update(variables, images, axis_name)

    def averages(self, variables: Variables, images: jax.Array, axis_name: str | None) -> dict[Path, jax.Array]:
        """From averages of 0 a pass over statistics of 1 makes 1 - m of each."""
        averaging: set[Path] = set()
        frozen: set[Path] = set()

        def weigh(call: Callable, args: tuple, kwargs: dict, context: nn.module.InterceptorContext) -> Any:
            if getattr(context.orig_method, "func", None) is not _BATCH_NORM:
                return call(*args, **kwargs)
            norm: Any = context.module
            old = {name: norm.get_variable("batch_stats", name) for name in AVERAGES}
            output = call(*args, **kwargs)
            if norm.get_variable("batch_stats", "mean") is old["mean"]:
                frozen.add(norm.path)
                return output
            averaging.add(norm.path)
            self._check_axis(norm, axis_name)
            check_norm(self.name, norm.path, norm.momentum)
            for name, value in old.items():
                norm.put_variable("batch_stats", name, norm.momentum * value + (1 - norm.momentum))
            return output

        before: Any = flatten_dict(variables["batch_stats"])
        start = {path: jnp.zeros_like(leaf) if path[-1] in AVERAGES else leaf for path, leaf in before.items()}
        start = {**variables, "batch_stats": unflatten_dict(start)}
        with nn.intercept_methods(weigh):
            # A collection that no other pass has: nn.jit would return what it traced there.
            after: Any = flatten_dict(self._update(start, images, axis_name, f"pass {next(_passes)}"))
        check_switched(self.name, self.model.__call__, averaging, frozen)
        return {path: after[path] for path in check_present(self.name, averaging, before)}

    def fan_ins(self, images: Any) -> dict[Path, int]:
        """Those of `nn.Dense` and `nn.Conv`, in the order of their last calls."""
        fan_ins: dict[Path, int] = {}

        def record(call: Callable, args: tuple, kwargs: dict, context: nn.module.InterceptorContext) -> Any:
            result = call(*args, **kwargs)
            if isinstance(context.module, nn.Dense | nn.Conv) and context.method_name == "__call__":
                path = (*context.module.path, "kernel")
                # The kernel as the layer sees it: inside nn.scan or nn.vmap the stored one has one more axis.
                *inputs, _ = jnp.shape(context.module.get_variable("params", "kernel"))
                fan_ins.pop(path, None)
                fan_ins[path] = math.prod(inputs)
            return result

        with nn.intercept_methods(record):
            jax.eval_shape(self.init, _streams(), images)
        return fan_ins

    def _update(
        self, variables: Variables, images: jax.Array, axis_name: str | None, *mutable: str
    ) -> Mapping[str, Any]:
        model = self.model
        if axis_name is not None and "axis_name" in model.__dataclass_fields__:
            model = model.clone(axis_name=axis_name)
        train = mode(model.__call__, train=True)
        _, updated = model.apply(variables, images, **train, mutable=["batch_stats", *mutable])
        return updated["batch_stats"]

    def _check_axis(self, norm: Any, axis_name: str | None) -> None:
        axes = norm.axis_name if isinstance(norm.axis_name, tuple) else (norm.axis_name,)
        if axis_name is not None and (axis_name not in axes or norm.axis_index_groups is not None):
            raise ValueError(
                f"{self.name} has BatchNorm but no field `axis_name` that all of it ({'.'.join(norm.path)}) takes, "
                "so its statistics cannot be synchronised over devices. Add `axis_name: str | None = None`, pass it to "
                "nn.BatchNorm, without axis_index_groups, or train with parallel='jit'."
            )


def _streams() -> dict[str, Any]:
    return {name: jax.random.key(0) for name in ("params", "dropout")}


def _refuse_dropout(call: Callable, args: tuple, kwargs: dict, context: nn.module.InterceptorContext) -> Any:
    if isinstance(context.module, nn.Dropout) and context.module.rate > 0:
        raise dropout_error(context.module.rate)
    return call(*args, **kwargs)
