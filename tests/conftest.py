"""What every test runs under: eight CPU devices, and no promotion of dtypes or ranks behind our back."""

import gc
import math
import os
import resource
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
# Tests spend their time in compiling, not in running. This, also for the processes that tests start, and the flags of
# XLA below make it five times shorter.
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
# What was compiled is kept until the end, for files that forget it (below) and for other processes. Each worker has a
# directory of its own: JAX does not write these files atomically.
os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="cure_jax_tests_")

import jax
import jaxlib
import numpy as np
import optax
import pytest

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
# A flag that XLA does not know ends the process, so each is for versions that were tried.
_QUICK_TO_COMPILE = {
    "--xla_cpu_parallel_codegen_split_count=1": ("0.10.", "0.11.", "0.12."),
    "--xla_cpu_use_fusion_emitters=false": ("0.10.",),
}
with pytest.MonkeyPatch.context() as patch:
    known = [flag for flag, versions in _QUICK_TO_COMPILE.items() if jaxlib.__version__.startswith(versions)]
    patch.setenv("XLA_FLAGS", " ".join([os.environ.get("XLA_FLAGS", ""), *known]))
    jax.devices()  # Reads the flags. The launchers' tests start processes of their own, with the flags of users.
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


def pytest_collection_finish() -> None:
    """At its own pace Python's collector took 7 % of the time: tracing makes millions of objects."""
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


def pytest_unconfigure() -> None:
    shutil.rmtree(os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)


# Of memory that a worker may hold before it forgets what it compiled.
_MOST_BYTES = 1.5e9


@pytest.fixture(autouse=True, scope="module")
def _forgetting() -> Iterator[None]:
    """Forgets compiled programs between files once there are many: with those of all, a worker grows to 8 GB."""
    yield
    if _bytes_held() > _MOST_BYTES:
        jax.clear_caches()
        gc.collect()


def _bytes_held() -> float:
    """Of this process, where Linux says so; else infinite."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    except OSError:
        return math.inf


@pytest.fixture
def key() -> jax.Array:
    return jax.random.key(0)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)
