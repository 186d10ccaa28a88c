"""What `verify` and `verify_property` answer, and what they must never answer."""

import dataclasses
import math
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

import cure_jax as cj
from cure_jax.certification import UnsafeSet
from cure_jax.certification.batches import as_pytree
from cure_jax.verification import Options, Status, verify, verify_property
from cure_jax.verification.problem import Problem, of_class
from cure_jax.verification.roots import root_bounds, tightened, traced
from tests.networks import random_mlp

ACTIVATIONS = Options(batch_size=8, steps=10, branching="activations", attack_steps=5, attack_restarts=1)
INPUTS = Options(boxes=32, branching="inputs", attack_steps=5, attack_restarts=1)


def bump(center, height, x):
    """Two classes; 1 wins in a tiny pyramid around the center only, and the logits are flat everywhere else."""
    away = jnp.maximum(x - center, 0.0) + jnp.maximum(center - x, 0.0)
    return jnp.stack([0.5 + 0.0 * x[0], height * jnp.maximum(1.0 - 200.0 * jnp.sum(away), 0.0)])


CENTER = jnp.array([0.3125, 0.6875])


@pytest.mark.parametrize("options", [ACTIVATIONS, INPUTS], ids=["activations", "inputs"])
def test_a_counterexample_hidden_from_gradients_is_found(options):
    x = jnp.array([0.5, 0.5])
    region = cj.linf_ball(x, 0.25)
    hidden = verify(Partial(bump, CENTER, jnp.float32(0.51)), x, 0, region, options=options)
    assert hidden.status is Status.FALSIFIED
    assert bool(region.contains(jnp.asarray(hidden.witness)))
    assert hidden.margin <= 0
    harmless = verify(Partial(bump, CENTER, jnp.float32(0.49)), x, 0, region, options=options)
    assert harmless.status is Status.VERIFIED
    assert 0 < harmless.margin <= 0.01 + 1e-6
    assert harmless.witness is None


def test_ties_count_against_the_label():
    tied = Partial(lambda x: jnp.stack([x[0], 0.25 + 0.0 * x[0]]))
    x = jnp.array([0.5])
    assert verify(tied, x, 0, cj.box(np.float32([0.25]), np.float32([1.0])), options=INPUTS).status is Status.FALSIFIED


def test_limits_are_kept_and_told():
    f, x, told = random_mlp(8, (6, 24, 24, 3)), jnp.full(6, 0.5), []
    label, region = int(jnp.argmax(f(x))), cj.linf_ball(x, 0.16)
    few = Options(batch_size=8, steps=1, branching="activations", attack_steps=1, attack_restarts=1, max_domains=40)
    first = verify(f, x, label, region, 300.0, options=few, progress=told.append)
    assert first.status is Status.TIMEOUT
    assert "as many as allowed" in first.reason
    assert 40 <= first.domains <= 40 + few.batch_size
    assert told[-1].domains == first.domains
    assert first.margin == told[-1].margin <= 0
    # No part is looser than what it was cut from: the worst bound only rises.
    worst = [progress.margin for progress in told]
    assert worst == sorted(worst)
    assert worst[-1] > worst[0]
    # Compiled by now.
    start = time.monotonic()
    limited = verify(f, x, label, region, 0.0, options=few)
    assert limited.status in (Status.TIMEOUT, Status.FALSIFIED)
    assert time.monotonic() - start < 5
    assert limited.margin == -math.inf or limited.margin <= 0


def test_functions_that_nothing_branches_on():
    f = Partial(lambda x: jnp.stack([jnp.tanh(3.0 * x[0]) - jnp.tanh(3.0 * x[0] + 0.5 * x[1]), 0.0 * x[0] - 0.6]))
    x = jnp.zeros(2)
    easy = verify(f, x, 0, cj.linf_ball(x, 0.1), options=ACTIVATIONS)
    assert easy.status is Status.VERIFIED
    hard = verify(f, x, 0, cj.linf_ball(x, 0.85), options=ACTIVATIONS)
    assert hard.status is Status.UNKNOWN
    assert "nothing branches on tanh" in hard.reason
    assert verify(f, x, 0, cj.linf_ball(x, 0.85), options=INPUTS).status is Status.VERIFIED


