"""Progress of long loops on the host: a bar on terminals and in notebooks, now and then a line of the log elsewhere."""

import contextlib
import datetime
import functools
import logging
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import jax
import numpy as np
from jax.typing import ArrayLike
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

_LOGGER = logging.getLogger(__name__)
_COMPILED = "/jax/core/compile/backend_compile_duration"
_NOTEBOOK_SECONDS = 0.5
_WIDTH = 20


class ProgressBar(Protocol):
    """What `progress` yields."""

    def begin(self, doing: str) -> None:
        """Say what comes next and may take long, such as compiling: shown with a clock until the next `advance`."""
        ...

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

    On a terminal and in a notebook a bar; elsewhere a line of the log, at most one every `interval_seconds`, or of
    standard error where the log does not take it. In a run of several processes only the first one shows anything.

    Args:
      total: The number of steps of the whole run.
      description: What is going on.
      start: The number of steps done before, when resuming.
      unit: What is counted.
      batch_size: Images in each unit, whose rate is shown too; default: not shown.
      interval_seconds: The least time between two lines of the log.
      console: Where to show it; default: standard error.

    Yields:
      An object whose `begin("compiling")` and `advance(steps, loss=...)` the loop calls.

    Examples:
      >>> with progress(100, "training") as bar:
      ...     bar.begin("compiling")
      ...     for step in range(100):
      ...         bar.advance(loss=0.5)
    """
    console, rates = console or Console(stderr=True), functools.partial(_status, unit, batch_size)
    if jax.process_index() != 0:
        yield _Nothing()
        return
    if not console.is_terminal:
        write = _notebook_writer() if console.is_jupyter else functools.partial(_log, console)
        interval = min(interval_seconds, _NOTEBOOK_SECONDS) if console.is_jupyter else interval_seconds
        lines = _Lines(total, description, start, rates, interval, write)
        with lines.ticking():
            yield lines
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[status]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bar:
        yield _Bar(bar, bar.add_task(description, total=total, completed=start, status=""), rates)


def is_watched(console: Console | None = None) -> bool:
    """Whether somebody looks on: on a terminal, and in a notebook.

    Args:
      console: Where progress is shown; default: standard error.
    """
    console = console or Console(stderr=True)
    return console.is_terminal or console.is_jupyter


class _Nothing:
    """Shows nothing."""

    def begin(self, doing: str) -> None:
        del doing

    def advance(self, steps: int = 1, *, loss: ArrayLike | None = None, doing: str = "") -> None:
        del steps, loss, doing


class _Bar:
    """A bar on a terminal, whose clock runs by itself."""

    def __init__(self, bar: Progress, task: TaskID, rates: Callable[..., str]) -> None:
        self._bar, self._task, self._rates, self._loss = bar, task, rates, None

    def begin(self, doing: str) -> None:
        self._bar.update(self._task, status=f"{doing} ...")

    def advance(self, steps: int = 1, *, loss: ArrayLike | None = None, doing: str = "") -> None:
        self._loss = self._loss if loss is None else _float(loss)
        self._bar.advance(self._task, steps)
        speed = self._bar.tasks[self._task].speed
        self._bar.update(self._task, status=self._rates(speed, self._loss, doing))


class _Lines:
    """Lines of text, now and then; while something takes long, by a thread of their own."""

    def __init__(
        self,
        total: int,
        description: str,
        start: int,
        rates: Callable[..., str],
        interval_seconds: float,
        write: Callable[[str], None],
    ) -> None:
        self._total, self._description, self._write = total, description, write
        self._rates, self._interval = rates, interval_seconds
        self._start = self._done = start
        self._began = self._written = time.monotonic()
        self._loss = None
        # What takes long, and since when.
        self._waiting: tuple[str, float] | None = None
        self._spoke, self._lock = False, threading.Lock()

    def begin(self, doing: str) -> None:
        with self._lock:
            self._waiting = doing, time.monotonic()
            if not self._spoke:
                # Later ones only if they take long.
                self._say(f"{doing} ...", self._waiting[1])

    def advance(self, steps: int = 1, *, loss: ArrayLike | None = None, doing: str = "") -> None:
        with self._lock:
            self._done += steps
            self._loss = self._loss if loss is None else loss
            self._waiting = None
            now = time.monotonic()
            if now - self._written < self._interval and self._done < self._total:
                return
            speed = (self._done - self._start) / max(now - self._began, 1e-9)
            seconds = max(self._total - self._done, 0) / speed if speed > 0 else 0
            status = self._rates(speed, None if self._loss is None else _float(self._loss), doing)
            self._say(f"{status} left {_clock(seconds)}", now)

    @contextlib.contextmanager
    def ticking(self) -> Iterator[None]:
        """While this lasts, what takes long says so once in an interval."""
        over = threading.Event()

        def tick() -> None:
            while not over.wait(self._interval):
                self._tick()

        thread = threading.Thread(target=tick, name="progress", daemon=True)
        if self._interval > 0:
            thread.start()
        try:
            yield
        finally:
            over.set()

    def _tick(self) -> None:
        with self._lock:
            if self._waiting is not None:
                doing, since = self._waiting
                now = time.monotonic()
                self._say(f"{doing} ... {_clock(now - since)}", now)

    def _say(self, status: str, now: float) -> None:
        self._written, self._spoke = now, True
        share = min(self._done / self._total, 1.0) if self._total else 1.0
        bar = "#" * int(share * _WIDTH)
        self._write(f"{self._description} [{bar:.<{_WIDTH}}] {self._done}/{self._total} {status}")


def _clock(seconds: float) -> str:
    return str(datetime.timedelta(seconds=round(seconds)))


def _log(console: Console, line: str) -> None:
    if _LOGGER.isEnabledFor(logging.INFO):
        _LOGGER.info("%s", line)
    else:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _notebook_writer() -> Callable[[str], None]:
    """Writes a line of a notebook, over the one before."""
    from IPython.display import display  # pyright: ignore[reportMissingImports]

    handle: Any = display({"text/plain": ""}, raw=True, display_id=True)
    return lambda line: handle.update({"text/plain": line}, raw=True)


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
