"""Perturbed images that are no ball of images: sets described by cells, and their certification.

`perturbation` says what such a set must answer, `search` proves that a network is right on all of it;
`patch` is a window of any content at any position, `local_attacks` search for the worst patch and the worst pixels.
"""

from cure_jax.perturbations.local_attacks import patch_attack, pixel_attack
from cure_jax.perturbations.patch import Patch, patch
from cure_jax.perturbations.perturbation import Inputs, Perturbation
from cure_jax.perturbations.search import PerturbationCertificate, certify_perturbation

__all__ = [
    "Inputs",
    "Patch",
    "Perturbation",
    "PerturbationCertificate",
    "certify_perturbation",
    "patch",
    "patch_attack",
    "pixel_attack",
]
