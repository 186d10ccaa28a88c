"""Complete verification by branch and bound.

`verify` decides classification, `verify_property` sets of unsafe outputs. An attack (`witness`) comes first, then the
bounds of `split_bound` on the whole region (`roots`), then branches: at the kinks of neurons (`branch_and_bound`, with
`branching`, `domains` and `leaf`) or along the inputs (`input_splitting`). `verify_dataset` decides many examples.
"""

from cure_jax.verification.dataset import DatasetVerdicts, verify_dataset
from cure_jax.verification.problem import Progress
from cure_jax.verification.verdict import Status, Verdict
from cure_jax.verification.verify import Options, verify, verify_property

__all__ = [
    "DatasetVerdicts",
    "Options",
    "Progress",
    "Status",
    "Verdict",
    "verify",
    "verify_dataset",
    "verify_property",
]
