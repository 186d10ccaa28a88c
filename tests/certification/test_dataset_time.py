"""Time limits: what there is no time for is given up, and the norm that proves most in a second is next."""

import contextlib
import functools
import itertools
import re

import numpy as np
import pytest

import cure_jax as cj
from cure_jax.certification import cascade, dataset
from tests.certification.examples import IMAGES, LABELS, REGIONS, F


def test_time_that_is_enough_changes_nothing():
    slow = cj.certify_dataset(F, IMAGES, LABELS, REGIONS, method=("ibp", "crown"), batch_size=4)
    assert slow.unfinished == {}
    fast = cj.certify_dataset(F, IMAGES, LABELS, REGIONS, method=("ibp", "crown"), batch_size=4, timeout=3600)
    for norm in REGIONS:
        np.testing.assert_array_equal(fast.margin[norm], slow.margin[norm])
        np.testing.assert_array_equal(fast.verified[norm], slow.verified[norm])
        assert not fast.unfinished[norm].any()


def test_what_there_is_no_time_for_is_given_up(tried, monkeypatch, caplog):
    options = {"method": ("ibp", "crown"), "batch_size": 7}
    whole = cj.certify_dataset(F, IMAGES, LABELS, REGIONS, **options)
    now, bounded = [0.0], dataset._bounded

    def slow(*args, method, **options):
        now[0] += {"ibp": 1.0, "crown": 10.0}[method]
        return bounded(*args, method=method, **options)

    monkeypatch.setattr(dataset, "_bounded", slow)
    monkeypatch.setattr(cascade.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(cascade, "compile_seconds", lambda: contextlib.nullcontext(lambda: 0.0))
    tried.clear()
    done = cj.certify_dataset(F, IMAGES, LABELS, REGIONS, **options, timeout=16)
    # Three batches of the cheap method in each norm; then ten seconds are left for one of the other one.
    assert tried == ["ibp"] * 6 + ["crown"]
    assert sum(int(where.sum()) for where in done.unfinished.values()) > 0
    for norm in REGIONS:
        finished = ~done.unfinished[norm]
        assert np.all(done.verified[norm] <= whole.verified[norm])
        assert not np.any(done.verified[norm] & ~finished)
        np.testing.assert_allclose(done.margin[norm][finished], whole.margin[norm][finished], atol=1e-6)
    assert re.search(r"The time is over \(16 s\): not every method was tried on \d+ examples in", caplog.text)
    # The clock is looked at between batches: one batch of one norm is tried, however little time there is.
    tried.clear()
    nothing = cj.certify_dataset(F, IMAGES, LABELS, REGIONS, **options, timeout=0.5)
    assert tried == ["ibp"]
    assert nothing.unfinished["l2"].all()
    assert np.all(nothing.margin["l2"] == -np.inf)


def test_the_norm_that_proves_most_in_a_second_is_next(monkeypatch):
    proved, order, clock = {"linf": 1, "l2": 3}, [], itertools.count()

    def prove(norm, stage, rows, columns):
        order.append(norm)
        lower = np.where(np.arange(len(rows))[:, None] < proved[norm], 1.0, -1.0)
        return {"lower": lower, "admissible": np.ones(len(rows), bool)}

    def fresh(norm):
        return cascade.Cascade(["a"], np.ones(12, bool), np.full(1, -np.inf), functools.partial(prove, norm), 4)

    monkeypatch.setattr(cascade.time, "monotonic", lambda: float(next(clock)))
    decided = []
    cascade.run({norm: fresh(norm) for norm in proved}, lambda doing, count: decided.append((count, doing)), 1e6)
    assert order == ["linf", "l2", "l2", "l2", "linf", "linf"]
    assert decided[:4] == [(0, "compiling linf a"), (4, "linf a"), (0, "compiling l2 a"), (4, "l2 a")]
    assert [count for count, _ in decided[4:]] == [4] * 4


@pytest.mark.parametrize("timeout", [0, -1.0, float("nan")])
def test_no_time_is_refused(timeout):
    with pytest.raises(ValueError, match=r"timeout is .*; expected seconds above 0"):
        cj.certify_dataset(F, IMAGES, LABELS, REGIONS, timeout=timeout)
