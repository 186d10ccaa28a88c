"""Pictures of single examples' verdicts: which norms certify the same ones, and how far their proofs lie apart.

Verdicts are the content of one `certify.npz`, arrays `[examples]` in the same order: `verified.NORM` and `correct` are
booleans, `margin.NORM` is the least proved margin.
"""

import itertools
import textwrap
from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any, Protocol, runtime_checkable

import numpy as np

from cure_jax.report.style import (
    GRID_COLOR,
    MARK_COLOR,
    UNION_COLOR,
    import_figure,
    norm_name,
    ordered,
    plain,
    save,
    tidy,
)
from cure_jax.report.summaries import Statistic, statistic


@runtime_checkable
class HasArrays(Protocol):
    """What can say its own verdicts, such as what `certify_dataset` returns."""

    def arrays(self) -> dict[str, np.ndarray]:
        """Return them by the names of a `certify.npz`."""
        ...


Verdicts = Mapping[str, np.ndarray] | HasArrays

_OUTSIDE_COLOR, _BAR_COLOR = "#B9CFE0", "#56B4E9"
_QUANTILES = (0.1, 0.5, 0.9)
_PANELS_A_ROW = 4


def certified_subsets(verdicts: Verdicts) -> dict[tuple[str, ...], float]:
    """The share of examples certified in exactly the norms of each subset.

    Args:
      verdicts: Content of a `certify.npz`, or a certificate of `certify_dataset`.

    Returns:
      {subset: fraction} for all subsets, large ones first, down to the empty one; the fractions add up to 1.

    Raises:
      ValueError: There is no `verified.NORM`, or these arrays have different lengths.

    Examples:
      >>> verdicts = {"verified.l2": np.array([True, True, False]), "verified.linf": np.array([True, False, False])}
      >>> {subset: round(share, 3) for subset, share in certified_subsets(verdicts).items()}
      {('linf', 'l2'): 0.333, ('linf',): 0.0, ('l2',): 0.333, (): 0.333}
    """
    verdicts = _as_arrays(verdicts)
    verified = {name.removeprefix("verified."): verdicts[name] for name in verdicts if name.startswith("verified.")}
    lengths = {norm: len(array) for norm, array in verified.items()}
    if not lengths or len({*lengths.values()}) > 1 or 0 in lengths.values():
        raise ValueError(
            f"Got verdicts of lengths {lengths}; expected verified.NORM for at least one norm, of the same examples. "
            "Write them with cure-jax certify."
        )
    norms = ordered(verified)
    subsets = [subset for size in range(len(norms), -1, -1) for subset in itertools.combinations(norms, size)]
    return {
        subset: float(np.mean(np.all([verified[norm].astype(bool) == (norm in subset) for norm in norms], axis=0)))
        for subset in subsets
    }


def _as_arrays(verdicts: Verdicts) -> Mapping[str, np.ndarray]:
    return verdicts.arrays() if isinstance(verdicts, HasArrays) else verdicts


def margin_differences(verdicts: Verdicts, norms: tuple[str, str] = ("linf", "l2")) -> np.ndarray:
    """The least proved margin in one norm minus that in another, for each correctly classified example.

    Args:
      verdicts: Content of a `certify.npz`, or a certificate of `certify_dataset`.
      norms: The two norms.

    Returns:
      The differences, `[examples]`, without those where a margin is not finite.

    Raises:
      ValueError: The verdicts lack one of the norms.
    """
    verdicts = _as_arrays(verdicts)
    missing = [name for name in (*(f"margin.{norm}" for norm in norms), "correct") if name not in verdicts]
    if missing:
        raise ValueError(
            f"The verdicts lack {missing}; expected the margins of both norms. Choose among {sorted(verdicts)}."
        )
    first, second = (np.asarray(verdicts[f"margin.{norm}"], np.float64) for norm in norms)
    kept = np.asarray(verdicts["correct"], bool) & np.isfinite(first) & np.isfinite(second)
    return first[kept] - second[kept]


