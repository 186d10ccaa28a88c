"""What every test runs under: eight CPU devices, and no promotion of dtypes or ranks behind our back."""

import os
from collections.abc import Iterator

os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import numpy as np
import optax
import pytest

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
# Tests spend their time in compiling, not in running: this halves it. The launchers' tests run what users run.
jax.config.update("jax_disable_most_optimizations", True)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# Adam raises a Python float to an integer step, which strict promotion forbids: optax keeps JAX's default there.
# Schedules with integer steps meet the same; a test of those says `with jax.numpy_dtype_promotion("standard")`.
optax.tree.bias_correction = jax.numpy_dtype_promotion("standard")(optax.tree.bias_correction)

_register_dataclass = jax.tree_util.register_dataclass


def _register_unchecked_dataclass(nodetype: type, *args, **kwargs) -> type:
    """Registers a dataclass whose constructor the type checker leaves alone.

    JAX rebuilds pytrees with whatever a transformation puts into their leaves (None, shapes, `ShapeDtypeStruct`,
    axes), so the types of the fields hold for the users of a pytree, not for its constructor. Methods and functions
    are still checked.
    """
    nodetype.__no_type_check__ = True
    return _register_dataclass(nodetype, *args, **kwargs)


jax.tree_util.register_dataclass = _register_unchecked_dataclass


@pytest.fixture(autouse=True, scope="module")
def _forgetting() -> Iterator[None]:
    """Forgets compiled programs between files: with those of all, a worker grows to 8 GB and into its limit of maps."""
    yield
    jax.clear_caches()


@pytest.fixture
def key() -> jax.Array:
    return jax.random.key(0)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)
