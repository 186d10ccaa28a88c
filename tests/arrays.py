"""Random arrays, comparisons of them, and what a function is compiled to: for the tests of arithmetic."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def normal(*shape: int, seed: int = 0, dtype: Any = np.float32) -> jax.Array:
    return jnp.asarray(np.random.default_rng([seed, *shape]).normal(size=shape).astype(dtype))


def close(actual: Any, expected: Any, tolerance: float = 1e-5) -> None:
    """Compares to within `tolerance` of the largest entry: rounding of a sum is relative to its terms."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for got, want in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert got.dtype == want.dtype
        largest = np.abs(np.asarray(want)).max(initial=1.0)
        np.testing.assert_allclose(got, want, rtol=0, atol=tolerance * largest)


def lowered(f: Callable[..., Any], platform: str, *args: Any) -> str:
    return jax.jit(f).trace(*args).lower(lowering_platforms=(platform,)).as_text()
