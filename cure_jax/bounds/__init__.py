"""Bounds as function transformations, one algorithm a file: `bound(f)(region) -> Interval`.

`ibp` pushes intervals forward, `linear` is the backward fold that all linear-relaxation methods share, `crown` drives
it, `alpha_crown` optimises its slopes.
"""

from cure_jax.bounds.alpha_crown import alpha_crown
from cure_jax.bounds.crown import crown, intermediate_bounds
from cure_jax.bounds.ibp import ibp

__all__ = ["alpha_crown", "crown", "ibp", "intermediate_bounds"]
