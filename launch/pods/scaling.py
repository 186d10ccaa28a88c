"""What a training step and a certificate cost on a slice of a TPU pod: compiled for it, without one.

    python launch/pods/scaling.py --configs=digits:scratch,mnist_small:scratch --slices=v5e:4x4,v5e:8x8,v5e:16x16

XLA's compiler for TPUs comes with `pip install 'jax[tpu]'` and needs no TPU. The programs are those that the slice
would run: memory, cycles by XLA's cost model and the sums over chips, after XLA merged them, are read from them. Only
the time on the links is arithmetic; docs/pods.md says how. --costliest=10 says what to mend first.
"""

import functools
import importlib.util
import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import cure_jax as cj
from cure_jax import configs, data, models
from cure_jax.training.config import Config, build_recipe
from cure_jax.training.loop import initial_state
from cure_jax.training.step import train_step
from launch.pods import programs

_CONFIGS = flags.DEFINE_list("configs", ["mnist_small:scratch"], "Settings, each with a method.")
_SLICES = flags.DEFINE_list("slices", ["v5e:4x4", "v5e:8x8", "v5e:16x16"], "Slices, by their names in Cloud TPU.")
_BATCH = flags.DEFINE_integer("batch_size", 4096, "Global batch.")
_CERTIFY = flags.DEFINE_string("certify", "", "A method: the cost of certifying the batch with it, not of training.")
_COSTLIEST = flags.DEFINE_integer("costliest", 0, "How many of the costliest operations to list for each program.")

_HEAD = (
    "| config | slice | images a chip | memory | of the chip's | cycles | of peak | compute | sums | bytes | on links |"
    " efficiency |\n| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"
)


class Chip(NamedTuple):
    """A TPU chip and its links.

    Attributes:
      flops: a second, in bfloat16.
      hertz: cycles a second: flops over what its matrix units do in one cycle.
      memory: bytes.
      link_bytes: a second over one link, both directions together.
      axes: links used at once by an all-reduction: dimensions of the torus.
      hop_seconds: latency of one hop.

    Source: Austin et al., How to Scale Your Model, 2025, parts 2 and 3.
    """

    flops: float
    hertz: float
    memory: float
    link_bytes: float
    axes: int
    hop_seconds: float


# 4 matrix units of 128 x 128 do 2 operations for each entry and cycle; those of v6e are two of 256 x 256.
CHIPS = {
    "v5e": Chip(197e12, 197e12 / (4 * 128**2 * 2), 16e9, 9e10, 2, 1e-6),
    "v6e": Chip(918e12, 918e12 / (2 * 256**2 * 2), 32e9, 1.8e11, 2, 1e-6),
}


def main(arguments: Sequence[str]) -> None:
    """Prints a Markdown table."""
    del arguments
    check_compiler()
    print(_HEAD)
    details = []
    for path in _CONFIGS.value or []:
        for name in _SLICES.value or []:
            chip, mesh = CHIPS[name.partition(":")[0]], slice_of(name)
            program = functools.partial(certificates, method=method) if (method := _CERTIFY.value) else training_step
            compiled = program(configs.load(path), mesh, int(_BATCH.value or 0)).compile()
            cost = programs.cost(compiled.as_text() or "")
            print(_row(path, name, chip, mesh.size, cost, compiled), flush=True)
            details += [(path, name, source, cycles) for source, cycles in cost.costliest[: _COSTLIEST.value]]
    if details:
        print("\n| config | slice | cycles | operation |\n| --- | --- | ---: | --- |")
    for path, name, source, cycles in details:
        print(f"| {path} | {name} | {cycles:,} | `{source}` |")


def check_compiler() -> None:
    """Raises ImportError where XLA's compiler for TPUs is not installed."""
    if importlib.util.find_spec("libtpu") is None:
        raise ImportError("libtpu is not installed; it compiles for TPUs without one: pip install 'jax[tpu]'.")


def slice_of(name: str) -> Mesh:
    """The devices of a slice that need not be there, along one axis: "v5e:4x4"."""
    # Nobody is asked which TPU this machine has.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    topology = topologies.get_topology_desc(platform="tpu", topology_name=name)
    return Mesh(np.asarray(topology.devices), ("data",))


