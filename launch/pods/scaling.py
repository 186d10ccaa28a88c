"""What a training step sends between devices, and what that means for a pod: arithmetic, no measurement of a pod.

    JAX_PLATFORMS=cpu python launch/pods/scaling.py --configs=mnist_small:scratch,cifar10_small:scratch

Parameters and bytes are counted in the program that would run: the all-reductions of the lowered step on two devices.
docs/pods.md says what the times assume.
"""

import functools
import re
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from jax.sharding import Mesh, PartitionSpec

from cure_jax import configs, data, models
from cure_jax.training.config import Config, build_recipe
from cure_jax.training.loop import initial_state
from cure_jax.training.step import train_step

_CONFIGS = flags.DEFINE_list("configs", ["configs/mnist_small.py:scratch"], "Configs, each with a method.")
_CHIPS = flags.DEFINE_list("chips", ["16", "64", "256"], "Sizes of slices.")
_BATCH = flags.DEFINE_integer("batch_size", 4096, "Global batch.")


class Chip(NamedTuple):
    """A TPU chip and its links.

    Attributes:
      flops: a second, at the precision of training.
      utilization: the share of them that convolutions of this size reach, an assumption.
      link_bytes: a second over one link, both directions together.
      axes: links used at once by an all-reduction: dimensions of the torus.
      hop_seconds: latency of one hop.
    """

    flops: float
    utilization: float
    link_bytes: float
    axes: int
    hop_seconds: float


V5E = Chip(flops=197e12, utilization=0.2, link_bytes=9e10, axes=2, hop_seconds=1e-6)


class Step(NamedTuple):
    """What one training step costs.

    Attributes:
      parameters: of the network.
      reduced_bytes: summed over devices.
      reductions: operations that sum.
      flops: for each image, forward; and forward and backward of everything that is trained on.
    """

    parameters: int
    reduced_bytes: int
    reductions: int
    forward_flops: float
    flops: float


def main(arguments: Sequence[str]) -> None:
    """Prints a Markdown table."""
    del arguments
    print("| config | parameters | summed in a step | chips | images a chip | compute | bytes | waits | efficiency |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for path in _CONFIGS.value or []:
        step = cost(configs.load(path))
        for chips in map(int, _CHIPS.value or []):
            computing, sending, waiting = seconds(step, V5E, chips, _BATCH.value)
            least, most = (computing / (computing + sending + wait) for wait in (waiting, waiting / step.reductions))
            print(
                f"| {path.removeprefix('configs/')} | {step.parameters / 1e6:.2f} M | {step.reduced_bytes / 1e6:.1f} MB"
                f" in {step.reductions} | {chips} | {_BATCH.value // chips} | {computing * 1e3:.2f} ms"
                f" | {sending * 1e3:.2f} ms | {waiting * 1e3:.2f} ms | {least:.0%} to {most:.0%} |"
            )


def cost(config: Config) -> Step:
    """Counts in the lowered program, on two devices; nothing is compiled, no data is read."""
    shape, classes = _inputs(config)
    model = models.create(config.model.name, classes, **config.model.options.to_dict())
    recipe = build_recipe(config, model, steps_per_epoch=100)
    state = jax.eval_shape(lambda: initial_state(config, recipe, np.zeros((1, *shape), np.float32)))
    devices = jax.devices()[:2]
    mesh = Mesh(np.asarray(devices), ("data",))
    step = jax.shard_map(
        functools.partial(train_step, recipe, axis_name="data"),
        mesh=mesh,
        in_specs=(PartitionSpec(), PartitionSpec("data"), PartitionSpec("data")),
        out_specs=PartitionSpec(),
        check_vma=False,
    )
    images = jax.ShapeDtypeStruct((4, *shape), jnp.float32)
    lowered = jax.jit(step).lower(state, images, jax.ShapeDtypeStruct((4,), jnp.int32))
    sizes = reduced(lowered.as_text())
    forward = jax.jit(lambda v, x: model.apply(v, x)).lower(
        {"params": state.params, "batch_stats": state.batch_stats}, jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    )
    flops = float((forward.cost_analysis() or {})["flops"])
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    return Step(parameters, sum(sizes), len(sizes), flops, flops * passes(config))


def passes(config: Config) -> float:
    """Forward passes that a step is worth, for each image; a backward pass counts as two.

    Each step of an attack is one forward and one backward pass; interval bounds are two forward passes (centre and
    radius), with their gradient six; the clean pass, the Lipschitz constants and the natural gradient are three each.
    """
    losses = config.losses.values()
    attacked = sum(loss.kind in ("small_box", "pgd", "expressive") for loss in losses)
    boxed = sum(loss.kind in ("small_box", "ibp", "crown_ibp", "expressive") for loss in losses)
    lipschitz = any(loss.kind == "lipschitz" for loss in losses)
    return 3 * (attacked * config.attack_steps + 2 * boxed + lipschitz + 1 + (config.projection.beta > 0))


def reduced(text: str) -> list[int]:
    """Bytes of every all-reduction of a StableHLO program."""
    found = re.findall(r'"stablehlo\.all_reduce".*?\}\) : \((.*?)\) ->', text, re.DOTALL)
    return [_bytes(tensor) for types in found for tensor in re.findall(r"tensor<([^>]*)>", types)]


def _bytes(tensor: str) -> int:
    *shape, dtype = tensor.split("x")
    bits = int(re.sub(r"\D", "", dtype))
    return int(np.prod([int(size) for size in shape], dtype=np.int64)) * max(bits, 8) // 8


def seconds(step: Step, chip: Chip, chips: int, batch_size: int) -> tuple[float, float, float]:
    """Compute, bytes on the links, and waiting for hops, of one step; nothing is hidden behind anything.

    A ring along each axis of a torus sends 2 V bytes of V, over all axes at once (Austin et al., How to Scale Your
    Model, 2025, part 3). A message goes half around each axis, there and back; every reduction waits for that on its
    own, unless XLA merges it with others.
    """
    computing = step.flops * batch_size / chips / (chip.flops * chip.utilization)
    sending = 2 * step.reduced_bytes / (chip.link_bytes * chip.axes)
    side = chips ** (1 / chip.axes)
    waiting = step.reductions * 2 * chip.axes * side / 2 * chip.hop_seconds
    return computing, sending, waiting


def _inputs(config: Config) -> tuple[tuple[int, ...], int]:
    shape, classes = data.describe(config.dataset)
    crop = config.augmentation.crop
    return ((crop, crop, *shape[2:]) if crop else shape), classes


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", 2)
    app.run(main)
