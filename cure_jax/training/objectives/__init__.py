"""Single-norm training objectives: which region, bounded how.

An objective looks at ONE example and answers with worst-case logits z: z_y = 0 and z_j = -m_j, m_j a bound (or, for
attacks, a sample) of the margin f_y - f_j over its region. What combines the norms, and how z becomes a loss, is
`multi_norm`.

    objective(network, x, label, scale, key) -> Worst(logits, layers)

`scale` in [0, 1] is where the ramp of the radius is.
"""

from cure_jax.training.objectives.between import COMBINATIONS, distilled, expressive, small_box
from cure_jax.training.objectives.bounded import box, box_ball, cells, crown_ibp, dual_norm, lipschitz
from cure_jax.training.objectives.objective import Network, Objective, Worst, cross_entropy
from cure_jax.training.objectives.points import adversarial, natural, noisy

__all__ = [
    "COMBINATIONS",
    "Network",
    "Objective",
    "Worst",
    "adversarial",
    "box",
    "box_ball",
    "cells",
    "cross_entropy",
    "crown_ibp",
    "distilled",
    "dual_norm",
    "expressive",
    "lipschitz",
    "natural",
    "noisy",
    "small_box",
]
