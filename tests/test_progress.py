"""Progress: a bar on terminals, rare lines of the log elsewhere."""

import io
import logging

import jax.numpy as jnp
import pytest
from rich.console import Console

from cure_jax.progress import progress


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


def test_lines_of_the_log_are_rare(caplog: pytest.LogCaptureFixture) -> None:
    console, _ = _console(terminal=False)
    with caplog.at_level(logging.INFO), progress(1000, "training", interval_seconds=1e6, console=console) as bar:
        for _ in range(1000):
            bar.advance(loss=0.5)
    assert caplog.messages == []
