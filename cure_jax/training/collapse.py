"""Notices a training that has given up: at the full radius it predicts hardly better than one class for all images."""

import logging
from collections.abc import Callable, Sequence

import numpy as np

__all__ = ["watch_for_collapse"]

_LOGGER = logging.getLogger(__name__)
# Of the way from chance to all images right.
_LEAST_GAIN = 0.05


def watch_for_collapse(labels: np.ndarray) -> Callable[[Sequence[dict[str, float | int]]], None]:
    """Returns a function to call with the history whenever it has grown: it warns once, if at all.

    Args:
      labels: `[examples]`, of the training images.
    """
    # What always the most frequent class would have.
    chance = float(np.bincount(np.asarray(labels)).max() / len(labels))
    told = False

    def watch(history: Sequence[dict[str, float | int]]) -> None:
        nonlocal told
        # The last record is of the full radius from its first step on.
        is_full = len(history) > 1 and all(record["radius_scale"] == 1 for record in history[-2:])
        accuracy = history[-1]["accuracy"]
        if told or not is_full or accuracy > chance + _LEAST_GAIN * (1 - chance):
            return
        told = True
        _LOGGER.warning(
            "The training has collapsed: at step %d, at the full radius, %.1f %% of the training images are classified "
            "right, and always the most frequent class would have %.1f %%. Lower learning_rate, radii or the losses' "
            "fraction, or lengthen the ramp (ramp_end), in another work directory.",
            history[-1]["step"],
            100 * accuracy,
            100 * chance,
        )

    return watch
