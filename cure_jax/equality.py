"""Functions that are equal if what they hold is equal: how JAX finds a compiled program again."""

import dataclasses
import functools
import types
from collections.abc import Callable, Hashable
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

__all__ = ["ByValue"]


class ByValue:
    """A function that equals another one if both hold the same functions and equal values, arrays among them.

    What holds a function as static metadata of a pytree, such as `jax.tree_util.Partial`, is compared with `==` to find
    what was compiled for it. Of a dataclass with an array, such as a flax module, that raises, or takes an array for
    another one: `True` for `1`, shape `(1,)` for `()`, the array for what it was before it was changed in place. Here
    arrays count by type, shape and bytes, as they were when this was made.

    Args:
      function: a function, a bound method, a `functools.partial` or a dataclass that can be called.

    Examples:
      >>> multiply = functools.partial(jnp.multiply, jnp.arange(3))
      >>> multiply == functools.partial(jnp.multiply, jnp.arange(3))
      False
      >>> ByValue(multiply) == ByValue(functools.partial(jnp.multiply, jnp.arange(3)))
      True
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self._key = _key(function)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the function.

        Raises:
          ValueError: if an array in it has been changed: what is compiled now would be found for the old one.
        """
        if _key(self.function) != self._key:
            raise ValueError(
                f"{_name(self.function)} holds an array that was changed after the function was wrapped; the same "
                "values were expected. Wrap it again: a compiled function knows it by its arrays."
            )
        return self.function(*args, **kwargs)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ByValue) and self._key == other._key

    def __hash__(self) -> int:
        return hash(type(self.function))

    def __repr__(self) -> str:
        return f"ByValue({self.function!r})"


@dataclasses.dataclass(frozen=True, eq=False)
class _Itself:
    """Equals only what holds the same object."""

    value: Any

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Itself) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)


def _key(value: Any) -> Hashable:
    """What stands for a value: equal keys, equal values."""
    if isinstance(value, ByValue):
        return (ByValue, _key(value.function))
    if isinstance(value, types.MethodType):
        return (value.__func__, _key(value.__self__))
    if isinstance(value, functools.partial):
        return (type(value), _key(value.func), _key(value.args), _key(value.keywords))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = (field.name for field in dataclasses.fields(value))
        return (type(value), *((name, _key(getattr(value, name, None))) for name in fields))
    leaves, structure = jax.tree.flatten(value)
    if len(leaves) == 1 and leaves[0] is value:
        return _leaf_key(value)
    return (type(value), structure, *map(_key, leaves))


def _leaf_key(leaf: Any) -> Hashable:
    if isinstance(leaf, jax.Array | np.ndarray | np.generic):
        return _Itself(leaf) if isinstance(leaf, jax.core.Tracer) or leaf.dtype == object else _array_key(leaf)
    if isinstance(leaf, float | complex):
        # -0.0 equals 0.0, and not a number nothing.
        return (type(leaf), repr(leaf))
    try:
        hash(leaf)
    except TypeError:
        return _Itself(leaf)
    return (type(leaf), leaf)


def _array_key(array: jax.Array | np.ndarray | np.generic) -> Hashable:
    kind = (type(array), str(array.dtype), array.shape, getattr(array, "weak_type", False))
    if isinstance(array, jax.Array) and jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
        # It is called while others trace too.
        with jax.ensure_compile_time_eval():
            array = jax.random.key_data(array)
    return (kind, np.asarray(array).tobytes())


def _name(function: Any) -> str:
    return getattr(function, "__qualname__", type(function).__name__)
