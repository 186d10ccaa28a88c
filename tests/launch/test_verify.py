"""launch/verify.py and launch/checks/competition.py, as they are run in a competition."""

import csv
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cure_jax as cj
from cure_jax.certification import UnsafeSet
from cure_jax.commands.parts.known_verdicts import KnownVerdicts
from cure_jax.verification import Status

pytest.importorskip("onnx")
WEIGHTS = jnp.array([[1.0, -1.0], [-1.0, 1.0]])


def run(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """|x_0 - x_1| as a network; it reaches 1 on the unit square, and not 1.1."""
    directory = tmp_path_factory.mktemp("competition") / "tiny"
    directory.mkdir()
    cj.interop.save_onnx(lambda x: jnp.sum(jax.nn.relu(x @ WEIGHTS))[None], (2,), directory / "net.onnx")
    for name, limit in (("above", 1.1), ("below", 0.5)):
        unsafe = UnsafeSet(np.zeros(2), np.ones(2), np.array([[-1.0]]), np.array([limit]))
        cj.interop.write_vnnlib(directory / f"{name}.vnnlib", [unsafe])
    return directory


def test_verdicts_in_the_words_of_the_competition(folder):
    proved = run("launch/verify.py", f"--network={folder / 'net.onnx'}", f"--property={folder / 'above.vnnlib'}")
    assert (proved.returncode, proved.stdout) == (0, "unsat\n"), proved.stderr
    broken = run("launch/verify.py", f"--network={folder / 'net.onnx'}", f"--property={folder / 'below.vnnlib'}")
    assert broken.returncode == 0, broken.stderr
    first, *witness = broken.stdout.split()
    assert first == "sat"
    numbers = [float(word.strip("()")) for word in witness if not word.startswith(("(", "((")) and "_" not in word]
    x, y = np.array(numbers[:2]), numbers[2]
    assert np.all((x >= 0) & (x <= 1))
    assert y == pytest.approx(abs(x[0] - x[1]), abs=1e-6)
    assert y >= 0.5


def test_mistakes_are_errors(folder):
    missing = run("launch/verify.py", f"--network={folder / 'other.onnx'}", f"--property={folder / 'above.vnnlib'}")
    assert (missing.returncode, missing.stdout) == (1, "error\n")
    assert "other.onnx" in missing.stderr
    half = run("launch/verify.py", f"--network={folder / 'net.onnx'}")
    assert half.returncode == 1
    assert "--network together with --property" in half.stderr


def test_known_verdicts_are_compared(folder, tmp_path):
    table, output = folder.parent / "instances.csv", tmp_path / "found.csv"
    rows = [("tiny", "net.onnx", "above.vnnlib", "unsat"), ("tiny", "net.onnx", "below.vnnlib", "unsat")]
    with table.open("w", newline="") as file:
        csv.writer(file).writerows([("benchmark", "network", "property", "verdict"), *rows])
    command = ("launch/checks/competition.py", f"--instances={table}", f"--output={output}")
    # The second verdict is said to be another one.
    done = run(*command)
    assert done.returncode == 1, done.stderr
    with output.open() as file:
        assert [row["found"] for row in csv.DictReader(file)] == ["unsat", "sat"]
    again = run(*command)
    (line,) = [line for line in again.stdout.splitlines() if line.startswith("| tiny")]
    assert line.startswith("| tiny | 2 | 2 | 100% of 2 | 1 |")


def test_parts_survive_an_interruption(tmp_path):
    path, origin = tmp_path / "parts.jsonl", {"step": 3}
    verdict = cj.verification.Verdict(Status.FALSIFIED, np.array([0.5, 0.25], np.float32), -0.1, 3, 1.5, "why")
    KnownVerdicts(path, origin).tell("l2", 4, verdict)
    with path.open("a") as file:
        file.write('{"norm": "l2", "num')
    KnownVerdicts(path, origin).tell("linf", 1, verdict)
    found = KnownVerdicts(path, origin).known("l2", 4)
    assert KnownVerdicts(path, origin).known("linf", 1) is not None
    assert found is not None
    np.testing.assert_array_equal(found.witness, verdict.witness)
    assert (found.status, found.margin, found.domains, found.reason) == (Status.FALSIFIED, -0.1, 3, "why")
    assert KnownVerdicts(path, origin).known("l2", 5) is None
    # Of another network, or with another limit, they are worth nothing.
    assert KnownVerdicts(path, {"step": 4}).known("l2", 4) is None
    assert json.loads(path.read_text().splitlines()[0]) == {"step": 4}
