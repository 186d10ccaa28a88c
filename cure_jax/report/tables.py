"""Tables of certified results, for the terminal, for Markdown and for LaTeX.

A result is the content of one `certify.json`, a dictionary with these entries (fractions of the examples, 0..1):

* `method`: the name of its row; results with the same name and radii are runs of one method with different seeds,
* `clean`: accuracy, `certified`: {norm: fraction}, `radii`: {norm: eps},
* `union`: fraction certified for every norm at once; may be None where there is one norm,
* `empirical`: {norm: fraction, "union": fraction} left standing by an attack; may be empty or None,
* `num_examples`; further entries are ignored.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.table import Table
from rich.text import Text

Result = Mapping[str, Any]

_NORM_ORDER = ("linf", "l2", "l1")
_SYMBOLS = {"linf": "ℓ∞", "l2": "ℓ2", "l1": "ℓ1"}
_LATEX_SYMBOLS = {"linf": r"$\ell_\infty$", "l2": r"$\ell_2$", "l1": r"$\ell_1$"}
_LATEX_SPECIAL = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        **{character: rf"\{character}" for character in "&%$#_{}"},
    }
)
_MISSING = "–"  # noqa: RUF001  (an en dash is the usual sign for an empty cell)


@dataclass(frozen=True)
class Statistic:
    """Mean and population standard deviation, sqrt(mean((x - mean)^2)), over the runs of one method.

    Attributes:
      mean: Mean of the fractions.
      std: Their population standard deviation; 0 for a single run.
      count: Number of runs.
    """

    mean: float
    std: float
    count: int


@dataclass(frozen=True)
class Summary:
    """The runs of one method, aggregated: one row of a table.

    Attributes:
      label: Name of the row.
      radii: Radius of each norm, in pixel units.
      count: Number of runs (seeds).
      num_examples: Number of test examples of each run, or None if they differ.
      clean: Accuracy.
      certified: Certified fraction of each norm.
      union: Fraction certified for every norm at once.
      attacked_union: Fraction that no attack of any norm breaks: an upper bound of `union`.
      gap: min over the norms of the certified fraction, minus `union`: what the intersection costs. Never negative.
    """

    label: str
    radii: dict[str, float]
    count: int
    num_examples: int | None
    clean: Statistic
    certified: dict[str, Statistic]
    union: Statistic | None
    attacked_union: Statistic | None
    gap: Statistic | None


def summarize(results: Iterable[Result], *, label: Callable[[Result], str] | None = None) -> list[Summary]:
    """Aggregates results: one row for each method and set of radii, in order of first appearance.

    Args:
      results: Contents of several `certify.json`.
      label: Gives the name of a result's row; by default its `method`.

    Returns:
      The rows. If the results do not all have the same radii, each name is followed by its radii.

    Raises:
      ValueError: There are no results, one lacks an entry or has a number that is not a fraction, or a union exceeds
        one of its norms, which no sound computation gives.
    """
    groups: dict[tuple[str, tuple[tuple[str, float], ...]], list[Result]] = {}
    for number, result in enumerate(results):
        _check(number, result)
        name = label(result) if label else str(result["method"])
        radii = tuple((norm, float(result["radii"][norm])) for norm in _ordered(result["radii"]))
        groups.setdefault((name, radii), []).append(result)
    if not groups:
        raise ValueError("Got no results; expected at least one certify.json. Run a certification first.")
    several = len({radii for _, radii in groups}) > 1
    return [
        _summary(f"{name} ({_radii_text(dict(radii))})" if several else name, dict(radii), runs)
        for (name, radii), runs in groups.items()
    ]


def terminal(results: Iterable[Result], *, label: Callable[[Result], str] | None = None) -> Table:
    """Returns a table for `rich.print`.

    Args:
      results: Contents of several `certify.json`.
      label: Gives the name of a result's row; by default its `method`.

    Returns:
      One row for each method; percent, with one decimal.
    """
    rows = summarize(results, label=label)
    body = [_cells(row, _norms(rows), "±", gap=False) for row in rows]
    head, *headings = _headings(rows, _SYMBOLS, gap=False)
    table = Table(caption=_caption(rows), caption_justify="left")
    table.add_column(head, overflow="fold")
    for heading, cells in zip(headings, zip(*body, strict=True), strict=True):
        style = "bold" if heading == "union certified" else None
        # Headings may wrap in a narrow terminal, numbers may not.
        table.add_column(heading, justify="right", style=style, min_width=max(map(len, cells)))
    for row, cells in zip(rows, body, strict=True):
        table.add_row(Text(row.label), *cells)
    return table


def markdown(results: Iterable[Result], *, label: Callable[[Result], str] | None = None) -> str:
    """Returns a Markdown table, with the gap between the union and its bound, the least single norm.

    Args:
      results: Contents of several `certify.json`.
      label: Gives the name of a result's row; by default its `method`.

    Returns:
      The table and its caption; percent, with one decimal.

    Examples:
      >>> result = {
      ...     "method": "joint",
      ...     "clean": 0.99,
      ...     "certified": {"linf": 0.93, "l2": 0.88},
      ...     "union": 0.87,
      ...     "empirical": {"union": 0.91},
      ...     "radii": {"linf": 0.1, "l2": 0.5},
      ...     "num_examples": 1000,
      ... }
      >>> print(markdown([result]))
      | method | n | clean | certified ℓ∞ (0.1) | certified ℓ2 (0.5) | union certified | union under attack | gap |
      | :--- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |
      | joint | 1 | 99.0 | 93.0 | 88.0 | 87.0 | 91.0 | 1.0 |
      <BLANKLINE>
      Percent of 1000 test examples. gap: least certified norm minus union certified, which is never negative.
      <BLANKLINE>
    """
    rows = summarize(results, label=label)
    headings = _headings(rows, _SYMBOLS, gap=True)
    alignment = [":---"] + ["---:"] * (len(headings) - 1)
    body = [[row.label.replace("|", r"\|"), *_cells(row, _norms(rows), " ± ", gap=True)] for row in rows]
    lines = ["| " + " | ".join(line) + " |" for line in [headings, alignment, *body]]
    note = "gap: least certified norm minus union certified, which is never negative."
    return "\n".join([*lines, "", f"{_caption(rows)} {note}", ""])


def latex(results: Iterable[Result], *, label: Callable[[Result], str] | None = None) -> str:
    r"""Returns a LaTeX tabular; it needs the package booktabs.

    Args:
      results: Contents of several `certify.json`.
      label: Gives the name of a result's row; by default its `method`.

    Returns:
      The tabular, with its caption as a comment; percent, with one decimal.
    """
    rows = summarize(results, label=label)
    headings = _headings(rows, _LATEX_SYMBOLS, gap=False)
    body = [[row.label.translate(_LATEX_SPECIAL), *_cells(row, _norms(rows), r" $\pm$ ", gap=False)] for row in rows]
    lines = [" & ".join(line).replace(_MISSING, "--") + r" \\" for line in [headings, *body]]
    return "\n".join(
        [
            f"% {_caption(rows)}",
            rf"\begin{{tabular}}{{l{'r' * (len(headings) - 1)}}}",
            r"\toprule",
            lines[0],
            r"\midrule",
            *lines[1:],
            r"\bottomrule",
            r"\end{tabular}",
            "",
        ]
    )


def _check(number: int, result: Result) -> None:
    missing = [entry for entry in ("clean", "certified", "radii") if entry not in result]
    if missing:
        raise ValueError(
            f"Result {number} lacks {missing}; expected the content of a certify.json. Write it with launch/certify.py."
        )
    union = result.get("union")
    fractions = {"clean": result["clean"], "union": union}
    for part in ("certified", "empirical"):
        fractions |= {f"{part}.{norm}": value for norm, value in (result.get(part) or {}).items()}
    for entry, value in fractions.items():
        if value is not None and not 0 <= value <= 1:
            raise ValueError(
                f"Result {number} has {entry} = {value}; expected a fraction in [0, 1]. Divide percentages by 100."
            )
    least = min(result["certified"].values(), default=None)
    if union is not None and least is not None and union > least + 1e-6:
        raise ValueError(
            f"Result {number} has union = {union} above its least norm {least}; expected union <= every norm, as it is "
            "a logical and for each example. Compute it from the same examples."
        )


def _summary(label: str, radii: dict[str, float], runs: list[Result]) -> Summary:
    norms = _ordered({norm for run in runs for norm in run["certified"]})
    sizes = {run.get("num_examples") for run in runs}
    certified = {norm: _statistic([run["certified"].get(norm) for run in runs]) for norm in norms}
    clean = _statistic([run["clean"] for run in runs])
    assert clean is not None
    return Summary(
        label=label,
        radii=radii,
        count=len(runs),
        num_examples=sizes.pop() if len(sizes) == 1 else None,
        clean=clean,
        certified={norm: statistic for norm, statistic in certified.items() if statistic},
        union=_statistic([run.get("union") for run in runs]),
        attacked_union=_statistic([(run.get("empirical") or {}).get("union") for run in runs]),
        gap=_statistic(
            [
                min(run["certified"].values()) - run["union"]
                for run in runs
                if run.get("union") is not None and run["certified"]
            ]
        ),
    )


def _statistic(values: list[float | None]) -> Statistic | None:
    present = [value for value in values if value is not None]
    return Statistic(float(np.mean(present)), float(np.std(present)), len(present)) if present else None


def _headings(rows: list[Summary], symbols: dict[str, str], *, gap: bool) -> list[str]:
    radii = {tuple(row.radii.items()) for row in rows}
    shared = dict(radii.pop()) if len(radii) == 1 else {}
    certified = [
        f"certified {symbols.get(norm, norm)}" + (f" ({_radius_text(shared[norm])})" if norm in shared else "")
        for norm in _norms(rows)
    ]
    columns = ["method", "n", "clean", *certified, "union certified", "union under attack"]
    return [*columns, "gap"] if gap else columns


def _cells(row: Summary, norms: list[str], plus_minus: str, *, gap: bool) -> list[str]:
    statistics = [row.clean, *[row.certified.get(norm) for norm in norms], row.union, row.attacked_union]
    return [str(row.count), *[_percent(value, plus_minus) for value in [*statistics, *([row.gap] if gap else [])]]]


def _percent(value: Statistic | None, plus_minus: str) -> str:
    if value is None:
        return _MISSING
    mean = f"{100 * value.mean:.1f}"
    return mean if value.count == 1 else f"{mean}{plus_minus}{100 * value.std:.1f}"


def _caption(rows: list[Summary]) -> str:
    sizes = {row.num_examples for row in rows}
    size = sizes.pop() if len(sizes) == 1 else None
    text = f"Percent of {size} test examples" if size else "Percent of the test examples"
    if any(row.count > 1 for row in rows):
        text += "; mean ± population standard deviation over n runs (divided by n, not n - 1)"
    return text + "."


def _norms(rows: list[Summary]) -> list[str]:
    return _ordered({norm for row in rows for norm in row.certified})


def _ordered(norms: Iterable[str]) -> list[str]:
    return sorted(norms, key=lambda norm: (_NORM_ORDER.index(norm) if norm in _NORM_ORDER else math.inf, norm))


def _radii_text(radii: dict[str, float]) -> str:
    return ", ".join(f"{_SYMBOLS.get(norm, norm)} {_radius_text(eps)}" for norm, eps in radii.items())


def _radius_text(eps: float) -> str:
    levels = eps * 255
    is_short = math.isclose(eps, round(eps, 3), rel_tol=1e-6)
    if not is_short and math.isclose(levels, round(levels), rel_tol=1e-4):
        return f"{round(levels)}/255"
    return f"{eps:.4g}"