def training_step(config: Config, mesh: Mesh, batch_size: int) -> jax.stages.Lowered:
    """The step of a config, its batch divided over the devices of a mesh, lowered for them; no data is read."""
    shape, classes = _inputs(config)
    model = models.create(config.model.name, classes, **config.model.options.to_dict())
    recipe = build_recipe(config, model, steps_per_epoch=100)
    state = jax.eval_shape(lambda: initial_state(config, recipe, np.zeros((1, *shape), np.float32)))
    step = functools.partial(train_step, recipe, axis_name="data")
    return _lowered(step, mesh, batch_size, shape, state)


def certificates(config: Config, mesh: Mesh, batch_size: int, *, method: str) -> jax.stages.Lowered:
    """Margins of a batch of images in the first of the config's norms, lowered as `training_step` is."""
    shape, classes = _inputs(config)
    model = models.create(config.model.name, classes, **config.model.options.to_dict())
    variables = jax.eval_shape(lambda: model.init(jax.random.key(0), np.zeros((1, *shape), np.float32)))
    norm, radius = sorted(config.radii.items())[0]
    ball = {"linf": cj.linf_ball, "l2": cj.l2_ball, "l1": cj.l1_ball}[norm]

    def margins(variables: Any, images: jax.Array, labels: jax.Array) -> jax.Array:
        f = lambda x: model.apply(variables, x[None])[0]  # noqa: E731

        def one(x: jax.Array, label: jax.Array) -> jax.Array:
            return cj.certify(f, x, label, ball(x, radius, (0.0, 1.0)), method).margin

        return jax.lax.pmean(jax.vmap(one)(images, labels).min(), "data")

    return _lowered(margins, mesh, batch_size, shape, variables)


def _lowered(
    function: Callable[..., Any], mesh: Mesh, batch_size: int, shape: tuple[int, ...], whole: Any
) -> jax.stages.Lowered:
    """A function of `whole`, images and labels, on the devices of a mesh, for the platform that they are of."""
    everywhere, divided = PartitionSpec(), PartitionSpec("data")
    mapped = jax.shard_map(
        function, mesh=mesh, in_specs=(everywhere, divided, divided), out_specs=everywhere, check_vma=False
    )

    def placed(shape: tuple[int, ...], dtype: Any, spec: PartitionSpec) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))

    return jax.jit(mapped).lower(
        jax.tree.map(lambda leaf: placed(leaf.shape, leaf.dtype, everywhere), whole),
        placed((batch_size, *shape), jnp.float32, divided),
        placed((batch_size,), jnp.int32, divided),
    )


def _row(path: str, name: str, chip: Chip, chips: int, cost: programs.Cost, compiled: jax.stages.Compiled) -> str:
    memory: Any = compiled.memory_analysis()
    needed = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
    flops = float((compiled.cost_analysis() or {}).get("flops", 0.0))
    computing, linking = cost.cycles / chip.hertz, seconds_on_links(cost.reductions, chip, chips)
    return (
        f"| {path} | {name} | {_BATCH.value // chips} | {needed / 1e6:.0f} MB | {needed / chip.memory:.1%} "
        f"| {cost.cycles / 1e6:.2f} M | {flops / (computing * chip.flops):.1%} | {computing * 1e3:.2f} ms "
        f"| {len(cost.reductions)} | {sum(cost.reductions) / 1e6:.1f} MB | {linking * 1e3:.2f} ms "
        f"| {computing / (computing + linking):.0%} |"
    )


def seconds_on_links(reductions: Sequence[int], chip: Chip, chips: int) -> float:
    """Of sums over all chips, one after the other, with nothing hidden behind anything.

    A ring along each axis of a torus sends 2 V bytes of V, over all axes at once, and a message goes half around each
    axis, there and back (Austin et al., How to Scale Your Model, 2025, part 3).
    """
    side = chips ** (1 / chip.axes)
    waiting = len(reductions) * 2 * chip.axes * side / 2 * chip.hop_seconds
    return waiting + 2 * sum(reductions) / (chip.link_bytes * chip.axes)


def _inputs(config: Config) -> tuple[tuple[int, ...], int]:
    shape, classes = data.describe(config.dataset)
    crop = config.augmentation.crop
    return ((crop, crop, *shape[2:]) if crop else shape), classes


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    app.run(main)
