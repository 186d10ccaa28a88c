"""Strategies of hypothesis, and the variants of chex. Both packages are optional."""

import importlib
import itertools
import math
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array

from cure_jax.regions import Interval, LpBall, Region

__all__ = ["boxes", "networks", "regions", "variants", "with_vmap"]


def variants(test: Callable[..., None]) -> Any:
    """Runs a test of a `chex.TestCase` five times: `self.variant(f)` has jit, or not, a device, or not, or pmap.

    `self.variant(with_vmap(f))` adds `jax.vmap` to each. With pmap every device computes the same; start the tests with
    `jax.config.update("jax_num_cpu_devices", 8)` to have several.
    """
    return _optional("chex").all_variants(test)


def with_vmap(function: Callable[..., Any]) -> Callable[..., Any]:
    """Computes a function through `jax.vmap`, on two copies of its arguments; returns the first result."""

    def mapped(*args: Any) -> Any:
        copies = jax.tree.map(lambda leaf: jnp.stack([jnp.asarray(leaf)] * 2), args)
        return jax.tree.map(lambda leaf: leaf[0], jax.vmap(function)(*copies))

    return mapped


def boxes(shape: Sequence[int], *, largest: float = 1.0) -> Any:
    """A strategy of hypothesis for boxes, `Interval`, with limits in [-largest, largest], some of them of width 0."""
    limits = _arrays(shape, -largest, largest)

    def box(one: np.ndarray, other: np.ndarray) -> Interval:
        return Interval(*jax.device_put((np.minimum(one, other), np.maximum(one, other))))

    return _strategies().builds(box, limits, limits)


def regions(
    shape: Sequence[int],
    *,
    norms: Sequence[float] = (1.0, 2.0, math.inf),
    within: tuple[float, float] | None = (0.0, 1.0),
    largest: float = 1.0,
) -> Any:
    """A strategy of hypothesis for balls around images in [0, 1], with a radius for each pixel, some of them 0.

    Args:
      shape: of an image.
      norms: the exponents to choose from.
      within: the box that cuts them, which must hold [0, 1], or None.
      largest: radius.
    """

    def ball(x: np.ndarray, eps: np.ndarray, p: float) -> Region:
        lower, upper = (None, None) if within is None else (np.full_like(x, limit) for limit in within)
        # Not `lp_ball`: to compute with JAX is to compile, which draws random numbers behind hypothesis's back.
        center, radius, low, high = jax.device_put((x, eps, lower, upper))
        return LpBall(center, radius, low, high, float(p))

    return _strategies().builds(
        ball, _arrays(shape, 0.0, 1.0), _arrays(shape, 0.0, largest), _strategies().sampled_from(norms)
    )


def networks(sizes: Sequence[int] = (4, 6, 3), *, largest: float = 2.0) -> Any:
    """A strategy of hypothesis for networks of dense layers with ReLU between them.

    Args:
      sizes: of the input, of each layer, of the output.
      largest: weight.

    Returns:
      `[sizes[0]] -> [sizes[-1]]` as a `jax.tree_util.Partial`: give it to a compiled function as an argument.
    """
    pairs = itertools.pairwise(sizes)
    layers = [_strategies().tuples(_arrays(pair, -largest, largest), _arrays(pair[1:], -1.0, 1.0)) for pair in pairs]
    return _strategies().tuples(*layers).map(lambda drawn: Partial(_dense, jax.device_put(drawn)))


def _dense(layers: Sequence[tuple[Array, Array]], x: Array) -> Array:
    for index, (weights, bias) in enumerate(layers):
        x = jnp.dot(jnp.maximum(x, 0) if index else x, weights) + bias
    return x


def _optional(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{name} is not installed; this part of cure_jax.testing is built on it. Run: pip install "
            "'cure-jax[testing]'"
        ) from error


def _strategies() -> ModuleType:
    return _optional("hypothesis.strategies")


def _arrays(shape: Sequence[int], least: float, largest: float) -> Any:
    """Arrays in which zeros and the limits are common."""
    st = _strategies()
    between = st.floats(least, largest, width=32, allow_subnormal=False)
    elements = st.one_of(st.sampled_from([0.0, least, largest]), between)
    return _optional("hypothesis.extra.numpy").arrays(np.float32, tuple(shape), elements=elements)
