"""What a hunt has found: counts, and their table."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from rich.table import Table

from cure_jax.certification import METHODS

__all__ = ["VERIFY", "Tally", "enter", "table", "totals"]

# How complete verification is called beside the methods.
VERIFY = "verify"

# In units of the largest logit at the image: a bound below minus this says nothing.
VACUOUS = 1e3


@dataclasses.dataclass
class Tally:
    """What was found about one norm and network."""

    pairs: int = 0
    bounds: int = 0
    certified: dict[str, int] = dataclasses.field(default_factory=dict)
    vacuous: dict[str, int] = dataclasses.field(default_factory=dict)
    attacked_points: int = 0
    broken: int = 0


def enter(tally: Tally, found: Mapping[str, Any]) -> int | None:
    """Counts; returns the index of an example with a broken bound, if there is one."""
    tally.pairs += len(found["margin"])
    tally.attacked_points += int(np.sum(found["points"]))
    worst = None
    for method, certificate in found["bounds"].items():
        # Some are of the first examples only.
        count = len(certificate.margin)
        margin, allowed, scale = (found[name][:count] for name in ("margin", "allowed", "scale"))
        tally.bounds += count
        vacuous = ~(certificate.margin >= -VACUOUS * np.maximum(1, scale))
        for counts, which in ((tally.certified, certificate.verified), (tally.vacuous, vacuous)):
            counts[method] = counts.get(method, 0) + int(np.sum(which))
        # A bound that is not a number bounds nothing; certificates of such are refused.
        above = certificate.margin > margin + allowed
        broken = (
            above | (certificate.verified & (margin < -allowed)) | (np.isnan(certificate.margin) & certificate.verified)
        )
        tally.broken += int(np.sum(broken))
        worst = int(np.argmax(broken)) if np.any(broken) and worst is None else worst
    return worst


def totals(tallies: Iterable[Tally]) -> Tally:
    """All counts together."""
    total = Tally()
    for tally in tallies:
        total.pairs += tally.pairs
        total.bounds += tally.bounds
        total.attacked_points += tally.attacked_points
        total.broken += tally.broken
        for counts, more in ((total.certified, tally.certified), (total.vacuous, tally.vacuous)):
            counts.update({method: counts.get(method, 0) + count for method, count in more.items()})
    return total


def table(tallies: Mapping[tuple[str, str], Tally]) -> Table:
    """For each method, how many bounds certify and how many are vacuous."""
    methods = [name for name in (*METHODS, VERIFY) if any(name in tally.certified for tally in tallies.values())]
    table = Table("network", "norm", "pairs", *(f"{name}: certified, vacuous" for name in methods), "points", "broken")
    rows = [(*key, tally) for key, tally in tallies.items()] + [("all", "", totals(tallies.values()))]
    for network, norm, tally in rows:
        counts = [
            f"{tally.certified[name]}, {tally.vacuous[name]}" if name in tally.certified else "" for name in methods
        ]
        table.add_row(network, norm, str(tally.pairs), *counts, str(tally.attacked_points), str(tally.broken))
    return table
