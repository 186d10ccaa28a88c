"""Progress: a bar on terminals, rare lines of the log elsewhere."""

import contextlib
import io
import logging
import sys
import time
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from rich.console import Console

from cure_jax.certification.batches import shown
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
    assert caplog.messages[0].startswith("training [########............] 8/20 ")
    assert caplog.messages[1].startswith("training [##########..........] 10/20 ")
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
    assert caplog.messages == [
        "training [##########..........] 10/20 5.0 steps/s, 320 images/s, loss 0.2500, 3.0 of 16.0 GiB left 0:00:02"
    ]


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
    # The last one always.
    assert [message.partition(" loss")[0].split(" ")[2] for message in caplog.messages] == ["1000/1000"]


def test_what_takes_long_says_so_at_once_and_then_by_a_clock(caplog: pytest.LogCaptureFixture) -> None:
    console, _ = _console(terminal=False)
    with (
        caplog.at_level(logging.INFO),
        progress(20, "training", interval_seconds=1e-3, console=console) as bar,
    ):
        bar.begin("compiling")
        while len(caplog.messages) < 3:
            time.sleep(1e-3)
        bar.advance(20)
    first, *ticks, last = caplog.messages
    assert first == "training [....................] 0/20 compiling ..."
    assert all(tick == "training [....................] 0/20 compiling ... 0:00:00" for tick in ticks)
    assert last.startswith("training [####################] 20/20 ")


def test_the_clock_stops_when_steps_are_done() -> None:
    console, output = _console(terminal=False)
    with progress(20, "training", interval_seconds=1e6, console=console) as bar:
        bar.begin("compiling")
        bar._tick()
        bar.advance(5)
        bar._tick()
    assert output.getvalue().count("compiling ...") == 2


def test_without_a_log_lines_go_to_the_console() -> None:
    console, output = _console(terminal=False)
    with progress(20, "training", interval_seconds=1e6, console=console) as bar:
        bar.begin("compiling")
        bar.advance(5)
        bar.begin("compiling more")
    assert output.getvalue() == "training [....................] 0/20 compiling ...\n"


def test_a_terminal_says_what_is_compiled() -> None:
    console, output = _console(terminal=True)
    with progress(20, "training", console=console) as bar:
        bar.begin("compiling linf crown")
    assert "compiling linf crown ..." in output.getvalue()
    assert "0:00:00" in output.getvalue()


def test_a_notebook_shows_one_line_that_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = []

    class Handle:
        def update(self, data: dict[str, str], raw: bool) -> None:
            assert raw
            lines.append(data["text/plain"])

    display = types.SimpleNamespace(display=lambda data, raw, display_id: Handle())
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    with progress(20, "training", console=Console(force_jupyter=True, file=io.StringIO())) as bar:
        bar.begin("compiling")
        bar.advance(20, loss=0.5)
    assert lines[0] == "training [....................] 0/20 compiling ..."
    assert lines[-1].startswith("training [####################] 20/20 ")


def test_images_count_when_all_their_norms_are_decided(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO), shown(10, "certify", True, parts=3) as advance:
        advance("compiling linf crown", 0)
        for _ in range(6):
            advance("linf crown", 5)
    assert caplog.messages[0] == "certify [....................] 0/10 compiling linf crown ..."
    assert len(caplog.messages) == 2
    assert caplog.messages[1].startswith("certify [####################] 10/10 linf crown")


@pytest.mark.parametrize("terminal", [True, False])
def test_without_a_word_it_is_shown_to_who_looks_on(terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    console, output = _console(terminal=terminal)
    monkeypatch.setattr("cure_jax.progress.Console", lambda **_: console)

    def seen(show: bool | None) -> str:
        output.truncate(0)
        with shown(10, "certify", show) as advance:
            advance("linf crown", 10)
        return output.getvalue()

    assert ("certify" in seen(None)) == terminal
    assert "certify" not in seen(False)
