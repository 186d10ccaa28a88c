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


def test_different_radii_are_different_rows():
    results = [_result(), _result(radii={"linf": 8 / 255, "l2": 0.5})]
    assert [row.label for row in report.summarize(results)] == ["joint (ℓ∞ 0.1, ℓ2 0.75)", "joint (ℓ∞ 8/255, ℓ2 0.5)"]
    assert "certified ℓ∞ |" in report.markdown(results)


def test_markdown():
    results = [_result(linf=0.90), _result(linf=0.96), _result("max", empirical=None, clean=0.93)]
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
        *["joint", "2", "**95.0 ± 0.0**", "**93.0 ± 3.0**", "**80.0 ± 0.0**", "**75.0 ± 0.0**"],
        *["**85.0 ± 0.0**", "5.0 ± 0.0"],
    ]
    # What ties to the decimal that is shown is bold too.
    assert _cells(worst) == ["max", "1", "93.0", "90.0", "**80.0**", "**75.0**", "–", "5.0"]  # noqa: RUF001
    assert empty == ""
    assert caption.startswith(
        "Percent of 1000 test examples; mean ± population standard deviation over n runs (divided"
    )


def test_markdown_escapes_bars():
    assert r"| a\|b |" in report.markdown([_result("a|b")])


def test_latex():
    text = report.latex([_result("l_inf & 50%"), _result("max", linf=0.85, union=None)])
    lines = text.splitlines()
    assert lines[1] == r"\begin{tabular}{lrrrrrrr}"
    assert r"certified $\ell_\infty$ (0.1) & certified $\ell_2$ (0.75) & union certified" in lines[3]
    bold = r"\textbf{%s}"
    assert lines[5].split(" & ")[:4] == [[r"l\_inf \& 50\%"][0], "1", bold % "95.0", bold % "90.0"]
    assert lines[6].split(" & ") == [*["max", "1", bold % "95.0", "85.0", bold % "80.0", "--"], bold % "85.0", r"-- \\"]
    assert text.count("{tabular}") == 2
    # Rows of several radii are told apart by these, in letters that pdfLaTeX knows.
    several = report.latex([_result("max"), {**_result("max"), "radii": {"linf": 0.1, "l2": 0.5}}])
    assert r"max ($\ell_\infty$ 0.1, $\ell_2$ 0.5)" in several
    assert several.isascii()


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


def test_a_norm_that_one_method_lacks_is_empty():
    text = report.markdown([_result(), _result("single", certified={"linf": 0.8}, clean=0.9, union=None, empirical={})])
    assert "| single | 1 | 90.0 | 80.0 | – | – | – | – |" in text  # noqa: RUF001


def test_nothing_is_best_of_one_or_of_different_radii():
    assert "**" not in report.markdown([_result(), _result()])
    assert "**" not in report.markdown([_result(), _result("max", radii={"linf": 0.3, "l2": 0.75})])


def test_the_best_is_bold_in_the_terminal_too():
    console = Console(width=200, force_terminal=True, color_system="standard")
    with console.capture() as capture:
        console.print(report.terminal([_result(linf=0.9), _result("max", linf=0.8)]))
    assert "\x1b[1m90.0\x1b[0m" in capture.get()
    assert "\x1b[1m80.0\x1b[0m │" in capture.get()
    assert capture.get().count("\x1b[1m80.0") == 2


def test_norms_outside_of_the_union_have_a_column_of_their_own():
    results = [
        _result(reported={"l1": 0.5}, reported_radii={"l1": 1.0}),
        _result(reported={"l1": 0.7}, reported_radii={"l1": 1.0}),
        _result("max"),
    ]
    head, _, joint, worst, *_ = report.markdown(results).splitlines()
    assert _cells(head)[-2:] == ["gap", "certified ℓ1 (1), not in the union"]
    # 0.5 lies below the union 0.75: this norm takes no part in it.
    assert _cells(joint)[-2:] == ["5.0 ± 0.0", "**60.0 ± 10.0**"]
    assert _cells(worst)[-1] == "–"  # noqa: RUF001


def test_columns_of_cost_and_origin():
    first = {"training_seconds": 100.0, "seconds": 30.0, "checkpoint_sha256": "0123456789ab", "device": "cpu"}
    second = {"training_seconds": 120.4, "seconds": 50.0, "checkpoint_sha256": "ba9876543210", "device": "cpu"}
    commit = "c0ffee" + 34 * "0"
    results = [
        _result(**first, commit=commit),
        _result(**second, commit=commit + "-dirty"),
        _result("max", seconds=2.0),
    ]
    columns = ["training", "certification", "checkpoint", "commit", "device"]
    head, _, joint, worst, *_ = report.markdown(results, columns=columns).splitlines()
    assert _cells(head)[-5:] == ["training s", "certification s", "checkpoint", "commit", "device"]
    assert _cells(joint)[-5:] == [
        *["110 ± 10", "40 ± 10", "`0123456789ab`, `ba9876543210`", "`c0ffee000000`, `c0ffee000000-dirty`", "cpu"]
    ]
    assert _cells(worst)[-5:] == ["–", "2", "–", "–", "–"]  # noqa: RUF001
    assert r"\texttt{0123456789ab}" in report.latex(results, columns=columns)
    assert _cells(report.markdown(results).splitlines()[0])[-1] == "gap"


def test_unknown_columns_are_refused():
    with pytest.raises(ValueError, match=r"Got the columns \['hours'\]; expected some of training, certification"):
        report.markdown([_result()], columns=["hours"])


def test_captions_do_not_invent_a_size():
    assert report.markdown([_result(), _result("max", num_examples=10)]).splitlines()[-1].startswith("Percent of the ")


def test_no_results_are_refused():
    with pytest.raises(ValueError, match="Got no results"):
        report.markdown([])
