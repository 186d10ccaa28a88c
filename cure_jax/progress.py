"""Progress of long loops on the host: a bar on a terminal, now and then a line of the log elsewhere."""

import contextlib
import datetime
import functools
import logging
import math
import time
from collections.abc import Callable, Iterator
from typing import Protocol

import jax
import numpy as np
from jax.typing import ArrayLike
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

_LOGGER = logging.getLogger(__name__)
_COMPILED = "/jax/core/compile/backend_compile_duration"


class ProgressBar(Protocol):
    """What `progress` yields."""

    def advance(self, steps: int = 1, *, loss: ArrayLike | None = None, doing: str = "") -> None:
        """Count steps that are done.

        Args:
          steps: How many.
          loss: Shown until the next one is given. To show it is to wait for it: a loop that runs ahead of its device
            gives it now and then only.
          doing: What these steps were, in a word or two.
        """
        ...


@contextlib.contextmanager
def progress(  # noqa: PLR0913  (what can be shown)
    total: int,
    description: str,
    *,
    start: int = 0,
    unit: str = "steps",
    batch_size: int | None = None,
    interval_seconds: float = 10.0,
    console: Console | None = None,
) -> Iterator[ProgressBar]:
    """Show the progress of a loop: what is done, how fast, the time left, the loss, the memory of the first device.

    On a terminal a bar, elsewhere a line of the log, at most one every `interval_seconds`. In a run of several
    processes only the first one shows anything.

    Args:
      total: The number of steps of the whole run.
      description: What is going on.
      start: The number of steps done before, when resuming.
      unit: What is counted.
      batch_size: Images in each unit, whose rate is shown too; default: not shown.
      interval_seconds: The least time between two lines of the log.
      console: Where to show it; default: standard error.

    Yields:
      An object whose `advance(steps, loss=...)` the loop calls.

    Examples:
      >>> with progress(100, "training") as bar:
      ...     for step in range(100):
      ...         bar.advance(loss=0.5)
    """
    console, rates = console or Console(stderr=True), functools.partial(_status, unit, batch_size)
    if jax.process_index() != 0 or not console.is_terminal:
        enabled = jax.process_index() == 0
        yield _LogLines(total, description, start, rates, interval_seconds if enabled else math.inf)
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
        yield _Bar(bar, bar.add_task(description, total=total, completed=start, status=""), rates)


class _Bar:
    """A bar on a terminal."""

    def __init__(self, bar: Progress, task: TaskID, rates: Callable[..., str]) -> None:
        self._bar, self._task, self._rates, self._loss = bar, task, rates, None

    def advance(self, steps: int = 1, *, loss: ArrayLike | None = None, doing: str = "") -> None:
        self._loss = self._loss if loss is None else _float(loss)
        self._bar.advance(self._task, steps)
        speed = self._bar.tasks[self._task].speed
        self._bar.update(self._task, status=self._rates(speed, self._loss, doing))


class _LogLines:
    """Lines of the log, now and then."""

    def __init__(
        self, total: int, description: str, start: int, rates: Callable[..., str], interval_seconds: float
    ) -> None:
        self._total, self._description = total, description
        self._rates, self._interval = rates, interval_seconds
        self._start = self._done = start
        self._began = self._logged = time.monotonic()
        self._loss = None

    def advance(self, steps: int = 1, *, loss: ArrayLike | None = None, doing: str = "") -> None:
        self._done += steps
        self._loss = self._loss if loss is None else loss
        now = time.monotonic()
        if now - self._logged < self._interval:
            return
        self._logged = now
        speed = (self._done - self._start) / max(now - self._began, 1e-9)
        seconds = max(self._total - self._done, 0) / speed if speed > 0 else 0
        left = datetime.timedelta(seconds=round(seconds))
        status = self._rates(speed, None if self._loss is None else _float(self._loss), doing)
        _LOGGER.info("%s: %d/%d %s left %s", self._description, self._done, self._total, status, left)


def _status(unit: str, batch_size: int | None, speed: float | None, loss: float | None, doing: str) -> str:
    parts = [
        doing,
        f"{speed:.1f} {unit}/s" if speed else "",
        f"{speed * batch_size:.0f} images/s" if speed and batch_size else "",
        f"loss {loss:.4f}" if loss is not None else "",
        device_memory(),
    ]
    return ", ".join(part for part in parts if part)


def device_memory(before: str = "") -> str:
    """The most memory that this process used on its first device so far; empty where devices do not say (CPU)."""
    memory = jax.local_devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" not in memory or "bytes_limit" not in memory:
        return ""
    return f"{before}{memory['peak_bytes_in_use'] / 2**30:.1f} of {memory['bytes_limit'] / 2**30:.1f} GiB"


@contextlib.contextmanager
def compile_seconds() -> Iterator[Callable[[], float]]:
    """Counts the seconds that XLA spends on compiling; yields a function that says how many so far."""
    durations: list[float] = []

    def listen(event: str, duration_secs: float, **kwargs: str | int) -> None:
        del kwargs
        if event == _COMPILED:
            durations.append(duration_secs)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield lambda: sum(durations)
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


@contextlib.contextmanager
def profiled(directory: str, first: int, last: int) -> Iterator[Callable[[range], None]]:
    """Records a profiler trace, for TensorBoard or Perfetto.

    Args:
      directory: Where it goes.
      first: The first step of interest.
      last: The last one.

    Yields:
      A function to call before each part of the work with the numbers of its steps: all parts that hold a step of
      interest are recorded. The work before must be finished, as it is in a loop that looks at its results.
    """
    running = False

    def before(steps: range) -> None:
        nonlocal running
        wanted = steps.start <= last and first < steps.stop
        if wanted and not running:
            jax.profiler.start_trace(directory)
        elif running and not wanted:
            jax.profiler.stop_trace()
            _LOGGER.info("Wrote a profiler trace to %s.", directory)
        running = wanted

    try:
        yield before
    finally:
        before(range(last + 1, last + 1))


def _float(loss: ArrayLike) -> float:
    return float(np.asarray(loss).reshape(()))
