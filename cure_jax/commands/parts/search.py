"""Successive halving over fields of a config: many short trainings, and ever longer ones of the better half.

    losses.l2.fraction=0.4..0.8,learning_rate=1e-3..5e-3:log,optimizer=adam|radam

A field has a range (uniform, or `:log`) or a list of values. Trials are a Latin hypercube of these: of n trials, each
nth part of every range has one. The same words and seed draw the same trials, so an interrupted search goes on.

Source: Jamieson and Talwalkar, "Non-stochastic Best Arm Identification and Hyperparameter Optimization", AISTATS 2016,
Algorithm 1.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from scipy.stats import qmc

__all__ = ["Choice", "Range", "Table", "better_half", "draw", "parse", "score", "shortened"]

# What is counted in epochs, and shrinks with them.
_TIMES = ("ramp_end", "natural_epochs", "kappa_ramp_epochs", "warmup_epochs")
_DIGITS = 3


@dataclasses.dataclass(frozen=True)
class Range:
    """Numbers from low to high, spread evenly, or evenly in their logarithm."""

    low: float
    high: float
    log: bool

    def at(self, share: float) -> str:
        """The number at a share in [0, 1] of the range, to three digits, as a flag takes it."""
        if self.log:
            value = math.exp(math.log(self.low) + share * (math.log(self.high) - math.log(self.low)))
        else:
            value = self.low + share * (self.high - self.low)
        return f"{value:.{_DIGITS}g}"


@dataclasses.dataclass(frozen=True)
class Choice:
    """One of some values."""

    values: tuple[str, ...]

    def at(self, share: float) -> str:
        """The value at a share in [0, 1]."""
        return self.values[min(int(share * len(self.values)), len(self.values) - 1)]


def parse(text: str) -> dict[str, Range | Choice]:
    """Parses a space, `FIELD=LOW..HIGH`, `FIELD=LOW..HIGH:log` or `FIELD=A|B`, separated by commas.

    Returns:
      By field, what it may be.

    Raises:
      ValueError: a part is none of these, a field stands twice, or a range is empty or has no logarithm.
    """
    space: dict[str, Range | Choice] = {}
    for part in text.split(","):
        field, equals, values = part.strip().partition("=")
        if not (field and equals and values):
            raise ValueError(f"The search has {part!r}; expected FIELD=LOW..HIGH, FIELD=LOW..HIGH:log or FIELD=A|B.")
        if field in space:
            raise ValueError(f"The search names {field} twice; expected each field once.")
        space[field] = _range(part, values) if ".." in values else Choice(tuple(values.split("|")))
    return space


def draw(space: Mapping[str, Range | Choice], trials: int, seed: int = 0) -> list[tuple[str, ...]]:
    """Overrides `FIELD=VALUE` for each trial.

    Args:
      space: from `parse`.
      trials: how many; at least one.
      seed: of the hypercube.

    Returns:
      The trials, each different: what is drawn twice counts once.

    Raises:
      ValueError: fewer than one trial.
    """
    if trials < 1:
        raise ValueError(f"Got {trials} trials; expected at least 1.")
    shares = qmc.LatinHypercube(d=len(space), rng=seed).random(trials)
    drawn = [
        tuple(f"{field}={values.at(share)}" for (field, values), share in zip(space.items(), row, strict=True))
        for row in shares
    ]
    return list(dict.fromkeys(drawn))


def shortened(config: Mapping[str, Any], share: float) -> tuple[str, ...]:
    """Overrides for a share of the epochs: milestones and ramps shrink with them.

    Args:
      config: fields, as JSON has them.
      share: in (0, 1]; 1 changes nothing.

    Returns:
      `FIELD=VALUE` for each field that changes.

    Raises:
      ValueError: the share is not in (0, 1].
    """
    if not 0 < share <= 1:
        raise ValueError(f"A rung is {share} of the epochs; expected a share above 0 and at most 1.")
    if share == 1:
        return ()
    epochs = max(1, round(share * config["epochs"]))
    share = epochs / config["epochs"]
    # A milestone that would lie at the end or on another one would do nothing.
    milestones = sorted({round(share * milestone) for milestone in config["milestones"]} - {0, epochs})
    listed = "(" + "".join(f"{milestone}," for milestone in milestones) + ")"
    times = [f"{field}={share * config[field]:.4g}" for field in _TIMES if config.get(field)]
    start = config["projection"]["start_epoch"]
    moved = [f"projection.start_epoch={share * start:.4g}"] if start > 0 else []
    return (f"epochs={epochs}", f"milestones={listed}", *times, *moved)


def score(result: Mapping[str, Any]) -> tuple[float, float, float]:
    """What a trial is compared by: union certified, then the mean over the norms, then clean accuracy.

    Args:
      result: contents of a `validation.json`.
    """
    certified = [result["certified"][norm] for norm in result["radii"]]
    return result["union"], sum(certified) / len(certified), result["clean"]


class Table:
    """What each trial scored on each rung."""

    def __init__(self, rungs: Sequence[str]):
        """Nothing is known yet."""
        self._rungs, self._scores = list(rungs), {}

    def add(self, rung: str, scores: Mapping[str, Sequence[float]]) -> None:
        """Takes the scores of a rung, by trial."""
        for name, value in scores.items():
            self._scores.setdefault(name, {})[rung] = tuple(value)

    def markdown(self) -> str:
        """A table in Markdown: those that came furthest first, then those that scored highest there."""

        def rank(name: str) -> tuple:
            reached = self._scores[name]
            last = max(map(self._rungs.index, reached))
            return last, reached[self._rungs[last]]

        head = "| trial | " + " | ".join(f"{rung} of the epochs" for rung in self._rungs) + " |"
        rows = [
            f"| {name} | " + " | ".join(_cell(self._scores[name].get(rung)) for rung in self._rungs) + " |"
            for name in sorted(self._scores, key=rank, reverse=True)
        ]
        lines = [head, "| :--- |" + " ---: |" * len(self._rungs), *rows]
        return "\n".join([*lines, "", "Percent of validation images: union certified, mean of the norms, clean.", ""])


def _cell(value: Sequence[float] | None) -> str:
    return "" if value is None else " / ".join(f"{100 * share:.1f}" for share in value)


def better_half(scores: Mapping[str, Sequence[float]]) -> list[str]:
    """The names with the higher scores, the best first: half of them, rounded up.

    Args:
      scores: by name; compared number by number, as tuples are.
    """
    ranked = sorted(scores, key=lambda name: tuple(scores[name]), reverse=True)
    return ranked[: (len(ranked) + 1) // 2]


def _range(part: str, text: str) -> Range:
    values, colon, kind = text.partition(":")
    ends = values.split("..")
    try:
        low, high = (float(end) for end in ends)
    except ValueError as error:
        raise ValueError(f"The search has {part!r}; expected two numbers, LOW..HIGH.") from error
    if colon and kind != "log":
        raise ValueError(f"The search has {part!r}; expected nothing or :log behind the range.")
    if not -math.inf < low < high < math.inf or (kind == "log" and low <= 0):
        raise ValueError(f"The search has {part!r}; expected LOW < HIGH, both finite, and LOW > 0 for :log.")
    return Range(low, high, kind == "log")
