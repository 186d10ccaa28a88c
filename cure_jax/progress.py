"""Progress of long loops on the host: a bar on a terminal, now and then a line of the log elsewhere."""

import contextlib
import datetime
import logging
import math
import time
from collections.abc import Iterator
from typing import Protocol

import jax
import numpy as np
from jax.typing import ArrayLike
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

_LOGGER = logging.getLogger(__name__)


class ProgressBar(Protocol):
    """What `progress` yields."""

    def advance(self, steps: int = 1, *, loss: ArrayLike | None = None) -> None:
        """Count steps that are done.

        Args:
          steps: How many.
          loss: Shown until the next one is given. To show it is to wait for it: a loop that runs ahead of its device
            gives it now and then only.
        """
        ...


@contextlib.contextmanager
def progress(
    total: int,
    description: str,
    *,
    start: int = 0,
    unit: str = "steps",
    interval_seconds: float = 10.0,
    console: Console | None = None,
) -> Iterator[ProgressBar]:
    """Show the progress of a loop: what is done, how fast, the time left, the loss.

    On a terminal a bar, elsewhere a line of the log, at most one every `interval_seconds`. In a run of several
    processes only the first one shows anything.

    Args:
      total: The number of steps of the whole run.
      description: What is going on.
      start: The number of steps done before, when resuming.
      unit: What is counted.
      interval_seconds: The least time between two lines of the log.
      console: Where to show it; default: standard error.

    Yields:
      An object whose `advance(steps, loss=...)` the loop calls.

    Examples:
      >>> with progress(100, "training") as bar:
      ...     for step in range(100):
      ...         bar.advance(loss=0.5)
    """
    console = console or Console(stderr=True)
    if jax.process_index() != 0 or not console.is_terminal:
        enabled = jax.process_index() == 0
        yield _LogLines(total, description, start, unit, interval_seconds if enabled else math.inf)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[status]}"),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bar:
        yield _Bar(bar, bar.add_task(description, total=total, completed=start, status=""), unit)


class _Bar:
    """A bar on a terminal."""

    def __init__(self, bar: Progress, task: TaskID, unit: str) -> None:
        self._bar, self._task, self._unit, self._loss = bar, task, unit, None

    def advance(self, steps: int = 1, *, loss: ArrayLike | None = None) -> None:
        self._loss = self._loss if loss is None else _float(loss)
        self._bar.advance(self._task, steps)
        speed = self._bar.tasks[self._task].speed
        self._bar.update(self._task, status=_status(speed, self._unit, self._loss))


class _LogLines:
    """Lines of the log, now and then."""

    def __init__(self, total: int, description: str, start: int, unit: str, interval_seconds: float) -> None:
        self._total, self._description = total, description
        self._unit, self._interval = unit, interval_seconds
        self._start = self._done = start
        self._began = self._logged = time.monotonic()
        self._loss = None

    def advance(self, steps: int = 1, *, loss: ArrayLike | None = None) -> None:
        self._done += steps
        self._loss = self._loss if loss is None else loss
        now = time.monotonic()
        if now - self._logged < self._interval:
            return
        self._logged = now
        speed = (self._done - self._start) / max(now - self._began, 1e-9)
        seconds = max(self._total - self._done, 0) / speed if speed > 0 else 0
        left = datetime.timedelta(seconds=round(seconds))
        status = _status(speed, self._unit, None if self._loss is None else _float(self._loss))
        _LOGGER.info("%s: %d/%d %s left %s", self._description, self._done, self._total, status, left)


def _status(speed: float | None, unit: str, loss: float | None) -> str:
    parts = [f"{speed:.1f} {unit}/s" if speed else "", f"loss {loss:.4f}" if loss is not None else ""]
    return ", ".join(part for part in parts if part)


def _float(loss: ArrayLike) -> float:
    return float(np.asarray(loss).reshape(()))
