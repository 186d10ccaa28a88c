"""Functions that are equal if what they hold is equal: how JAX finds a compiled program again."""

import dataclasses
import functools
import inspect
import types
from collections.abc import Callable, Hashable, Sequence
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
    arrays count by type, shape and bytes, as they were when this was made: in fields and other attributes, in what a
    function encloses, in its defaults, and in the names of its module that it uses. A function or an object that is no
    dataclass equals itself alone, and that only while what it holds stays the same.

    Args:
      function: a function, a bound method, a `functools.partial`, or an object that can be called.

    Examples:
      >>> multiply = functools.partial(jnp.multiply, jnp.arange(3))
      >>> multiply == functools.partial(jnp.multiply, jnp.arange(3))
      False
      >>> ByValue(multiply) == ByValue(functools.partial(jnp.multiply, jnp.arange(3)))
      True
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self._key = _Walk(function).key(function)
        self._arrays = _Walk(function, arrays_only=True).key(function)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the function.

        Raises:
          ValueError: if an array in it has been changed: what is compiled now would be found for the old one.
        """
        if _Walk(self.function, arrays_only=True).key(self.function) != self._arrays:
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


# What flax keeps in a module beside its fields.
_INTERNAL = ("_id", "_parent_ref", "_state", "scope")


class _Walk:
    """One pass through a value and what it holds, each function and object once.

    Args:
      root: where it begins.
      arrays_only: whether nothing else counts, such as what a function counts or remembers.
    """

    def __init__(self, root: Any, *, arrays_only: bool = False) -> None:
        self._arrays_only = arrays_only
        self._order: dict[int, int] = {}
        # Of these names alone, those of other modules being what libraries keep for themselves.
        self._names = getattr(_innermost(root), "__globals__", None)

    def key(self, value: Any) -> Hashable:
        """What stands for a value: equal keys, equal values."""
        if isinstance(value, ByValue):
            return (ByValue, self.key(value.function))
        if isinstance(value, types.MethodType):
            return (value.__func__, self.key(value.__self__))
        if isinstance(value, functools.partial):
            return (type(value), self.key(value.func), self.key(value.args), self.key(value.keywords))
        if isinstance(value, types.FunctionType):
            return self._once(value, self._of_function)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return self._once(value, self._of_dataclass)
        leaves, structure = jax.tree.flatten(value)
        if len(leaves) == 1 and leaves[0] is value:
            return self._of_leaf(value)
        keys = map(self.key, leaves)
        return tuple(filter(None, keys)) if self._arrays_only else (type(value), structure, *keys)

    def _once(self, value: Any, key: Callable[[Any], Hashable]) -> Hashable:
        """By its place in this pass where it was met before, as a function that calls itself is."""
        if id(value) in self._order:
            return ("met before", self._order[id(value)])
        self._order[id(value)] = len(self._order)
        return key(value)

    def _of_function(self, value: types.FunctionType) -> Hashable:
        enclosed = [_content(cell) for cell in value.__closure__ or ()]
        held = [value.__defaults__, value.__kwdefaults__, *enclosed]
        if value.__globals__ is self._names:
            used = [value.__globals__[name] for name in _names_in(value.__code__) if name in value.__globals__]
            held.extend(thing for thing in used if not isinstance(thing, types.ModuleType))
        return (value, *map(self.key, held))

    def _of_dataclass(self, value: Any) -> Hashable:
        fields = [field.name for field in dataclasses.fields(value)]
        known = ((name, self.key(getattr(value, name, None))) for name in fields)
        return (type(value), *known, self._attributes(value, (*fields, *_INTERNAL)))

    def _of_leaf(self, leaf: Any) -> Hashable:
        if isinstance(leaf, jax.Array | np.ndarray | np.generic):
            return _Itself(leaf) if isinstance(leaf, jax.core.Tracer) or leaf.dtype == object else _array_key(leaf)
        if isinstance(leaf, float | complex):
            # -0.0 equals 0.0, and not a number nothing.
            return () if self._arrays_only else (type(leaf), repr(leaf))
        if isinstance(leaf, type | types.ModuleType | types.BuiltinFunctionType) or not hasattr(leaf, "__dict__"):
            return () if self._arrays_only else _identity(leaf)
        return self._once(leaf, lambda leaf: (_identity(leaf), self._attributes(leaf, ())))

    def _attributes(self, value: Any, known: Sequence[str]) -> Hashable:
        """What an object holds beside its fields, and the arrays of its class."""
        kinds = type(value).__mro__
        own = vars(value) if hasattr(value, "__dict__") else {}
        # What is made of the rest when it is asked for first.
        derived = {
            name for kind in kinds for name, thing in vars(kind).items() if isinstance(thing, functools.cached_property)
        }
        arrays = {
            name: thing
            for kind in reversed(kinds)
            for name, thing in vars(kind).items()
            if isinstance(thing, jax.Array | np.ndarray)
        }
        names = sorted(name for name in {**arrays, **own} if name not in {*known, *derived} and name[:2] != "__")
        keys = [(name, self.key(own[name] if name in own else arrays[name])) for name in names]
        return tuple((name, key) for name, key in keys if key or not self._arrays_only)


def _innermost(value: Any) -> Any:
    """The function in methods, in partial applications and in what was wrapped before; an object's own call."""
    while isinstance(value, ByValue | types.MethodType | functools.partial):
        value = (
            value.function
            if isinstance(value, ByValue)
            else value.__func__
            if isinstance(value, types.MethodType)
            else value.func
        )
    return value if isinstance(value, types.FunctionType) else inspect.getattr_static(type(value), "__call__", None)


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        # Not bound yet.
        return None


def _names_in(code: types.CodeType) -> list[str]:
    """The names that a function and those inside of it look up in their module."""
    inner = [name for part in code.co_consts if isinstance(part, types.CodeType) for name in _names_in(part)]
    return sorted({*code.co_names, *inner})


def _identity(leaf: Any) -> Hashable:
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
