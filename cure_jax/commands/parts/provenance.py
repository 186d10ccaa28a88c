"""Where a result comes from: the checkpoint's checksum, the commit of the code, the seconds of training."""

import hashlib
import json
import shutil
import subprocess
from pathlib import Path

import cure_jax
from cure_jax.training.checkpoint_files import saved_steps
from cure_jax.training.workdir import write_atomically


def checkpoint_sha256(workdir: Path, step: int) -> str | None:
    """The first twelve hex digits of the SHA-256 digest of a checkpoint's files: their names, sizes and contents.

    Two trainings that end in the same parameters have different checksums, as orbax stores the time too.

    Args:
      workdir: The work directory.
      step: The step of the checkpoint.

    Returns:
      The digits, or None if there are no files.
    """
    directory = workdir / "checkpoints" / str(step)
    files = sorted((path.relative_to(directory).as_posix(), path) for path in directory.rglob("*") if path.is_file())
    digest = hashlib.sha256()
    for name, path in files:
        digest.update(f"{name}\0{path.stat().st_size}\0".encode())
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()[:12] if files else None


def last_checkpoint(workdir: Path) -> int | None:
    """The step of the newest checkpoint of a work directory; None if there is none."""
    return max(saved_steps(workdir / "checkpoints"), default=None)


def last_saved(source: str) -> float | None:
    """When the newest checkpoint of a work directory, or a file of parameters, was written; None if there is none."""
    if not source:
        return None
    path = Path(source)
    if path.is_dir():
        path = path / "checkpoints" / str(last_checkpoint(path))
    return path.stat().st_mtime if path.exists() else None


def commit(package: Path = Path(cure_jax.__file__).parent) -> str | None:
    """The git commit of the checkout that a package runs from, with `-dirty` behind it if tracked files were changed.

    Args:
      package: The directory of the package.

    Returns:
      The commit, or None outside of a checkout: for an installed package even if its environment lies in some checkout.
    """
    if shutil.which("git") is None:
        return None
    tracked = _git(package, "ls-files", "--error-unmatch", "__init__.py")
    return _git(package, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*") if tracked else None


def training_seconds(workdir: Path) -> float | None:
    """The seconds that the training of a work directory took, if they are known (`seconds.json`)."""
    path = workdir / "seconds.json"
    return float(json.loads(path.read_text())["training"]) if path.exists() else None


def add_training_seconds(workdir: Path, seconds: float) -> None:
    """Adds to the seconds of training: a training may take several processes.

    Args:
      workdir: The work directory.
      seconds: What the last process took, from its start to its end.
    """
    total = (training_seconds(workdir) or 0.0) + seconds
    write_atomically(workdir / "seconds.json", json.dumps({"training": round(total, 2)}) + "\n")


def _git(directory: Path, *arguments: str) -> str | None:
    done = subprocess.run(["git", "-C", str(directory), *arguments], capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else None
