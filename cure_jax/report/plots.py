"""Pictures of certified results, as PNG files; no display is needed.

matplotlib is imported on first use (extra `logging`).
"""

from collections.abc import Callable, Iterable, Mapping
from os import PathLike
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from cure_jax.report.tables import Result, Statistic, Summary, summarize

Curve = tuple[ArrayLike, ArrayLike, ArrayLike | None]

_NAMES = {"linf": r"$\ell_\infty$", "l2": r"$\ell_2$", "l1": r"$\ell_1$"}
# Okabe and Ito's palette, which colour-blind readers can tell apart.
_COLORS = {"linf": "#0072B2", "l2": "#E69F00", "l1": "#009E73"}
_OTHER_COLORS = ("#CC79A7", "#56B4E9", "#D55E00", "#F0E442")
_UNION_COLOR, _ATTACK_COLOR, _MARK_COLOR = "#5B5B5B", "#C4C4C4", "#606060"


def certified_against_radius(
    path: str | PathLike[str], curves: Mapping[str, Curve], *, training_radii: Mapping[str, float] | None = None
) -> None:
    """Draws the certified fraction against the radius, one panel for each norm.

    Between the certified curve and the one under attack lie the examples of which neither is known.

    Args:
      path: Where the PNG goes.
      curves: {norm: (radii [r], certified fraction [r], fraction standing under attack [r] or None)}; radii in pixel
        units, fractions in [0, 1].
      training_radii: {norm: radius} to mark with a vertical line.

    Raises:
      ValueError: There are no curves, or the three arrays of one have different lengths.
      ModuleNotFoundError: matplotlib is missing.
    """
    figure_class = _import_figure()
    if not curves:
        raise ValueError("Got no curves; expected {norm: (radii, certified, attacked)}. Give at least one norm.")
    figure = figure_class(figsize=(0.6 + 3.4 * len(curves), 3.5), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.12)
    panels = figure.subplots(1, len(curves), sharey=True, squeeze=False)[0]
    handles = {}
    for index, (panel, (norm, curve)) in enumerate(zip(panels, curves.items(), strict=True)):
        handles |= _draw_curve(panel, norm, index, curve)
        if training_radii and norm in training_radii:
            line = panel.axvline(training_radii[norm], color=_MARK_COLOR, linestyle=":", linewidth=1.5, zorder=1)
            handles["training radius"] = line
    panels[0].set(ylim=(0, 101), ylabel="test examples (%)")
    legend = figure.legend(handles.values(), handles, loc="outside lower center", ncols=len(handles), frameon=False)
    for line in legend.get_lines():
        # The panels have different colours: the legend explains the dashes alone.
        line.set_color(_MARK_COLOR)
    figure.savefig(path, format="png", dpi=200)


def compare_methods(
    path: str | PathLike[str], results: Iterable[Result], *, label: Callable[[Result], str] | None = None
) -> None:
    """Draws methods below each other: certified for each norm, union certified, and union under attack.

    Several runs of one method are aggregated as in the tables; the whiskers are one population standard deviation.

    Args:
      path: Where the PNG goes.
      results: Contents of several `certify.json`, see `cure_jax.report.tables`.
      label: Gives the name of a result's method; by default its `method`.

    Raises:
      ValueError: The results are not usable, see `summarize`.
      ModuleNotFoundError: matplotlib is missing.
    """
    figure_class = _import_figure()
    rows = summarize(results, label=label)
    series = _series(rows)
    height = 0.8 / len(series)
    figure = figure_class(figsize=(7.2, 1.0 + len(rows) * (0.35 + 0.17 * len(series))), layout="constrained")
    axes = figure.subplots()
    for place, (name, (color, statistics)) in enumerate(series.items()):
        positions = [row + (place - (len(series) - 1) / 2) * height for row in range(len(rows))]
        _draw_bars(axes, positions, height, statistics, color=color, label=name)
    axes.set(xlim=(0, 106), xlabel="test examples (%)", ylim=(len(rows) - 0.45, -0.55))
    axes.set_xticks(range(0, 101, 20))
    axes.set_yticks(range(len(rows)), [row.label.replace("$", r"\$") for row in rows])
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color="#E5E5E5", linewidth=0.8)
    _tidy(axes)
    figure.legend(loc="outside lower center", ncols=min(len(series), 5), frameon=False, columnspacing=1.2)
    figure.savefig(path, format="png", dpi=200)


def _import_figure() -> Any:
    try:
        # Not pyplot: that would choose a backend and keep every figure alive.
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "matplotlib is not installed; pictures are drawn with it. Run: pip install 'cure-jax[logging]'"
        ) from error
    return Figure


def _draw_curve(panel: Any, norm: str, index: int, curve: Curve) -> dict[str, Any]:
    radii, certified, attacked = (None if part is None else np.asarray(part, float) for part in curve)
    assert radii is not None
    assert certified is not None
    lengths = [len(part) for part in (radii, certified, attacked) if part is not None]
    if len(set(lengths)) > 1:
        raise ValueError(f"The curve of {norm!r} has arrays of lengths {lengths}; expected equal ones. Repair it.")
    color = _color(norm, index)
    handles = {}
    (handles["certified"],) = panel.plot(radii, 100 * certified, color=color, linewidth=2, zorder=3)
    panel.fill_between(radii, 0, 100 * certified, color=color, alpha=0.15, linewidth=0)
    if attacked is not None:
        (handles["under attack"],) = panel.plot(radii, 100 * attacked, color=color, linewidth=1.5, linestyle="--")
    panel.set(xlabel=f"{_name(norm)} radius", xlim=(0, max(radii)))
    panel.grid(color="#E5E5E5", linewidth=0.8)
    _tidy(panel)
    return handles


def _series(rows: list[Summary]) -> dict[str, tuple[str, list[Statistic | None]]]:
    norms = list(dict.fromkeys(norm for row in rows for norm in row.certified))
    series = {
        f"certified {_name(norm)}": (_color(norm, index), [row.certified.get(norm) for row in rows])
        for index, norm in enumerate(norms)
    }
    series["union certified"] = (_UNION_COLOR, [row.union for row in rows])
    series["union under attack"] = (_ATTACK_COLOR, [row.attacked_union for row in rows])
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


def _tidy(axes: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_axisbelow(True)


def _name(norm: str) -> str:
    return _NAMES.get(norm, norm)


def _color(norm: str, index: int) -> str:
    return _COLORS.get(norm, _OTHER_COLORS[index % len(_OTHER_COLORS)])
