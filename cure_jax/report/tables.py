"""Tables of certified results, for the terminal, for Markdown and for LaTeX.

`cure_jax.report.summaries` says what a result is. In each column of accuracies the best mean is bold, if there are
several rows and all have the same radii.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich.table import Table
from rich.text import Text

from cure_jax.report.style import ordered
from cure_jax.report.summaries import Result, Results, Statistic, Summary, radius_text, summarize

COLUMNS = ("training", "certification", "checkpoint", "commit", "device")

_HEADINGS = {"training": "training s", "certification": "certification s"}
_OUTSIDE = ", not in the union"
_LATEX_SPECIAL = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        **{character: rf"\{character}" for character in "&%$#_{}"},
    }
)


def _latex_symbols(text: str) -> str:
    """Norms as LaTeX writes them; pdfLaTeX knows none of these letters."""
    for norm, symbol in _UNICODE.items():
        text = text.replace(symbol, _LATEX.symbols[norm])
    return text


@dataclass(frozen=True)
class _Markup:
    """How one kind of table writes things; `{}` stands for the text."""

    symbols: dict[str, str]
    plus_minus: str
    missing: str
    bold: str
    code: str
    escape: Callable[[str], str]


_DASH = "–"  # noqa: RUF001  (an en dash is the usual sign for an empty cell)
_UNICODE = {"linf": "ℓ∞", "l2": "ℓ2", "l1": "ℓ1"}
_TERMINAL = _Markup(_UNICODE, "±", _DASH, "[bold]{}[/bold]", "{}", lambda text: text.replace("[", r"\["))
_MARKDOWN = _Markup(_UNICODE, " ± ", _DASH, "**{}**", "`{}`", lambda text: text.replace("|", r"\|"))
_LATEX = _Markup(
    {"linf": r"$\ell_\infty$", "l2": r"$\ell_2$", "l1": r"$\ell_1$"},
    r" $\pm$ ",
    "--",
    r"\textbf{{{}}}",
    r"\texttt{{{}}}",
    lambda text: _latex_symbols(text.translate(_LATEX_SPECIAL)),
)


def terminal(results: Results, *, label: Callable[[Result], str] | None = None, columns: Sequence[str] = ()) -> Table:
    """Returns a table for `rich.print`.

    Args:
      results: Contents of several `certify.json`, or certificates, see `summarize`.
      label: Gives the name of a result's row; by default its `method`.
      columns: What else to show, of `COLUMNS`.

    Returns:
      One row for each method, without the gap and norms outside of the union; percent, with one decimal.
    """
    rows = summarize(results, label=label)
    table = Table(caption=_caption(rows, gap=False), caption_justify="left")
    # Eighty characters are soon full: the gap and the norms outside of the union are left to the files.
    body = [
        (heading, cells)
        for heading, cells in _columns(rows, columns, _TERMINAL)
        if heading != "gap" and not heading.endswith(_OUTSIDE)
    ]
    for place, (heading, cells) in enumerate(body):
        widest = max(Text.from_markup(cell).cell_len for cell in cells)
        # Headings may wrap in a narrow terminal, numbers may not.
        options = {"overflow": "fold"} if place == 0 else {"justify": "right", "min_width": widest}
        table.add_column(heading, **options)  # pyright: ignore[reportArgumentType]
    for cells in zip(*(cells for _, cells in body), strict=True):
        table.add_row(*cells)
    return table


def markdown(results: Results, *, label: Callable[[Result], str] | None = None, columns: Sequence[str] = ()) -> str:
    """Returns a Markdown table, with the gap between the union and its bound, the least single norm.

    Args:
      results: Contents of several `certify.json`, or certificates, see `summarize`.
      label: Gives the name of a result's row; by default its `method`.
      columns: What else to show, of `COLUMNS`.

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
    headings, columns_of_cells = zip(*_columns(rows, columns, _MARKDOWN), strict=True)
    alignment = [":---"] + ["---:"] * (len(headings) - 1)
    lines = ["| " + " | ".join(line) + " |" for line in [headings, alignment, *zip(*columns_of_cells, strict=True)]]
    return "\n".join([*lines, "", _caption(rows), ""])


def latex(results: Results, *, label: Callable[[Result], str] | None = None, columns: Sequence[str] = ()) -> str:
    r"""Returns a LaTeX tabular; it needs the package booktabs.

    Args:
      results: Contents of several `certify.json`, or certificates, see `summarize`.
      label: Gives the name of a result's row; by default its `method`.
      columns: What else to show, of `COLUMNS`.

    Returns:
      The tabular, with its caption as a comment; percent, with one decimal.
    """
    rows = summarize(results, label=label)
    headings, columns_of_cells = zip(*_columns(rows, columns, _LATEX), strict=True)
    body = [" & ".join(line) + r" \\" for line in zip(*columns_of_cells, strict=True)]
    return "\n".join(
        [
            f"% {_caption(rows)}",
            rf"\begin{{tabular}}{{l{'r' * (len(headings) - 1)}}}",
            r"\toprule",
            " & ".join(headings) + r" \\",
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            "",
        ]
    )


