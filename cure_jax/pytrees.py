"""Dataclasses as pytrees that also pass through a user's own `jax.export`."""

import contextlib
import json
from typing import Any, TypeVar

import jax
import jax.export

__all__ = ["register"]

_Class = TypeVar("_Class", bound=type)


def register(cls: _Class) -> _Class:
    """Makes a frozen dataclass a pytree whose structure `jax.export` can write and read.

    What is read has to be a class already known: the process that loads such a program imports `cure_jax` first.

    Args:
      cls: the dataclass. Its static fields are numbers, strings, None and tuples of these.

    Returns:
      The class itself.
    """
    jax.tree_util.register_dataclass(cls)
    # A module that is loaded again defines its classes anew, but a name can be given only once.
    with contextlib.suppress(ValueError):
        jax.export.register_pytree_node_serialization(
            cls,
            serialized_name=f"cure_jax.{cls.__name__}",
            serialize_auxdata=lambda static: json.dumps(static).encode(),
            deserialize_auxdata=lambda written: _with_tuples(json.loads(written)),
        )
    return cls


def _with_tuples(value: Any) -> Any:
    """JSON has lists alone; a structure is compared, and hashed, with tuples."""
    return tuple(map(_with_tuples, value)) if isinstance(value, list) else value
