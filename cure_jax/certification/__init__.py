"""From bounds to verdicts.

`margins` says what is to be proved, `methods` how, `certificate` proves it for one example, `radius` at which radius.
`dataset` does it for many examples, by way of a `cascade` of methods; `attack_dataset` looks for counterexamples of
many; `dataset_radii` asks both how far. They share `batches`. `covering` says what one norm implies for others;
`specification` has properties that are no classification.
"""

from cure_jax.certification.attack_dataset import DatasetAttack, attack_dataset
from cure_jax.certification.certificate import Certificate, UnionCertificate, certify, certify_union
from cure_jax.certification.covering import covered_radius, covering_radius
from cure_jax.certification.dataset import certify_dataset
from cure_jax.certification.dataset_certificate import DatasetCertificate
from cure_jax.certification.dataset_radii import DatasetRadii, certified_radii
from cure_jax.certification.margins import margins
from cure_jax.certification.methods import METHODS, bound_method, cheap_to_tight
from cure_jax.certification.radius import certified_radius
from cure_jax.certification.specification import UnsafeSet

__all__ = [
    "METHODS",
    "Certificate",
    "DatasetAttack",
    "DatasetCertificate",
    "DatasetRadii",
    "UnionCertificate",
    "UnsafeSet",
    "attack_dataset",
    "bound_method",
    "certified_radii",
    "certified_radius",
    "certify",
    "certify_dataset",
    "certify_union",
    "cheap_to_tight",
    "covered_radius",
    "covering_radius",
    "margins",
]
