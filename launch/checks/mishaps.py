"""What can happen to the files of a training: damage, full disks."""

import shutil
import subprocess
from pathlib import Path

from launch.checks import endings


def keep_until(checkpoints: Path, step: int) -> None:
    """Deletes later checkpoints."""
    for later in endings.steps(checkpoints):
        if later > step:
            shutil.rmtree(checkpoints / str(later))


def flipped_bit(step: Path) -> None:
    """One bit in the middle of the arrays."""
    path = _largest_file(step / "state")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncated_file(step: Path) -> None:
    """The arrays end after 100 bytes."""
    path = _largest_file(step / "state")
    path.write_bytes(path.read_bytes()[:100])


def empty_directory(step: Path) -> None:
    """Nothing but the directory is left."""
    shutil.rmtree(step)
    step.mkdir()


DAMAGES = {"a flipped bit": flipped_bit, "a truncated file": truncated_file, "an empty directory": empty_directory}


def mount(disk: Path, size: str, again: bool = False) -> bool:
    """Mounts a small tmpfs, or gives it another size; returns whether that was allowed."""
    disk.mkdir(exist_ok=True)
    options = f"remount,size={size}" if again else f"size={size}"
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(disk)]
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


def partly_on(disk: Path, part: str) -> Path:
    """A new work directory beside a disk, of which one directory lies on it."""
    workdir = disk.with_name(f"{disk.name}.{part}")
    shutil.rmtree(workdir, ignore_errors=True)
    workdir.mkdir()
    (workdir / part).symlink_to(disk)
    return workdir


def unmount(disk: Path) -> None:
    """Undoes `mount`."""
    subprocess.run(["umount", str(disk)], check=True)


def _largest_file(directory: Path) -> Path:
    return max((path for path in directory.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
