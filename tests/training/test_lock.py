"""The lock of a work directory: one training at a time, and none left behind that keeps the next one out."""

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cure_jax.training import WorkdirError, fit, lock
from cure_jax.training.lock import Lock, hold
from tests.training import tiny

ROOT = Path(__file__).parents[2]
# It says that it has the lock, and keeps it until its standard input is closed; or says why not.
_HOLDER = """
import sys
from cure_jax.training.lock import hold
try:
    with hold(sys.argv[1]):
        print("held", flush=True)
        sys.stdin.read()
except ValueError as error:
    print(error, flush=True)
"""


def _start(workdir: Path) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "-c", _HOLDER, str(workdir)], env=environment, **pipes)


def _write(workdir: Path, **fields: object) -> Path:
    """A lock of this very process, but for some of its fields."""
    path = workdir / "lock.json"
    path.write_text(json.dumps(json.loads(Lock(path)._text(0)) | fields))
    return path


class _Clock:
    """Time that passes where the lock sleeps; something may happen then."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, happens: Callable[[float], object] = lambda now: None) -> None:
        self.now, self._happens = 1000.0, happens
        monkeypatch.setattr(lock.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(lock.time, "sleep", self._sleep)

    def _sleep(self, seconds: float) -> None:
        self.now += seconds
        self._happens(self.now - 1000)


def test_a_lock_is_there_within_and_gone_behind(tmp_path: Path) -> None:
    with hold(tmp_path / "run") as held:
        owner = json.loads((tmp_path / "run" / "lock.json").read_text())
        assert (owner["pid"], owner["host"]) == (os.getpid(), lock.socket.gethostname())
        held.check()
    with pytest.raises(KeyboardInterrupt), hold(tmp_path / "run"):
        raise KeyboardInterrupt
    assert list((tmp_path / "run").iterdir()) == []


def test_a_second_training_is_refused_until_the_first_is_killed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with _start(tmp_path) as first:
        try:
            assert first.stdout is not None
            assert first.stdout.readline() == "held\n"
            with pytest.raises(WorkdirError, match=rf"Another training runs in .*: process {first.pid} on host "):
                fit(tiny.TinyMLP(), tiny.data(size=32), tiny.config(), tmp_path)
            # Nothing was written.
            assert [path.name for path in tmp_path.iterdir()] == ["lock.json"]
            # Nobody waits for it, so that its remains are still to be seen.
            first.send_signal(signal.SIGKILL)
            os.waitid(os.P_PID, first.pid, os.WEXITED | os.WNOWAIT)
            clock = _Clock(monkeypatch)
            with hold(tmp_path):
                pass
        finally:
            first.kill()
    # At once.
    assert clock.now - 1000 == lock._SETTLE
    assert f"from process {first.pid} on host" in caplog.text


def test_of_several_that_find_a_stale_lock_one_has_it(tmp_path: Path) -> None:
    _write(tmp_path, started="0")
    holders = [_start(tmp_path) for _ in range(3)]
    said = [holder.stdout.readline() for holder in holders if holder.stdout is not None]
    for holder in holders:
        holder.communicate("")
    assert said.count("held\n") == 1
    assert sum("Another training runs" in line for line in said) == 2
    assert list(tmp_path.iterdir()) == []


def test_a_process_that_got_the_number_of_a_dead_one_is_not_taken_for_it(tmp_path: Path) -> None:
    _write(tmp_path, pid=os.getppid(), started="1")
    with hold(tmp_path):
        assert json.loads((tmp_path / "lock.json").read_text())["pid"] == os.getpid()
    _write(tmp_path)
    with pytest.raises(WorkdirError, match=f"process {os.getpid()} on host"), hold(tmp_path):
        pass


@pytest.mark.parametrize("text", [None, "", '{"host": "elsewh', "[1]"])
def test_a_lock_of_another_host_is_waited_for_until_its_heart_has_stopped_for_a_minute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, text: str | None
) -> None:
    path = _write(tmp_path, machine="another", host="elsewhere", pid=7)
    if text is not None:
        path.write_text(text)
    clock = _Clock(monkeypatch)
    with hold(tmp_path):
        pass
    assert 60 < clock.now - 1000 < 65
    owner = "process 7 on host elsewhere" if text is None else "process unknown on host unknown"
    assert f"is that of {owner}: waiting until its heartbeat is older than 60 seconds" in caplog.text
    assert caplog.text.count("waiting") == 1


def test_a_lock_of_another_host_whose_heart_beats_is_respected_whatever_its_clock_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def beat(now: float) -> None:
        if now == 50:
            _write(tmp_path, machine="another", host="elsewhere", beat="1")
            os.utime(tmp_path / "lock.json", (0, 0))

    _write(tmp_path, machine="another", host="elsewhere", beat="0")
    clock = _Clock(monkeypatch, beat)
    with pytest.raises(WorkdirError, match="on host elsewhere"), hold(tmp_path):
        pass
    assert clock.now == 1050
    assert json.loads((tmp_path / "lock.json").read_text())["beat"] == "1"


def test_a_lock_that_is_given_back_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = _write(tmp_path, machine="another")
    clock = _Clock(monkeypatch, lambda now: path.unlink())
    with hold(tmp_path):
        assert clock.now == 1001


def test_who_writes_last_over_a_stale_lock_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _write(tmp_path, started="0")
    _Clock(monkeypatch, lambda now: _write(tmp_path, id="another training"))
    with pytest.raises(WorkdirError, match="Another training runs"), hold(tmp_path):
        pass


def test_a_training_without_its_lock_stops_and_leaves_that_of_others(tmp_path: Path) -> None:
    with hold(tmp_path) as held:
        path = _write(tmp_path, id="another", pid=7)
        with pytest.raises(WorkdirError, match=r"lock\.json is that of process 7 on host"):
            held.check()
        path.unlink()
        with pytest.raises(WorkdirError, match=r"lock\.json is gone"):
            held.check()
        _write(tmp_path, id="another")
    assert path.exists()


def test_fit_notices_at_its_next_step_that_its_work_directory_is_gone(tmp_path: Path) -> None:
    class Removes(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "Compiled" in record.msg:
                (tmp_path / "lock.json").unlink()

    logger, handler = logging.getLogger("cure_jax.training.loop"), Removes()
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        with pytest.raises(WorkdirError, match=r"lock\.json is gone"):
            fit(tiny.TinyMLP(), tiny.data(size=32), tiny.config(), tmp_path)
    finally:
        logger.removeHandler(handler)
        logger.setLevel(logging.NOTSET)
    assert not (tmp_path / "config.json").exists()


def test_the_heart_beats_in_place_and_stops_at_the_lock_of_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "_BEAT", 0.001)
    with hold(tmp_path):
        path = tmp_path / "lock.json"
        before, inode = path.read_text(), path.stat().st_ino
        while (after := path.read_text()) == before:
            time.sleep(0.001)
        # Of the same length: a full disk has room for it.
        assert (len(after), path.stat().st_ino) == (len(before), inode)
        (heart,) = (thread for thread in threading.enumerate() if thread.name == "heartbeat")
        (tmp_path / "other").write_text("{}")
        (tmp_path / "other").replace(path)
        heart.join()
        assert path.read_text() == "{}"


def test_a_disk_without_room_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(OSError, match=r"The lock could not be written to .*lock\.json \(Not a directory"),
        hold(tmp_path / "file" / "run"),
    ):
        pass


def test_in_a_bucket(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = _Clock(monkeypatch)
    with hold(bucket) as held:
        held.check()
        assert held._write_again(held._text(1))
        assert clock.now == 1000 + lock._SETTLE
        with pytest.raises(WorkdirError, match=f"process {os.getpid()} on host"), hold(bucket):
            pass
    with hold(bucket) as held:
        held.check()


def test_all_processes_of_a_training_hear_that_there_is_another_one(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "import jax, sys\n"
        "jax.distributed.initialize(*(value.partition('=')[2] for value in sys.argv[2:3]), *(\n"
        "    int(value.partition('=')[2]) for value in sys.argv[3:]))\n"
        "from cure_jax.training.lock import hold\n"
        "try:\n    with hold(sys.argv[1]):\n        print('held')\n"
        "except ValueError as error:\n    open(f'{sys.argv[1]}.{jax.process_index()}', 'w').write(str(error))\n"
    )
    command = [sys.executable, "launch/pods/local.py", "--processes=2", "--", str(program), str(tmp_path / "run")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    with hold(tmp_path / "run"):
        result = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=120
        )
    assert result.returncode == 0, result.stderr
    for process in ("0", "1"):
        assert (tmp_path / f"run.{process}").read_text().startswith("Another training runs in")
