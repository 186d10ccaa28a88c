"""Pictures of certified results, as PNG files; no display is needed.

matplotlib is imported on first use (extra `logging`).
"""

import textwrap
from collections.abc import Callable, Mapping
from os import PathLike
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from cure_jax.report.style import (
    ATTACK_COLOR,
    MARK_COLOR,
    UNION_COLOR,
    import_figure,
    norm_color,
    norm_name,
    ordered,
    plain,
    save,
    tidy,
)
from cure_jax.report.summaries import Result, Results, Statistic, Summary, summarize

Curve = tuple[ArrayLike, ArrayLike, ArrayLike | None]


def certified_against_radius(
    path: str | PathLike[str],
    curves: Mapping[str, Curve],
    *,
    training_radii: Mapping[str, float] | None = None,
    title: str = "",
) -> None:
    """Draws the certified fraction against the radius, one panel for each norm.

    Between the certified curve and the one under attack lie the examples of which neither is known.

    Args:
      path: Where the PNG goes.
      curves: {norm: (radii [r], certified fraction [r], fraction standing under attack [r] or None)}; radii in pixel
        units, fractions in [0, 1].
      training_radii: {norm: radius} to mark with a vertical line.
      title: What stands above: the data set, radii, how many images.

    Raises:
      ValueError: There are no curves, or the three arrays of one have different lengths.
      ModuleNotFoundError: matplotlib is missing.
    """
    figure_class = import_figure()
    if not curves:
        raise ValueError("Got no curves; expected {norm: (radii, certified, attacked)}. Give at least one norm.")
    figure = figure_class(figsize=(0.6 + 3.4 * len(curves), 3.5), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.12)
    panels = figure.subplots(1, len(curves), sharey=True, squeeze=False)[0]
    handles = {}
    for index, (panel, (norm, curve)) in enumerate(zip(panels, curves.items(), strict=True)):
        handles |= _draw_curve(panel, norm, index, curve)
        if training_radii and norm in training_radii:
            line = panel.axvline(training_radii[norm], color=MARK_COLOR, linestyle=":", linewidth=1.5, zorder=1)
            handles["training radius"] = line
    panels[0].set(ylim=(0, 101), ylabel="examples (%)")
    legend = figure.legend(handles.values(), handles, loc="outside lower center", ncols=len(handles), frameon=False)
    for line in legend.get_lines():
        # The panels have different colours: the legend explains the dashes alone.
        line.set_color(MARK_COLOR)
    save(figure, path, title)


def compare_methods(
    path: str | PathLike[str], results: Results, *, label: Callable[[Result], str] | None = None, title: str = ""
) -> None:
    """Draws methods below each other: certified for each norm, union certified, and union under attack.

    Several runs of one method are aggregated as in the tables; the whiskers are one population standard deviation.

    Args:
      path: Where the PNG goes.
      results: Contents of several `certify.json`, or certificates, see `summarize`.
      label: Gives the name of a result's method; by default its `method`.
      title: What stands above: the data set, radii, how many images.

    Raises:
      ValueError: The results are not usable, see `summarize`.
      ModuleNotFoundError: matplotlib is missing.
    """
    figure_class = import_figure()
    rows = summarize(results, label=label)
    series = _series(rows)
    height = 0.8 / len(series)
    figure = figure_class(figsize=(7.2, 1.0 + len(rows) * (0.35 + 0.17 * len(series))), layout="constrained")
    axes = figure.subplots()
    for place, (name, (color, statistics)) in enumerate(series.items()):
        positions = [row + (place - (len(series) - 1) / 2) * height for row in range(len(rows))]
        _draw_bars(axes, positions, height, statistics, color=color, label=name)
    axes.set(xlim=(0, 106), xlabel="examples (%)", ylim=(len(rows) - 0.45, -0.55))
    axes.set_xticks(range(0, 101, 20))
    axes.set_yticks(range(len(rows)), ["\n".join(textwrap.wrap(plain(row.label), 28)) for row in rows])
    axes.tick_params(axis="y", length=0)
    tidy(axes, grid="x")
    figure.legend(loc="outside lower center", ncols=min(len(series), 5), frameon=False, columnspacing=1.2)
    save(figure, path, title)


def _draw_curve(panel: Any, norm: str, index: int, curve: Curve) -> dict[str, Any]:
    radii, certified, attacked = (None if part is None else np.asarray(part, float) for part in curve)
    assert radii is not None
    assert certified is not None
    lengths = [len(part) for part in (radii, certified, attacked) if part is not None]
    if len(set(lengths)) > 1:
        raise ValueError(f"The curve of {norm!r} has arrays of lengths {lengths}; expected equal ones. Repair it.")
    color = norm_color(norm, index)
    handles = {}
    (handles["certified"],) = panel.plot(radii, 100 * certified, color=color, linewidth=2, zorder=3)
    panel.fill_between(radii, 0, 100 * certified, color=color, alpha=0.15, linewidth=0)
    if attacked is not None:
        (handles["under attack"],) = panel.plot(radii, 100 * attacked, color=color, linewidth=1.5, linestyle="--")
    panel.set(xlabel=f"{norm_name(norm)} radius", xlim=(0, max(radii)))
    tidy(panel)
    return handles


def _series(rows: list[Summary]) -> dict[str, tuple[str, list[Statistic | None]]]:
    norms = ordered({norm for row in rows for norm in row.certified})
    series = {
        f"certified {norm_name(norm)}": (norm_color(norm, index), [row.certified.get(norm) for row in rows])
        for index, norm in enumerate(norms)
    }
    series["union certified"] = (UNION_COLOR, [row.union for row in rows])
    series["union under attack"] = (ATTACK_COLOR, [row.attacked_union for row in rows])
    return {name: (color, values) for name, (color, values) in series.items() if any(values)}


def _draw_bars(
    axes: Any, positions: list[float], height: float, statistics: list[Statistic | None], *, color: str, label: str
) -> None:
    present = [(position, value) for position, value in zip(positions, statistics, strict=True) if value]
    means = [100 * value.mean for _, value in present]
    stds = [100 * value.std for _, value in present]
    places = [position for position, _ in present]
    axes.barh(places, means, 0.9 * height, color=color, label=label, zorder=2)
    for place, mean, std in zip(places, means, stds, strict=True):
        if std > 0:
            axes.errorbar(mean, place, xerr=std, fmt="none", ecolor="black", elinewidth=1, capsize=2, zorder=3)
        axes.text(mean + std + 0.8, place, f"{mean:.1f}", va="center", fontsize=7, color="#444444")
