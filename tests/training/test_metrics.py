"""Metrics: lines that are read back, a file that resuming leaves as if nothing had happened."""

import builtins
import json
import logging
import math
import os
import re
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from cure_jax.training.metrics import MetricWriter, read_metrics


@pytest.fixture
def _no_tensorboard(monkeypatch: pytest.MonkeyPatch) -> None:
    original = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("tensorboardX"):
            raise ImportError(name)
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)


def _write(writer: MetricWriter, steps: range) -> None:
    for step in steps:
        writer.write(step, {"loss": 1 / step, "lr": 0.1})
        if step % 2 == 0:
            writer.write(step, {"accuracy": step / 100}, tag="validation")


def _lines(workdir: Path) -> str:
    return (workdir / "metrics.jsonl").read_text()


def test_records_are_json_lines_of_plain_numbers(tmp_path: Path) -> None:
    with MetricWriter(tmp_path / "run") as writer:
        metrics = {"a": jnp.float32(0.5), "b": jnp.ones((1,), jnp.bfloat16), "c": np.int64(3), "d": True, "e": 2}
        writer.write(1, metrics)
        writer.write(2, {"loss": math.nan, "bound": jnp.inf, "accuracy": 0.25}, tag="validation")
    first, second = (json.loads(line) for line in _lines(tmp_path / "run").splitlines())
    assert first == {"step": 1, "tag": "train", "a": 0.5, "b": 1.0, "c": 3.0, "d": 1.0, "e": 2.0}
    assert second == {"step": 2, "tag": "validation", "loss": None, "bound": None, "accuracy": 0.25}
    assert read_metrics(tmp_path / "run") == [first, second]


def test_records_are_on_disk_at_once_and_appended(tmp_path: Path) -> None:
    with MetricWriter(tmp_path) as writer:
        _write(writer, range(1, 3))
        assert len(read_metrics(tmp_path)) == 3
    with MetricWriter(tmp_path) as writer:
        _write(writer, range(3, 4))
    assert [record["step"] for record in read_metrics(tmp_path)] == [1, 2, 2, 3]


def test_a_resumed_run_leaves_the_file_of_an_uninterrupted_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with MetricWriter(tmp_path / "uninterrupted") as writer:
        _write(writer, range(1, 11))
    with MetricWriter(tmp_path / "interrupted") as writer:
        _write(writer, range(1, 8))
    with (tmp_path / "interrupted" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 8, "ta')
    with MetricWriter(tmp_path / "interrupted", resume_from=4) as writer, caplog.at_level(logging.WARNING):
        _write(writer, range(5, 11))
    assert _lines(tmp_path / "interrupted") == _lines(tmp_path / "uninterrupted")
    assert {path.name for path in (tmp_path / "interrupted").iterdir()} <= {"metrics.jsonl", "tensorboard"}


def test_a_full_disk_is_named_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    with (
        pytest.raises(OSError, match=r"step 3 could not be written to .*metrics\.jsonl \(No space left.*same command"),
        MetricWriter(tmp_path) as writer,
    ):
        writer.write(3, {"loss": 1.0})


def test_a_disk_that_is_full_for_event_files_ends_the_writing(tmp_path: Path) -> None:
    """With a writer in a thread of its own, which died of it, this waited for ever."""
    pytest.importorskip("tensorboardX")
    (tmp_path / "metrics.jsonl").symlink_to("/dev/null")
    program = (
        "import resource, sys\nfrom cure_jax.training.metrics import MetricWriter\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "with MetricWriter(sys.argv[1]) as writer:\n"
        "    for step in range(100000):\n        writer.write(step, {'loss': 1.0})\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", program, str(tmp_path)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)
    assert result.returncode == 1
    last = result.stderr.strip().splitlines()[-1]
    assert re.match(r"OSError: The metrics of step \d+ could not be written to .*tfevents.* \(File too large\)", last)


def test_a_cut_off_line_is_left_out_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "tag": "train"}\n{"st')
    assert read_metrics(tmp_path) == [{"step": 1, "tag": "train"}]
    assert "line 2" in caplog.text
    assert read_metrics(tmp_path / "missing") == []


def test_starting_over_drops_everything(tmp_path: Path) -> None:
    for _ in range(2):
        with MetricWriter(tmp_path, resume_from=-1) as writer:
            writer.write(0, {"loss": 1.0})
    assert len(read_metrics(tmp_path)) == 1


@pytest.mark.usefixtures("_no_tensorboard")
def test_works_without_tensorboard(tmp_path: Path) -> None:
    with MetricWriter(tmp_path, resume_from=3) as writer:
        writer.write(4, {"loss": 1.0})
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_writes_event_files_with_tensorboard(tmp_path: Path) -> None:
    event_pb2 = pytest.importorskip("tensorboardX.proto.event_pb2")
    with MetricWriter(tmp_path, resume_from=3) as writer:
        writer.write(4, {"loss": 1.0})
        (events,) = (tmp_path / "tensorboard").iterdir()
        # At once, not when it is closed.
        assert b"train/loss" in events.read_bytes()
    # Every record has a length, its checksum, the data and theirs.
    content, found = events.read_bytes(), []
    while content:
        (length,) = struct.unpack("<Q", content[:8])
        found.append(event_pb2.Event.FromString(content[12 : 12 + length]))
        content = content[16 + length :]
    assert [event.step for event in found] == [0, 4, 4]
    assert found[0].file_version == "brain.Event:2"
    assert found[1].session_log.status == event_pb2.SessionLog.START
    assert [(value.tag, value.simple_value) for value in found[2].summary.value] == [("train/loss", 1.0)]


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        ({"loss": jnp.zeros(2)}, r"'loss' has shape \(2,\)"),
        ({"loss": 1j}, "real scalar"),
        ({"step": 1}, "named step"),
    ],
)
def test_what_is_not_a_scalar_is_refused_and_leaves_no_line(tmp_path: Path, metrics: dict, message: str) -> None:
    with MetricWriter(tmp_path) as writer, pytest.raises(ValueError, match=message):
        writer.write(1, metrics)
    assert _lines(tmp_path) == ""
