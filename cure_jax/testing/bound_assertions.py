"""Do bounds hold? A search for a point that leaves them."""

import functools
import math
import types
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.tree_util import Partial
from jaxtyping import Array, Key

from cure_jax.equality import ByValue
from cure_jax.regions import Interval, Region
from cure_jax.testing.enclosure import assert_enclosed, short

__all__ = ["assert_bounds_sound"]

Function = Callable[[jax.Array], jax.Array]
Bound = Callable[[Function], Callable[[Region], Interval]]

# Sizes of the steps of gradient ascent, relative to the region.
_STEP_SIZES = tuple(0.5 * 0.8**i for i in range(20))
# At most so many outputs are climbed.
_CLIMBED = 32


def assert_bounds_sound(
    bound: Bound,
    f: Function,
    region: Region,
    *,
    key: Key[Array, ""],
    num_samples: int = 300,
    tolerance: float = 1e-5,
) -> None:
    """Asserts that no point that can be found in a region leaves the bounds of a function.

    Give a network as a `jax.tree_util.Partial` of a function that closes over nothing, as `testing.networks` does: then
    all calls with weights, regions and bounds of one kind are compiled once. Any other function is compiled anew in
    every call, as what it closes over may have changed.

    Args:
      bound: the transformation to test, such as `cj.crown`: `bound(f)(region)` is an `Interval` of the shape of `f(x)`.
      f: one example `[*x]` to any array.
      region: the set of inputs. Its own methods find the points: test a new one by `assert_region_valid` first.
      key: the randomness.
      num_samples: points of each kind: at random, on the boundary, in corners; and starts of gradient ascent, which
        climbs and descends each output (32 of them, if there are more).
      tolerance: allowed excess, relative to the largest output (or 1, if all are smaller).

    Raises:
      AssertionError: naming the output, its value, the bound, the excess and how the point was found.

    Examples:
      >>> import cure_jax as cj
      >>> f = lambda x: jnp.abs(x) - jnp.maximum(x[::-1], 0.2)
      >>> assert_bounds_sound(cj.crown, f, cj.l2_ball(jnp.array([0.1, 0.3]), 0.5), key=jax.random.key(0))
    """
    search = functools.partial(_search, bound=ByValue(bound), count=num_samples)
    if isinstance(f, Partial) and _holds_nothing(f.func) and _holds_nothing(bound) and _is_of_arrays((f, region)):
        found = _compiled_search(f, region, key, bound=ByValue(bound), count=num_samples)
    else:
        found = jax.jit(lambda key: search(f, region, key))(key)
    interval, points, values = jax.device_get(found)
    for kind, at in points.items():
        where = lambda i, kind=kind, at=at: f"at a point {kind}: {short(at[i])}"  # noqa: E731
        assert_enclosed(values[kind], interval, tolerance, where)


def _search(
    f: Function, region: Region, key: Array, *, bound: ByValue, count: int
) -> tuple[Interval, dict[str, Array], dict[str, Array]]:
    """The bounds; points of the region, and the values there, by how they were found."""
    points = _points(f, region, key, count)
    return bound(f)(region), points, {kind: jax.vmap(f)(found) for kind, found in points.items()}


_compiled_search = jax.jit(_search, static_argnames=("bound", "count"))


def _holds_nothing(function: Any) -> bool:
    """Whether a function does the same in every call: what is compiled for it may be used again."""
    if isinstance(function, functools.partial):
        held = (*function.args, *function.keywords.values())
        return _holds_nothing(function.func) and all(_holds_nothing(each) for each in held if callable(each))
    return isinstance(function, types.FunctionType) and function.__closure__ is None


def _is_of_arrays(tree: Any) -> bool:
    return all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(tree))


def _points(f: Function, region: Region, key: Array, count: int) -> dict[str, Array]:
    """Points of a region, `[count, *x]`, by how they were found."""
    box = region.bounding_box()
    sample_key, direction_key, sign_key = jax.random.split(key, 3)
    samples = jax.vmap(region.sample)(jax.random.split(sample_key, count))
    directions = jax.random.normal(direction_key, samples.shape, box.dtype)
    width = jnp.max(box.radius) + 1
    pixels = jnp.eye(box.lower.size, dtype=box.dtype).reshape(-1, *box.shape)[:count]
    signs = jax.random.rademacher(sign_key, samples.shape, box.dtype)
    corners = jax.vmap(lambda a: region.project(jax.grad(region.support)(a)))

    size = max(1, math.prod(jax.eval_shape(f, box.lower).shape))
    outputs = jnp.linspace(0, size - 1, min(size, _CLIMBED)).astype(jnp.int32)

    def climbed(start: Array, output: Array, sign: Array) -> Array:
        def step(x: Array, size: Array) -> tuple[Array, None]:
            gradient = sign * jax.grad(lambda x: f(x).ravel()[output])(x)
            return region.project(x + size * region.steepest(x, gradient)), None

        return lax.scan(step, start, jnp.asarray(_STEP_SIZES, box.dtype))[0]

    each = jnp.repeat(outputs, 4)
    starts = samples[jnp.arange(len(each)) % count]
    climbing = jnp.tile(jnp.array([1, -1], box.dtype), 2 * len(outputs))
    return {
        "drawn at random": samples,
        "of the boundary": jax.vmap(region.project)(box.center[None] + width * count * directions),
        "in a corner": corners(jnp.concatenate([signs, pixels, -pixels])),
        "found by gradient ascent": jax.vmap(climbed)(starts, each, climbing),
    }
