"""Trains a network so that its predictions can be proved not to change.

    cure-jax train --config=digits:scratch --workdir=runs/digits/scratch [--config.FIELD=VALUE ...]

An interrupted run resumes when the same command is given again, on any number of devices and processes; after SIGTERM
or Ctrl-C it saves its state first, and a second Ctrl-C ends it at once. As several processes: docs/pods.md. The fields
of a config (docs/config.md has them as tables):
"""

import sys
import time
from pathlib import Path

from absl import flags

from cure_jax import training
from cure_jax.commands.parts import common, processes, provenance, settings
from cure_jax.training import reference
from cure_jax.training.workdir import as_path

# For --help.
__doc__ = f"{__doc__}\n{reference.text()}\n"

flags.adopt_module_key_flags(processes)
_CONFIG = settings.define_config()
flags.declare_key_flag("config")
_WORKDIR = flags.DEFINE_string("workdir", None, "Where checkpoints, metrics and the config go.")
_PREEMPTED_STATUS = flags.DEFINE_integer(
    "preempted_status",
    0,
    "Exit status after SIGTERM or Ctrl-C, once the state is saved. Not 0: schedulers try again.",
)


def run() -> None:
    """Reads the command line, and does it."""
    common.run(main, required=["config", "workdir"])


def main() -> None:
    """Trains, or resumes."""
    is_first, start = processes.join(), time.monotonic()
    config, workdir = _CONFIG.value, _WORKDIR.value
    train = common.load_split(config, "train")
    validation = common.load_split(config, "validation")
    model = common.create_model(config, train.num_classes)
    arrays, held_out = (train.images, train.labels), (validation.images, validation.labels)
    teacher = common.load_teacher(config)
    try:
        fitted = training.fit(model, arrays, config, workdir, validation=held_out, teacher=teacher)
    except training.Preempted as notice:
        print(notice)
        _add_seconds(is_first, start)
        sys.exit(_PREEMPTED_STATUS.value)
    if not is_first:
        return
    if fitted.history:
        _add_seconds(is_first, start)
    last = fitted.history[-1] if fitted.history else {}
    shown = ", ".join(
        f"{name} {last[name]:.4f}" for name in ("loss", "accuracy", "validation_accuracy") if name in last
    )
    print(f"{workdir}: trained to step {int(fitted.state.step)}" + (f" ({shown})" if shown else ", already complete"))


def _add_seconds(is_first: bool, start: float) -> None:
    """Writes down how long it took, where files lie in a file system."""
    if is_first and isinstance(workdir := as_path(str(_WORKDIR.value)), Path):
        provenance.add_training_seconds(workdir, time.monotonic() - start)
