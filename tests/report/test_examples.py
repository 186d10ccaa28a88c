import itertools

import numpy as np
import pytest
from matplotlib.text import Text

from cure_jax import report


def _verdicts(**norms):
    """verified.NORM from strings of 1 and 0."""
    return {f"verified.{norm}": np.array([digit == "1" for digit in digits]) for norm, digits in norms.items()}


def _bars(panel):
    """{row: (width, colour)} of a horizontal bar chart."""
    return {round(bar.get_y() + bar.get_height() / 2): (bar.get_width(), bar.get_facecolor()) for bar in panel.patches}


def test_subsets_are_exact_and_complete():
    # Column by column: both, both, only l2, only linf, none.
    shares = report.certified_subsets(_verdicts(l2="11100", linf="11010") | {"correct": np.ones(5, bool)})
    assert shares == {("linf", "l2"): 0.4, ("linf",): 0.2, ("l2",): 0.2, (): 0.2}
    assert list(shares) == [("linf", "l2"), ("linf",), ("l2",), ()]


def test_subsets_of_three_norms_add_up_to_each_norm():
    rng = np.random.default_rng(0)
    verified = {norm: rng.random(97) < share for norm, share in (("linf", 0.7), ("l2", 0.5), ("l1", 0.2))}
    shares = report.certified_subsets({f"verified.{norm}": array for norm, array in verified.items()})
    assert len(shares) == 8
    assert sum(shares.values()) == pytest.approx(1)
    for norm, array in verified.items():
        assert sum(share for subset, share in shares.items() if norm in subset) == pytest.approx(array.mean())


@pytest.mark.parametrize(
    "verdicts", [{}, {"correct": np.ones(2, bool)}, _verdicts(l2=""), _verdicts(l2="1", linf="11")]
)
def test_verdicts_of_no_or_different_examples_are_refused(verdicts):
    with pytest.raises(ValueError, match="Got verdicts of lengths"):
        report.certified_subsets(verdicts)


def test_the_union_diagram_draws_means_and_marks_the_union(tmp_path, figures):
    first, second = _verdicts(linf="1110", l2="1100", l1="1000"), _verdicts(linf="1111", l2="1111", l1="1000")
    other = _verdicts(linf="1100", l2="0100", l1="0001")
    methods = {"joint": [first, second], "max": [other]}
    report.union_diagram(tmp_path / "union.png", methods, union=["linf", "l2"])
    (figure,) = figures
    _, joint, worst = figure.axes
    # Rows: all three, linf and l2, linf alone, l1 alone, none. Nobody has l2 alone, or l1 with one other.
    assert {row: width for row, (width, _) in _bars(joint).items()} == {0: 25, 1: 50, 2: 12.5, 3: 0, 4: 12.5}
    assert {row: width for row, (width, _) in _bars(worst).items()} == {0: 0, 1: 25, 2: 25, 3: 25, 4: 25}
    dark = [
        {row for row, (_, color) in _bars(panel).items() if color == _bars(panel)[0][1]} for panel in (joint, worst)
    ]
    assert dark == [{0, 1}, {0, 1}]
    assert [panel.get_title() for panel in (joint, worst)] == ["joint\nunion 75.0 %", "max\nunion 25.0 %"]
    assert joint.get_xlim() == worst.get_xlim()
    # The runs have 25 and 75 % in the second row: the whisker is 25 to each side. The first row has no deviation.
    lengths = sorted(np.ptp(segments[0][:, 0]) for segments in (lines.get_segments() for lines in joint.collections))
    assert lengths == pytest.approx([25, 25, 50])


def test_rows_of_the_diagram_are_named_by_dots(tmp_path, figures):
    report.union_diagram(tmp_path / "union.png", {"a": [_verdicts(l2="10", linf="11")]})
    dots = figures[0].axes[0]
    assert [label.get_text() for label in dots.get_xticklabels()] == [r"$\ell_\infty$", r"$\ell_2$"]
    filled = [tuple(map(tuple, line.get_xydata())) for line in dots.lines]
    assert filled == [((0, 0), (1, 0)), ((0, 1),), ()]


