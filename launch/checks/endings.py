"""How trainings ended: their newest states, read without the library that wrote them, and compared."""

from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp


def steps(checkpoints: Path) -> list[int]:
    """The steps that were saved."""
    return sorted(int(path.name) for path in checkpoints.iterdir() if path.name.isdecimal())


def newest_state(checkpoints: Path) -> dict[str, np.ndarray]:
    """The arrays of the newest checkpoint by name, read without the library that wrote it."""
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        restored = checkpointer.restore(checkpoints / str(steps(checkpoints)[-1]) / "state")
    return {name: np.asarray(array) for name, array in restored.items()}


def parameters(workdir: Path) -> dict[str, np.ndarray]:
    """Of the newest checkpoint."""
    return {name: array for name, array in newest_state(workdir / "checkpoints").items() if name.startswith("params")}


def identical(workdir: Path, other: Path) -> bool:
    """Whether two runs ended with the same state to the last bit, and with the same metrics."""
    states = [newest_state(path / "checkpoints") for path in (workdir, other)]
    metrics = [(path / "metrics.jsonl").read_text() for path in (workdir, other)]
    same = all(np.array_equal(states[0][name], states[1][name]) for name in states[0] | states[1])
    return same and metrics[0] == metrics[1]


def apart(state: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> float:
    """The largest difference of two numbers."""
    return max(float(np.max(np.abs(state[name] - other[name]))) for name in state | other)
