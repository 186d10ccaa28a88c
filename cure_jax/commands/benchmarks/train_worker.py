"""Training steps of cure_jax as a child of `cure-jax benchmark train`, with flags of XLA of its own.

    PYTHON cure_jax/commands/benchmarks/train_worker.py XLA_FLAGS PROBLEM.npz

A first line says that it is ready. A request is `{"loss": "max", "steps": 4}`; an answer has the seconds of a step and
the loss.
"""

import dataclasses
import functools
import json
import os
import sys
import time
from typing import Any

import numpy as np

# In the middle of the ramp of the radius, where all parts of a loss count.
_STEPS_PER_EPOCH, _AT = 1000, 12_000
_RADII = {"linf": 0.1, "l2": 0.5}


def main(flags: str, path: str) -> None:
    """Answers requests until the input ends."""
    answers, sys.stdout = sys.stdout, sys.stderr
    os.environ["XLA_FLAGS"] = flags
    problem = dict(np.load(path))
    network = json.loads(str(problem["network"]))
    images, labels = problem["images"], problem["labels"].astype(np.int32)
    started = functools.cache(lambda loss: _started(network, loss, images))
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        run, state = started(request["loss"])
        rows = np.tile(np.arange(len(images), dtype=np.int32), (request["steps"], 1))
        wall, cpu = time.perf_counter(), time.process_time()
        metrics: Any = run(state, images, labels, rows)[1]
        loss = float(np.asarray(metrics["loss"])[-1])
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        answer = {"wall": wall / request["steps"], "cpu": cpu / request["steps"], "loss": loss}
        print(json.dumps(answer), file=answers, flush=True)


def _started(network: dict[str, Any], loss: str, images: np.ndarray) -> Any:
    """The compiled run of steps, and the state that it begins with."""
    import jax.numpy as jnp

    from cure_jax.training.checks import check
    from cure_jax.training.config import build_recipe, default_config
    from cure_jax.training.loop import initial_state
    from cure_jax.training.parallel import compile_steps

    config = default_config()
    config.batch_size, config.attack_steps = len(images), network["attack_steps"]
    config.warmup_regularizer = config.l1_penalty = 0.0
    boxes = {norm: {"kind": "small_box", "ratio": 0.4} for norm in _RADII}
    norm = "l2" if loss in ("lipschitz", "box_ball") else "linf"
    losses = {"max": boxes, "small_box": {"linf": boxes["linf"]}}.get(loss, {norm: {"kind": loss}})
    with config.unlocked():
        del config.losses, config.radii
        config.losses, config.radii = losses, {norm: _RADII[norm] for norm in losses}
    check(config)
    recipe = build_recipe(config, _model(network), _STEPS_PER_EPOCH)
    state = initial_state(config, recipe, images[:1])
    return compile_steps(recipe, "jit"), dataclasses.replace(state, step=jnp.asarray(_AT, jnp.int32))


def _model(network: dict[str, Any]) -> Any:
    from cure_jax import models

    convolutions = tuple(map(tuple, network["convs"]))
    if not network.get("batch_norm"):
        return models.create("conv_small", 10, convs=convolutions, dense=tuple(network["dense"]))
    width = convolutions[0][0]
    multiples = tuple((features // width, stride) for features, _, stride in convolutions)
    return models.create("cnn7", 10, width=width, convolutions=multiples, dense=network["dense"][0])


if __name__ == "__main__":
    main(*sys.argv[1:])
