"""Balls to test on, and points in them."""

import math

import jax
import numpy as np
import pytest

from cure_jax.regions import LpBall, lp_ball

NORMS = (1.0, 1.5, 2.0, 3.0, math.inf)
BOXES = (None, (0.0, 1.0))
SHAPE = (4, 5)

norms = pytest.mark.parametrize("p", NORMS)
boxes = pytest.mark.parametrize("within", BOXES)


def relative_norm(offset, radius, p):
    """|offset / radius|_p in numpy; infinite where a pixel of radius 0 moved."""
    offset, radius = np.asarray(offset, float).ravel(), np.asarray(radius, float).ravel()
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(offset == 0, 0, np.abs(offset) / radius)
    return np.linalg.norm(ratio, p)


def random_region(seed, p, within, shape=SHAPE):
    """Grey, black and white pixels, one radius for each pixel, a fifth of them 0, over two orders of magnitude."""
    r = np.random.default_rng(seed)
    x = np.clip(r.uniform(-0.5, 1.5, shape), 0, 1) if seed % 2 else r.uniform(0, 1, shape)
    radius = r.uniform(0.1, 1.0, shape) * r.choice([0.1, 1, 10], shape) * (r.uniform(size=shape) > 0.2)
    return lp_ball(x, radius if seed % 3 else 10.0 ** (seed % 2), p, within)


def in_region(region, x, tolerance):
    inside = relative_norm(np.asarray(x) - np.asarray(region.center), region.radius, region.p) <= 1 + tolerance
    if region.lower is None:
        return inside
    return inside and np.all(x >= region.lower - tolerance) and np.all(x <= region.upper + tolerance)


def offset_limits(region):
    low, high = region.bounding_box().lower, region.bounding_box().upper
    return np.asarray(low - region.center), np.asarray(high - region.center)


@jax.jit
def support_and_maximiser(region, coefficients):
    return jax.value_and_grad(region.support)(coefficients)


def random_points(region, seed, count=50):
    """Points of the region in numpy: on spheres of its norm, then clipped to the box, half of them on the boundary."""
    r = np.random.default_rng(seed)
    offsets = r.normal(size=(count, *SHAPE)) ** r.choice([1, 5], (count, 1, 1))
    sizes = np.linalg.norm(offsets.reshape(count, -1), region.p, axis=1) / np.minimum(r.uniform(0, 2, count), 1)
    center, radius, box = jax.tree.map(np.asarray, (region.center, region.radius, region.bounding_box()))
    return np.clip(center + offsets / sizes[:, None, None] * radius, box.lower, box.upper)


@jax.jit
def samples(region, key):
    return jax.vmap(region.sample)(jax.random.split(key, 50))


# Compiled once for all seeds of a test.
support_of = jax.jit(LpBall.support)
project = jax.jit(LpBall.project)
