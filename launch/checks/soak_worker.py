r"""What each process of `launch/checks/soak.py` runs where `launch/train.py` and `certify.py` do not say enough.

    python launch/pods/local.py --processes=2 --devices=2 -- \
        launch/checks/soak_worker.py --config=... --task=float64 --output=OUT

`--task=verdicts` certifies test images with the network in --workdir; every process writes what it got to
OUT_PROCESS.npz. `--task=float64` trains in float64, which the launchers do not; the first process writes OUT_0.npz.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from flax import traverse_util
from ml_collections import config_flags

import cure_jax as cj
from cure_jax import distributed, training
from cure_jax.commands.parts import common, processes
from cure_jax.data import batch_indices
from cure_jax.training.config import Config, build_recipe
from cure_jax.training.loop import initial_state
from cure_jax.training.parallel import compile_steps

_CONFIG = config_flags.DEFINE_config_file("config", None, "Path of a config, with a method after a colon.")
_TASK = flags.DEFINE_enum("task", None, ["verdicts", "float64"], "What to do.")
_WORKDIR = flags.DEFINE_string("workdir", "", "Of the network to certify.")
_OUTPUT = flags.DEFINE_string("output", None, "Where results go, without the ending.")
_NUM_EXAMPLES = flags.DEFINE_integer("num_examples", 240, "Images to certify.")


def main() -> None:
    """Does the task."""
    is_first = processes.join()
    results = (verdicts if _TASK.value == "verdicts" else float64)(_CONFIG.value)
    if is_first or _TASK.value == "verdicts":
        np.savez(f"{_OUTPUT.value}_{jax.process_index()}.npz", **results)


def verdicts(config: Config) -> dict[str, Any]:
    """Per-example verdicts, divided over all devices."""
    split = common.load_split(config, "test")
    images, labels = split.images[: _NUM_EXAMPLES.value], split.labels[: _NUM_EXAMPLES.value]
    fitted = training.restore(common.create_model(config, split.num_classes), images[:1], config, _WORKDIR.value)
    mesh = distributed.mesh_of_all() if jax.device_count() > 1 else None
    found = cj.certify_dataset(
        fitted.classifier, images, labels, training.make_regions(dict(config.radii)), batch_size=80, mesh=mesh
    )
    return {"correct": found.correct} | {f"verified.{norm}": value for norm, value in found.verified.items()}


def float64(config: Config) -> dict[str, Any]:
    """Parameters after training in float64: all steps in one compiled call."""
    train = common.load_split(config, "train")
    steps_per_epoch = len(train.images) // config.batch_size
    recipe = build_recipe(config, common.create_model(config, train.num_classes), steps_per_epoch)
    state = jax.jit(lambda: initial_state(config, recipe, jnp.asarray(train.images[:1])))()
    mode = "jit" if config.parallel == "auto" else config.parallel
    rows = np.stack(
        [
            batch_indices(config.seed, step, len(train.images), config.batch_size)
            for step in range(config.epochs * steps_per_epoch)
        ]
    )

    def wide(leaf: Any) -> Any:
        return np.asarray(leaf, np.float64) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf

    with jax.enable_x64(True):
        state = jax.tree.map(jnp.asarray, jax.tree.map(wide, state))
        state, _ = compile_steps(recipe, mode)(state, wide(train.images), train.labels, rows)
        return traverse_util.flatten_dict(jax.device_get(distributed.local(state.params)), sep="/")


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "task", "output"])
    common.run(main)
