"""Another verifier as a child process: one request, one answer, so that the two programs can take turns."""

import contextlib
import json
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

Ask = Callable[[Mapping[str, Any]], dict[str, Any]]


@contextlib.contextmanager
def started(python: str, script: Path, source: str, problem: Mapping[str, Any]) -> Iterator[Ask]:
    """Starts `python script source problem.npz` and stops it at the end of the block.

    The child writes a line when it is ready, then reads one JSON object a line from its standard input and answers each
    with one line on its standard output. It has the cores of this process.

    Args:
      python: interpreter of the environment that the other verifier needs.
      script: what it runs; a file of this folder.
      source: checkout of the other verifier.
      problem: arrays that do not change between requests.

    Yields:
      A function from a request to the answer.

    Raises:
      ValueError: if the child ends instead of answering, with the last line that it wrote.
    """
    with tempfile.TemporaryDirectory() as directory:
        path, log = Path(directory, "problem.npz"), Path(directory, "log.txt")
        np.savez(path, **problem)
        command = [python, str(script), source, str(path)]
        with (
            log.open("w") as errors,
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True) as child,
        ):
            assert child.stdin is not None
            try:
                _exchange(child, log, "")
                yield lambda request: json.loads(_exchange(child, log, json.dumps(request) + "\n"))
            finally:
                with contextlib.suppress(BrokenPipeError):
                    child.stdin.close()


def _exchange(child: subprocess.Popen, log: Path, request: str) -> str:
    """Sends a request and returns the next line that the child writes."""
    assert child.stdin is not None
    assert child.stdout is not None
    # A child that has ended is found out below, with its reason.
    with contextlib.suppress(BrokenPipeError):
        child.stdin.write(request)
        child.stdin.flush()
    if answer := child.stdout.readline():
        return answer
    last = (log.read_text().strip().splitlines() or ["it wrote no message"])[-1]
    raise ValueError(
        f"{child.args} ended with status {child.wait()} instead of answering: {last}. Expected an interpreter with the "
        "other verifier's dependencies and a checkout of it. Run the command by hand to see more"
    )
