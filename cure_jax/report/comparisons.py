"""Pictures that compare methods on two axes: certified accuracy against the radius, union against clean accuracy."""

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from cure_jax.report.style import (
    MARK_COLOR,
    import_figure,
    method_style,
    norm_name,
    ordered,
    plain,
    save,
    tidy,
)
from cure_jax.report.summaries import Result, Results, contents, summarize

CurvesOfNorms = Mapping[str, Mapping[str, ArrayLike]]


def compare_curves(
    path: str | PathLike[str],
    methods: Mapping[str, Sequence[CurvesOfNorms]],
    *,
    training_radii: Mapping[str, float] | None = None,
    title: str = "",
) -> None:
    """Draws the certified accuracy against the radius, a panel for each norm, a line for each method.

    A line is the mean over the runs, at the radii that all of them have; the band is one population standard deviation.

    Args:
      path: Where the PNG goes.
      methods: {name: `curve` in `certify.json` of each run: {norm: {"radii": [r], "certified": [r], ...}}}.
      training_radii: {norm: radius} to mark with a vertical line.
      title: What stands above: the data set, radii, how many images.

    Raises:
      ValueError: There are no curves, or the arrays of one have different lengths.
      ModuleNotFoundError: matplotlib is missing.
    """
    figure_class = import_figure()
    norms = ordered({norm for runs in methods.values() for curves in runs for norm in curves})
    if not norms:
        raise ValueError(
            "Got no curves; expected {method: [{norm: {'radii': ..., 'certified': ...}}]}. Certify with --curve."
        )
    width = 0.6 + 3.4 * len(norms)
    # About eleven letters fit into an inch of the legend.
    across = max(1, min(len(methods), int(11 * width / (8 + max(map(len, methods))))))
    figure = figure_class(figsize=(width, 3.2 + 0.22 * -(-len(methods) // across)), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.12)
    panels = figure.subplots(1, len(norms), sharey=True, squeeze=False)[0]
    handles = {}
    for panel, norm in zip(panels, norms, strict=True):
        for index, (name, runs) in enumerate(methods.items()):
            line = _draw_mean(panel, name, index, [curves[norm] for curves in runs if norm in curves])
            handles |= {plain(name): line} if line else {}
        if training_radii and norm in training_radii:
            panel.axvline(training_radii[norm], color=MARK_COLOR, linestyle=":", linewidth=1.5, zorder=1)
        panel.set(xlabel=f"{norm_name(norm)} radius", xlim=(0, None))
        tidy(panel)
    panels[0].set(ylim=(0, 101), ylabel="certified examples (%)")
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=across, frameon=False)
    save(figure, path, title)


def trade_off(
    path: str | PathLike[str], results: Results, *, label: Callable[[Result], str] | None = None, title: str = ""
) -> None:
    """Draws union certified against clean accuracy: a dot for each run, and each method's mean with its name.

    Whiskers are one population standard deviation. Methods without a union are left out.

    Args:
      path: Where the PNG goes.
      results: Contents of several `certify.json`, or certificates, see `summarize`.
      label: Gives the name of a result's method; by default its `method`.
      title: What stands above: the data set, radii, how many images.

    Raises:
      ValueError: The results are not usable, see `summarize`, or none has a union.
      ModuleNotFoundError: matplotlib is missing.
    """
    figure_class = import_figure()
    usable = [result for result in contents(results) if result.get("union") is not None]
    if not usable:
        raise ValueError("Got no result with a union; expected at least one. Certify in two norms or more.")
    figure = figure_class(figsize=(6.4, 4.8), layout="constrained")
    axes = figure.subplots()
    names, obstacles = [], []
    for index, (row, runs) in enumerate(zip(summarize(usable, label=label), _runs(usable, label), strict=True)):
        assert row.union is not None
        color, _, marker = method_style(index)
        (x, y), (x_std, y_std) = 100 * runs.mean(axis=0), 100 * runs.std(axis=0)
        whiskers = {"xerr": x_std, "yerr": y_std} if row.count > 1 else {}
        axes.errorbar(x, y, **whiskers, fmt=marker, color=color, markersize=7, elinewidth=1, capsize=2, zorder=3)
        axes.plot(*(100 * runs.T), marker, color=color, markersize=3, alpha=0.6, zorder=2)
        names.append((plain(row.label), (x, y), color))
        along = np.linspace(-1, 1, 41)
        obstacles += [*(100 * runs), *((x + t * x_std, y) for t in along), *((x, y + t * y_std) for t in along)]
    axes.set(xlabel="clean accuracy (%)", ylabel="union certified accuracy (%)")
    axes.margins(0.14)
    tidy(axes)
    _place_names(figure, axes, names, np.array(obstacles))
    save(figure, path, title)


def _draw_mean(panel: Any, name: str, index: int, curves: list[Mapping[str, ArrayLike]]) -> Any:
    """The line of one method, or None if it has no curve of this norm."""
    if not curves:
        return None
    points = []
    for curve in curves:
        radii, certified = (np.asarray(curve[part], np.float64) for part in ("radii", "certified"))
        if radii.shape != certified.shape:
            raise ValueError(
                f"A curve of {name!r} has {len(radii)} radii and {len(certified)} fractions; expected as many. "
                "Repair it."
            )
        points.append(dict(zip(radii.tolist(), certified.tolist(), strict=True)))
    # Nothing is interpolated: between two radii nothing was proved.
    shared = sorted(set.intersection(*(set(point) for point in points)))
    fractions = 100 * np.array([[point[radius] for radius in shared] for point in points])
    mean, std = fractions.mean(axis=0), fractions.std(axis=0)
    color, dashes, marker = method_style(index)
    (line,) = panel.plot(
        shared, mean, color=color, linestyle=dashes, linewidth=1.8, marker=marker, markersize=3.5, zorder=3
    )
    if len(curves) > 1:
        panel.fill_between(shared, mean - std, mean + std, color=color, alpha=0.15, linewidth=0)
    return line


def _runs(results: list[Result], label: Callable[[Result], str] | None) -> list[np.ndarray]:
    """Clean and union certified accuracy, `[runs, 2]`, of each row of `summarize`, in its order."""
    groups: dict[tuple, list[tuple[float, float]]] = {}
    for result in results:
        name = label(result) if label else str(result["method"])
        groups.setdefault((name, *sorted(result["radii"].items())), []).append((result["clean"], result["union"]))
    return [np.array(runs) for runs in groups.values()]


def _place_names(
    figure: Any, axes: Any, names: list[tuple[str, tuple[float, float], str]], obstacles: np.ndarray
) -> None:
    """Writes each name at the nearest place where it covers neither dots and whiskers nor another name."""
    # Until it is laid out, nothing has a place.
    figure.draw_without_rendering()
    points, frame, taken = axes.transData.transform(obstacles), axes.get_window_extent(), []

    def move(text: Any, candidate: tuple[int, tuple[float, float]]) -> Any:
        distance, (right, up) = candidate
        text.set(position=(distance * right, distance * up), ha=("right", "center", "left")[round(right) + 1])
        return text.get_window_extent().padded(2)

    def cost(text: Any, candidate: tuple[int, tuple[float, float]]) -> int:
        box = move(text, candidate)
        outside = box.x0 < frame.x0 or box.x1 > frame.x1 or box.y0 < frame.y0 or box.y1 > frame.y1
        # A dot has a radius, too. Where everything is full, rather cover dots than names.
        around = box.padded(5)
        covered = np.sum(np.all((around.min < points) & (points < around.max), axis=1))
        return int(covered + len(points) * (sum(map(box.overlaps, taken)) + 100 * outside))

    candidates = list(itertools.product((10, 18, 28, 40, 54, 70, 90, 120), _DIRECTIONS))
    for name, place, color in names:
        text = axes.annotate(name, place, (0, 0), textcoords="offset points", fontsize=8.5, color=color, va="center")
        text.set_in_layout(False)
        # The first of the best: the nearest one.
        best = min(candidates, key=functools.partial(cost, text))
        taken.append(move(text, best))
        if best[0] > 20:
            end = axes.transData.inverted().transform(_nearest(taken[-1], axes.transData.transform(place)))
            axes.plot(*zip(place, end, strict=True), color=color, linewidth=0.6, zorder=1)


_DIRECTIONS = ((1.0, 0.0), (-1.0, 0.0), (0.0, 1.0), (0.0, -1.0), (0.8, 0.7), (0.8, -0.7), (-0.8, 0.7), (-0.8, -0.7))


def _nearest(box: Any, point: np.ndarray) -> np.ndarray:
    """The point of a box that is nearest to another."""
    return np.clip(point, (box.x0, box.y0), (box.x1, box.y1))
