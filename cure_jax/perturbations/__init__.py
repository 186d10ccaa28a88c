"""Perturbed images that are no ball of images: sets described by cells, and their certification.

`perturbation` says what such a set must answer, `search` proves that a network is right on all of it; `patch` is a
window of any content at any position, `pixels` are few of them. `attacks` look for the worst of each, `attack_dataset`
for many images. `names` are for configs.

`geometric` has images as functions of parameters, which `constructors` makes by name. Below it, what each family of
transformations does to an `enclosure` (pixels and their slopes over a cell): `affine` coordinates and `interpolation`,
`colour`, `blur`; all of them on `intervals` that are rounded outward. `published` has the
ranges of published benchmarks.
"""

from cure_jax.perturbations.attack_dataset import PerturbationAttack, attack_perturbation
from cure_jax.perturbations.attacks import geometric_attack, patch_attack, pixel_attack
from cure_jax.perturbations.constructors import (
    GEOMETRIC,
    blur,
    brightness,
    compose,
    contrast,
    rotation,
    scaling,
    shear,
    translation,
)
from cure_jax.perturbations.geometric import KINDS, Geometric
from cure_jax.perturbations.names import NAMES, by_name, by_names
from cure_jax.perturbations.patch import Patch, patch
from cure_jax.perturbations.perturbation import Inputs, Perturbation
from cure_jax.perturbations.pixels import Pixels, pixels
from cure_jax.perturbations.published import PUBLISHED, Published
from cure_jax.perturbations.search import PerturbationCertificate, certify_perturbation

__all__ = [
    "GEOMETRIC",
    "KINDS",
    "NAMES",
    "PUBLISHED",
    "Geometric",
    "Inputs",
    "Patch",
    "Perturbation",
    "PerturbationAttack",
    "PerturbationCertificate",
    "Pixels",
    "Published",
    "attack_perturbation",
    "blur",
    "brightness",
    "by_name",
    "by_names",
    "certify_perturbation",
    "compose",
    "contrast",
    "geometric_attack",
    "patch",
    "patch_attack",
    "pixel_attack",
    "pixels",
    "rotation",
    "scaling",
    "shear",
    "translation",
]
