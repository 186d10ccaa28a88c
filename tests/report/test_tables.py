import math

import pytest
from rich.console import Console

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


def _cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


def _rendered(table, width=200):
    console = Console(width=width, record=True, force_terminal=False, file=None, quiet=False)
    with console.capture() as capture:
        console.print(table)
    return capture.get()


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


def test_different_radii_are_different_rows():
    results = [_result(), _result(radii={"linf": 8 / 255, "l2": 0.5})]
    assert [row.label for row in report.summarize(results)] == ["joint (ℓ∞ 0.1, ℓ2 0.75)", "joint (ℓ∞ 8/255, ℓ2 0.5)"]
    assert "certified ℓ∞ |" in report.markdown(results)


def test_label_names_the_rows():
    results = [_result(config={"beta": beta}) for beta in (0.5, 0.8)]
    rows = report.summarize(results, label=lambda result: f"beta {result['config']['beta']}")
    assert [row.label for row in rows] == ["beta 0.5", "beta 0.8"]


def test_markdown():
    results = [_result(linf=0.90), _result(linf=0.96), _result("max", empirical=None)]
    head, rule, joint, worst, empty, caption = report.markdown(results).splitlines()
    assert _cells(head) == [
        "method",
        "n",
        "clean",
        "certified ℓ∞ (0.1)",
        "certified ℓ2 (0.75)",
        "union certified",
        "union under attack",
        "gap",
    ]
    assert _cells(rule) == [":---"] + ["---:"] * 7
    assert _cells(joint) == [
        *["joint", "2", "95.0 ± 0.0", "93.0 ± 3.0", "80.0 ± 0.0", "75.0 ± 0.0", "85.0 ± 0.0", "5.0 ± 0.0"]
    ]
    assert _cells(worst) == ["max", "1", "95.0", "90.0", "80.0", "75.0", "–", "5.0"]  # noqa: RUF001
    assert empty == ""
    assert caption.startswith(
        "Percent of 1000 test examples; mean ± population standard deviation over n runs (divided"
    )


def test_markdown_escapes_bars():
    assert r"| a\|b |" in report.markdown([_result("a|b")])


def test_latex():
    text = report.latex([_result("l_inf & 50%"), _result("max", union=None)])
    lines = text.splitlines()
    assert lines[1] == r"\begin{tabular}{lrrrrrr}"
    assert r"certified $\ell_\infty$ (0.1) & certified $\ell_2$ (0.75) & union certified" in lines[3]
    assert lines[5] == r"l\_inf \& 50\% & 1 & 95.0 & 90.0 & 80.0 & 75.0 & 85.0 \\"
    assert lines[6] == r"max & 1 & 95.0 & 90.0 & 80.0 & -- & 85.0 \\"
    assert text.count("{tabular}") == 2


def test_terminal():
    table = report.terminal([_result(linf=0.90), _result(linf=0.96), _result("[max]")])
    assert table.row_count == 2
    text = _rendered(table)
    assert "93.0±3.0" in text
    assert "[max]" in text
    assert "union certified" in text


def test_numbers_stay_whole_in_a_narrow_terminal():
    results = [_result(linf=0.90), _result(linf=0.96)]
    assert "93.0±3.0" in _rendered(report.terminal(results), width=70)


def test_norms_come_in_a_fixed_order_and_others_last():
    result = _result(certified={"wasserstein": 0.9, "l1": 0.9, "l2": 0.9, "linf": 0.9}, union=0.9)
    assert list(report.summarize([result])[0].certified) == ["linf", "l2", "l1", "wasserstein"]


def test_a_norm_that_one_method_lacks_is_empty():
    text = report.markdown([_result(), _result("single", certified={"linf": 0.9}, union=None)])
    assert "| single | 1 | 95.0 | 90.0 | – | – | 85.0 | – |" in text  # noqa: RUF001


def test_captions_do_not_invent_a_size():
    assert report.markdown([_result(), _result("max", num_examples=10)]).splitlines()[-1].startswith("Percent of the ")


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"clean": 95.0}, "clean = 95.0"),
        ({"union": -0.1}, "union = -0.1"),
        ({"certified": {"linf": math.nan}}, "certified.linf = nan"),
        ({"empirical": {"union": 1.5}}, "empirical.union = 1.5"),
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


def test_no_results_are_refused():
    with pytest.raises(ValueError, match="Got no results"):
        report.markdown([])
