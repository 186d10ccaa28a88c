"""Schedules: values of the published ramp, both kinds of step, edges."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cure_jax.training.schedules import cosine, exponential_ramp, milestones, natural_weight, warmup


def test_exponential_ramp_has_the_published_values() -> None:
    ramp = exponential_ramp(1000, 2000)
    values = [float(ramp(step)) for step in (0, 1000, 1100, 1250, 1500, 2000, 5000)]
    np.testing.assert_allclose(values, [0, 0, 0.002, 0.077, 0.385, 1, 1], atol=5e-4)
    assert values[0] == values[1] == 0.0
    assert values[-1] == values[-2] == 1.0
    np.testing.assert_allclose(values[2], 1e-4 / (0.75 * 4 * 0.25**3 + 0.25**4), rtol=1e-5)


def test_exponential_ramp_increases_and_turns_smoothly() -> None:
    values = np.asarray(jax.vmap(exponential_ramp(0, 1000))(jnp.arange(1001)), np.float64)
    slopes = np.diff(values)
    assert (slopes > 0).all()
    np.testing.assert_allclose(slopes[255:], slopes[-1], rtol=1e-3)
    np.testing.assert_allclose(slopes[249], slopes[251], rtol=2e-2)


def test_exponential_ramp_is_exact_late_in_a_run_of_many_steps() -> None:
    start = 2**28
    ramp = exponential_ramp(start, start + 4)
    np.testing.assert_allclose([float(ramp(start + k)) for k in (1, 2)], [0.0769231, 0.3846154], rtol=1e-5)


def test_exponential_ramp_without_length_is_a_jump() -> None:
    ramp = exponential_ramp(5, 5)
    assert [float(ramp(step)) for step in (4, 5, 6)] == [0.0, 1.0, 1.0]


def test_natural_weight_is_a_jump_or_a_line() -> None:
    assert [float(natural_weight(3)(step)) for step in (0, 2, 3, 4)] == [1.0, 1.0, 0.0, 0.0]
    assert [float(natural_weight(2, ramp_steps=4)(step)) for step in range(8)] == [1, 1, 1, 0.75, 0.5, 0.25, 0, 0]
    assert float(natural_weight(0)(0)) == 0.0
    kept = natural_weight(2, ramp_steps=4, final=0.2)
    np.testing.assert_allclose([float(kept(step)) for step in range(8)], [1, 1, 1, 0.8, 0.6, 0.4, 0.2, 0.2], rtol=1e-6)
    assert float(natural_weight(2, final=0.2)(2)) == pytest.approx(0.2)


def test_milestones_multiply_the_rate() -> None:
    rate = milestones(0.5, [3, 5])
    np.testing.assert_allclose([float(rate(step)) for step in (0, 2, 3, 4, 5, 9)], [0.5, 0.5, 0.1, 0.1, 0.02, 0.02])
    assert float(milestones(0.5, [])(7)) == 0.5
    assert float(milestones(0.5, [1], factor=0.5)(1)) == 0.25


@pytest.mark.parametrize(
    "schedule", [exponential_ramp(2, 9), natural_weight(2, 5), natural_weight(2), milestones(0.1, [4]), cosine(0.1, 9)]
)
def test_traced_and_python_steps_agree_and_give_float_scalars(schedule: object) -> None:
    for step in range(12):
        plain, traced = schedule(step), jax.jit(schedule)(jnp.int32(step))
        for value in (plain, traced):
            assert isinstance(value, jax.Array)
            assert value.shape == ()
            assert value.dtype == jnp.float32
        np.testing.assert_allclose(plain, traced, rtol=1e-6)


def test_impossible_schedules_are_refused() -> None:
    with pytest.raises(ValueError, match="end_step=1"):
        exponential_ramp(2, 1)
    with pytest.raises(ValueError, match="ramp_steps=-1"):
        natural_weight(2, -1)
    with pytest.raises(ValueError, match=r"final=1\.5"):
        natural_weight(2, final=1.5)
    with pytest.raises(ValueError, match="increasing"):
        milestones(0.1, [5, 5])
    with pytest.raises(ValueError, match="decay_steps=0"):
        cosine(0.1, 0)


def test_warmup_rises_to_the_schedule_and_leaves_it_alone() -> None:
    rate = warmup(milestones(0.5, [6], 0.1), 4)
    values = np.asarray(jax.vmap(rate)(jnp.arange(8)))
    np.testing.assert_allclose(values, [0.125, 0.25, 0.375, 0.5, 0.5, 0.5, 0.05, 0.05], rtol=1e-6)
    np.testing.assert_allclose([float(rate(step)) for step in range(8)], values, rtol=1e-6)
    schedule = milestones(0.5, [])
    assert warmup(schedule, 0) is schedule
    with pytest.raises(ValueError, match="warmup got -1 steps"):
        warmup(schedule, -1)
