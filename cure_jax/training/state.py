"""Everything that changes while training, in one pytree."""

import dataclasses
from typing import Any

import jax
import optax
from jaxtyping import Array, Int, Key

__all__ = ["TrainState"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """The state of a training run; replicated over devices, and all that a checkpoint holds.

    Attributes:
      step: updates made so far.
      params: the parameters of the network.
      batch_stats: its running averages; an empty dictionary without BatchNorm.
      opt_state: the state of the optimiser.
      key: of the run; never changes, every draw folds in the step and the global index of the example.
      vectors: of the power iterations that estimate spectral norms; empty if no objective needs them.
      average: the moving average of the parameters, which takes their place after the last step; None without.
    """

    step: Int[Array, ""]
    params: Any
    batch_stats: Any
    opt_state: optax.OptState
    key: Key[Array, ""]
    vectors: tuple[Array, ...]
    average: Any = None

    @property
    def variables(self) -> dict[str, Any]:
        """What the network is applied to."""
        return {"params": self.params} | ({"batch_stats": self.batch_stats} if self.batch_stats else {})
