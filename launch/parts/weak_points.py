"""Where a network may be weak in a region: candidates for a counterexample to a bound on its margins."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

import cure_jax as cj
from cure_jax.regions import Hull, Region

__all__ = ["extreme_point", "weak_points"]


def weak_points(
    f: Callable[[jax.Array], jax.Array], x: jax.Array, label: jax.Array, region: Region, key: jax.Array
) -> tuple[jax.Array, int]:
    """Points of a region where a margin may be small.

    PGD (2 starts) and APGD (1 start), the extreme points in the directions that lower each margin at the image and at
    what PGD found, in random directions and in those of the pixels with the largest slopes (the vertices of l_1; sign
    vectors are those of l_inf), and random points.

    Args:
      f: one image to logits.
      x: the image.
      label: its class.
      region: where to search.
      key: the randomness.

    Returns:
      Points `[points, *x]`, and how many were looked at on the way.
    """
    pgd_key, apgd_key, direction_key, sample_key = jax.random.split(key, 4)
    found = cj.pgd(f, x, label, region, key=pgd_key, steps=8, restarts=2, loss="margin")
    other = cj.apgd(f, x, label, region, key=apgd_key, steps=12, loss="cross_entropy")
    slopes = jnp.concatenate([_slopes(f, label, x), _slopes(f, label, found)])
    total = jnp.sum(jnp.abs(slopes), axis=0).ravel()
    pixels = jax.nn.one_hot(jax.lax.top_k(total, 6)[1], total.size, dtype=x.dtype).reshape(-1, *x.shape)
    random = jax.random.normal(direction_key, (8, *x.shape), x.dtype)
    directions = jnp.concatenate([slopes, pixels, -pixels, jnp.sign(random[:4]), random[4:] ** 3])
    # The extreme points of a hull are those of its members.
    members = region.members if isinstance(region, Hull) else (region,)
    extreme = jnp.concatenate([jax.vmap(lambda a, m=member: extreme_point(m, a))(directions) for member in members])
    samples = jax.vmap(region.sample)(jax.random.split(sample_key, 12))
    points = jnp.concatenate([x[None], found[None], other[None], extreme, samples])
    return points, len(points) + 2 * 9 + 13


def _slopes(f: Callable[[jax.Array], jax.Array], label: jax.Array, x: jax.Array) -> jax.Array:
    """The directions in which each other class gains on the label; zero for the label itself."""
    rows = jax.jacrev(f)(x)
    return rows - rows[jnp.clip(label, 0, len(rows) - 1)][None]


def extreme_point(region: Region, direction: jax.Array) -> jax.Array:
    """The farthest point: after a long way and a projection, which does not rest on the support under test."""
    length = jnp.max(jnp.abs(direction))
    far = region.bounding_box().center + 1e3 * direction / jnp.where(length > 0, length, 1)
    return region.project(far)
