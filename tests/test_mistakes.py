"""What is said about the most common mistakes stands in docs/mistakes.md, and is what is said."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_table_of_mistakes_is_what_is_said() -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "tests/mistakes.py"]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    document = (ROOT / "docs" / "mistakes.md").read_text()
    assert result.stdout.splitlines() == document.splitlines(), "print it again: tests/mistakes.py > docs/mistakes.md"
    messages = [line.split(" | ")[1] for line in document.splitlines() if line.startswith("| ")][2:]
    assert len(messages) >= 20
    assert all("expected" in message or "must" in message for message in messages)
