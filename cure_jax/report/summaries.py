"""Certified results, aggregated over the runs of each method.

A result is the content of one `certify.json`, a dictionary with these entries (fractions of the examples, 0..1):

* `method`: the name of its row; results with the same name and radii are runs of one method with different seeds,
* `clean`: accuracy, `certified`: {norm: fraction}, `radii`: {norm: eps},
* `union`: fraction certified for every norm of `certified` at once; may be None where there is one norm,
* `empirical`: {norm: fraction, "union": fraction} left standing by an attack; may be empty or None,
* `reported`: {norm: fraction} certified in norms that do not count for the union, `reported_radii`: {norm: eps},
* `perturbed`: {name: {"certified": fraction, "range": what was certified}} of perturbations beyond norms,
* `num_examples`; `training_seconds`, `seconds` (to certify and attack), `checkpoint_sha256`, `commit`, `device`.

Of these, the first four are needed; entries that are not listed are ignored.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np

from cure_jax.report.style import ordered


@runtime_checkable
class HasSummary(Protocol):
    """What can say its own result, such as what `certify_dataset` returns."""

    def summary(self, name: str = "") -> dict[str, Any]:
        """Return a result, `name` the name of its row."""
        ...


Result = Mapping[str, Any]
# What tables and pictures take: results, or what has a summary, in a row or by the names of their rows.
Results: TypeAlias = Iterable[Result | HasSummary] | Mapping[str, Result | HasSummary]

# Entries of a result that say how many examples of what, and what they are where they are missing.
_COUNTED = (("num_examples", None), ("split", "test"))
_SYMBOLS = {"linf": "ℓ∞", "l2": "ℓ2", "l1": "ℓ1"}


@dataclass(frozen=True)
class Statistic:
    """Mean and population standard deviation, sqrt(mean((x - mean)^2)), over the runs of one method.

    Attributes:
      mean: Mean of the fractions (or seconds).
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
      radii: Radius of each norm of the union, in pixel units.
      count: Number of runs (seeds).
      split: Of the data, "test" or "validation".
      num_examples: Number of its examples in each run, or None if they differ.
      clean: Accuracy.
      certified: Certified fraction of each norm of the union.
      union: Fraction certified for every norm of the union at once.
      attacked_union: Fraction that no attack of any norm breaks: an upper bound of `union`.
      gap: min over the norms of the certified fraction, minus `union`: what the intersection costs. Never negative.
      reported: Certified fraction of each norm outside of the union.
      reported_radii: Their radii.
      perturbed: Certified fraction of each perturbation beyond norms, by its name and range.
      training_seconds: Seconds to train, where they are known.
      certification_seconds: Seconds to certify and attack.
      origins: {"checkpoint" | "commit" | "device": its distinct values, in the order of the runs}.
    """

    label: str
    radii: dict[str, float]
    count: int
    split: str
    num_examples: int | None
    clean: Statistic
    certified: dict[str, Statistic]
    union: Statistic | None
    attacked_union: Statistic | None
    gap: Statistic | None
    reported: dict[str, Statistic]
    reported_radii: dict[str, float]
    perturbed: dict[str, Statistic]
    training_seconds: Statistic | None
    certification_seconds: Statistic | None
    origins: dict[str, tuple[str, ...]]


def summarize(results: Results, *, label: Callable[[Result], str] | None = None) -> list[Summary]:
    """Aggregates results: one row for each method and set of radii, in order of first appearance.

    Args:
      results: Contents of several `certify.json`, or certificates of `certify_dataset`; in a row, or by the names of
        their rows.
      label: Gives the name of a result's row; by default its `method`.

    Returns:
      The rows. If the results do not all have the same radii, each name is followed by its radii.

    Raises:
      ValueError: There are no results, one lacks an entry or has a number that is not a fraction, they are of several
        splits, or a union exceeds one of its norms, which no sound computation gives.
    """
    results = contents(results)
    if len(splits := sorted({str(result.get("split", "test")) for result in results})) > 1:
        raise ValueError(f"Got results of the splits {', '.join(splits)}; expected those of one. Make a table of each.")
    groups: dict[tuple[str, tuple[tuple[str, float], ...]], list[Result]] = {}
    for number, result in enumerate(results):
        _check(number, result)
        name = label(result) if label else str(result["method"])
        radii = tuple((norm, float(result["radii"][norm])) for norm in ordered(result["radii"]))
        groups.setdefault((name, radii), []).append(result)
    if not groups:
        raise ValueError("Got no results; expected at least one certify.json. Run a certification first.")
    several = len({radii for _, radii in groups}) > 1
    return [
        _summary(f"{name} ({_radii_text(dict(radii))})" if several else name, dict(radii), runs)
        for (name, radii), runs in groups.items()
    ]


def headline(results: Results) -> str:
    """What results are of, for the title of a picture: the data set, the radii, and how many examples.

    What differs between the results is left out.

    Args:
      results: As for `summarize`; the data set is that of their `config`.

    Examples:
      >>> result = {"config": {"dataset": "mnist"}, "radii": {"linf": 0.1}, "num_examples": 1000}
      >>> headline([result])
      'mnist, ℓ∞ 0.1: 1000 test examples'
    """
    found = contents(results)
    dataset = _shared((result.get("config") or {}).get("dataset") for result in found)
    radii = _shared(_radii_text({norm: result["radii"][norm] for norm in ordered(result["radii"])}) for result in found)
    count, split = (_shared(result.get(name, other) for result in found) for name, other in _COUNTED)
    size = f"{count} {split} examples" if count and split else ""
    return ": ".join(part for part in (", ".join(part for part in (dataset, radii) if part), size) if part)


def contents(results: Any) -> list[Result]:
    """Results as dictionaries, with the names of their rows.

    Raises:
      ValueError: for one alone, or anything else.
    """
    if isinstance(results, HasSummary) or (isinstance(results, Mapping) and "certified" in results):
        raise ValueError("Got one result; expected several, or one in a list or by its name: {'mine': result}.")
    if isinstance(results, Mapping):
        return [{**_content(result), "method": name} for name, result in results.items()]
    return [_content(result) for result in results]


def _content(result: Any) -> Result:
    if isinstance(result, HasSummary):
        return result.summary()
    if not isinstance(result, Mapping):
        raise ValueError(
            f"Got a result of type {type(result).__name__}; expected the content of a certify.json, or what "
            "certify_dataset returns. Read it first."
        )
    return result


def statistic(values: Iterable[float | None]) -> Statistic | None:
    """Mean and deviation of the values that are there; None if none is."""
    present = [value for value in values if value is not None]
    return Statistic(float(np.mean(present)), float(np.std(present)), len(present)) if present else None


def radius_text(eps: float) -> str:
    """A radius as it is usually written: 8/255 or 0.1."""
    levels = eps * 255
    is_short = math.isclose(eps, round(eps, 3), rel_tol=1e-6)
    if not is_short and math.isclose(levels, round(levels), rel_tol=1e-4):
        return f"{round(levels)}/255"
    return f"{eps:.4g}"


def _shared(values: Iterable[Any]) -> Any:
    """The value, if it is the same everywhere; else None."""
    distinct = set(values)
    return distinct.pop() if len(distinct) == 1 else None


def _check(number: int, result: Result) -> None:
    missing = [entry for entry in ("clean", "certified", "radii") if entry not in result]
    if missing:
        raise ValueError(
            f"Result {number} lacks {missing}; expected the content of a certify.json. Write it with cure-jax certify."
        )
    union = result.get("union")
    fractions = {"clean": result["clean"], "union": union}
    for part in ("certified", "empirical", "reported"):
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
    sizes = {run.get("num_examples") for run in runs}
    clean = statistic(run["clean"] for run in runs)
    assert clean is not None
    return Summary(
        label=label,
        radii=radii,
        count=len(runs),
        split=str(runs[0].get("split", "test")),
        num_examples=sizes.pop() if len(sizes) == 1 else None,
        clean=clean,
        certified=_of_each_norm(runs, "certified"),
        union=statistic(run.get("union") for run in runs),
        attacked_union=statistic((run.get("empirical") or {}).get("union") for run in runs),
        gap=statistic(
            min(run["certified"].values()) - run["union"]
            for run in runs
            if run.get("union") is not None and run["certified"]
        ),
        reported=_of_each_norm(runs, "reported"),
        reported_radii={norm: float(eps) for run in runs for norm, eps in (run.get("reported_radii") or {}).items()},
        perturbed=_beyond(runs),
        training_seconds=statistic(run.get("training_seconds") for run in runs),
        certification_seconds=statistic(run.get("seconds") for run in runs),
        origins={
            name: tuple(dict.fromkeys(str(run[entry]) for run in runs if run.get(entry) is not None))
            for name, entry in (("checkpoint", "checkpoint_sha256"), ("commit", "commit"), ("device", "device"))
        },
    )


def _beyond(runs: list[Result]) -> dict[str, Statistic]:
    """Certified fractions of perturbations; several ranges of one are several columns."""
    fractions: dict[str, list[float]] = {}
    for run in runs:
        for name, found in (run.get("perturbed") or {}).items():
            fractions.setdefault(f"{name} {_range_text(found['range'])}", []).append(found["certified"])
    return {name: value for name, values in fractions.items() if (value := statistic(values))}


def _range_text(value: Any) -> str:
    """(-10, 10) as it is, or a side and a number."""
    if not isinstance(value, list | tuple):
        return f"{value:g}"
    return f"({', '.join(_range_text(part) for part in value)})"


def _of_each_norm(runs: list[Result], entry: str) -> dict[str, Statistic]:
    fractions = [run.get(entry) or {} for run in runs]
    statistics = {norm: statistic(part.get(norm) for part in fractions) for norm in ordered({*()}.union(*fractions))}
    return {norm: value for norm, value in statistics.items() if value}


def _radii_text(radii: dict[str, float]) -> str:
    return ", ".join(f"{_SYMBOLS.get(norm, norm)} {radius_text(eps)}" for norm, eps in radii.items())
