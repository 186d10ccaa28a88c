"""Metrics of a training run: a file of JSON lines, and TensorBoard where it is installed."""

import contextlib
import json
import logging
import math
import os
import socket
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from cure_jax.training.workdir import AnyPath, as_path, is_bucket, write_atomically, writing

_LOGGER = logging.getLogger(__name__)


class MetricWriter:
    """Appends records of metrics to `metrics.jsonl`, and to TensorBoard event files if tensorboardX is installed.

    In a bucket, where nothing can be appended, each record is an object of its own, `metrics/STEP.TAG.json`, and there
    are no event files.

    Every line is a JSON object with `step`, `tag` and the metrics; a metric that is not finite is null. A context
    manager. In a run of several processes only the first one writes.

    Write the records of a step before its checkpoint: a run that resumes there with `resume_from=step` then leaves
    the same file as one that was never interrupted.

    Args:
      workdir: The work directory, made if missing.
      resume_from: The step that was restored: records of later steps are dropped, since they will be written again.
        -1 drops all; None (default) none.

    Examples:
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as workdir:
      ...     with MetricWriter(workdir) as writer:
      ...         writer.write(10, {"loss": 0.5})
      ...         writer.write(10, {"accuracy": 0.75}, tag="validation")
      ...     for record in read_metrics(workdir):
      ...         print(record)
      {'step': 10, 'tag': 'train', 'loss': 0.5}
      {'step': 10, 'tag': 'validation', 'accuracy': 0.75}
    """

    def __init__(self, workdir: str | os.PathLike, *, resume_from: int | None = None) -> None:
        directory = as_path(workdir)
        self._file, self._board, self._objects = None, None, None
        if jax.process_index() != 0:
            return
        with writing("Metrics", directory):
            directory.mkdir(parents=True, exist_ok=True)
            if is_bucket(directory):
                self._objects = directory / "metrics"
                if resume_from is not None:
                    for path in _objects(directory):
                        if int(path.name.partition(".")[0]) > resume_from:
                            path.unlink()
                return
            path = directory / "metrics.jsonl"
            if resume_from is not None and path.exists():
                kept = [record for record in read_metrics(workdir) if record["step"] <= resume_from]
                write_atomically(path, "".join(map(_line, kept)))
            self._board = _tensorboard(directory / "tensorboard", resume_from)
            with contextlib.ExitStack() as stack:
                if self._board is not None:
                    stack.callback(self._board.close)
                self._file = path.open("a")
                stack.pop_all()

    def __enter__(self) -> "MetricWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self.close()
        except OSError:
            # What could not be written cannot be written on closing either; the first error says it better.
            if error is None:
                raise

    def write(self, step: int, metrics: Mapping[str, ArrayLike], tag: str = "train") -> None:
        """Write one record.

        Args:
          step: The step it belongs to.
          metrics: Scalars by name: Python or NumPy numbers or arrays of one element.
          tag: What was measured on, such as "train" or "validation".

        Raises:
          ValueError: If a metric is not a scalar, or is named "step" or "tag".
          OSError: If a file cannot be written, for instance because the disk is full.
        """
        if self._file is None and self._objects is None:
            return
        if reserved := {"step", "tag"} & set(metrics):
            raise ValueError(
                f"Got a metric named {', '.join(sorted(reserved))}; other names than 'step' and 'tag' were expected. "
                "Pass those two as arguments of write()."
            )
        values = {name: _number(name, value) for name, value in metrics.items()}
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        line = _line({"step": int(step), "tag": tag, **finite})
        if self._objects is not None:
            self._objects.mkdir(parents=True, exist_ok=True)
            write_atomically(self._objects / f"{int(step):012d}.{tag}.json", line)
        if self._file is not None:
            with writing(f"The metrics of step {step}", self._file.name):
                self._file.write(line)
                self._file.flush()
        if self._board is not None:
            with writing(f"The metrics of step {step}", self._board.path):
                self._board.write(int(step), {f"{tag}/{name}": value for name, value in values.items()})

    def close(self) -> None:
        """Close the files, all of them even if one cannot be written to its end."""
        with contextlib.ExitStack() as stack:
            for file in (self._file, self._board):
                if file is not None:
                    stack.callback(file.close)
        self._file, self._board = None, None


def read_metrics(workdir: str | os.PathLike) -> list[dict[str, Any]]:
    """Read the records of a work directory.

    A line that was cut off by a crash is left out, with a warning.

    Args:
      workdir: The work directory.

    Returns:
      The records in the order in which they were written; none if there is no file.
    """
    directory = as_path(workdir)
    path, records = directory / "metrics.jsonl", []
    if is_bucket(directory):
        path, lines = directory / "metrics", [part.read_text() for part in _objects(directory)]
    else:
        lines = path.read_text().splitlines() if path.exists() else []
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
            records.append({**record, "step": int(record["step"])})
        except (ValueError, TypeError, KeyError):
            _LOGGER.warning("Left out line %d of %s, which is not a record of metrics: %.80s", number, path, line)
    return records


def _objects(directory: AnyPath) -> list[AnyPath]:
    """The objects of the records in a bucket, in the order of their steps."""
    return sorted((directory / "metrics").glob("*.json"), key=lambda path: path.name)


def _number(name: str, value: ArrayLike) -> float:
    array = np.asarray(value)
    is_real = array.dtype == bool or (jnp.issubdtype(array.dtype, jnp.number) and not np.iscomplexobj(array))
    if array.size != 1 or not is_real:
        raise ValueError(
            f"The metric {name!r} has shape {array.shape} and type {array.dtype}; a real scalar was expected. "
            "Reduce it, for instance to its mean."
        )
    return float(array.reshape(()))


def _line(record: Mapping[str, Any]) -> str:
    return json.dumps(record) + "\n"


class _Board:
    """An event file of TensorBoard, written in the caller's thread: one of its own could die of a full disk unseen."""

    def __init__(self, directory: AnyPath, resume_from: int | None) -> None:
        import tensorboardX
        from tensorboardX import summary
        from tensorboardX.proto import event_pb2

        protocol: Any = event_pb2
        self._event, self._scalar = protocol.Event, summary.scalar
        directory.mkdir(parents=True, exist_ok=True)
        # TensorBoard reads what has such a name, in the order of the names.
        self.path = directory / f"events.out.tfevents.{time.time_ns() / 1e9:.6f}.{socket.gethostname()}"
        self._file = tensorboardX.RecordWriter(str(self.path))
        self._head: list[dict[str, Any]] = [{"file_version": "brain.Event:2"}]
        if resume_from is not None:
            # TensorBoard then hides what was recorded of steps that are run again.
            log = protocol.SessionLog(status=protocol.SessionLog.START)
            self._head.append({"step": resume_from + 1, "session_log": log})

    def write(self, step: int, values: Mapping[str, float]) -> None:
        events = [{"step": step, "summary": self._scalar(name, value)} for name, value in values.items()]
        for fields in (*self._head, *events):
            self._file.write(self._event(wall_time=time.time(), **fields).SerializeToString())
        self._file.flush()
        self._head = []

    def close(self) -> None:
        self._file.close()


def _tensorboard(directory: AnyPath, resume_from: int | None) -> _Board | None:
    """A writer of event files, or None without tensorboardX (the extra `logging`)."""
    try:
        return _Board(directory, resume_from)
    except ImportError:
        return None
