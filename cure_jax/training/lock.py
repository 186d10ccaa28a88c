"""One training at a time in a work directory: `lock.json` names the process that has it.

That process writes a growing number into it, its heartbeat. A lock whose process has ended is free: on the same host
one can look, on another one only wait whether the number still grows, so no clocks are compared. Files are written and
read back, nothing else, as shared file systems and buckets offer nothing else that all of them keep to.
"""

import contextlib
import json
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from cure_jax import distributed
from cure_jax.training.workdir import AnyPath, WorkdirError, as_path, is_bucket, writing

__all__ = ["Lock", "hold"]

_LOGGER = logging.getLogger(__name__)
# Seconds between two heartbeats; until one that has stopped leaves the lock free; between two looks at it.
_BEAT, _STALE, _LOOK = 10.0, 60.0, 1.0
# Two processes may find the same lock free. Each writes its own, waits longer than any takes from finding to writing,
# and reads: the last one to write has it.
_SETTLE = 1.0


@contextlib.contextmanager
def hold(workdir: str | os.PathLike) -> Iterator["Lock"]:
    """Holds the lock of a work directory. All processes of a training call it; the first one has the lock.

    Args:
      workdir: The work directory, made if missing.

    Yields:
      The lock; call its `check` before anything is written.

    Raises:
      WorkdirError: On all processes, if another training has it.
      OSError: On all processes, if it cannot be written.
    """
    lock = Lock(as_path(workdir) / "lock.json")
    while not distributed.first_finds(lock.attempt, WorkdirError, OSError):
        time.sleep(_LOOK)
    beating = lock.beating() if jax.process_index() == 0 else contextlib.nullcontext()
    with beating:
        yield lock


