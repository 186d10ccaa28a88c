"""What the running averages of a BatchNorm must be, of whatever kind the network is."""

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax

from cure_jax.models.functional import Path

__all__ = ["AVERAGES", "check_constant", "check_norm", "check_present", "check_switched", "dropout_error"]

# Their names in a BatchNorm, of linen and of nnx.
AVERAGES = ("mean", "var")


def check_norm(name: str, path: Path, momentum: float) -> None:
    """Refuses averages that never move."""
    if momentum == 1:
        raise ValueError(
            f"{name} has a BatchNorm ({'.'.join(path)}) of momentum 1, whose running averages never move; expected "
            "less. Lower it, or set use_running_average."
        )


def check_switched(name: str, call: Callable, averaging: set[Path], frozen: set[Path]) -> None:
    """Refuses what uses statistics of the batch and running averages in one pass, or is switched by nobody.

    Args:
      name: of the network.
      call: its function of a batch.
      averaging: BatchNorms that used the statistics of the batch in a training pass.
      frozen: those that used their running averages there.
    """
    if both := averaging & frozen:
        raise ValueError(
            f"{name} calls a BatchNorm ({'.'.join(min(both))}) with the statistics of the batch and with running "
            "averages in one pass; expected one of the two. Use two modules."
        )
    _, *switches = inspect.signature(call).parameters
    if frozen and switches and "train" not in switches:
        raise ValueError(
            f"{name} has a BatchNorm ({'.'.join(min(frozen))}) that keeps its running averages in training, and "
            f"arguments that nobody sets ({', '.join(switches)}); expected an argument `train` that switches it. "
            "Rename one, or add `train` if it is to be frozen."
        )


def check_present(name: str, averaging: Iterable[Path], before: Mapping[Path, Any]) -> list[Path]:
    """The paths of their averages, all of which the variables must have."""
    places = [(*path, average) for path in averaging for average in AVERAGES]
    if missing := [path for path in places if path not in before]:
        raise ValueError(
            f"{name} has a BatchNorm whose {'.'.join(missing[0])} is not in batch_stats; expected those of the initial "
            "variables. Make its variables where it is called without `train` too."
        )
    return places


def check_constant(function: Callable[[jax.Array], Any], images: jax.Array, sentence: str) -> None:
    """Refuses what depends on the images: then `jax.vmap` over several batches makes several of it."""
    batches = jax.ShapeDtypeStruct((1, *images.shape), images.dtype)
    try:
        jax.eval_shape(jax.vmap(function, out_axes=None), batches)
    except ValueError as error:
        raise ValueError(sentence) from error


def dropout_error(rate: float) -> ValueError:
    """Of a network that draws random numbers in training."""
    return ValueError(
        f"The network has Dropout at a rate of {rate}; expected none, as bounds and attacks are of the network without "
        "it. Set the rate to 0."
    )
