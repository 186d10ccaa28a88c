"""Where a network may be weak in a region: candidates for a counterexample to a bound on its margins."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

import cure_jax as cj
from cure_jax.regions import CutHull, Hull, Region

__all__ = ["TOLERANCE", "MakeRegion", "extreme_point", "smallest_margin", "weak_points", "weakest"]

# Margins and bounds of the same point differ by rounding: relative to the largest logit, there or at the image.
TOLERANCE = 1e-4
# Of a radius and an image.
MakeRegion = Callable[[jax.Array, jax.Array], Region]


def weakest(
    f: Callable[[jax.Array], jax.Array],
    make_region: MakeRegion,
    x: jax.Array,
    label: jax.Array,
    eps: jax.Array,
    key: jax.Array,
) -> dict[str, jax.Array]:
    """The point of a region that is the hardest for a bound, its margin, and by how much a bound may exceed that.

    Points that are not in the region, or overflow, are left out.

    Args:
      f: one image to logits.
      make_region: of eps and x.
      x: the image.
      label: its class.
      eps: the radius.
      key: the randomness.

    Returns:
      The margin, the point, what is allowed, the largest logit at the image, the label, and how many points were
      looked at.
    """
    region, wider = make_region(eps, x), make_region(eps * (1 + 1e-5), x)
    points, looked_at = weak_points(f, x, label, region, key)
    margins, sizes = jax.vmap(lambda point: smallest_margin(f, point, label))(points)
    scale = jnp.max(jnp.abs(f(x)))
    allowed = TOLERANCE * jnp.maximum(jnp.maximum(sizes, scale), 1)
    # Looking for a point of a hull in its members is what its own attacks rest on, and takes long.
    inside = True if isinstance(region, Hull) else jax.vmap(lambda point: wider.contains(point, 1e-6))(points)
    worst = jnp.argmin(jnp.where(inside & jnp.isfinite(sizes) & jnp.isfinite(margins), margins + allowed, jnp.inf))
    return {
        "margin": margins[worst], "point": points[worst], "allowed": allowed[worst],
        "scale": scale, "label": label, "points": jnp.asarray(looked_at),
    }  # fmt: skip


def smallest_margin(
    f: Callable[[jax.Array], jax.Array], x: jax.Array, label: jax.Array | int
) -> tuple[jax.Array, jax.Array]:
    """The smallest of the differences that are bounded, without the code under test; and the largest logit."""
    logits = f(x)
    is_label = jnp.arange(logits.shape[0]) == label
    others = jnp.max(jnp.where(is_label, -jnp.inf, logits))
    return jnp.sum(jnp.where(is_label, logits, 0)) - others, jnp.max(jnp.abs(logits))


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
    # The extreme points of a hull are those of its members; what lies in one that is cut still does when it is cut.
    members = region.members if isinstance(region, Hull | CutHull) else (region,)
    extreme = jnp.concatenate([jax.vmap(lambda a, m=member: extreme_point(m, a))(directions) for member in members])
    box = region.bounding_box()
    extreme = jnp.clip(extreme, box.lower[None], box.upper[None])
    samples = jax.vmap(region.sample)(jax.random.split(sample_key, 12))
    points = jnp.concatenate([x[None], found[None], other[None], extreme, samples])
    return points, len(points) + 2 * 9 + 13


def _slopes(f: Callable[[jax.Array], jax.Array], label: jax.Array, x: jax.Array) -> jax.Array:
    """The directions in which each other class gains on the label; zero for the label itself."""
    rows = jax.jacrev(f)(x)
    return rows - rows[jnp.clip(label, 0, len(rows) - 1)][None]


def extreme_point(region: Region, direction: jax.Array) -> jax.Array:
    """The farthest point: after a long way and a projection, which does not rest on the support under test."""
    box, length = region.bounding_box(), jnp.max(jnp.abs(direction))
    way = jnp.clip(1e3 * jnp.max(box.radius), 1e3, 1e38)
    far = box.center + way * (direction / jnp.where(length > 0, length, 1))
    return region.project(far)
