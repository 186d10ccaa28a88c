import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from jax.tree_util import Partial

from cure_jax import pytrees
from cure_jax.perturbations import Inputs, Perturbation, certify_perturbation
from cure_jax.regions import box

SHAPE = (2, 1, 1)


@pytrees.register
@dataclasses.dataclass(frozen=True)
class Drift:
    """x + t * (1, -1) for the t of an interval; `step` is the smallest width that is split."""

    lower: float
    upper: float
    step: float = dataclasses.field(default=0.0, metadata={"static": True})

    def cells(self, shape):
        assert shape == SHAPE
        middle = (self.lower + self.upper) / 2
        return np.array([[self.lower, middle], [middle, self.upper]], np.float32)

    def split(self, cell, shape):
        assert shape == SHAPE
        low, high = cell
        middle = low + (high - low) / 2
        return np.array([[low, middle], [middle, high]])[: 2 * (low < middle < high and high - low > self.step)]

    def inputs(self, x, cell):
        region = box(cell[:1], cell[1:])
        return Inputs(region, lambda t: x + t[0] * jnp.array([1.0, -1.0]).reshape(SHAPE), region.center)

    def sample(self, x, key):
        return self.inputs(x, jnp.array([self.lower, self.upper])).region.sample(key)


def wave(x):
    """Too curved for one cell: of class 0 in the middle of a valley."""
    first, second = x[0, 0, 0], x[1, 0, 0]
    return jnp.stack([0.7 - jnp.abs(first - 0.3) - first * jnp.abs(first - second), 0.6 * jnp.tanh(second + first)])


# Compiled once for all tests.
WAVE = Partial(wave)


def margin(x):
    return wave(x)[0] - wave(x)[1]


def image(first, second):
    return np.array([first, second], np.float32).reshape(SHAPE)


IMAGES = np.stack([image(0.2, 0.5), image(0.5, 0.5), image(0.05, 0.9), image(0.3, 0.3)])
LABELS = np.array([0, 0, 0, 0])


def test_search_decides_as_a_dense_grid_does():
    radii = [0.01, 0.05, 0.15, 0.3]
    decided = 0
    for radius in radii:
        found = certify_perturbation(WAVE, IMAGES, LABELS, Drift(-radius, radius), batch_size=8)
        grid = np.linspace(-radius, radius, 2001, dtype=np.float32)
        for i, x in enumerate(IMAGES):
            margins = jax.vmap(lambda t, x=x: margin(x + t * jnp.array([1.0, -1.0]).reshape(SHAPE)))(grid)
            assert not found.verified[i] or float(margins.min()) >= found.margin[i] > 0
            assert not (found.verified[i] and found.falsified[i])
            assert not found.falsified[i] or float(margins.min()) < 1e-3
            # The search is complete but for its budget.
            assert found.verified[i] == (float(margins.min()) > 1e-4)
            decided += found.verified[i]
    assert 0 < decided < len(radii) * len(IMAGES)


def test_cells_are_split_only_where_needed():
    found = certify_perturbation(WAVE, IMAGES[[0]], LABELS[:1], Drift(-0.001, 0.001), batch_size=8)
    assert found.verified[0]
    assert found.cells[0] == 2
    assert certify_perturbation(WAVE, IMAGES[[0]], LABELS[:1], Drift(-0.2, 0.25), batch_size=8).cells[0] > 2


def test_the_batch_and_the_devices_change_no_verdict():
    results = [
        certify_perturbation(WAVE, IMAGES, LABELS, Drift(-0.1, 0.1), batch_size=size, mesh=mesh)
        for size, mesh in ((2, None), (8, None), (8, Mesh(np.array(jax.devices()[:2]), ("data",))))
    ]
    for result in results[1:]:
        np.testing.assert_array_equal(result.verified, results[0].verified)
        np.testing.assert_array_equal(result.correct, results[0].correct)
        verified = result.verified
        np.testing.assert_allclose(result.margin[verified], results[0].margin[verified], atol=1e-6)


def test_what_cannot_be_proved_is_given_up():
    tight = Drift(-0.2, 0.25)
    few = certify_perturbation(WAVE, IMAGES[[0]], LABELS[:1], tight, batch_size=2, max_cells=3)
    assert few.unfinished[0]
    assert few.cells[0] == 3
    assert not few.verified[0]
    coarse = certify_perturbation(WAVE, IMAGES[[0]], LABELS[:1], Drift(-0.2, 0.25, step=1.0), batch_size=2)
    assert not coarse.verified[0]
    assert not coarse.unfinished[0]
    assert not coarse.falsified[0]
    late = certify_perturbation(WAVE, IMAGES[[0]], LABELS[:1], tight, batch_size=2, timeout=1e-9)
    assert late.unfinished[0]
    assert late.cells[0] == 0
    assert late.margin[0] == -np.inf
    assert certify_perturbation(WAVE, IMAGES[[0]], LABELS[:1], tight, batch_size=2).verified[0]


def test_misclassified_images_are_not_verified_and_cost_nothing():
    found = certify_perturbation(WAVE, IMAGES[[0, 2]], np.array([0, 0]), Drift(-0.001, 0.001), batch_size=2)
    np.testing.assert_array_equal(found.correct, [True, False])
    np.testing.assert_array_equal(found.verified, [True, False])
    assert found.cells[1] == 0


def test_a_perturbation_that_is_misclassified_ends_the_search():
    found = certify_perturbation(WAVE, IMAGES[[1]], LABELS[:1], Drift(-0.2, 0.3), batch_size=2)
    assert found.falsified[0]
    assert not found.verified[0]
    assert found.cells[0] <= 8


@pytest.mark.parametrize("wrong", [{"max_cells": 0}, {"timeout": -1.0}, {"batch_size": 0}, {"method": "magic"}])
def test_options_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match=r"expected"):
        certify_perturbation(WAVE, IMAGES, LABELS, Drift(-0.1, 0.1), **wrong)


def test_the_protocol_is_checked_at_run_time():
    assert isinstance(Drift(-0.1, 0.1), Perturbation)
