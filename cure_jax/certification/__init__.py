"""From bounds to verdicts: `margins` says what is to be proved, `certificate` proves it for one, `dataset` for many."""

from cure_jax.certification.certificate import (
    CHEAP_TO_TIGHT,
    METHODS,
    Certificate,
    UnionCertificate,
    bound_method,
    certify,
    certify_union,
)
from cure_jax.certification.dataset import DatasetAttack, DatasetCertificate, attack_dataset, certify_dataset
from cure_jax.certification.margins import margins

__all__ = [
    "CHEAP_TO_TIGHT",
    "METHODS",
    "Certificate",
    "DatasetAttack",
    "DatasetCertificate",
    "UnionCertificate",
    "attack_dataset",
    "bound_method",
    "certify",
    "certify_dataset",
    "certify_union",
    "margins",
]
