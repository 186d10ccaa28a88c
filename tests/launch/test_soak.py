"""The small part of the soak: three ways to divide a training, one kill, one SIGTERM, on loopback."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_divided_killed_and_stopped_trainings_end_alike(tmp_path: Path) -> None:
    table = tmp_path / "pods.md"
    table.write_text("before\n<!-- soak: begin -->old<!-- soak: end -->\nafter\n")
    command = [sys.executable, "launch/checks/soak.py", "--quick", f"--root={tmp_path / 'runs'}", f"--table={table}"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    rows = result.stdout.strip().splitlines()
    assert len(rows) == 5, result.stdout
    assert all(row.startswith("ok ") for row in rows)
    assert "exit -9, resumed" in rows[2]
    assert "exit 0, saved at step" in rows[3]
    assert "same bits" in rows[4]
    text = table.read_text()
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert "old" not in text
    assert text.count("| ok |") == 5


def test_the_comparison_sees_one_bit_and_one_line(tmp_path: Path) -> None:
    """A soak that compares nothing would pass too."""
    import numpy as np

    from cure_jax.training.checkpoints import Checkpoints
    from launch.checks import endings

    def run(name: str, value: float, line: str) -> Path:
        with Checkpoints(tmp_path / name / "checkpoints") as checkpoints:
            checkpoints.save(1, {"params": {"w": np.array([1.0, 2.0])}, "step": np.int32(1)}, {})
            checkpoints.save(2, {"params": {"w": np.array([1.0, value])}, "step": np.int32(2)}, {})
        (tmp_path / name / "metrics.jsonl").write_text(line)
        return tmp_path / name

    one, same = run("one", 3.0, "a"), run("same", 3.0, "a")
    other, log = run("other", np.nextafter(3.0, 4.0), "a"), run("log", 3.0, "b")
    assert endings.identical(one, same)
    assert not endings.identical(one, other)
    assert not endings.identical(one, log)
    assert 0 < endings.apart(endings.parameters(one), endings.parameters(other)) < 1e-15
    assert endings.parameters(one)["params.w"].tolist() == [1.0, 3.0]
