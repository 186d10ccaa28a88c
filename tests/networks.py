"""Small random networks for tests."""

import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

import cure_jax as cj


def mlp_params(seed: int, sizes: tuple[int, ...] = (2, 8, 8, 3)) -> list[tuple[jax.Array, jax.Array]]:
    """Weights of order one."""
    generator = np.random.default_rng(seed)
    return [
        (
            jnp.asarray(generator.normal(size=(a, b)).astype(np.float32) * np.float32(1.5 / np.sqrt(a))),
            jnp.asarray(generator.normal(size=b).astype(np.float32) * np.float32(0.5)),
        )
        for a, b in itertools.pairwise(sizes)
    ]


def mlp(params: list[tuple[jax.Array, jax.Array]], x: jax.Array) -> jax.Array:
    """Dense layers with ReLU between them."""
    for weights, bias in params[:-1]:
        x = jax.nn.relu(x @ weights + bias)
    return x @ params[-1][0] + params[-1][1]


def residual_params(seed: int) -> list[list[tuple[jax.Array, jax.Array]]]:
    """Weights of the three parts of `residual`."""
    return [mlp_params(seed + i, sizes) for i, sizes in enumerate([(2, 6), (6, 6, 6), (3, 3)])]


def residual(params: list[list[tuple[jax.Array, jax.Array]]], x: jax.Array) -> jax.Array:
    """Two inputs, a residual branch, an absolute value, a minimum, and a maximum over pairs."""
    first, inner, last = params
    h = jax.nn.relu(mlp(first, x))
    h = jnp.abs(h + mlp(inner, h)) - jnp.minimum(h, 0.4)
    return mlp(last, jnp.max(h.reshape(3, 2), axis=1))


# A network and its parameters by seed.
NETWORKS: dict[str, tuple[Callable[..., jax.Array], Callable[[int], Any]]] = {
    "mlp": (mlp, mlp_params),
    "residual": (residual, residual_params),
}


def random_mlp(seed: int, sizes: tuple[int, ...] = (2, 8, 8, 3)) -> Partial:
    """A random classifier of one example."""
    return Partial(mlp, mlp_params(seed, sizes))


_UNIT_GRID = np.stack(np.meshgrid(*[np.linspace(0, 1, 61, dtype=np.float32)] * 2), axis=-1).reshape(-1, 2)


def grid(box: cj.Interval) -> jax.Array:
    """All points of a regular grid over a box in two dimensions, ends included: [61 * 61, 2]."""
    return jax.vmap(lambda share: box.lower + share * (box.upper - box.lower))(jnp.asarray(_UNIT_GRID))
