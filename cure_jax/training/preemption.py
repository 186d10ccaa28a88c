"""SIGTERM as a notice, not an end: all processes agree on where to stop, save, and exit 0."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator

import jax
from jax.experimental import multihost_utils

__all__ = ["Preempted", "notices"]


class Preempted(Exception):
    """The run was told to stop and saved its state; the same command continues it.

    Attributes:
      step: of the checkpoint.
    """

    def __init__(self, step: int) -> None:
        super().__init__(f"Preempted: saved the state at step {step}. The same command continues from there.")
        self.step = step


@contextlib.contextmanager
def notices() -> Iterator[Callable[[range], bool]]:
    """Listens for SIGTERM.

    Yields:
      A function to call with the numbers of the steps just made, after each part of the work and on every process
      alike. It is true, on all of them for the same steps, some time after any one of them got the signal. Outside of
      the main thread, where Python cannot listen for signals, it is always false.
    """
    if jax.process_count() > 1:
        yield _agreed
        return
    if threading.current_thread() is not threading.main_thread():
        yield lambda steps: False
        return
    told = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda number, frame: told.set())
    try:
        yield lambda steps: told.is_set()
    finally:
        signal.signal(signal.SIGTERM, before)


def _agreed(steps: range) -> bool:
    """JAX listens itself, and picks one of the coming numbers as the point to stop at: none may be left out.

    The numbers are those of the steps, because orbax asks JAX the same question with those.
    """
    return any([multihost_utils.reached_preemption_sync_point(step) for step in steps])
