"""Fails the build if a public name of cure_jax is not in the site, as optax's coverage check does for its own."""

import importlib
import pkgutil
from typing import Any

import sphinx.errors
from sphinx.application import Sphinx

import cure_jax

# Parts of the library that are not promised to anybody, though they say what their other parts may use.
_INTERNAL = {
    "activations",
    "commands",
    "control_flow",
    "convolution",
    "equality",
    "graph",
    "numerics",
    "progress",
    "pytrees",
    "rewriting",
    "validation",
}


def setup(app: Sphinx) -> dict[str, Any]:
    """Called by Sphinx."""
    app.connect("env-check-consistency", _check)
    return {"parallel_read_safe": True}


def public_names() -> set[str]:
    """All names of `cure_jax.__all__`, and those of the `__all__` of its rooms, with the name of the room."""
    rooms = [room.name for room in pkgutil.iter_modules(cure_jax.__path__) if room.name not in _INTERNAL]
    modules = ["cure_jax", *(f"cure_jax.{room}" for room in rooms if not room.startswith("_"))]
    return {
        f"{module}.{name}" for module in modules for name in getattr(importlib.import_module(module), "__all__", ())
    }


def _check(app: Sphinx, env: Any) -> None:
    described = {_resolved(name) for name in env.get_domain("py").objects}
    missing = sorted(name for name in public_names() if _resolved(name) not in described)
    if missing:
        raise sphinx.errors.ExtensionError(
            f"The site lacks {len(missing)} public names: {', '.join(missing)}. Add each to a page of docs/api."
        )


def _resolved(name: str) -> Any:
    """What a name stands for, so that `cure_jax.crown` and `cure_jax.bounds.crown` are one thing."""
    module, _, attribute = name.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), attribute)
        hash(found)
    except (ImportError, AttributeError, TypeError, ValueError):
        return name
    return name if isinstance(found, (str, int, float, tuple)) else found
