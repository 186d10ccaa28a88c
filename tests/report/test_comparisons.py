import itertools

import numpy as np
import pytest

from cure_jax import report


def _curves(certified, radii=(0.0, 0.1, 0.2), norm="linf"):
    return {norm: {"radii": list(radii), "certified": list(certified), "attacked": [1.0] * len(radii)}}


def _result(method, clean, union, **changes):
    return {
        "method": method,
        "clean": clean,
        "certified": {"linf": 0.9, "l2": 0.9},
        "union": union,
        "radii": {"linf": 0.1, "l2": 0.5},
        **changes,
    }


def test_lines_are_means_and_bands_deviations(tmp_path, figures):
    methods = {"joint": [_curves([0.9, 0.6, 0.1]), _curves([0.9, 0.8, 0.3])], "max": [_curves([0.8, 0.7, 0.6])]}
    report.compare_curves(tmp_path / "radius.png", methods, training_radii={"linf": 0.1})
    (panel,) = figures[0].axes
    joint, worst, training = panel.lines
    np.testing.assert_allclose(joint.get_xydata(), [[0, 90], [0.1, 70], [0.2, 20]])
    np.testing.assert_allclose(worst.get_ydata(), [80, 70, 60])
    np.testing.assert_allclose(training.get_xdata(), [0.1, 0.1])
    (band,) = panel.collections
    corners = band.get_paths()[0].vertices
    # The deviation of 0.6 and 0.8 is 0.1, not 0.141.
    assert {*np.round(corners[corners[:, 0] == 0.1][:, 1], 6)} == {60.0, 80.0}
    assert [text.get_text() for text in figures[0].legends[0].get_texts()] == ["joint", "max"]


def test_only_radii_of_all_runs_are_averaged_and_nothing_is_interpolated(tmp_path, figures):
    runs = [_curves([0.9, 0.5, 0.1]), _curves([0.7, 0.3], radii=(0.0, 0.2))]
    report.compare_curves(tmp_path / "radius.png", {"joint": runs})
    np.testing.assert_allclose(figures[0].axes[0].lines[0].get_xydata(), [[0, 80], [0.2, 20]])


def test_each_norm_has_a_panel_in_the_fixed_order(tmp_path, figures):
    methods = {"a": [_curves([1, 1, 0.5], norm="l1") | _curves([1, 0.9, 0.8])], "b": [_curves([0.5, 0.4, 0.3])]}
    report.compare_curves(tmp_path / "radius.png", methods)
    left, right = figures[0].axes
    assert [left.get_xlabel(), right.get_xlabel()] == [r"$\ell_\infty$ radius", r"$\ell_1$ radius"]
    assert [len(left.lines), len(right.lines)] == [2, 1]


def test_methods_that_share_a_colour_have_other_dashes(tmp_path, figures):
    methods = {f"m{index}": [_curves([1, 1, 1])] for index in range(14)}
    report.compare_curves(tmp_path / "radius.png", methods)
    styles = {(line.get_color(), line.get_linestyle()) for line in figures[0].axes[0].lines}
    assert len(styles) == 14


def test_unusable_curves_are_refused(tmp_path):
    with pytest.raises(ValueError, match="Got no curves"):
        report.compare_curves(tmp_path / "radius.png", {"a": [{}]})
    broken = {"linf": {"radii": [0.0, 0.1], "certified": [1.0]}}
    with pytest.raises(ValueError, match="curve of 'a' has 2 radii and 1 fractions"):
        report.compare_curves(tmp_path / "radius.png", {"a": [broken]})


def test_the_trade_off_shows_each_run_and_the_means(tmp_path, figures):
    results = [_result("joint", 0.90, 0.60), _result("max", 0.8, 0.7), _result("joint", 0.94, 0.50)]
    report.trade_off(tmp_path / "trade_off.png", results)
    (axes,) = figures[0].axes
    places = {tuple(np.round(point, 6)) for line in axes.lines for point in line.get_xydata()}
    assert {(92.0, 55.0), (90.0, 60.0), (94.0, 50.0), (80.0, 70.0)} <= places
    # Whiskers of joint alone: 2 to each side in the one direction, 5 in the other.
    segments = [collection.get_segments()[0] for collection in axes.collections]
    assert sorted(tuple(np.round(np.ptp(segment, axis=0), 6)) for segment in segments) == [(0, 10), (4, 0)]
    assert [text.get_text() for text in axes.texts] == ["joint", "max"]


def test_names_cover_neither_each_other_nor_dots(tmp_path, figures):
    rng = np.random.default_rng(1)
    results = [
        _result(f"scratch, alignment.weight={method}", 0.9 + 0.01 * rng.random(), 0.6 + 0.01 * rng.random())
        for method in range(6)
        for _ in range(2)
    ]
    # The same figures once more, under another name: the worst case.
    results += [{**result, "method": "twin"} for result in results[:2]]
    report.trade_off(tmp_path / "trade_off.png", results)
    (axes,) = figures[0].axes
    # The resolution of the file is another one than that of the figure.
    figures[0].draw_without_rendering()
    boxes = [text.get_window_extent() for text in axes.texts]
    assert len(boxes) == 7
    assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))
    dots = axes.transData.transform([(100 * result["clean"], 100 * result["union"]) for result in results])
    assert not any(box.contains(*dot) for box in boxes for dot in dots)
    frame = axes.get_window_extent()
    assert all(frame.x0 <= box.x0 and box.x1 <= frame.x1 for box in boxes)


def test_results_without_a_union_are_left_out(tmp_path, figures):
    report.trade_off(tmp_path / "a.png", [_result("a", 0.9, None), _result("b", 0.8, 0.5)])
    assert [text.get_text() for text in figures[0].axes[0].texts] == ["b"]
    with pytest.raises(ValueError, match="Got no result with a union"):
        report.trade_off(tmp_path / "b.png", [_result("a", 0.9, None)])
