"""Sets of inputs, known by their support function.

A region R is a set of inputs of ONE example; bounds see it only through h(a) = max over x in R of <a, x>. `LpBall` is
the ball of a norm around an input, with a radius for each pixel, cut by a box such as the range of pixels; `Box` is a
box given by its ends, `L0Ball` the inputs that differ in few pixels, `Hull` the convex hull of several regions,
`CutHull` that of a whole l_1 and a whole l_inf ball, cut by a box. All methods take one example and work under
`jax.jit`, `jax.vmap` and `jax.grad`; `jax.vmap` over regions gives batches. Inputs and radii are in the units of the
network's input, pixels in [0, 1].
"""

from cure_jax.regions.ball import LpBall, l1_ball, l2_ball, linf_ball, lp_ball
from cure_jax.regions.box import Box, box
from cure_jax.regions.convex_hull import Hull, hull
from cure_jax.regions.cut_hull import CutHull
from cure_jax.regions.l0_ball import L0Ball, l0_ball
from cure_jax.regions.region import Interval, Region

__all__ = [
    "Box",
    "CutHull",
    "Hull",
    "Interval",
    "L0Ball",
    "LpBall",
    "Region",
    "box",
    "hull",
    "l0_ball",
    "l1_ball",
    "l2_ball",
    "linf_ball",
    "lp_ball",
]
