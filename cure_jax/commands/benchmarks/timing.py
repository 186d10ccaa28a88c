"""Programs that take turns, and a table of how long they took."""

import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from rich import box
from rich.table import Table

# One measurement lasts at least this long: shorter programs are run several times in it.
_SHORTEST = 0.05


@dataclasses.dataclass(frozen=True)
class Seconds:
    """What one run took.

    Attributes:
      wall: by the clock.
      cpu: of all cores together, which other users of the machine disturb less.
    """

    wall: float
    cpu: float


@dataclasses.dataclass(frozen=True)
class Row:
    """A program in the table.

    Attributes:
      name: what ran.
      first: the first run by the clock, which compiles.
      shortest: the shortest of the others.
      median: their median.
      cpu: the least that one took of all cores together.
      ratio: shortest time over that of the reference.
      median_ratio: median over the rounds of the ratio to the reference in the same round.
      cpu_ratio: least time of all cores together over that of the reference.
    """

    name: str
    first: float
    shortest: float
    median: float
    cpu: float
    ratio: float
    median_ratio: float
    cpu_ratio: float


@dataclasses.dataclass(frozen=True)
class Check:
    """Something about the results that must be so.

    Attributes:
      value: what was measured.
      holds: whether it is as it must be.
    """

    value: float
    holds: bool


@dataclasses.dataclass(frozen=True)
class Report:
    """One table.

    Attributes:
      title: what was timed.
      rows: the programs.
      checks: what was found out about their results.
      facts: further figures, for the JSON file only.
    """

    title: str
    rows: list[Row]
    checks: dict[str, Check]
    facts: dict[str, Any] = dataclasses.field(default_factory=dict)


def in_process(function: Callable[..., Any], *operands: Any, repeats: int = 1) -> Callable[[], Seconds]:
    """Returns a program that runs a JAX function to its end, after its first two runs often enough to be measurable.

    Args:
      function: compiled by `jax.jit`.
      *operands: its arguments.
      repeats: how often it does by itself what is to be timed once, such as the steps of a loop.

    Returns:
      The program, which gives the seconds of one call over `repeats`.
    """
    planned: list[int] = [1, 1]

    def run() -> Seconds:
        calls = planned.pop(0)
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(calls):
            jax.block_until_ready(function(*operands))
        wall, cpu = (time.perf_counter() - wall) / calls, (time.process_time() - cpu) / calls
        if not planned:
            planned.append(max(1, math.ceil(_SHORTEST / wall)) if calls == 1 else calls)
        return Seconds(wall / repeats, cpu / repeats)

    return run


def take_turns(programs: Mapping[str, Callable[[], Seconds]], rounds: int) -> dict[str, list[Seconds]]:
    """Runs every program once in each round; two rounds more at the start compile and warm up.

    Args:
      programs: each runs once and says what that took.
      rounds: how many to report.

    Returns:
      The seconds of the first run and of those to report, for each program.
    """
    taken: dict[str, list[Seconds]] = {name: [] for name in programs}
    for _ in range(rounds + 2):
        for name, program in programs.items():
            taken[name].append(program())
    return {name: [seconds[0], *seconds[2:]] for name, seconds in taken.items()}


def rows(taken: Mapping[str, Sequence[Seconds]], reference: str) -> list[Row]:
    """Returns the rows of a table, with ratios to one of the programs.

    Args:
      taken: from `take_turns`.
      reference: the name of the program that counts as 1.

    Returns:
      A row for each program, in the same order.
    """
    base, base_cpu = (np.array(column) for column in _columns(taken[reference][1:]))
    made = []
    for name, (first, *others) in taken.items():
        wall, cpu = (np.array(column) for column in _columns(others))
        times = first.wall, wall.min(), np.median(wall), cpu.min()
        # A clock that has not moved makes no ratio.
        ratios = wall.min() / base.min(), np.median(wall / base), cpu.min() / max(base_cpu.min(), 1e-9)
        made.append(Row(name, *map(float, times), *map(float, ratios)))
    return made


def _columns(taken: Sequence[Seconds]) -> tuple[list[float], list[float]]:
    return [seconds.wall for seconds in taken], [seconds.cpu for seconds in taken]


def table(title: str, body: Sequence[Row]) -> Table:
    """Returns the rows for `rich`."""
    shown = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    shown.add_column("program", no_wrap=True)
    for heading in ("ratio", "median\nratio", "cpu\nratio", "shortest", "median", "cpu", "first"):
        shown.add_column(heading, justify="right", no_wrap=True)
    for row in body:
        ratios = [_significant(value) for value in (row.ratio, row.median_ratio, row.cpu_ratio)]
        times = [_readable(value) for value in (row.shortest, row.median, row.cpu, row.first)]
        shown.add_row(row.name, *ratios, *times)
    return shown


def _significant(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _readable(seconds: float) -> str:
    return f"{_significant(seconds)}s" if seconds >= 1 else f"{_significant(1000 * seconds)}ms"
