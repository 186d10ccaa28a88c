"""Verdicts on small networks agree with exact solvers, and none is left open."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

import cure_jax as cj
from cure_jax.verification import Options, Status
from tests.networks import mlp_params, random_mlp
from tests.verification import references
from tests.verification.references import least_margin

MAKE = {math.inf: cj.linf_ball, 2: cj.l2_ball, 1: cj.l1_ball}
# Where a verdict must not depend on rounding.
CLEAR = 1e-4


def check(seed: int, sizes: tuple[int, ...], p: float, branching: str = "activations") -> list[float]:
    """Two radii on either side of the one at which the exact margin is 0; the margins."""
    params, f = mlp_params(seed, sizes), random_mlp(seed, sizes)
    x = jnp.asarray(np.random.default_rng(seed).uniform(size=sizes[0]).astype(np.float32))
    label = int(jnp.argmax(f(x)))
    # Few steps: the search is hard where the margin is small, but not zero.
    low, high = 0.0, 2.0
    for _ in range(4):
        middle = (low + high) / 2
        low, high = (middle, high) if least_margin(params, x, label, middle, p) > 0 else (low, middle)
    margins = []
    for eps in (low, high):
        exact = least_margin(params, x, label, eps, p)
        options = Options(batch_size=32, branching=branching, attack_steps=10, attack_restarts=1)
        verdict = cj.verify(f, x, label, MAKE[p](x, eps), 120.0, options=options)
        margins.append(exact)
        if abs(exact) < CLEAR:
            continue
        assert verdict.status is (Status.VERIFIED if exact > 0 else Status.FALSIFIED), (seed, eps, exact, verdict)
        # What is proved is true, and a witness is no worse than the worst.
        assert verdict.margin <= exact + 1e-4 if exact > 0 else exact - 1e-4 <= verdict.margin <= 0
        if verdict.witness is not None:
            assert np.linalg.norm(np.float64(verdict.witness) - np.float64(x), p) <= np.float64(np.float32(eps))
            logits = np.asarray(f(jnp.asarray(verdict.witness)))
            assert logits[label] <= np.max(np.delete(logits, label))
    return margins


@pytest.mark.parametrize(
    ("p", "sizes", "seeds"), [(math.inf, (3, 6, 6, 3), 6), (1, (3, 6, 6, 3), 3), (2, (2, 4, 4, 3), 3)]
)
def test_verdicts_agree_with_exact_margins(p, sizes, seeds):
    margins = [margin for seed in range(seeds) for margin in check(seed, sizes, p)]
    assert min(margins) < -CLEAR < CLEAR < max(margins)


@pytest.mark.parametrize("p", [math.inf, 1])
def test_both_references_agree(p):
    """A program with whole numbers, and one program for each pattern where the solver of the first gives up."""
    for seed in range(3):
        layers = references.as_float64(mlp_params(seed, (3, 5, 5, 2)))
        x, row = np.random.default_rng(seed).uniform(size=3), np.array([1.0, -1.0])
        arguments = (layers, x, row, 0.3, p, x - 0.3, x + 0.3)
        one, other = references._by_program(*arguments), references._by_cells(*arguments)
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_splitting_inputs_agrees_with_exact_margins():
    for seed in range(3):
        check(seed, (2, 6, 6, 3), math.inf, "inputs")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("p", "sizes", "branching", "seeds"),
    [
        (math.inf, (4, 8, 8, 3), "activations", 60),
        (math.inf, (3, 8, 8, 3), "inputs", 30),
        (1, (4, 8, 8, 3), "activations", 40),
        (2, (2, 6, 6, 3), "activations", 20),
    ],
)
def test_three_hundred_verdicts_agree_with_exact_margins(p, sizes, branching, seeds):
    for seed in range(100, 100 + seeds):
        check(seed, sizes, p, branching)