def test_many_methods_wrap_into_rows_of_panels_that_do_not_overlap(tmp_path, figures):
    methods = {f"scratch, alignment.weight={index}, projection.beta=0": [_verdicts(linf="10")] for index in range(6)}
    report.union_diagram(tmp_path / "union.png", methods)
    panels = [axes for axes in figures[0].axes if axes.get_title()]
    assert len(panels) == 6
    figures[0].draw_without_rendering()
    assert len({round(panel.get_position().y0, 3) for panel in panels}) == 2
    boxes = [panel.get_tightbbox() for panel in panels]
    assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))


def test_texts_of_a_single_panel_fit_into_the_picture(tmp_path, figures):
    report.union_diagram(tmp_path / "union.png", {"a": [_verdicts(linf="10", l2="10")]})
    (figure,) = figures
    figure.draw_without_rendering()
    (label,) = [text for text in figure.findobj(Text) if text.get_text().startswith("examples")]
    box = label.get_window_extent()
    assert 0 <= box.x0 < box.x1 <= figure.bbox.x1


def test_runs_of_different_norms_and_methods_without_runs_are_refused(tmp_path):
    with pytest.raises(ValueError, match="runs of 'a' were certified in different norms"):
        report.union_diagram(tmp_path / "union.png", {"a": [_verdicts(l2="1"), _verdicts(linf="1")]})
    with pytest.raises(ValueError, match=r"without runs: \['a'\]"):
        report.union_diagram(tmp_path / "union.png", {"a": []})
    with pytest.raises(ValueError, match="Got 0 methods"):
        report.alignment_histograms(tmp_path / "alignment.png", {})


def _margins(first, second, correct=None):
    first, second = np.array(first, np.float32), np.array(second, np.float32)
    return {
        "margin.linf": first,
        "margin.l2": second,
        "correct": np.ones(len(first), bool) if correct is None else np.array(correct),
    }


def test_differences_leave_out_wrong_predictions_and_missing_proofs():
    verdicts = _margins([1.0, 2.0, 5.0, np.nan, -np.inf], [0.5, 3.0, 0.0, 1.0, 1.0], [True, True, False, True, True])
    assert report.margin_differences(verdicts).tolist() == [0.5, -1.0]
    assert report.margin_differences(verdicts, ("l2", "linf")).tolist() == [-0.5, 1.0]
    with pytest.raises(ValueError, match=r"lack \['margin.l1'\]"):
        report.margin_differences(verdicts, ("linf", "l1"))


def test_histograms_share_their_axis_and_count_every_example(tmp_path, figures):
    # 200 differences spread over [-1, 1] but for one far away; the other method has 0.1 everywhere, in two runs.
    spread = np.append(np.linspace(-1, 1, 199), 1000.0)
    methods = {
        "wide": [_margins(spread, np.zeros(200))],
        "narrow": [_margins([0.1] * 3, [0.0] * 3), _margins([0.1], [0.0])],
    }
    report.alignment_histograms(tmp_path / "alignment.png", methods)
    wide, narrow = figures[0].axes
    assert wide.get_xlim() == narrow.get_xlim()
    assert -1.1 < wide.get_xlim()[0] < wide.get_xlim()[1] < 1.1
    for panel in (wide, narrow):
        assert sum(bar.get_height() for bar in panel.patches) == pytest.approx(100)
    (full,) = [bar for bar in narrow.patches if bar.get_height() > 0]
    assert full.get_height() == pytest.approx(100)
    assert full.get_x() <= 0.1 <= full.get_x() + full.get_width()
    assert narrow.get_title(loc="right").endswith("n = 4")


def test_quantiles_are_marked(tmp_path, figures):
    report.alignment_histograms(tmp_path / "alignment.png", {"a": [_margins(np.arange(11.0), np.zeros(11))]})
    (panel,) = figures[0].axes
    assert [line.get_xdata()[0] for line in panel.lines] == pytest.approx([0, 1, 5, 9])
    assert panel.get_title(loc="right") == "5.00  [1.00, 9.00],  n = 11"


def test_a_method_without_finite_margins_says_so(tmp_path, figures):
    nothing = _margins([np.nan], [1.0])
    report.alignment_histograms(tmp_path / "alignment.png", {"a": [nothing], "b": [_margins([1.0], [0.5])]})
    report.alignment_histograms(tmp_path / "alone.png", {"a": [nothing]})
    assert [figure.axes[0].get_title(loc="right") for figure in figures] == ["no example with finite margins"] * 2