def _columns(rows: list[Summary], more: Sequence[str], markup: _Markup) -> list[tuple[str, list[str]]]:
    """Headings and cells of all columns."""
    unknown = [name for name in more if name not in COLUMNS]
    if unknown:
        raise ValueError(f"Got the columns {unknown}; expected some of {', '.join(COLUMNS)}. Leave the others out.")
    accuracies: dict[str, list[Statistic | None]] = {"clean": [row.clean for row in rows]}
    for norm in ordered({norm for row in rows for norm in row.certified}):
        heading = _norm_heading(norm, [row.radii.get(norm) for row in rows], markup)
        accuracies[heading] = [row.certified.get(norm) for row in rows]
    accuracies["union certified"] = [row.union for row in rows]
    accuracies["union under attack"] = [row.attacked_union for row in rows]
    reported: dict[str, list[Statistic | None]] = {}
    for norm in ordered({norm for row in rows for norm in row.reported}):
        heading = _norm_heading(norm, [row.reported_radii.get(norm) for row in rows if norm in row.reported], markup)
        reported[heading + _OUTSIDE] = [row.reported.get(norm) for row in rows]
    for name in dict.fromkeys(name for row in rows for name in row.perturbed):
        reported[f"certified {markup.escape(name)}{_OUTSIDE}"] = [row.perturbed.get(name) for row in rows]
    compared = len(rows) > 1 and all(row.radii == rows[0].radii for row in rows)
    return [
        ("method", [markup.escape(row.label) for row in rows]),
        ("n", [str(row.count) for row in rows]),
        *[(heading, _percents(values, markup, compared)) for heading, values in accuracies.items()],
        ("gap", [_percent(row.gap, markup) for row in rows]),
        *[(heading, _percents(values, markup, compared)) for heading, values in reported.items()],
        *[(_HEADINGS.get(name, name), [_origin(row, name, markup) for row in rows]) for name in more],
    ]


def _norm_heading(norm: str, radii: list[float | None], markup: _Markup) -> str:
    heading = f"certified {markup.symbols.get(norm, markup.escape(norm))}"
    shared = radii[0] if len(set(radii)) == 1 else None
    return heading if shared is None else f"{heading} ({radius_text(shared)})"


def _percents(values: list[Statistic | None], markup: _Markup, compared: bool) -> list[str]:
    """The cells of one column; what is best to the decimal that is shown is bold."""
    shown = [None if value is None else round(100 * value.mean, 1) for value in values]
    best = max((mean for mean in shown if mean is not None), default=None) if compared else None
    cells = [_percent(value, markup) for value in values]
    return [
        markup.bold.format(cell) if best is not None and mean == best else cell
        for cell, mean in zip(cells, shown, strict=True)
    ]


def _percent(value: Statistic | None, markup: _Markup) -> str:
    return _number(value, markup, 100.0, 1)


def _number(value: Statistic | None, markup: _Markup, scale: float, decimals: int) -> str:
    if value is None:
        return markup.missing
    mean = f"{scale * value.mean:.{decimals}f}"
    return mean if value.count == 1 else f"{mean}{markup.plus_minus}{scale * value.std:.{decimals}f}"


def _origin(row: Summary, name: str, markup: _Markup) -> str:
    """A cell that says what a row took, or where it comes from."""
    if name in ("training", "certification"):
        seconds = row.training_seconds if name == "training" else row.certification_seconds
        return _number(seconds, markup, 1.0, 0)
    texts = row.origins[name]
    if name == "device":
        return ", ".join(map(markup.escape, texts)) or markup.missing
    # Twelve digits are enough to recognise it, and a table of several seeds stays readable; "-dirty" is kept.
    short = [text[:12] + ("-dirty" if text.endswith("-dirty") else "") for text in texts]
    return ", ".join(markup.code.format(text) for text in short) or markup.missing


def _caption(rows: list[Summary], *, gap: bool = True) -> str:
    sizes = {row.num_examples for row in rows}
    size = sizes.pop() if len(sizes) == 1 else None
    text = f"Percent of {size or 'the'} {rows[0].split} examples"
    if any(row.count > 1 for row in rows):
        text += "; mean ± population standard deviation over n runs (divided by n, not n - 1)"
    if not gap:
        return text + "."
    return text + ". gap: least certified norm minus union certified, which is never negative."
