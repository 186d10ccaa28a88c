"""The network of a work directory, from nothing but that directory."""

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from cure_jax import data, models
from cure_jax.models import Fitted
from cure_jax.training import workdir as workdirs
from cure_jax.training.checkpoints import load_metadata
from cure_jax.training.config import Config, from_fields
from cure_jax.training.loop import restore

__all__ = ["load"]


def load(workdir: str | os.PathLike, model: Any = None, *, config: Config | None = None) -> Fitted:
    """Loads the trained network of a work directory, which is left as it is.

    Args:
      workdir: of the run; a finished one, or its newest checkpoint is taken, with a warning.
      model: the network that was trained, see `fit`; parameters that it holds do not matter. Not needed for what
        `models.create` makes of `model` in the config, as `launch/train.py` does.
      config: as in the work directory, but for what changes no training, such as `reported`; that of the work directory
        if None.

    Returns:
      The network with its config and its last state.

    Raises:
      WorkdirError: if there is no such run, it was made with another config, or its network is not known by name.
      CheckpointError: if its newest checkpoint is missing, damaged or of another model.
      ValueError: for a config, a network or a data set that this version does not know.
    """
    settings = from_fields(workdirs.read_config(workdir)) if config is None else config
    metadata = load_metadata(workdirs.as_path(workdir) / "checkpoints")
    shape, num_classes = _interface(metadata, settings)
    if model is None:
        if not metadata.get("model_by_name", True):
            raise workdirs.WorkdirError(
                f"The network in {workdir} is none that models.create makes of its config ({settings.model.name!r}, "
                f"{settings.model.options.to_dict()}); the module that was trained was expected. Pass it: "
                "training.load(workdir, model)."
            )
        model = models.create(settings.model.name, num_classes, **settings.model.options.to_dict())
    return restore(model, np.zeros((1, *shape), np.float32), settings, workdir)


def _interface(metadata: Mapping[str, Any], config: Config) -> tuple[tuple[int, ...], int]:
    """The shape of an example and the number of classes."""
    if "example_shape" in metadata:
        return tuple(metadata["example_shape"]), metadata["num_classes"]
    # A checkpoint of an earlier version: launch/train.py trained on the data set of the config.
    shape, num_classes = data.describe(config.dataset, config.data_dir or None)
    crop = config.augmentation.crop
    return ((crop, crop, *shape[2:]) if crop else shape), num_classes
