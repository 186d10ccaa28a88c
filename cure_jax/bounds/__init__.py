"""Bounds as function transformations, one algorithm a file: `bound(f)(region) -> Interval`.

`ibp` pushes intervals forward, `linear` is the backward fold that all linear-relaxation methods share, `crown` drives
it.
"""

from cure_jax.bounds.crown import crown
from cure_jax.bounds.ibp import ibp

__all__ = ["crown", "ibp"]
