"""Does a region keep its promises? Its methods must be about one and the same set, convex unless it says otherwise."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from cure_jax.regions import Region
from cure_jax.testing.enclosure import require

__all__ = ["assert_region_valid"]


def assert_region_valid(
    region: Region, *, key: Key[Array, ""], num_samples: int = 200, tolerance: float = 1e-4, convex: bool = True
) -> None:
    """Asserts what bounds and attacks rely on: that the methods of a region are about one and the same set.

    * Samples are in the region and in the bounding box.
    * The support is no less than <a, x> at any sample, attained by its gradient, which is in the region, and h(t a) =
      t h(a); its gradient is finite at a = 0.
    * A projection is in the region, is its own projection, and makes no acute angle with a sample; where the region is
      not convex, no sample is nearer.
    * A steepest step is finite and does not descend.

    Args:
      region: what is tested.
      key: the randomness.
      num_samples: samples, and directions.
      tolerance: relative to the width of the bounding box.
      convex: whether the region is.

    Raises:
      AssertionError: naming the method and the excess.

    Examples:
      >>> import cure_jax as cj
      >>> assert_region_valid(cj.l1_ball(jnp.array([0.1, 0.5, 0.9]), 0.7, within=(0.0, 1.0)), key=jax.random.key(0))
    """
    facts = jax.device_get(jax.jit(lambda key: _region_facts(region, key, num_samples, tolerance, convex))(key))
    broken = [f"{promise} (by {np.max(excess):.3g})" for promise, excess in facts.items() if not np.all(excess <= 0)]
    require(not broken, f"{type(region).__name__}: {'; '.join(broken)}.")


def _region_facts(region: Region, key: Array, count: int, tolerance: float, convex: bool) -> dict[str, Array]:
    """By what a region promises, how far it is from true, `[count]`; at most 0 where it holds."""
    box = region.bounding_box()
    sample_key, direction_key, far_key, power_key = jax.random.split(key, 4)
    samples = jax.vmap(region.sample)(jax.random.split(sample_key, count))
    power = jax.random.choice(power_key, jnp.array([1.0, 5.0], box.dtype), (count, *(1,) * len(box.shape)))
    normal = jax.random.normal(direction_key, samples.shape, box.dtype)
    directions = jnp.sign(normal) * jnp.abs(normal) ** power
    width = 2 * jnp.max(box.radius)
    allowed = tolerance * jnp.maximum(width, 10 * jnp.finfo(box.dtype).eps)
    far = box.center[None] + (width + 0.1) * jax.random.normal(far_key, samples.shape, box.dtype)
    support, maximisers = jax.vmap(jax.value_and_grad(region.support))(directions)
    projected = jax.vmap(region.project)(far)
    axes = tuple(range(1, directions.ndim))
    size = jnp.sum(jnp.abs(directions), axis=axes)

    def inner(one: Array, other: Array) -> Array:
        return jnp.sum(one * other, axis=axes)

    def outside(points: Array) -> Array:
        return 1 - jax.vmap(lambda x: region.contains(x, 10 * tolerance))(points).astype(box.dtype)

    reach = jnp.max(jnp.tensordot(directions, samples, (axes, axes)), axis=1)
    again = jax.vmap(region.project)(projected)
    distance = jnp.sqrt(inner(far - projected, far - projected))

    def nearer(p: Array, x: Array) -> Array:
        """How much nearer to x a sample may be than p is: not at all for those that the angle keeps away."""
        ways = samples - p[None]
        angles = inner(ways, jnp.broadcast_to(x - p, samples.shape))
        return jnp.max(angles if convex else angles - inner(ways, ways) / 2)

    steps = jax.vmap(region.steepest)(samples, directions)
    at_zero = jax.grad(region.support)(jnp.zeros_like(box.lower))
    return {
        "`sample` returns points outside of `contains`": outside(samples),
        "`sample` returns points outside of `bounding_box`": jnp.max(
            jnp.maximum(box.lower[None] - samples, samples - box.upper[None]) - allowed
        ),
        "`support` is less than at a sample": reach - support - allowed * size,
        "`support` is not attained at its gradient": jnp.abs(support - inner(directions, maximisers)) - allowed * size,
        "the gradient of `support` is a point outside of `contains`": outside(maximisers),
        "`support` is not homogeneous": jnp.abs(jax.vmap(region.support)(3 * directions) - 3 * support)
        - 3 * allowed * size,
        "the gradient of `support` at 0 is not finite": 1 - jnp.isfinite(at_zero).astype(box.dtype),
        "`project` returns points outside of `contains`": outside(projected),
        "`project` moves its own results": jnp.max(jnp.abs(again - projected)) - 100 * allowed,
        "`project` does not return the nearest point": jax.vmap(nearer)(projected, far)
        - 100 * allowed * (allowed + distance),
        "`steepest` is not finite": 1 - jnp.isfinite(steps).astype(box.dtype),
        "`steepest` descends": -inner(steps, directions) - allowed * size,
    }