def unsafe(lower, upper, weights, offsets):
    return UnsafeSet(*(np.asarray(part, np.float64) for part in (lower, upper, weights, offsets)))


@pytest.mark.parametrize("options", [ACTIVATIONS, INPUTS], ids=["activations", "inputs"])
def test_all_rows_of_a_set_must_hold_at_once(options):
    """y = |x| on [-1, 1]: y <= 0.2 is reached, y >= 0.6 too, both at once never."""
    f = Partial(jnp.abs)
    low, high = ([1.0], -0.2), ([-1.0], 0.6)
    both = unsafe([-1.0], [1.0], [low[0], high[0]], [low[1], high[1]])
    assert verify_property(f, [both], options=options).status is Status.VERIFIED
    each = [unsafe([-1.0], [1.0], [row], [offset]) for row, offset in (low, high)]
    found = verify_property(f, [both, each[0]], options=options)
    assert found.status is Status.FALSIFIED
    assert found.witness.dtype == np.float64
    assert abs(found.witness[0]) <= 0.2
    assert verify_property(f, each[1:], options=options).status is Status.FALSIFIED
    # Of several boxes each counts.
    apart = [unsafe([-0.5], [0.5], [high[0]], [high[1]]), unsafe([0.5], [1.0], [high[0]], [high[1]])]
    assert verify_property(f, apart[:1], options=options).status is Status.VERIFIED
    assert verify_property(f, apart, options=options).status is Status.FALSIFIED


def test_ends_that_float32_does_not_have():
    """The box is rounded outward for proofs; a witness lies in the box itself."""
    f, end = Partial(lambda x: 1.0 * x), 0.1 + 1e-12
    fixed = unsafe([end, 0.0], [end, 1.0], [[0.0, 1.0]], [0.0])
    found = verify_property(f, [fixed], options=INPUTS)
    assert found.status is Status.FALSIFIED
    assert found.witness[0] == end


def test_what_is_not_a_number_proves_nothing():
    x = jnp.zeros(2)
    for value in (jnp.nan, jnp.inf):
        broken = Partial(lambda w, x: jnp.stack([1.0 + w * jnp.maximum(x[0], 0.0), x[1]]), jnp.float32(value))
        for options in (ACTIVATIONS, INPUTS):
            verdict = verify(
                broken, x, 0, cj.linf_ball(x, 0.5), 3.0, options=dataclasses.replace(options, max_domains=50)
            )
            assert verdict.status is not Status.VERIFIED


def hidden_among_large_terms(parameters, x):
    """Class 1 wins where x[0] is near 0.85; neurons of no account are sums of large terms that cancel."""
    first, second, bias = parameters
    distance = x[0] - jnp.array([0.8, 0.85])
    away, still = jnp.abs(distance), jax.nn.relu(jnp.dot(first, x[1:], precision="highest"))
    after = jax.nn.relu(jnp.dot(second, jnp.concatenate([away, still]), precision="highest") + bias)
    falls = -10.0 * (away[0] + distance[0]) + 20.0 * (away[1] + distance[1])
    return jnp.stack([0.5 + falls + 1e-6 * jnp.sum(after), jnp.zeros(())])


@pytest.mark.parametrize("seed", [13, 22])
def test_what_large_terms_leave_after_rounding_rules_nothing_out(seed):
    """Boxes of such a neuron contradict each other by a rounding; the part has inputs all the same."""
    rng = np.random.default_rng(seed)
    x = np.concatenate([[0.5], rng.uniform(0, 255, size=28)]).astype(np.float32)
    first = rng.normal(size=(64, 28)).astype(np.float32)
    second = rng.normal(size=(64, 66)).astype(np.float32)
    second[:, :2] *= 1e-4
    sums = second[:, 2:].astype(float) @ np.maximum(first.astype(float) @ x[1:], 0)
    f = Partial(hidden_among_large_terms, tuple(map(jnp.asarray, (first, second, (-sums).astype(np.float32)))))
    region = cj.linf_ball(jnp.asarray(x), jnp.asarray([0.4] + [0.0] * 28, jnp.float32))
    found = verify(f, jnp.asarray(x), 0, region, 600.0, options=ACTIVATIONS)
    point = jnp.asarray(x).at[0].set(0.85)
    assert bool(region.contains(point))
    assert f(point)[0] < -0.4
    assert found.status is Status.FALSIFIED


