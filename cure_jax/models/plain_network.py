"""Pairs of functions as networks: `functional.Functional`."""

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict

from cure_jax.models.functional import Path, Variables, mode
from cure_jax.models.running_averages import check_constant

__all__ = ["PlainNetwork"]


@dataclasses.dataclass(frozen=True)
class PlainNetwork:
    """Two functions, `init(key, images) -> params` and `apply(params, images) -> logits`.

    With statistics of batches, `apply` has an argument `train` and, for several devices, `axis_name`. Both functions
    then have `{"params": ..., "batch_stats": ...}` for `params`, and with `train=True` `apply` returns the logits and
    what becomes of `batch_stats`: of each array m * old + (1 - m) * statistic, m a constant below 1.

    Attributes:
      init_function: the first.
      apply_function: the second.
    """

    init_function: Callable[..., Any]
    apply_function: Callable[..., Any]

    @property
    def name(self) -> str:
        """The second function's."""
        return getattr(self.apply_function, "__qualname__", type(self.apply_function).__name__)

    def module(self, variables: Variables) -> tuple[Callable, Callable]:
        """The pair."""
        del variables
        return self.init_function, self.apply_function

    def init(self, key: Any, images: jax.Array) -> dict[str, Any]:
        """What the first function returns."""
        made = self.init_function(key, images)
        return dict(made) if self._has_statistics else {"params": made}

    def apply(self, variables: Variables, images: jax.Array) -> jax.Array:
        """Logits of a batch in inference mode."""
        given = variables if self._has_statistics else variables["params"]
        return jnp.asarray(self.apply_function(given, images, **mode(self.apply_function, train=False)))

    def check(self, images: jax.ShapeDtypeStruct) -> None:
        """Refuses variables by other names."""
        variables = jax.eval_shape(self.init, jax.random.key(0), images)
        if unknown := variables.keys() ^ {"params", "batch_stats"} if self._has_statistics else ():
            raise ValueError(
                f"{self.name} has an argument `train`, but of its initial variables {sorted(unknown)} are too many or "
                "missing; expected params and batch_stats. Leave the argument out if there is no BatchNorm."
            )

    def averages(self, variables: Variables, images: jax.Array, axis_name: str | None) -> dict[Path, jax.Array]:
        """The derivative of a running average by itself is m."""
        if axis_name is not None and "axis_name" not in self._arguments:
            raise ValueError(
                f"{self.name} has batch_stats but no argument `axis_name`, so they cannot be synchronised over "
                "devices. Add `axis_name=None` and average them over it (jax.lax.pmean), or train with parallel='jit'."
            )
        before = variables["batch_stats"]

        def momenta(images: jax.Array) -> Any:
            def moved(statistics: Any) -> Any:
                return self.update({**variables, "batch_stats": statistics}, images, axis_name)

            return jax.jvp(moved, (before,), (jax.tree.map(jnp.ones_like, before),))[1]

        found: Any = flatten_dict(momenta(images))
        self._check_constant(momenta, images)
        old, new = (flatten_dict(tree) for tree in (before, self.update(variables, images, axis_name)))
        return {path: 1 - momentum for path, momentum in found.items() if _moves(path, old, new)}

    def update(self, variables: Variables, images: jax.Array, axis_name: str | None) -> Mapping[str, Any]:
        """What `apply` makes of `batch_stats` in training."""
        axis = {"axis_name": axis_name} if "axis_name" in self._arguments else {}
        _, statistics = self.apply_function(variables, images, train=True, **axis)
        return statistics

    def fan_ins(self, images: Any) -> dict[Path, int]:
        """Nobody knows which of its parameters are kernels."""
        del images
        return {}

    @property
    def _arguments(self) -> Mapping[str, Any]:
        return inspect.signature(self.apply_function).parameters

    @property
    def _has_statistics(self) -> bool:
        return "train" in self._arguments

    def _check_constant(self, momenta: Callable[[jax.Array], Any], images: jax.Array) -> None:
        """Refuses momenta that depend on the images."""
        sentence = (
            f"{self.name} makes of batch_stats what is no running average; expected m * old + (1 - m) * statistic, "
            "m a constant. Return that, and leave everything else out."
        )
        check_constant(momenta, images, sentence)


def _moves(path: Any, old: Mapping, new: Mapping) -> bool:
    # What was left alone is the same object.
    return path in old and new.get(path) is not old[path]
