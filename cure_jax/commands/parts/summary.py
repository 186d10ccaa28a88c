"""Tables and pictures of several finished runs."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from cure_jax import report

_COLUMNS = ("training", "certification", "checkpoint", "commit", "device")


def write_report(root: Path, runs: Sequence[tuple[str, Path]]) -> None:
    """Writes `table.md`, `table.tex` and pictures of all methods, and prints the table.

    Args:
      root: Where they go.
      runs: The name of the row and the path of certify.json (or validation.json) of each run; a certify.npz beside it.
    """
    results = [{**json.loads(path.read_text()), "row": name} for name, path in runs]
    root.mkdir(parents=True, exist_ok=True)
    columns = [name for name in _COLUMNS if any(_has(result, name) for result in results)]
    title = report.headline(results)
    Console().print(report.terminal(results, label=_row))
    (root / "table.md").write_text(report.markdown(results, label=_row, columns=columns))
    (root / "table.tex").write_text(report.latex(results, label=_row, columns=columns))
    report.compare_methods(root / "methods.png", results, label=_row, title=title)
    report.trade_off(root / "trade_off.png", results, label=_row, title=title)
    written = ["table.md", "table.tex", "methods.png", "trade_off.png"]

    curves = _by_method(results, [result.get("curve") for result in results])
    if curves:
        radii = results[0]["radii"]
        shared = radii if all(result["radii"] == radii for result in results) else {}
        report.compare_curves(root / "radius.png", curves, training_radii=shared, title=title)
        written.append("radius.png")
    verdicts, norms = _shared_norms([_verdicts(path) for _, path in runs])
    # A picture has one union for all of its rows.
    unions = {frozenset(result["radii"]) for result in results}
    methods = _by_method(results, verdicts)
    union = [norm for norm in results[0]["radii"] if norm in norms] if len(unions) == 1 else []
    if union:
        report.union_diagram(root / "union.png", methods, union=union, title=title)
        written.append("union.png")
    if len(union) > 1:
        first, second = sorted(union, key=lambda norm: norm != "linf")[:2]
        report.alignment_histograms(root / "alignment.png", methods, norms=(first, second), title=title)
        written.append("alignment.png")
    print(f"Written to {root}: {', '.join(written)}; per run certify.json, .npz, .png, log.txt")


def _row(result: Mapping[str, Any]) -> str:
    return result["row"]


def _has(result: Mapping[str, Any], column: str) -> bool:
    entry = {"training": "training_seconds", "certification": "seconds", "checkpoint": "checkpoint_sha256"}
    return result.get(entry.get(column, column)) is not None


def _verdicts(path: Path) -> dict[str, np.ndarray]:
    with np.load(path.with_suffix(".npz")) as file:
        return dict(file)


def _shared_norms(verdicts: list[dict[str, np.ndarray]]) -> tuple[list[dict[str, np.ndarray]], set[str]]:
    """The verdicts without norms that some run lacks: beside them, "certified in exactly these" would mislead."""
    norms = {name.partition(".")[2] for name in set.intersection(*map(set, verdicts)) if name.startswith("verified.")}
    kept = [
        {name: value for name, value in run.items() if "." not in name or name.partition(".")[2] in norms}
        for run in verdicts
    ]
    return kept, norms


def _by_method(results: Sequence[Mapping[str, Any]], values: Sequence[Any]) -> dict[str, list[Any]]:
    """Groups the runs of each row; a run without a value is left out."""
    groups: dict[str, list[Any]] = {}
    for result, value in zip(results, values, strict=True):
        if value is not None:
            groups.setdefault(result["row"], []).append(value)
    return groups
