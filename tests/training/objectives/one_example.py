"""What the tests of objectives share: one example, and the worst-case logits that an objective gives it."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from cure_jax.regions import lp_ball
from cure_jax.training.objectives import Network, Objective
from tests.networks import mlp, mlp_params

PIXELS = (0.0, 1.0)
ONE = jnp.float32(1.0)
ZERO = jnp.float32(0.0)
KEY = jax.random.key(3)
X = jnp.array([0.4, 0.5, 0.55, 0.6])
# Black, white, grey, and dark enough for the limits of a small box to cross.
FOUR_PIXELS = jnp.array([0.0, 1.0, 0.5, 0.05])


def ball_of(p: float, within: tuple[float, float] | None = PIXELS) -> Callable:
    return functools.partial(lp_ball, p=p, within=within)


def network_of(f: Callable, attacked: Callable | None = None, **fields: Any) -> Network:
    return Network(certified=f, attacked=attacked or f, precision=jax.lax.Precision.HIGHEST, **fields)


@functools.cache
def _compiled(objective: Objective) -> Callable:
    return jax.jit(lambda f, x, label, scale, fields: objective(network_of(f, **fields), x, label, scale, KEY).logits)


def worst_of(
    objective: Objective, f: Partial, x: jax.Array, label: int, scale: float = 1.0, **fields: Any
) -> np.ndarray:
    return np.asarray(_compiled(objective)(f, x, jnp.int32(label), jnp.float32(scale), fields))


def _affine(weights: jax.Array, bias: jax.Array, x: jax.Array) -> jax.Array:
    return jnp.dot(weights, x, precision="highest") + bias


def linear(seed: int = 0, classes: int = 3, pixels: int = 4) -> tuple[np.ndarray, np.ndarray, Partial]:
    generator = np.random.default_rng(seed)
    weights, bias = (generator.normal(size=shape).astype(np.float32) for shape in ((classes, pixels), (classes,)))
    return weights, bias, Partial(_affine, jnp.asarray(weights), jnp.asarray(bias))


def wide(seed: int = 4) -> Partial:
    return Partial(mlp, mlp_params(seed, (4, 8, 8, 3)))
