"""What a slice would run: read from a program that was compiled for it."""

import importlib.util
import subprocess
import sys

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from cure_jax.configs import digits
from launch.pods import programs, scaling

# As XLA prints programs for TPUs, with everything left out that is not read.
PROGRAM = """HloModule jit_step

%summed (a: f32[], b: f32[]) -> f32[] {
  ROOT %add.1 = f32[]{:T(128)} add(%a, %b)
}

%limit (p: (s32[], f32[4])) -> pred[] {
  %constant.1 = s32[]{:T(128)} constant(8), metadata={op_name="jit(step)/while"}
  ROOT %lt.1 = pred[]{:T(512)} compare(%i, %constant.1), direction=LT
}

%body (p: (s32[], f32[4])) -> (s32[], f32[4]) {
  %fusion.1 = f32[4]{0} fusion(%x), metadata={op_name="jit(step)/attack"}, backend_config={"estimated_cycles":"100"}
  %all-reduce.1 = (bf16[4]{0:T(128)S(1)}, f32[2,3]{1,0}) all-reduce(%fusion.1, %y), to_apply=%summed
  ROOT %tuple.1 = (s32[], f32[4]{0}) tuple(%i, %fusion.1)
}

%cheap (p: f32[]) -> f32[] {
  ROOT %fusion.2 = f32[] fusion(%p), backend_config={"estimated_cycles":"5"}
}

%dear (p: f32[]) -> f32[] {
  ROOT %fusion.3 = f32[] fusion(%p), metadata={op_name="jit(step)/natural"}, backend_config={"estimated_cycles":"50"}
}

ENTRY %main (x: f32[4]) -> f32[4] {
  %while.1 = (s32[], f32[4]{0}) while(%tuple.0), condition=%limit, body=%body
  %conditional.1 = f32[] conditional(%p, %x, %x), branch_computations={%cheap, %dear}
  %all-reduce.2 = f32[]{:T(128)} all-reduce(%conditional.1), to_apply=%summed
  ROOT %fusion.4 = f32[4]{0} fusion(%z), metadata={op_name="jit(step)/attack"}, backend_config={"estimated_cycles":"7"}
}
"""


def test_a_program_costs_what_it_runs() -> None:
    cost = programs.cost(PROGRAM)
    assert cost.cycles == 8 * 100 + 50 + 7
    assert cost.reductions == (4 * 2 + 6 * 4,) * 8 + (4,)
    assert cost.costliest == (("jit(step)/attack", 807), ("jit(step)/natural", 50))
    with pytest.raises(ValueError, match="no ENTRY computation"):
        programs.cost("nothing")


def test_times_on_links_follow_the_formula() -> None:
    chip = scaling.CHIPS["v5e"]
    assert chip.hertz == pytest.approx(1.5e9, rel=0.01)
    # Four chips along each axis: two hops to the other side, back, on both axes.
    waiting, sending = 3 * 8e-6, 2 * 9e9 / 18e10
    assert scaling.seconds_on_links([4 * 10**9, 5 * 10**9, 0], chip, 16) == pytest.approx(waiting + sending)


def test_the_step_that_is_lowered_sums_both_gradients() -> None:
    mesh = Mesh(np.asarray(jax.devices()[:2]), ("data",))
    config = digits.get_config("scratch")
    parameters = 64 * 128 + 128 + 128 * 128 + 128 + 128 * 10 + 10
    summed = []
    for beta in (0.5, 0.0):
        config.projection.beta = beta
        text = scaling.training_step(config, mesh, 4).compile().as_text()
        summed.append(sum(programs.cost(text).reductions))
    # Everything else is scalars and a few numbers a layer.
    assert 0 < summed[0] - 2 * 4 * parameters < 3000
    assert 0 < summed[1] - 4 * parameters < 3000


def test_a_missing_compiler_is_named(monkeypatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"libtpu is not installed.*pip install 'jax\[tpu\]'"):
        scaling.check_compiler()


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu: pip install 'jax[tpu]'")
def test_a_slice_is_compiled_for() -> None:
    command = [sys.executable, "launch/pods/scaling.py", "--configs=digits:scratch", "--slices=v5e:4x4"]
    for options in (["--costliest=2"], ["--certify=crown"]):
        done = subprocess.run([*command, *options], capture_output=True, text=True, check=True)
        row = next(line for line in done.stdout.splitlines() if line.startswith("| digits:scratch | v5e:4x4 | 256 "))
        assert float(row.split("|")[6].split()[0]) > 0
