"""Leaves are solved exactly, and nothing is believed that the dual does not prove."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cure_jax as cj
from cure_jax.certification.batches import as_pytree
from cure_jax.verification import leaf
from cure_jax.verification.leaf import solve_leaf
from cure_jax.verification.problem import Specification


def ramp(offset, x):
    """One input, one neuron: relu(x) - offset."""
    return jnp.maximum(x, 0.0) - offset


F = as_pytree(jax.tree_util.Partial(ramp, jnp.float32(0.25)))
ONE_ROW = Specification(np.ones((1, 1)), np.zeros(1))
REGIONS = {
    "linf": cj.linf_ball(jnp.array([0.5]), 1.0),
    "l2": cj.l2_ball(jnp.array([0.5]), 1.0),
    "l1": cj.l1_ball(jnp.array([0.5]), 1.0),
}


def solve(region, side, specification=ONE_ROW):
    return solve_leaf(F, region, specification, np.array([side], np.int8), np.array([True]))


@pytest.mark.parametrize("kind", REGIONS)
def test_a_leaf_with_a_counterexample_gives_it(kind):
    for side in (1, -1):
        found = solve(REGIONS[kind], side)
        assert not found.proved
        assert min(float(F(jnp.asarray(point, jnp.float32))[0]) for point in found.points) <= 1e-6


@pytest.mark.parametrize("kind", REGIONS)
def test_a_leaf_without_one_is_proved(kind):
    positive = Specification(np.ones((1, 1)), np.array([0.2501]))
    for side in (1, -1):
        found = solve(REGIONS[kind], side, positive)
        assert found.proved
        # Of an elastic program it is the bound in proportion to the weight of the rows.
        assert 0 < found.bound <= 1.001e-4


@pytest.mark.parametrize("kind", REGIONS)
@pytest.mark.parametrize("kink", [-1e4, -1e9, -1e30])
def test_a_kink_that_is_far_away_proves_nothing(kind, kink):
    # -max(x, kink) is at most 0.5 on the regions, and -1.5 at one end of each.
    f = as_pytree(jax.tree_util.Partial(lambda kink, x: -jnp.maximum(x, kink), jnp.float32(kink)))
    for offset, proved in ((1.4999, False), (1.5001, True)):
        specification, side = Specification(np.ones((1, 1)), np.array([offset])), np.ones(1, np.int8)
        assert solve_leaf(f, REGIONS[kind], specification, side, np.zeros(1, bool)).proved == proved


@pytest.mark.parametrize("kind", REGIONS)
def test_an_empty_leaf_is_proved_whatever_its_rows(kind):
    make = {"linf": cj.linf_ball, "l2": cj.l2_ball, "l1": cj.l1_ball}[kind]
    found = solve(make(jnp.array([0.5]), 0.4), -1, Specification(-np.ones((1, 1)), np.array([-100.0])))
    assert found.proved


@pytest.mark.parametrize("kind", REGIONS)
@pytest.mark.parametrize("weight", [np.nan, np.inf])
def test_a_leaf_of_a_network_with_weights_that_are_no_numbers_is_not_proved(kind, weight):
    f = as_pytree(jax.tree_util.Partial(ramp, jnp.float32(weight)))
    found = solve_leaf(f, REGIONS[kind], ONE_ROW, np.array([1], np.int8), np.array([True]))
    assert not found.proved
    assert found.bound == -np.inf


def test_rows_of_a_conjunction_are_combined():
    """x <= -0.1 and -x <= -0.1 exclude each other; neither row alone is positive everywhere."""
    rows = Specification(np.array([[1.0], [-1.0]]), np.array([0.35, -0.15]))
    for kind in ("linf", "l2"):
        found = solve(REGIONS[kind], 1, rows)
        assert found.proved
        np.testing.assert_allclose(found.bound, 0.1, atol=1e-6)


@pytest.mark.parametrize("weights", [[1.0, 0.0], [0.5, 0.5], [np.nan, 1.0], [np.inf, 0.0], [1e300, 1e300]])
def test_no_solver_is_trusted(weights, monkeypatch):
    """Whatever weights a solver returns, a leaf with a counterexample is not proved."""
    monkeypatch.setattr(leaf, "_linear_program", lambda affine, region, elastic=True: (np.array(weights), np.zeros(1)))
    assert not solve(REGIONS["linf"], 1).proved
