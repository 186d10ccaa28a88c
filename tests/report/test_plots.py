import itertools
import sys

import numpy as np
import pytest
from PIL import Image

from cure_jax import report

RADII = np.linspace(0, 0.2, 11)
CERTIFIED = np.linspace(0.9, 0.1, 11)


def _result(method, scale=1.0, **changes):
    return {
        "method": method,
        "clean": 0.95,
        "certified": {"linf": 0.9 * scale, "l2": 0.8 * scale},
        "union": 0.75 * scale,
        "empirical": {"union": 0.85 * scale},
        "radii": {"linf": 0.1, "l2": 0.5},
        **changes,
    }


def _legend(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_curves_are_drawn_in_percent_with_one_panel_for_each_norm(tmp_path, figures):
    curves = {"linf": (RADII, CERTIFIED, CERTIFIED + 0.05), "l2": (10 * RADII, CERTIFIED, None)}
    report.certified_against_radius(tmp_path / "curves.png", curves, training_radii={"linf": 0.1})
    (figure,) = figures
    left, right = figure.axes
    np.testing.assert_allclose(left.lines[0].get_xydata(), np.stack([RADII, 100 * CERTIFIED], 1))
    np.testing.assert_allclose(left.lines[1].get_ydata(), 100 * CERTIFIED + 5)
    np.testing.assert_allclose(left.lines[2].get_xdata(), [0.1, 0.1])
    np.testing.assert_allclose(right.lines[0].get_xdata(), 10 * RADII)
    assert len(right.lines) == 1
    assert left.get_ylim() == right.get_ylim() == (0, 101)
    assert _legend(figure) == ["certified", "under attack", "training radius"]
    with Image.open(tmp_path / "curves.png") as image:
        assert image.format == "PNG"
        assert image.width > image.height > 300


def test_the_legend_covers_no_panel(tmp_path, figures):
    report.certified_against_radius(tmp_path / "curves.png", {"linf": (RADII, CERTIFIED, None)})
    report.compare_methods(tmp_path / "methods.png", [_result("a")])
    for figure in figures:
        legend = figure.legends[0].get_window_extent()
        assert not any(legend.overlaps(axes.get_window_extent()) for axes in figure.axes)


def test_arrays_of_different_lengths_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"curve of 'l2' has arrays of lengths \[11, 10\]"):
        report.certified_against_radius(tmp_path / "curves.png", {"l2": (RADII, CERTIFIED[:-1], None)})
    with pytest.raises(ValueError, match="Got no curves"):
        report.certified_against_radius(tmp_path / "curves.png", {})


def test_bars_are_the_means_and_whiskers_the_deviations(tmp_path, figures):
    results = [_result("joint", 1.0), _result("joint", 0.9), _result("max", 0.5)]
    report.compare_methods(tmp_path / "methods.png", results)
    (figure,) = figures
    (axes,) = figure.axes
    series = [bars for bars in axes.containers if bars.get_label() in _legend(figure)]
    widths = {bars.get_label(): [bar.get_width() for bar in bars] for bars in series}
    assert widths["union certified"] == pytest.approx([71.25, 37.5])
    assert widths["union under attack"] == pytest.approx([80.75, 42.5])
    assert len(widths) == len(_legend(figure)) == 4
    assert [label.get_text() for label in axes.get_yticklabels()] == ["joint", "max"]
    whiskers = [collection for collection in axes.collections if collection.get_segments()]
    lengths = sorted(np.ptp(collection.get_segments()[0][:, 0]) for collection in whiskers)
    assert lengths == pytest.approx([7.5, 8.0, 8.5, 9.0])


def test_bars_of_one_method_do_not_overlap(tmp_path, figures):
    report.compare_methods(tmp_path / "methods.png", [_result("a"), _result("b")])
    bars = sorted((bar.get_y(), bar.get_y() + bar.get_height()) for bar in figures[0].axes[0].patches)
    assert len(bars) == 8
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(bars))


def test_a_series_nobody_has_is_left_out(tmp_path, figures):
    report.compare_methods(tmp_path / "methods.png", [_result("a", empirical={}), _result("b", empirical=None)])
    assert "union under attack" not in _legend(figures[0])


DRAWINGS = [
    (report.certified_against_radius, {"linf": (RADII, CERTIFIED, None)}),
    (report.compare_methods, [_result("a")]),
    (report.compare_curves, {"a": [{"linf": {"radii": RADII, "certified": CERTIFIED}}]}),
    (report.trade_off, [_result("a")]),
    (report.union_diagram, {"a": [{"verified.linf": np.array([True])}]}),
    (
        report.alignment_histograms,
        {"a": [{"correct": np.ones(2, bool)} | {f"margin.{norm}": np.array([1.0, 2.0]) for norm in ("linf", "l2")}]},
    ),
]


@pytest.mark.parametrize(("draw", "content"), DRAWINGS)
def test_a_title_stands_above(tmp_path, figures, draw, content):
    for title in ("", "costs $1, or $2"):
        draw(tmp_path / "a.png", content, title=title)
    assert [figure.get_suptitle() for figure in figures] == ["", r"costs \$1, or \$2"]


@pytest.mark.parametrize(("draw", "content"), DRAWINGS)
def test_missing_matplotlib_comes_with_the_command(tmp_path, monkeypatch, draw, content):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'cure-jax\[logging\]'"):
        draw(tmp_path / "a.png", content)
