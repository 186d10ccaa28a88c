"""What every primitive does to sets: one table, read by all algorithms of `cure_jax.bounds`.

See `registry` for what a rule is and CONTRIBUTING.md for how to add one.
"""

from cure_jax.rules import (
    affine,
    bilinear,
    clamp,
    custom,
    elementwise,
    logaddexp,
    periodic,
    pieces,
    pooling,
    smooth,
    sorting,
)
from cure_jax.rules.elementwise import piece, two_pieces
from cure_jax.rules.registry import (
    Affine,
    Domain,
    LinearMap,
    Nonlinear,
    Relaxation,
    elementwise_map,
    lookup,
    register,
    supported,
)

__all__ = [
    "Affine",
    "Domain",
    "LinearMap",
    "Nonlinear",
    "Relaxation",
    "affine",
    "bilinear",
    "clamp",
    "custom",
    "elementwise",
    "elementwise_map",
    "logaddexp",
    "lookup",
    "periodic",
    "piece",
    "pieces",
    "pooling",
    "register",
    "smooth",
    "sorting",
    "supported",
    "two_pieces",
]
