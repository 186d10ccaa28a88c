"""The arithmetic of scaling: what is counted is what the program sends."""

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from cure_jax.configs import digits
from launch.pods import scaling


def test_bytes_are_read_from_the_program() -> None:
    mesh = Mesh(np.asarray(jax.devices()[:2]), ("data",))

    def summed(x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
        return jax.lax.psum((x, y), "data")

    whole = PartitionSpec()
    program = jax.jit(jax.shard_map(summed, mesh=mesh, in_specs=whole, out_specs=whole, check_vma=False))
    text = program.lower(np.zeros((3, 5), np.float32), np.zeros((7,), np.float16)).as_text()
    assert sorted(scaling.reduced(text)) == [14, 60]
    assert scaling.reduced("no reduction here") == []


def test_both_gradients_of_cure_scratch_are_summed() -> None:
    config = digits.get_config("scratch")
    step = scaling.cost(config)
    assert step.parameters == 64 * 128 + 128 + 128 * 128 + 128 + 128 * 10 + 10
    # Everything else is scalars and a few numbers a layer.
    assert 0 < step.reduced_bytes - 2 * 4 * step.parameters < 2000
    assert step.flops == step.forward_flops * scaling.passes(config)
    config.projection.beta = 0.0
    assert 0 < scaling.cost(config).reduced_bytes - 4 * step.parameters < 2000


def test_times_follow_the_formulas() -> None:
    step = scaling.Step(parameters=1, reduced_bytes=9 * 10**9, reductions=3, forward_flops=1.0, flops=2e12)
    chip = scaling.Chip(flops=1e14, utilization=0.5, link_bytes=9e10, axes=2, hop_seconds=1e-6)
    computing, sending, waiting = scaling.seconds(step, chip, chips=16, batch_size=160)
    assert computing == pytest.approx(2e12 * 10 / 0.5e14)
    assert sending == pytest.approx(2 * 9e9 / 18e10)
    # Four chips along each axis: two hops to the other side, back, on both axes.
    assert waiting == pytest.approx(3 * 8e-6)
