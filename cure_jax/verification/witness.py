"""Counterexamples: what counts as one, and the attack that looks for them first."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from cure_jax import attacks
from cure_jax.bounds import in_float64
from cure_jax.regions import Box, Region
from cure_jax.verification.problem import Problem, Specification, values_of_points, worst_values

__all__ = ["Witness", "attack", "confirmed", "evaluated"]

# Towards the middle of the region, until rounding leaves a point inside.
_SHRINKAGES = (0.0, 1e-7, 1e-6, 1e-5, 1e-4)


class Witness(NamedTuple):
    """A counterexample.

    Attributes:
      point: `[*x]`, in the region.
      margin: the greatest row of the specification that it breaks, at most 0; the larger of two evaluations.
    """

    point: np.ndarray
    margin: float


def confirmed(problem: Problem, points: np.ndarray) -> Witness | None:
    """The first of some points that is a counterexample without any doubt.

    Args:
      problem: what is to be proved.
      points: `[points, *x]`, near the region; each is moved into it.

    Returns:
      A point of the region, or of the box `problem.ends`, as computed in float64 without tolerance. Some specification
      has no positive row there, with the network evaluated in the dtype of the region AND in float64. None if there is
      no such point.
    """
    for point in points:
        inside = _inside(problem, np.asarray(point))
        if inside is not None:
            margin = _least(problem, inside)
            if margin <= 0:
                return Witness(inside, margin)
    return None


def _least(problem: Problem, point: np.ndarray) -> float:
    """The greatest row of the specification that is broken the most: the larger of two evaluations.

    NaN if one of them is not a number.
    """
    # The same specification must be broken in both.
    return float(np.min(np.maximum(*evaluated(problem, point))))


def evaluated(problem: Problem, point: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The greatest row of each specification at a point, `[specifications]`: in the dtype of the region, in float64."""
    narrow = jnp.asarray(point, problem.region.bounding_box().dtype)
    narrow = np.asarray(values_of_points(problem.f, problem.specifications, narrow[None])[0], np.float64)
    return narrow, np.asarray(in_float64(values_of_points)(problem.f, problem.specifications, point[None])[0])


def _inside(problem: Problem, point: np.ndarray) -> np.ndarray | None:
    """The point, moved into the region as little as it takes."""
    if not np.all(np.isfinite(point)):
        return None
    if problem.ends is not None:
        return np.clip(point.astype(np.float64), *problem.ends)
    region = problem.region
    dtype = region.bounding_box().dtype
    near, middle = in_float64(_projected)(region, jnp.asarray(point, dtype))
    for share in _SHRINKAGES:
        moved = jnp.asarray((1 - share) * near + share * middle, dtype)
        if isinstance(region, Box):
            moved = region.project(moved)
        if bool(in_float64(_contains)(region, moved)):
            return np.asarray(moved)
    return None


@jax.jit
def _projected(region: Region, point: jax.Array) -> tuple[jax.Array, jax.Array]:
    return region.project(point), region.project(getattr(region, "center", region.bounding_box().center))


@jax.jit
def _contains(region: Region, point: jax.Array) -> jax.Array:
    return region.contains(point)


def attack(problem: Problem, key: jax.Array, steps: int, restarts: int) -> Witness | None:
    """Projected gradient descent on the greatest row of each specification, from random points of the region."""
    points = _attacked(problem.f, problem.region, problem.specifications, key, steps=steps, restarts=restarts)
    values = np.asarray(values_of_points(problem.f, problem.specifications, points))
    # The most promising ones first.
    order = np.argsort(np.min(values, axis=1))
    return confirmed(problem, np.asarray(points)[order[np.min(values, axis=1)[order] <= 0]][:3])


@functools.partial(jax.jit, static_argnames=("steps", "restarts"))
def _attacked(
    f: Partial, region: Region, specifications: Specification, key: jax.Array, *, steps: int, restarts: int
) -> jax.Array:
    middle = region.project(region.bounding_box().center)

    def one(specification: Specification, key: jax.Array) -> jax.Array:
        # To `pgd` a classifier of two classes, whose class 0 is right as long as a row is positive.
        found = attacks.pgd(
            _as_classifier(f, specification), middle, 0, region, key=key, steps=steps, restarts=restarts, loss="margin"
        )
        return found

    count = specifications.offsets.shape[0]
    return jax.vmap(one)(specifications, jax.random.split(key, count))


def _as_classifier(f: Partial, specification: Specification) -> Callable[[jax.Array], jax.Array]:
    def logits(x: jax.Array) -> jax.Array:
        value = worst_values(f, specification, x)
        return jnp.stack([value, jnp.zeros_like(value)])

    return logits
