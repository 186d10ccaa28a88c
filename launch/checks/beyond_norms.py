"""Perturbations that are no balls, as a hunt draws them: ranges at random, certified cell by cell, and attacked.

An attack sees the perturbed images themselves (a grid of parameters, then gradients; every place of a patch), so it
does not rest on the bounds of pixels. An image that is proved, and broken by the attack, is a broken certificate.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.tree_util import Partial

from cure_jax import perturbations
from launch.checks.weak_points import TOLERANCE, smallest_margin

__all__ = ["METHODS", "NAMES", "drawn", "examine"]

METHODS = ("ibp", "crown_ibp", "crown")
# By name in `perturbations.by_name`, between which parameters a range is drawn: wide enough to break networks of the
# digits, and none of them need hold what changes nothing. Of a patch, its sides.
_LIMITS: Mapping[str, Any] = {
    "rotation": (-40.0, 40.0),
    "contrast": (0.2, 2.5),
    "patch": (1, 2),
    "translation": (-1.0, 1.0),
    "scaling+rotation": ((0.8, 1.25), (-10.0, 10.0)),
    "brightness": (-0.4, 0.4),
    "shear": (-0.4, 0.4),
    "blur": (0.0, 1.0),
    "scaling": (0.7, 1.4),
    "brightness+rotation": ((-0.2, 0.2), (-10.0, 10.0)),
}
NAMES = tuple(_LIMITS)
# Of an image; then it is given up.
_MAX_CELLS = 60
# What an attack looks at, at least: its grid.
_LOOKED_AT = 1000


class Proofs(NamedTuple):
    """Of each image: whether it is proved, and then a lower bound of its margins; else -inf."""

    verified: np.ndarray
    margin: np.ndarray


def drawn(name: str, rng: np.random.Generator) -> perturbations.Perturbation:
    """A perturbation of that name.

    Args:
      name: one of `NAMES`.
      rng: the randomness. One range in five is a single point, one is as wide as it may be.
    """
    if name == "patch":
        return perturbations.patch(int(rng.integers(_LIMITS[name][0], _LIMITS[name][1], endpoint=True)))
    if "+" in name:
        return perturbations.by_name(name, tuple(_range(limits, rng) for limits in _LIMITS[name]))
    return perturbations.by_name(name, _range(_LIMITS[name], rng))


def _range(limits: tuple[float, float], rng: np.random.Generator) -> tuple[float, float]:
    (low, high), choice = limits, rng.random()
    if choice < 0.2:
        return low, high
    first, last = sorted(rng.uniform(low, high, 2))
    # About a tenth of the range: that is what is often proved.
    return (first, first) if choice < 0.4 else (first, min(last, first + 0.15 * (high - low)))


def examine(
    f: Partial, images: np.ndarray, labels: np.ndarray, name: str, method: str, rng: np.random.Generator
) -> dict[str, Any]:
    """Certifies and attacks images under one perturbation.

    Args:
      f: one image to logits.
      images: `[n, *x]`.
      labels: `[n]`.
      name: one of `NAMES`.
      method: one of `METHODS`.
      rng: the randomness.

    Returns:
      What `soundness` enters in its table.
    """
    perturbation = drawn(name, rng)
    certificate = perturbations.certify_perturbation(
        f, images, labels, perturbation, method=method, max_cells=_MAX_CELLS, batch_size=len(images)
    )
    key = jax.random.key(int(rng.integers(2**31)))
    attack = perturbations.attack_perturbation(f, images, labels, perturbation, key=key, batch_size=len(images))
    margin, size = (np.asarray(x) for x in _margins(f, attack.points, labels))
    scale = np.asarray(_margins(f, images, labels)[1])
    proofs = Proofs(certificate.verified, np.where(certificate.verified, certificate.margin, -math.inf))
    return {
        "bounds": {method: proofs}, "margin": margin, "point": attack.points, "scale": scale,
        "allowed": TOLERANCE * np.maximum(np.maximum(size, scale), 1), "label": labels,
        "points": np.full(len(images), _LOOKED_AT),
    }  # fmt: skip


@jax.jit
def _margins(f: Partial, points: np.ndarray, labels: np.ndarray) -> tuple[jax.Array, jax.Array]:
    return jax.vmap(lambda x, label: smallest_margin(f, x, label))(points, labels)
