"""Perturbed images that are no ball of images: sets described by cells, and their certification.

`perturbation` says what such a set must answer, `search` proves that a network is right on all of it.

`patch` is one: a window of any content at any position; `local_attacks` search for the worst patch and pixels.

`geometric` is another: images as functions of parameters, which `constructors` makes by name. Below it, what each
family of transformations does to an `enclosure` (pixels and their slopes over a cell): `affine` coordinates and
`interpolation`, `colour`, `blur`; all of them on `intervals` that are rounded outward. `attack` looks for
counterexamples, `published` has the ranges of published benchmarks.
"""

from cure_jax.perturbations.attack import GeometricAttack, attack_geometric
from cure_jax.perturbations.constructors import (
    GEOMETRIC,
    blur,
    brightness,
    by_name,
    compose,
    contrast,
    rotation,
    scaling,
    shear,
    translation,
)
from cure_jax.perturbations.geometric import KINDS, Geometric
from cure_jax.perturbations.local_attacks import patch_attack, pixel_attack
from cure_jax.perturbations.patch import Patch, patch
from cure_jax.perturbations.perturbation import Inputs, Perturbation
from cure_jax.perturbations.published import PUBLISHED, Published
from cure_jax.perturbations.search import PerturbationCertificate, certify_perturbation

__all__ = [
    "GEOMETRIC",
    "KINDS",
    "PUBLISHED",
    "Geometric",
    "GeometricAttack",
    "Inputs",
    "Patch",
    "Perturbation",
    "PerturbationCertificate",
    "Published",
    "attack_geometric",
    "blur",
    "brightness",
    "by_name",
    "certify_perturbation",
    "compose",
    "contrast",
    "patch",
    "patch_attack",
    "pixel_attack",
    "rotation",
    "scaling",
    "shear",
    "translation",
]
