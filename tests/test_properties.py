"""Soundness as a property: no point of a region leaves the bounds, whatever the network, the region and the method.

Hypothesis draws the weights, the example, the radii and the directions. Their shapes are fixed, so that each norm is
compiled once for all examples.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from jax import lax

import cure_jax as cj
from cure_jax.certification import METHODS

BALLS = ((math.inf, True), (2.0, False), (2.0, True), (1.0, False), (1.0, True), (1.1, True))
BASIC = ("ibp", "crown_ibp", "crown")
SAMPLES, DIRECTIONS = 12, 12

bounded = settings(deadline=None, max_examples=30, derandomize=True, database=None)


def numbers(shape: tuple[int, ...], largest: float) -> st.SearchStrategy[np.ndarray]:
    """Arrays in which zeros, ones and repetitions are common."""
    return hnp.arrays(np.float32, shape, elements=st.floats(-largest, largest, width=32, allow_subnormal=False))


class Dense(NamedTuple):
    """Weights of `dense`."""

    first: np.ndarray
    inner: np.ndarray
    last: np.ndarray
    bias: np.ndarray


class Conv(NamedTuple):
    """Weights of `conv`."""

    kernel: np.ndarray
    last: np.ndarray
    bias: np.ndarray


DENSE = st.builds(Dense, numbers((3, 4), 2), numbers((4, 4), 2), numbers((4, 3), 2), numbers((3, 4), 1))
CONV = st.builds(Conv, numbers((2, 2, 2, 2), 2), numbers((8, 3), 2), numbers((3,), 1))


def dense(weights: Dense, x: jax.Array) -> jax.Array:
    """One layer, and after it a residual block, an absolute value, a minimum and a maximum of two nodes."""
    shallow = h = jax.nn.relu((x - 0.5) @ weights.first + weights.bias[0])
    h = h + jnp.abs(h @ weights.inner + weights.bias[1])
    h = jnp.maximum(h, jnp.minimum(h[::-1], weights.bias[2])) - jnp.max(h)
    return jnp.concatenate([shallow, h @ weights.last])


def conv(weights: Conv, x: jax.Array) -> jax.Array:
    """A grey image normalised as two channels, a padded convolution and max-pooling."""
    mean, std = (jnp.array(values).reshape(1, 1, 1, 2) for values in ([0.4, 0.5], [0.3, 0.2]))
    image = (x.reshape(1, 3, 3, 1) - mean) / std
    numbers = ("NHWC", "HWIO", "NHWC")
    h = lax.conv_general_dilated(image, weights.kernel, (1, 1), [(1, 0), (0, 1)], dimension_numbers=numbers)
    h = jax.nn.relu(h) - 0.2
    h = lax.reduce_window(h, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "SAME")
    return h.reshape(-1) @ weights.last + weights.bias


NETWORKS = {"dense": (dense, DENSE, 3), "conv": (conv, CONV, 9)}


def farthest(region: cj.LpBall, direction: jax.Array) -> jax.Array:
    """The point of the ball farthest in a direction, cut by the box: without the support function, which is tested."""
    if region.p == math.inf:
        step = jnp.sign(direction)
    else:
        scaled = jnp.abs(direction * region.radius)
        scaled = scaled / jnp.maximum(jnp.max(scaled), 1e-30)
        # p = 1 moves the pixel with the largest product alone; so nearly does a large power.
        size = scaled ** (1 / (region.p - 1) if region.p > 1 else 64.0)
        step = jnp.sign(direction) * size / jnp.maximum(jnp.sum(size**region.p) ** (1 / region.p), 1e-30)
    point = region.center + region.radius * step
    box = region.bounding_box()
    return jnp.clip(point, box.lower, box.upper)


@functools.cache
def compiled(network: str, p: float, cut: bool):
    """(weights, x, radius, directions) -> bounds of all methods, and the values at points of the region."""
    apply = NETWORKS[network][0]

    @jax.jit
    def both(weights, x, radius, directions):
        f = functools.partial(apply, jax.tree.map(jnp.asarray, weights))
        region = cj.lp_ball(x, radius, p, (0.0, 1.0) if cut else None)
        samples = jax.vmap(region.sample)(jax.random.split(jax.random.key(0), SAMPLES))
        slopes = jax.jacobian(f)(x)
        corners = jax.vmap(functools.partial(farthest, region))(jnp.concatenate([directions, slopes, -slopes]))
        points = jnp.concatenate([samples, corners, x[None]])
        inside = jax.vmap(lambda point: region.contains(point, 1e-5))(points)
        return {name: METHODS[name](f)(region) for name in BASIC}, jax.vmap(f)(points), inside

    return both


def drawn(size: int):
    """An example, with black and white pixels, and a radius for each pixel, some of them 0."""
    pixels = st.one_of(st.sampled_from([0.0, 1.0, 0.5]), st.floats(0, 1, width=32, allow_subnormal=False))
    radii = st.one_of(st.sampled_from([0.0, 0.125, 1.0]), st.floats(2**-10, 2, width=32))
    return (
        hnp.arrays(np.float32, (size,), elements=pixels),
        hnp.arrays(np.float32, (size,), elements=radii),
        numbers((DIRECTIONS, size), 1),
    )


# In the quick run each ball with one of the networks.
@pytest.mark.parametrize(
    ("network", "p", "cut"),
    [
        pytest.param(network, *ball, marks=[] if number % len(NETWORKS) == place else pytest.mark.slow)
        for place, network in enumerate(NETWORKS)
        for number, ball in enumerate(BALLS)
    ],
)
def test_no_point_of_a_region_leaves_the_bounds(network, p, cut):
    _, weights, size = NETWORKS[network]

    @bounded
    @given(weights, *drawn(size))
    def holds(weights, x, radius, directions):
        all_bounds, values, inside = jax.device_get(compiled(network, p, cut)(weights, x, radius, directions))
        values = values[inside]
        assert len(values) > SAMPLES + DIRECTIONS
        scale = 1e-5 * (10 + np.abs(values).max())
        for name, bounds in all_bounds.items():
            assert np.all(values >= bounds.lower - scale), name
            assert np.all(values <= bounds.upper + scale), name

    holds()