def test_a_constant_is_proved_where_both_evaluations_say_so():
    """Four small steps that float32 rounds up to more than twice as much as they are."""

    def steps(step, x):
        return jnp.stack([1 + 2 * step, (((1 + step) + step) + step) + step])

    x = jnp.array([0.5, 0.5])
    found = verify(Partial(steps, jnp.float32(5e-8)), x, 0, cj.linf_ball(x, 0.1))
    assert found.status is Status.UNKNOWN
    assert found.margin < 0


def test_layers_are_bounded_anew_where_a_judgement_rests_on_a_root():
    """Whether all is defined is asked of the rows there, of which there may be more than outputs."""
    weights = jnp.asarray(np.random.default_rng(0).normal(size=(5, 4)), jnp.float32)

    def f(weights, x):
        hidden = jax.nn.relu(jnp.dot(weights, x, precision="highest"))
        scaled = hidden / jnp.sqrt(jnp.sum(hidden * hidden) + 1.0)
        bent = jnp.where(scaled > 0.1, scaled, 0.3 * scaled + 0.07)
        return jnp.dot(weights.T, jax.nn.relu(bent - 0.2), precision="highest")[:3]

    problem = Problem(as_pytree(Partial(f, weights)), cj.linf_ball(jnp.full(4, 0.5), 0.1), of_class(0, 3))
    root = root_bounds(problem.f, problem.region)
    found = tightened(problem.f, problem.region, root, problem.rounded, steps=2)
    assert traced(problem.f, problem.region).equations[-1].name == "defined"
    for old, new in zip((*root.boxes, *root.others), (*found.boxes, *found.others), strict=True):
        assert old.shape == new.shape
        assert np.all(new.lower >= old.lower)
        assert np.all(new.upper <= old.upper)


def test_functions_without_kinks_and_without_inputs():
    x = jnp.array([0.5, 0.25])
    linear = Partial(lambda w, x: w @ x, jnp.eye(2))
    region = cj.l2_ball(x, 0.17)
    assert verify(linear, x, 0, region).status is Status.VERIFIED
    assert verify(linear, x, 0, cj.l2_ball(x, 0.18)).status is Status.FALSIFIED
    constant = Partial(lambda w, x: w, jnp.array([1.0, 0.5]))
    assert verify(constant, x, 0, region).status is Status.VERIFIED
    assert verify(constant, x, 1, region).status is Status.FALSIFIED


def test_questions_that_make_no_sense_are_refused():
    f, x = random_mlp(0), jnp.array([0.5, 0.5])
    region = cj.linf_ball(x, 0.1)
    with pytest.raises(ValueError, match=r"expected 0\.\.2"):
        verify(f, x, 3, region)
    with pytest.raises(ValueError, match="same shape"):
        verify(f, jnp.zeros(3), 0, region)
    with pytest.raises(ValueError, match="outside of the region"):
        verify(f, jnp.zeros(2), 0, region)
    with pytest.raises(ValueError, match="needs a box"):
        verify(f, x, int(jnp.argmax(f(x))), cj.l2_ball(x, 0.1), options=INPUTS)
    with pytest.raises(ValueError, match="no unsafe set"):
        verify_property(f, [])
    with pytest.raises(ValueError, match="columns"):
        verify_property(f, [unsafe([0.0, 0.0], [1.0, 1.0], [[1.0]], [0.0])])
    for number in (np.nan, np.inf):
        with pytest.raises(ValueError, match="no finite number"):
            unsafe([0.0, 0.0], [1.0, 1.0], [[number, 1.0]], [0.0])
    with pytest.raises(ValueError, match="batch_size"):
        Options(batch_size=1)
    with pytest.raises(cj.UnsupportedPrimitive):
        verify(lambda x: jnp.linalg.eigh(jnp.outer(x, x))[0], x, 0, region)
