"""The regions that a hunt draws, with radii from the smallest to the largest numbers there are."""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from cure_jax.regions import Region, hull, l0_ball, lp_ball

__all__ = ["PIXELS", "Ground", "extreme_radii", "grounds", "usual_radii"]

PIXELS = (0.0, 1.0)
# One of each row in every run, so that other seeds meet other norms.
EXPONENTS = (
    (1.01, 1.02, 1.03, 1.05, 1.07, 1.1),
    (1.15, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7, 1.8, 1.9, 1.95),
    (2.05, 2.1, 2.2, 2.3, 2.5, 2.7, 2.9, 3.0),
)
SMALLEST, LARGEST = -30.0, 38.0
# Three in four extreme radii lie where float32 comes to its limits, or where pixels are small beside them.
DECADES = ((SMALLEST, -4.0), (1.0, 12.0), (12.0, 34.0), (34.0, LARGEST))


@dataclasses.dataclass(frozen=True)
class Ground:
    """One kind of region.

    Attributes:
      make: of a radius and an image.
      usual: the least and the largest radius between which some images can be certified and some not.
      methods: beside those that bound everything.
      every: in one of so many blocks of images.
    """

    make: Callable[[jax.Array, jax.Array], Region]
    usual: tuple[float, float]
    methods: tuple[str, ...] = ()
    every: int = 1


def _ball(p: float, within: tuple[float, float] | None, eps: jax.Array, x: jax.Array) -> Region:
    return lp_ball(x, eps, p, within)


def _around(eps: jax.Array, x: jax.Array, within: tuple[float, float] | None) -> tuple[Region, Region]:
    """An l_inf ball, and an l_1 ball ten times as large."""
    return lp_ball(x, eps, math.inf, within), lp_ball(x, jnp.minimum(10 * eps, 10.0**LARGEST), 1.0, within)


def _hull_of_cut_balls(eps: jax.Array, x: jax.Array) -> Region:
    return hull(*_around(eps, x, PIXELS))


def _cut_hull(eps: jax.Array, x: jax.Array) -> Region:
    return hull(*_around(eps, x, None), within=PIXELS)


def _few_pixels(k: int, eps: jax.Array, x: jax.Array) -> Region:
    """Of pixels up to k, each moved by eps at most."""
    return l0_ball(x, k, (jnp.maximum(x - eps, PIXELS[0]), jnp.minimum(x + eps, PIXELS[1])))


def grounds(seed: int) -> Mapping[str, Ground]:
    """All kinds of regions by name, balls of three more norms among them that the seed draws."""
    cut, whole = (lambda p: functools.partial(_ball, p, PIXELS)), (lambda p: functools.partial(_ball, p, None))
    rng = np.random.default_rng([seed, 1])
    drawn = [float(rng.choice(row)) for row in EXPONENTS]
    return {
        "linf": Ground(cut(math.inf), (0.02, 0.12)),
        "l2": Ground(cut(2.0), (0.1, 0.6)),
        "l1": Ground(cut(1.0), (0.2, 1.2), ("vertex_crown",)),
        **{f"l{p}": Ground(cut(p), (0.15, 0.8)) for p in drawn},
        "linf uncut": Ground(whole(math.inf), (0.01, 0.08)),
        "l2 uncut": Ground(whole(2.0), (0.1, 0.45)),
        "l1 uncut": Ground(whole(1.0), (0.1, 0.8), ("vertex_crown",)),
        f"l{drawn[0]} uncut": Ground(whole(drawn[0]), (0.1, 0.6)),
        "l0, 1 pixel": Ground(functools.partial(_few_pixels, 1), (0.2, 1.0), ("vertex_crown",)),
        "l0, 3 pixels": Ground(functools.partial(_few_pixels, 3), (0.05, 0.4)),
        "cut hull": Ground(_cut_hull, (0.01, 0.08)),
        # An attack on it takes as long as fifty others.
        "hull": Ground(_hull_of_cut_balls, (0.02, 0.08), every=6),
    }


def usual_radii(ground: Ground, count: int, rng: np.random.Generator) -> np.ndarray:
    """Radii, `[count]`, that networks may resist."""
    return rng.uniform(*ground.usual, count).astype(np.float32)


def extreme_radii(count: int, rng: np.random.Generator) -> np.ndarray:
    """Radii, `[count]`, from 1e-30 to 1e38, one in eight from all of these decades alike."""
    ranges = np.asarray([*DECADES, *DECADES[1:], (SMALLEST, LARGEST)])[rng.integers(8, size=count)]
    return np.power(10, rng.uniform(*ranges.T)).astype(np.float32)
