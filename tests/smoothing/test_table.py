"""Tables draw exactly the weights that they state."""

import jax
import numpy as np
import pytest
from scipy import stats

from cure_jax.smoothing.table import alias_table, draw

CELL = 1 << 32
SHAPES = {
    "one value": [1.0],
    "two values": [0.3, 0.7],
    "none in the middle": [0.5, 0.0, 0.5],
    "steep": np.exp(-np.arange(40.0)) * (1 - np.exp(-1)),
    "thirds": [1 / 3, 1 / 3, 1 / 3],
}


@pytest.mark.parametrize("name", SHAPES)
def test_the_cells_hold_exactly_the_weights_which_are_the_rounded_probabilities(name):
    probabilities = np.asarray(SHAPES[name], float)
    table = alias_table(probabilities, -7)
    held = np.zeros(len(table.threshold), object)
    for cell, (threshold, alias) in enumerate(zip(table.threshold.tolist(), table.alias.tolist(), strict=True)):
        held[cell] += threshold
        held[alias] += CELL - threshold
    assert held[: len(probabilities)].tolist() == table.weights.tolist()
    assert not any(held[len(probabilities) :])
    assert table.weights.sum() == len(table.threshold) * CELL
    assert np.abs(table.probabilities - probabilities).sum() / 2 < 2.0**-33


def test_values_are_drawn_as_often_as_they_should_be():
    probabilities = np.array([0.05, 0.25, 0.0, 0.4, 0.3])
    drawn = np.asarray(jax.jit(lambda key: draw(alias_table(probabilities, -2), key, (40, 1000)))(jax.random.key(1)))
    counts = np.array([np.sum(drawn == value) for value in range(-2, 3)])
    assert counts.sum() == drawn.size
    assert counts[2] == 0
    likely = probabilities > 0
    assert stats.chisquare(counts[likely], probabilities[likely] * drawn.size).pvalue > 0.01
    # Neighbours have nothing to do with each other.
    pairs = np.histogram2d(drawn[:, :-1].ravel(), drawn[:, 1:].ravel(), bins=np.arange(-2.5, 3))[0]
    expected = np.outer(probabilities, probabilities)[likely][:, likely]
    pairs = pairs[likely][:, likely]
    assert stats.chisquare(pairs.ravel(), expected.ravel() * pairs.sum()).pvalue > 0.01
