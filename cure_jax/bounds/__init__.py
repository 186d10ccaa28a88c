"""Bounds as function transformations, one algorithm a file: `bound(f)(region) -> Interval`.

`ibp` pushes intervals forward. `crown` substitutes linear bounds backwards, `alpha_crown` optimises their slopes,
`vertex_crown` is CROWN for l_1 balls. `lipschitz`, `box_ball` and `sdp_crown` prove with l_2 balls.

Below the algorithms lie `folding` (the backward fold that linear bounds share), `norms` (of affine blocks, from above)
and `rounding` (what `arithmetic="outward"` and bounds in float64 need).
"""

from cure_jax.bounds.alpha_crown import alpha_crown
from cure_jax.bounds.box_ball import box_ball
from cure_jax.bounds.crown import crown, intermediate_bounds
from cure_jax.bounds.ibp import ibp
from cure_jax.bounds.lipschitz import lipschitz
from cure_jax.bounds.norms.spectral import BlockNorms, block_norms
from cure_jax.bounds.rounding.arithmetic import in_float64
from cure_jax.bounds.sdp_crown import sdp_crown
from cure_jax.bounds.vertex_crown import vertex_crown

__all__ = [
    "BlockNorms",
    "alpha_crown",
    "block_norms",
    "box_ball",
    "crown",
    "ibp",
    "in_float64",
    "intermediate_bounds",
    "lipschitz",
    "sdp_crown",
    "vertex_crown",
]
