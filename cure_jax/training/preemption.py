"""SIGTERM and SIGINT as notices, not ends: all processes agree on where to stop, save, and exit 0."""

import contextlib
import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator

import jax
from jax.experimental import multihost_utils

__all__ = ["Preempted", "notices"]

_LOGGER = logging.getLogger(__name__)


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
    """Listens for SIGTERM and SIGINT (Ctrl-C). A SIGINT after either of them ends the process at once.

    Yields:
      A function to call with the numbers of the steps just made, after each part of the work and on every process
      alike. It is true, on all of them for the same steps, some time after any one of them got the signal. Outside of
      the main thread, where Python cannot listen for signals, it hears of those that other processes got at most.
    """
    several = jax.process_count() > 1
    told = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield _agreed if several else lambda steps: False
    elif several:
        # JAX listens for SIGTERM itself.
        with _handling({signal.SIGINT: lambda: os.kill(os.getpid(), signal.SIGTERM)}):
            yield _agreed
    else:
        with _handling(dict.fromkeys((signal.SIGTERM, signal.SIGINT), told.set)):
            yield lambda steps: told.is_set()


def _agreed(steps: range) -> bool:
    """JAX listens itself, and picks one of the coming numbers as the point to stop at: none may be left out.

    The numbers are those of the steps, because orbax asks JAX the same question with those.
    """
    return any([multihost_utils.reached_preemption_sync_point(step) for step in steps])


@contextlib.contextmanager
def _handling(reactions: dict[signal.Signals, Callable[[], None]]) -> Iterator[None]:
    """Reacts to signals within, and ends at once if SIGINT is not the first of them."""
    before = {number: signal.signal(number, lambda *_, react=react: react()) for number, react in reactions.items()}
    # Handlers have to wait while the main thread is in compiled code, which may be minutes; a thread need not.
    ours, python = socket.socketpair()
    python.setblocking(False)
    file = signal.set_wakeup_fd(python.fileno(), warn_on_full_buffer=False)
    thread = threading.Thread(target=_watch, args=(ours, set(reactions)), name="signals", daemon=True)
    thread.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(file)
        for number, handler in before.items():
            signal.signal(number, handler)
        python.close()
        thread.join()
        ours.close()


def _watch(numbers: socket.socket, ours: set[signal.Signals]) -> None:
    told = False
    while received := numbers.recv(1):
        if received[0] not in ours:
            continue
        if told and received[0] == signal.SIGINT:
            os.write(2, b"error: a second notice to stop, by SIGINT: ended at once, nothing more is saved.\n")
            os._exit(128 + signal.SIGINT)
        _LOGGER.info("Told to stop: the state is saved after this run of steps. A second Ctrl-C ends at once.")
        told = True
