"""The leaves of a state, by name, as host arrays: what a checkpoint stores of them, and how they come back."""

import hashlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from cure_jax import distributed

__all__ = ["abstract", "describe", "digest", "host_array", "is_key", "like", "named_leaves"]


def named_leaves(tree: PyTree) -> dict[str, Any]:
    """The leaves in the order of the tree, by names like `params.Dense_0.kernel`."""
    paths_and_leaves = jax.tree_util.tree_leaves_with_path(tree)
    names = (jax.tree_util.keystr(path, simple=True, separator=".") or "state" for path, _ in paths_and_leaves)
    leaves = {name: leaf for name, (_, leaf) in zip(names, paths_and_leaves, strict=True)}
    if len(leaves) < len(paths_and_leaves):
        raise ValueError(
            "Got a state in which two leaves have the same name when their keys are joined by dots; different names "
            f"were expected. Use keys without dots. Names: {sorted(leaves)}."
        )
    return leaves


def is_key(leaf: Any) -> bool:
    """Whether a leaf is an array of PRNG keys, or describes one."""
    return isinstance(leaf, jax.Array | jax.ShapeDtypeStruct) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def host_array(leaf: Any) -> np.ndarray:
    """A copy on the host; of keys their data."""
    leaf = distributed.local(leaf)
    # A copy: on CPU, NumPy would look into a buffer that a later step, to which it is donated, overwrites.
    return np.array(jax.random.key_data(leaf) if is_key(leaf) else leaf)


def describe(leaf: Any) -> str:
    """Type and shape, like `float32[3,4]`."""
    leaf = leaf if isinstance(leaf, jax.Array | jax.ShapeDtypeStruct) else np.asarray(leaf)
    return f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]"


def abstract(description: str) -> jax.ShapeDtypeStruct:
    """The inverse of `describe`; of keys what is stored of them does not matter."""
    dtype, _, shape = description.removesuffix("]").partition("[")
    stored = "uint32" if dtype.startswith("key<") else dtype
    return jax.ShapeDtypeStruct(tuple(map(int, filter(None, shape.split(",")))), np.dtype(stored))


def like(abstract_leaf: Any, array: np.ndarray, key_impl: str | None) -> Any:
    """What was stored, as a leaf of the kind, and on the devices, of another one."""
    if not isinstance(abstract_leaf, jax.Array | jax.ShapeDtypeStruct):
        return array if isinstance(abstract_leaf, np.ndarray) else array.item()
    leaf = jnp.array(array)
    if key_impl is not None:
        leaf = jax.random.wrap_key_data(leaf, impl=key_impl)
    placed = not isinstance(abstract_leaf, jax.Array) or abstract_leaf.committed
    return jax.device_put(leaf, abstract_leaf.sharding) if placed and abstract_leaf.sharding is not None else leaf


def digest(arrays: Mapping[str, np.ndarray]) -> str:
    """SHA-256 of the names, types and bytes of all arrays."""
    sha256 = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        sha256.update(f"{name}:{describe(array)};".encode())
        sha256.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return sha256.hexdigest()
