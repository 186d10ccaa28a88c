"""The methods, composed: what each makes of the losses, the networks and the schedules of a setting.

A setting (`configs/mnist_small.py`, ...) says what is trained, on what and for how long; a method says how the norms go
together. `with_method` puts the two together, so nothing is written down twice.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from cure_jax.training.config import Config

__all__ = ["METHODS", "PAPER_L2", "Finetuning", "Losses", "box_ball", "lipschitz", "small_box", "with_method"]

# linf | l2: one norm alone. joint | max | random: both. scratch: max, bound alignment and gradient projection
# (CURE-Scratch) with an l_2 loss of ours. finetune: the same, from the weights of linf (CURE-Finetune). paper:
# CURE-Scratch exactly as published, with its l_2 loss and projection by epochs.
METHODS = ("linf", "l2", "joint", "max", "random", "scratch", "finetune", "paper")

_COMBINE = {"joint": "joint", "random": "random_norm"}

Loss = Mapping[str, Any]


def small_box(ratio: float, **fields: Any) -> Loss:
    """SABR, with lambda = ratio. All fields are there, so that a flag can override each of them, but not `kind`."""
    return {"kind": "small_box", "fraction": 1.0, "ratio": ratio, "inside": False, "shrinking": 0.0, **fields}


def lipschitz(fraction: float) -> Loss:
    """A Lipschitz margin at a fraction of the radius."""
    return {"kind": "lipschitz", "fraction": fraction}


def box_ball(fraction: float) -> Loss:
    """Boxes and balls at a fraction of the radius."""
    return {"kind": "box_ball", "fraction": fraction}


# The published l_2 loss.
PAPER_L2 = small_box(1e-5)


@dataclasses.dataclass(frozen=True)
class Losses:
    """Of a setting.

    Attributes:
      linf: beside others and alone.
      l2: beside others.
      l2_alone: of the method l2.
    """

    linf: Loss
    l2: Loss
    l2_alone: Loss


@dataclasses.dataclass(frozen=True)
class Finetuning:
    """What a fine-tuning has of its own.

    Attributes:
      epochs: about a fifth of those from scratch.
      milestones: of the learning rate.
      ramp_end: epoch at which the radius is reached.
      alignment: weight of bound alignment.
    """

    epochs: int
    milestones: tuple[int, ...]
    ramp_end: float
    alignment: float


def with_method(config: Config, method: str, losses: Losses, finetuning: Finetuning) -> Config:
    """The config of one method in a setting.

    Args:
      config: of the setting, as trained from scratch; `alignment` and `projection` hold what the methods that have
        them use, and are switched off for the others.
      method: one of `METHODS`.
      losses: of the setting.
      finetuning: of the setting.

    Raises:
      ValueError: for an unknown method.
    """
    if method not in METHODS:
        raise ValueError(f"Unknown method {method!r}; expected one of {', '.join(METHODS)}.")
    config.name = method
    single = {"linf": {"linf": losses.linf}, "l2": {"l2": losses.l2_alone}}
    both = {"linf": losses.linf, "l2": PAPER_L2 if method == "paper" else losses.l2}
    config.losses = {norm: dict(loss) for norm, loss in single.get(method, both).items()}
    config.combine = _COMBINE.get(method, "worst")
    if method not in ("scratch", "finetune", "paper"):
        config.alignment.weight = 0.0
        config.projection.beta = 0.0
    if method == "paper":
        config.projection.every = "epoch"
    if method == "finetune":
        config.start_from = f"runs/{config.setting}/linf"
        config.epochs = finetuning.epochs
        config.milestones = finetuning.milestones
        config.ramp_end = finetuning.ramp_end
        config.alignment.weight = finetuning.alignment
    return config
