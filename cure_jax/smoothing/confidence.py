"""What counts say about probabilities, with a stated error: exact binomial statements, in float64 on the host."""

import numpy as np
from jaxtyping import Float, Int
from scipy import stats

__all__ = ["check_alpha", "is_top", "lower_confidence"]

# So that what is returned lies below the exact limit in spite of rounding.
_ROOM = 1e-9


def lower_confidence(successes: Int[np.ndarray, "*batch"], trials: int, alpha: float) -> Float[np.ndarray, "*batch"]:
    """The one-sided Clopper-Pearson limit: above the true probability for at most a share alpha of all experiments.

    It is the p at which `successes` or more have the probability alpha, a quantile of a beta distribution; 0 for none.

    Args:
      successes: of so many trials.
      trials: independent, of the same probability.
      alpha: in (0, 1).

    Examples:
      >>> round(float(lower_confidence(np.array(990), 1000, 0.001)), 4)
      0.976

    References:
      Clopper and Pearson, "The use of confidence or fiducial limits illustrated in the case of the binomial", 1934
    """
    quantile = stats.beta.ppf(alpha, np.maximum(successes, 1), trials - np.maximum(successes, 1) + 1)
    return np.asarray(np.where(successes > 0, quantile, 0.0) * (1 - _ROOM))


def is_top(counts: Int[np.ndarray, " classes"], alpha: float, error: float) -> bool:
    """Whether the class of most votes is the most probable one; wrongly so with a probability of alpha at most.

    The votes of the first class against those of the second one are tested with one binomial test, of level alpha / 2
    and of the probability q of the first one; q is 1/2 where the votes are drawn from the very distribution asked for.
    They may be drawn from one that gives each class a probability that differs by `error`. Let T be most probable under
    the true one, of which it then has at least 1 / classes, and A another class: among votes for either of the two, A
    has a share of at most q = 1/2 + error / (1 / classes - error).

    Why alpha / 2 suffices although the data chose the two. Let A be first but for T, whichever class that is; these
    events are disjoint, so it is enough to show alpha for one A. Fix the votes for all others, the most of them M, and
    the number N of votes for A or T. Then X, those for A, are binomial with a probability of q at most, given X >= M.
    Let t be the least X that passes. If N - t is the second place, then P(X >= t) <= alpha / 2, while P(X >= M) >= 1/2
    as M <= N / 2. If M is the second place, then N <= t + M; with t + M trials instead, P(X >= t | X >= M) only grows,
    to alpha / 2 over at least 1/2.

    Args:
      counts: votes by class; those for none are a class as well, so that all probabilities add up to 1.
      alpha: in (0, 1).
      error: by which the probability of each class may differ.

    References:
      * Cohen et al., ICML 2019, Proposition 1 (with error 0)
      * Hung and Fithian, "Rank Verification for Exponential Families", Annals of Statistics 2019
    """
    second, first = (int(count) for count in np.sort(counts)[-2:])
    share = 1 / len(counts) - error
    if first == 0 or share <= 0:
        return False
    q = 0.5 + error / share
    return q < 1 and bool(stats.binomtest(first, first + second, q, alternative="greater").pvalue <= alpha / 2)


def check_alpha(alpha: float) -> None:
    """Raises ValueError for a probability of error that is none."""
    if not 0 < alpha < 1:
        raise ValueError(f"alpha is {alpha}; expected a probability of error in (0, 1). Choose e.g. 0.001.")