def union_diagram(
    path: str | PathLike[str],
    methods: Mapping[str, Sequence[Verdicts]],
    *,
    union: Sequence[str] | None = None,
    title: str = "",
) -> None:
    """Draws how many examples are certified in exactly which norms: a row for each subset, a panel for each method.

    The dark bars of a panel add up to its union certified accuracy, which stands in its title. A subset that no method
    has is left out. Whiskers are one population standard deviation over the runs.

    Args:
      path: Where the PNG goes.
      methods: {name: contents of the `certify.npz` of its runs, or certificates}.
      union: Norms that count for the union; by default all. Others are drawn beside them.
      title: What stands above: the data set, radii, how many images.

    Raises:
      ValueError: There is no method, one has no run, or the verdicts are not usable, see `certified_subsets`.
      ModuleNotFoundError: matplotlib is missing.
    """
    figure_class = import_figure()
    shares = {name: _mean_shares(name, runs) for name, runs in _some(methods).items()}
    norms = ordered({norm for method in shares.values() for subset in method for norm in subset})
    subsets = _shown_subsets(norms, list(shares.values()))
    wanted = set(norms if union is None else union)
    across = min(len(shares), _PANELS_A_ROW)
    down = -(-len(shares) // across)
    figure = figure_class(
        figsize=(0.6 + 0.35 * len(norms) + 2.1 * across, 0.5 + down * (0.85 + 0.27 * len(subsets))),
        layout="constrained",
    )
    grid = figure.subplots(
        down, 1 + across, sharey=True, squeeze=False, width_ratios=[0.35 * len(norms) / 2.1, *[1] * across]
    )
    widest = max(value.mean + value.std for method in shares.values() for value in method.values())
    panels = grid[:, 1:].ravel()
    for panel, (name, method) in zip(panels, shares.items(), strict=False):
        _draw_subsets(panel, [method.get(subset) for subset in subsets], [wanted <= {*subset} for subset in subsets])
        total = sum(value.mean for subset, value in method.items() if wanted <= {*subset})
        heading = "\n".join(textwrap.wrap(plain(name), 26))
        panel.set_title(f"{heading}\nunion {100 * total:.1f} %", fontsize=9)
        panel.set(xlim=(0, 100 * min(1.0, 1.2 * widest) + 8), ylim=(len(subsets) - 0.5, -0.5))
    for panel in panels[len(shares) :]:
        panel.set_visible(False)
    for dots in grid[:, 0]:
        _draw_dots(dots, norms, subsets)
    label = "examples certified in exactly these norms (%); dark: in the union"
    figure.supxlabel("\n".join(textwrap.wrap(label, 36)) if across == 1 else label, fontsize=9)
    save(figure, path, title)


def alignment_histograms(
    path: str | PathLike[str],
    methods: Mapping[str, Sequence[Verdicts]],
    *,
    norms: tuple[str, str] = ("linf", "l2"),
    title: str = "",
) -> None:
    """Draws how far the proved margins in two norms lie apart: one panel for each method, all on the same axis.

    Where bounds are aligned, the histogram is narrow and near zero. The differences have the scale of the logits: look
    at the certified accuracy too before calling a method aligned. With the certification method `best`, a margin is
    only as tight as the method that decided its example. The runs of a method are put together.

    Args:
      path: Where the PNG goes.
      methods: {name: contents of the `certify.npz` of its runs, or certificates}.
      norms: The two norms; drawn is the first one's margin minus the second one's.
      title: What stands above: the data set, radii, how many images.

    Raises:
      ValueError: There is no method, one has no run, or lacks a norm.
      ModuleNotFoundError: matplotlib is missing.
    """
    figure_class = import_figure()
    differences = {
        name: np.concatenate([margin_differences(verdicts, norms) for verdicts in runs])
        for name, runs in _some(methods).items()
    }
    edges = _edges(np.concatenate([*differences.values()]))
    # A name and its quantiles share a line.
    width = max(6.4, 2.6 + 0.09 * max(map(len, differences)))
    figure = figure_class(figsize=(width, 0.7 + 0.85 * len(differences)), layout="constrained")
    panels = figure.subplots(len(differences), 1, sharex=True, squeeze=False)[:, 0]
    for panel, (name, values) in zip(panels, differences.items(), strict=True):
        _draw_histogram(panel, values, edges)
        panel.set_title(plain(name), fontsize=9, loc="left", fontweight="bold")
    first, second = map(norm_name, norms)
    panels[-1].set_xlabel(
        f"proved margin in {first} minus in {second}\nlines: 10, 50 and 90 %; outermost bars: all beyond"
    )
    save(figure, path, title)


def _some(methods: Mapping[str, Sequence[Verdicts]]) -> Mapping[str, Sequence[Verdicts]]:
    empty = [name for name, runs in methods.items() if not runs]
    if not methods or empty:
        raise ValueError(
            f"Got {len(methods)} methods, without runs: {empty}; expected {{name: [verdicts, ...]}} with at least one "
            "run each. Leave out what has none."
        )
    return methods


def _mean_shares(name: str, runs: Sequence[Verdicts]) -> dict[tuple[str, ...], Statistic]:
    shares = [certified_subsets(verdicts) for verdicts in runs]
    if any(run.keys() != shares[0].keys() for run in shares):
        raise ValueError(
            f"The runs of {name!r} were certified in different norms; expected the same ones. Certify them again."
        )
    statistics = {subset: statistic([run[subset] for run in shares]) for subset in shares[0]}
    return {subset: value for subset, value in statistics.items() if value}


def _shown_subsets(norms: list[str], methods: list[dict[tuple[str, ...], Statistic]]) -> list[tuple[str, ...]]:
    subsets = [subset for size in range(len(norms), -1, -1) for subset in itertools.combinations(norms, size)]
    return [
        subset
        for subset in subsets
        if len(subset) in (0, len(norms)) or any(subset in method and method[subset].mean > 0 for method in methods)
    ]


def _draw_subsets(panel: Any, values: list[Statistic | None], in_union: list[bool]) -> None:
    for row, (value, counts) in enumerate(zip(values, in_union, strict=True)):
        if value is None:
            continue
        mean, std = 100 * value.mean, 100 * value.std
        panel.barh(row, mean, 0.7, color=UNION_COLOR if counts else _OUTSIDE_COLOR, zorder=2)
        if std > 0:
            panel.errorbar(mean, row, xerr=std, fmt="none", ecolor="black", elinewidth=1, capsize=2, zorder=3)
        panel.text(mean + std + 1, row, f"{mean:.1f}", va="center", fontsize=7, color="#444444")
    tidy(panel, grid="x")
    panel.tick_params(axis="y", length=0, labelleft=False)
    panel.tick_params(axis="x", labelsize=8)


def _draw_dots(axes: Any, norms: list[str], subsets: list[tuple[str, ...]]) -> None:
    """The rows' names: a dark dot for each norm of the subset, joined by a line."""
    for row, subset in enumerate(subsets):
        places = [norms.index(norm) for norm in subset]
        axes.scatter(range(len(norms)), [row] * len(norms), s=45, color=GRID_COLOR, zorder=1)
        axes.plot(places, [row] * len(places), "o-", color=MARK_COLOR, markersize=6.5, linewidth=1.5, zorder=2)
    axes.set_xticks(range(len(norms)), [norm_name(norm) for norm in norms])
    axes.set(xlim=(-0.6, len(norms) - 0.4))
    axes.tick_params(length=0, labelleft=False)
    axes.spines[:].set_visible(False)


def _edges(pooled: np.ndarray) -> np.ndarray:
    """Forty bins over what lies between the outermost percents, zero among their edges' range."""
    if not len(pooled):
        return np.linspace(-1, 1, 41)
    low, high = np.quantile(pooled, (0.005, 0.995))
    low, high = min(low, 0.0), max(high, 0.0)
    # Equal margins everywhere (a linear network in one norm twice) still need bins of some width.
    spread = max(high - low, 1e-6)
    return np.linspace(low - 0.02 * spread, high + 0.02 * spread, 41)


def _draw_histogram(panel: Any, values: np.ndarray, edges: np.ndarray) -> None:
    panel.axvline(0, color=GRID_COLOR, linewidth=1.5, zorder=1)
    if len(values):
        # What lies beyond the axis is counted in the outermost bins: no example is left out.
        clipped = np.clip(values, edges[0], edges[-1])
        panel.hist(clipped, edges, weights=np.full(len(values), 100 / len(values)), color=_BAR_COLOR, zorder=2)
        quantiles = np.quantile(values, _QUANTILES)
        for quantile, dashes in zip(quantiles, (":", "-", ":"), strict=True):
            panel.axvline(quantile, color="black", linewidth=1.2, linestyle=dashes, zorder=3)
        # Rounded first: no minus sign before 0.00.
        low, median, high = (f"{round(value, 2) + 0.0:.2f}".replace("-", "−") for value in quantiles)
        note = f"{median}  [{low}, {high}],  n = {len(values)}"
    else:
        note = "no example with finite margins"
    panel.set_title(note, fontsize=8, loc="right", color="#444444")
    panel.set(xlim=(edges[0], edges[-1]))
    panel.set_ylabel("%", fontsize=8)
    panel.tick_params(axis="y", labelsize=8)
    tidy(panel, grid="x")
