"""The moving average of the parameters, which takes their place when a training ends."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from cure_jax.training.state import TrainState

__all__ = ["averaged", "with_average"]

# Early steps weigh less: the average forgets the random parameters within a few times this many steps.
_EARLY_STEPS = 10


def averaged(average: Any, params: Any, decay: float, step: jax.Array) -> Any:
    """The moving average of the parameters after one more step; None if there is none.

    The decay is min(decay, step / (step + 10)), so that the first parameters do not linger (Polyak and Juditsky, 1992,
    for averages; Izmailov et al., UAI 2018, for what they do to networks).
    """
    if average is None:
        return None
    passed = step.astype(jnp.float32)
    weight = 1 - jnp.minimum(decay, passed / (passed + _EARLY_STEPS))
    return optax.incremental_update(params, average, weight)


def with_average(state: TrainState) -> TrainState:
    """The state with the averaged parameters in place of the last ones."""
    return state if state.average is None else dataclasses.replace(state, params=state.average)
