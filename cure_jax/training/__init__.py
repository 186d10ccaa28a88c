"""Certified training: objectives, how norms are combined, one pure step, and the loop around it."""

from cure_jax.models import Fitted
from cure_jax.training import objectives, schedules
from cure_jax.training.checkpoint_files import CheckpointError
from cure_jax.training.config import default_config, make_regions
from cure_jax.training.finished import load
from cure_jax.training.gradient_projection import combine, gradient_projection
from cure_jax.training.initializers import ibp_init
from cure_jax.training.loop import TrainingDiverged, fit, restore
from cure_jax.training.multi_norm import alignment, joint, random_norm, worst
from cure_jax.training.network import classifier
from cure_jax.training.preemption import Preempted
from cure_jax.training.step import Recipe, train_step
from cure_jax.training.workdir import WorkdirError

__all__ = [
    "CheckpointError",
    "Fitted",
    "Preempted",
    "Recipe",
    "TrainingDiverged",
    "WorkdirError",
    "alignment",
    "classifier",
    "combine",
    "default_config",
    "fit",
    "gradient_projection",
    "ibp_init",
    "joint",
    "load",
    "make_regions",
    "objectives",
    "random_norm",
    "restore",
    "schedules",
    "train_step",
    "worst",
]
