"""The type checker that every function of the library runs under in tests: `--jaxtyping-packages` in pyproject.toml."""

from collections.abc import Callable
from typing import Any

from beartype import beartype

__all__ = ["check"]


def check(function: Callable[..., Any]) -> Callable[..., Any]:
    """beartype, but not of functions inside of functions: each call makes those anew, and each checker takes 2 ms."""
    return function if "<locals>" in function.__qualname__ else beartype(function)