class Lock:
    """The lock of one training, as its first process sees it.

    Args:
      path: Of the file.
    """

    def __init__(self, path: AnyPath) -> None:
        self._path, pid = path, os.getpid()
        # The number at the end tells one training of a process from the next.
        self._mine = {"host": socket.gethostname(), "machine": _machine(), "pid": pid, "started": _started(pid)}
        self._mine["id"] = os.urandom(8).hex()
        self._seen: tuple[str, float] | None = None

    def attempt(self) -> bool:
        """Looks at the lock once, and takes it if it is free.

        Returns:
          Whether it is ours now; else look again a little later.

        Raises:
          WorkdirError: If another training has it.
          OSError: If it cannot be written.
        """
        with writing("The lock", self._path):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            text = self._read()
            if text is None:
                return self._create()
            if not self._is_free(text):
                return False
            _LOGGER.warning("Taking over %s from %s, which has ended.", self._path.parent, _named(text))
            return self._replace()

    def check(self) -> None:
        """Refuses to go on without the lock: someone removed it, or took over while this process stood still.

        Raises:
          WorkdirError: If so.
        """
        if jax.process_index() != 0:
            return
        text = self._read()
        if not self._is_mine(text):
            found = "is gone" if text is None else f"is that of {_named(text)}"
            raise WorkdirError(
                f"The lock {self._path} {found}; that of this training was expected. It stops and writes nothing more. "
                "If no other training runs there, give the same command again."
            )

    @contextlib.contextmanager
    def beating(self) -> Iterator[None]:
        """Keeps the heart beating within, and gives the lock back behind."""
        end = threading.Event()
        heart = threading.Thread(target=self._beat, args=(end,), name="heartbeat", daemon=True)
        heart.start()
        try:
            yield
        finally:
            end.set()
            # Not for ever, as file systems may hang.
            heart.join(timeout=_BEAT)
            with contextlib.suppress(OSError):
                if self._is_mine(self._read()):
                    self._path.unlink()

    def _beat(self, end: threading.Event) -> None:
        number = 0
        while not end.wait(_BEAT):
            number += 1
            try:
                if not self._write_again(self._text(number)):
                    return
            except FileNotFoundError:
                return
            # Buckets raise nearly anything. The next beat is a new attempt.
            except Exception as error:  # noqa: BLE001
                _LOGGER.warning("The heartbeat could not be written to %s (%s).", self._path, error)

    def _write_again(self, text: str) -> bool:
        """Writes the lock over, of the same length, so that it needs no room on a full disk; false if it is not ours.

        Whoever takes over puts another file in its place, which is then not the one that is open here.
        """
        if is_bucket(self._path):
            ours = self._is_mine(self._read())
            if ours:
                self._path.write_text(text)
            return ours
        with self._path.open("r+") as file:
            ours = self._is_mine(file.read())
            if ours:
                file.seek(0)
                file.write(text)
            return ours

    def _is_free(self, text: str) -> bool:
        """Whether nobody has it any more; raises if somebody does."""
        owner = _parsed(text)
        ended = _has_ended(owner)
        now, first = time.monotonic(), self._seen is None
        self._seen = self._seen or (text, now)
        before, since = self._seen
        if ended is False or (ended is None and text != before):
            raise WorkdirError(
                f"Another training runs in {self._path.parent}: {_named(text)}. One at a time was expected: wait for "
                "its end, or choose another work directory."
            )
        if ended is None and first:
            _LOGGER.warning(
                "The lock %s is that of %s: waiting until its heartbeat is older than %g seconds.",
                self._path,
                _named(text),
                _STALE,
            )
        return ended is True or now - since > _STALE

    def _create(self) -> bool:
        """Takes a lock that is not there."""
        if is_bucket(self._path):
            return self._replace()
        try:
            file = self._path.open("x")
        except FileExistsError:
            return False
        try:
            with file:
                file.write(self._text(0))
        except OSError:
            self._path.unlink()
            raise
        return True

    def _replace(self) -> bool:
        """Puts our lock in the place of one that is free, which others may do at the same time."""
        if isinstance(self._path, Path):
            temporary = self._path.with_name(f"{self._path.name}.{self._mine['id']}")
            try:
                temporary.write_text(self._text(0))
                temporary.replace(self._path)
            finally:
                temporary.unlink(missing_ok=True)
        else:
            self._path.write_text(self._text(0))
        time.sleep(_SETTLE)
        return self._is_mine(self._read())

    def _read(self) -> str | None:
        """What is there; None if nothing is."""
        try:
            return self._path.read_text()
        except (FileNotFoundError, NotADirectoryError):
            return None

    def _text(self, number: int) -> str:
        return json.dumps({**self._mine, "beat": f"{number:012d}"}) + "\n"

    def _is_mine(self, text: str | None) -> bool:
        return _parsed(text or "").get("id") == self._mine["id"]


def _parsed(text: str) -> dict[str, Any]:
    """The fields of a lock; none of what is no lock, such as one that is being written."""
    try:
        fields = json.loads(text)
    except ValueError:
        return {}
    return fields if isinstance(fields, dict) else {}


def _named(text: str) -> str:
    owner = _parsed(text)
    return f"process {owner.get('pid', 'unknown')} on host {owner.get('host', 'unknown')}"


def _has_ended(owner: dict[str, Any]) -> bool | None:
    """Whether the process of a lock has ended; None if that cannot be seen from here."""
    if owner.get("machine") != _machine() or not isinstance(owner.get("pid"), int):
        return None
    started = _started(owner["pid"])
    # Its number may have gone to another process, which began later.
    return None if started is None else started != owner.get("started")


def _machine() -> str | None:
    """The same for all processes that can see each other: of one running kernel, and one numbering of processes.

    Containers of the same name may have numberings of their own. None where the kernel does not say.
    """
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip() + os.readlink("/proc/self/ns/pid")
    except OSError:
        return None


def _started(pid: int) -> str | None:
    """When a process began, as the kernel counts; empty if it has ended; None if that cannot be seen."""
    if not Path("/proc/1").exists():
        # No Linux, or one that hides the processes of others.
        return None
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return ""
    # Killed, but its parent has not asked yet.
    return "" if fields[0] in "ZX" else fields[19]
