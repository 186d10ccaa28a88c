"""Limits and tests of proportions: those of SciPy, and as seldom wrong as they say, by counting all outcomes."""

import itertools

import numpy as np
import pytest
from scipy import stats

from cure_jax.smoothing.confidence import is_top, lower_confidence


@pytest.mark.parametrize("alpha", [0.001, 0.05, 0.4])
@pytest.mark.parametrize("trials", [1, 20, 1000, 100_000])
def test_the_limit_is_that_of_an_exact_binomial_test(alpha, trials):
    successes = np.unique(np.linspace(0, trials, 9).astype(int))
    limits = lower_confidence(successes, trials, alpha)
    for count, limit in zip(successes.tolist(), limits.tolist(), strict=True):
        exact = stats.binomtest(count, trials, alternative="greater").proportion_ci(1 - alpha, "exact").low
        assert limit <= exact
        assert limit == pytest.approx(exact, rel=1e-8)
        # What the limit means: so many successes are no more probable than alpha there.
        assert stats.binom.sf(count - 1, trials, limit) <= alpha or count == 0


@pytest.mark.parametrize("p", [0.3, 0.5, 0.9, 0.99])
def test_the_limit_lies_above_the_probability_for_a_share_of_alpha_at_most(p):
    outcomes = np.arange(201)
    for alpha in (0.01, 0.1, 0.3):
        wrong = lower_confidence(outcomes, 200, alpha) > p
        assert stats.binom.pmf(outcomes, 200, p)[wrong].sum() <= alpha


def _probability_of_a_wrong_class(p: np.ndarray, true: np.ndarray, n: int, alpha: float, error: float) -> float:
    total = 0.0
    for counts in itertools.product(range(n + 1), repeat=len(p) - 1):
        if sum(counts) <= n:
            votes = np.array([*counts, n - sum(counts)])
            if true[np.argmax(votes)] < true.max() and is_top(votes, alpha, error):
                total += stats.multinomial.pmf(votes, n, p)
    return total


@pytest.mark.parametrize("true", [[0.5, 0.5, 0.0], [0.34, 0.33, 0.33], [0.4, 0.39, 0.21]])
def test_a_class_that_is_not_the_most_probable_one_seldom_passes(true):
    """Of all outcomes; the first class is the most probable one by a hair."""
    true = np.array(true) + np.array([1e-9, -1e-9, 0])
    for alpha in (0.05, 0.3, 0.5):
        assert 0 < _probability_of_a_wrong_class(true, true, 24, alpha, 0.0) <= alpha


def test_votes_of_a_distribution_that_is_a_little_off_are_allowed_for():
    true, error, alpha = np.array([0.5 + 1e-9, 0.5 - 1e-9]), 0.1, 0.2
    drawn = np.array([0.4, 0.6])
    assert _probability_of_a_wrong_class(drawn, true, 40, alpha, 0.0) > alpha
    assert _probability_of_a_wrong_class(drawn, true, 40, alpha, error) <= alpha


def test_a_clear_majority_passes_and_a_tie_does_not():
    assert is_top(np.array([5, 90, 5]), 0.001, 1e-7)
    assert not is_top(np.array([50, 50]), 0.9, 0.0)
    assert not is_top(np.array([0, 0]), 0.9, 0.0)
    # With such an error nothing is known.
    assert not is_top(np.array([0, 1000]), 0.1, 0.5)
