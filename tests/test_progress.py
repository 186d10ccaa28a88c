"""Progress: a bar on terminals, rare lines of the log elsewhere."""

import contextlib
import io
import logging
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from rich.console import Console

from cure_jax.progress import compile_seconds, profiled, progress


def _console(*, terminal: bool) -> tuple[Console, io.StringIO]:
    output = io.StringIO()
    return Console(file=output, force_terminal=terminal, width=120), output


def test_progress_on_a_terminal_shows_a_bar(caplog: pytest.LogCaptureFixture) -> None:
    console, output = _console(terminal=True)
    with caplog.at_level(logging.INFO), progress(20, "training", start=5, console=console) as bar:
        for _ in range(15):
            bar.advance(loss=jnp.float32(0.25))
    assert "training" in output.getvalue()
    assert "20/20" in output.getvalue()
    assert "loss 0.2500" in output.getvalue()
    assert not caplog.records


def test_progress_elsewhere_is_lines_of_the_log(caplog: pytest.LogCaptureFixture) -> None:
    console, output = _console(terminal=False)
    with (
        caplog.at_level(logging.INFO),
        progress(20, "training", start=5, unit="images", interval_seconds=0.0, console=console) as bar,
    ):
        bar.advance(3, loss=jnp.float32(0.25))
        bar.advance(2)
    assert output.getvalue() == ""
    assert len(caplog.messages) == 2
    assert caplog.messages[0].startswith("training: 8/20 ")
    assert caplog.messages[1].startswith("training: 10/20 ")
    assert all("images/s, loss 0.2500 left 0:00:0" in message for message in caplog.messages)


def test_images_and_memory_are_shown(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    class Device:
        def memory_stats(self) -> dict[str, int]:
            return {"peak_bytes_in_use": 3 * 2**30, "bytes_limit": 16 * 2**30}

    monkeypatch.setattr(jax, "local_devices", lambda: [Device()])
    monkeypatch.setattr(time, "monotonic", iter([0.0, 2.0]).__next__)
    console, _ = _console(terminal=False)
    with (
        caplog.at_level(logging.INFO),
        progress(20, "training", batch_size=64, interval_seconds=0.0, console=console) as bar,
    ):
        bar.advance(10, loss=0.25)
    assert caplog.messages == ["training: 10/20 5.0 steps/s, 320 images/s, loss 0.2500, 3.0 of 16.0 GiB left 0:00:02"]


def test_compilations_are_timed_while_listening() -> None:
    with compile_seconds() as compiling:
        assert compiling() == 0
        jax.jit(lambda x: x + 1)(jnp.zeros(3))
        counted = compiling()
        assert counted > 0
    jax.jit(lambda x: x + 2)(jnp.zeros(3))
    assert compiling() == counted


def test_a_trace_holds_the_steps_asked_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda directory: calls.append(f"start in {directory}"))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: calls.append("stop"))
    with caplog.at_level(logging.INFO), profiled(str(tmp_path), 25, 30) as before:
        for start in range(0, 60, 10):
            before(range(start, start + 10))
            calls.append(start)
    assert calls == [0, 10, f"start in {tmp_path}", 20, 30, "stop", 40, 50]
    assert str(tmp_path) in caplog.text
    # A trace that is under way is finished, whatever happens.
    calls.clear()
    with contextlib.suppress(KeyError), profiled(str(tmp_path), 0, 5) as before:
        before(range(1))
        raise KeyError
    assert calls == [f"start in {tmp_path}", "stop"]


def test_lines_of_the_log_are_rare(caplog: pytest.LogCaptureFixture) -> None:
    console, _ = _console(terminal=False)
    with caplog.at_level(logging.INFO), progress(1000, "training", interval_seconds=1e6, console=console) as bar:
        for _ in range(1000):
            bar.advance(loss=0.5)
    assert caplog.messages == []
