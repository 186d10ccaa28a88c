import math

import pytest

from cure_jax import report


def _result(method="joint", linf=0.9, l2=0.8, union=0.75, **changes):
    return {
        "method": method,
        "clean": 0.95,
        "certified": {"l2": l2, "linf": linf},
        "union": union,
        "empirical": {"linf": 0.92, "l2": 0.9, "union": 0.85},
        "radii": {"linf": 0.1, "l2": 0.75},
        "num_examples": 1000,
        "seconds": 12.5,
        **changes,
    }


def test_runs_of_one_method_are_aggregated_with_the_population_formula():
    first, second = _result(linf=0.90, union=0.70), _result(linf=0.96, union=0.74)
    (row,) = report.summarize([first, second])
    assert (row.label, row.count, row.num_examples) == ("joint", 2, 1000)
    assert row.certified["linf"].mean == pytest.approx(0.93)
    # By hand: both are 0.03 from their mean. The sample formula would give 0.0424.
    assert row.certified["linf"].std == pytest.approx(0.03)
    assert row.union.mean == pytest.approx(0.72)
    assert row.certified["l2"].std == 0.0


def test_the_gap_is_the_least_norm_minus_the_union_of_each_run():
    # The least norm is l2 in the one and linf in the other: gaps 0.05 and 0.10, while the means would give 0.125.
    (row,) = report.summarize([_result(linf=0.9, l2=0.8, union=0.75), _result(linf=0.7, l2=0.9, union=0.6)])
    assert row.gap.mean == pytest.approx(0.075)
    assert row.gap.std == pytest.approx(0.025)


def test_rows_keep_the_order_of_first_appearance():
    results = [_result("b"), _result("a"), _result("b")]
    assert [(row.label, row.count) for row in report.summarize(results)] == [("b", 2), ("a", 1)]


def test_label_names_the_rows():
    results = [_result(config={"beta": beta}) for beta in (0.5, 0.8)]
    rows = report.summarize(results, label=lambda result: f"beta {result['config']['beta']}")
    assert [row.label for row in rows] == ["beta 0.5", "beta 0.8"]


def test_norms_come_in_a_fixed_order_and_others_last():
    result = _result(certified={"wasserstein": 0.9, "l1": 0.9, "l2": 0.9, "linf": 0.9}, union=0.9)
    assert list(report.summarize([result])[0].certified) == ["linf", "l2", "l1", "wasserstein"]


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"clean": 95.0}, "clean = 95.0"),
        ({"union": -0.1}, "union = -0.1"),
        ({"certified": {"linf": math.nan}}, "certified.linf = nan"),
        ({"empirical": {"union": 1.5}}, "empirical.union = 1.5"),
        ({"reported": {"l1": 50.0}}, "reported.l1 = 50.0"),
    ],
)
def test_numbers_that_are_no_fractions_are_refused(change, text):
    with pytest.raises(ValueError, match=rf"Result 1 has {text}; expected a fraction in \[0, 1\]"):
        report.summarize([_result(), _result(**change)])


def test_a_union_above_a_norm_is_refused():
    with pytest.raises(ValueError, match=r"Result 0 has union = 0\.81 above its least norm 0\.8"):
        report.summarize([_result(union=0.81)])


def test_missing_entries_are_named():
    with pytest.raises(ValueError, match=r"Result 0 lacks \['certified', 'radii'\]"):
        report.summarize([{"method": "a", "clean": 0.5}])


def test_the_split_is_told_and_not_mixed():
    validation = _result(split="validation")
    assert [row.split for row in report.summarize([validation])] == ["validation"]
    assert [row.split for row in report.summarize([_result()])] == ["test"]
    assert "Percent of 1000 validation examples" in report.markdown([validation])
    with pytest.raises(ValueError, match="splits test, validation"):
        report.summarize([validation, _result()])


def test_a_headline_says_what_results_share():
    mnist = {"config": {"dataset": "mnist"}}
    results = [_result(**mnist), _result("max", **mnist)]
    assert report.headline(results) == "mnist, ℓ∞ 0.1, ℓ2 0.75: 1000 test examples"
    assert report.headline([_result()]) == "ℓ∞ 0.1, ℓ2 0.75: 1000 test examples"
    other = _result(config={"dataset": "digits"}, radii={"linf": 8 / 255}, certified={"linf": 0.9}, num_examples=10)
    assert report.headline([results[0], other]) == ""
    assert report.headline([{**results[0], "split": "validation"}, {**other, "num_examples": 1000}]) == ""
    assert report.headline([other]) == "digits, ℓ∞ 8/255: 10 test examples"
