"""The work directory of a training run: the config it was made with, and how files are written into it.

It lies in a file system or in a bucket (`gs://...`), where objects are written as a whole and nothing is appended.
"""

import contextlib
import errno
import importlib.util
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import flax.traverse_util
import jax
from etils import epath

# Of a file system or of a bucket: the methods that both have are used.
AnyPath: TypeAlias = Path | epath.Path


class WorkdirError(ValueError):
    """A work directory belongs to another configuration, or to none."""


def read_config(workdir: str | os.PathLike) -> dict[str, Any]:
    """Read the config that a work directory was made with.

    Args:
      workdir: The work directory.

    Returns:
      The config, as `write_config` got it, with lists for tuples.

    Raises:
      WorkdirError: If there is none, or it is not valid JSON.
    """
    path = _config_path(workdir)
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError):
        raise WorkdirError(
            f"There is no {path}; the work directory of a training was expected. Run cure-jax train with it first, "
            "or correct the path."
        ) from None
    except ValueError as error:
        raise WorkdirError(
            f"{path} is damaged ({error}); JSON was expected. Restore it from a backup, or choose another work "
            "directory."
        ) from error


def write_config(workdir: str | os.PathLike, config: Mapping[str, Any]) -> None:
    """Write the config of a work directory, `config.json`, in one step: it is there completely or not at all.

    Args:
      workdir: The work directory, made if missing.
      config: The config: nested mappings, JSON-serialisable.
    """
    path = _config_path(workdir)
    text = json.dumps(config, indent=2, sort_keys=True) + "\n"
    if jax.process_index() == 0:
        with writing(path.name, path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, text)


def check_config(
    workdir: str | os.PathLike,
    config: Mapping[str, Any],
    select: Callable[[Mapping[str, Any]], dict[str, Any]] = dict,
) -> None:
    """Check that a work directory is new or was made with this very config. Touches nothing.

    Args:
      workdir: The work directory; it need not exist.
      config: The config of the run that is to use it.
      select: The fields of a config that count.

    Raises:
      WorkdirError: If it was made with another config; the message names every field that differs.
    """
    if not _config_path(workdir).exists():
        return
    old, new = (_flat(select(fields)) for fields in (read_config(workdir), json.loads(json.dumps(config))))
    absent = object()
    differences = [
        f"{field} was {_shown(old, field)}, now {_shown(new, field)}"
        for field in sorted({*old, *new})
        if old.get(field, absent) != new.get(field, absent)
    ]
    if differences:
        raise WorkdirError(
            f"The work directory {workdir} was made with another config ({'; '.join(differences)}); the same config "
            "was expected. Choose another work directory, or set the old values to resume. Nothing was changed."
        )


def _config_path(workdir: str | os.PathLike) -> AnyPath:
    return as_path(workdir) / "config.json"


def _flat(config: dict[str, Any]) -> dict[str, Any]:
    return flax.traverse_util.flatten_dict(config, keep_empty_nodes=True, sep=".")


def _shown(fields: dict[str, Any], field: str) -> str:
    if field not in fields:
        return "absent"
    return "{}" if fields[field] is flax.traverse_util.empty_node else repr(fields[field])


def as_path(directory: str | os.PathLike) -> AnyPath:
    """An absolute path of the file system, or for `gs://bucket/...` one in a bucket.

    Raises:
      ValueError: for another URL.
      ModuleNotFoundError: for a bucket, if what reads them is not installed.
    """
    text = os.fspath(directory)
    if "://" not in text:
        return Path(directory).absolute()
    if not text.startswith("gs://"):
        raise ValueError(
            f"Got the directory {text!r}; a path of a file system or gs://BUCKET/... was expected. Mount other "
            "buckets, and pass the mounted path."
        )
    if not _has_gcsfs():
        raise ModuleNotFoundError(
            f'Got the bucket {text!r}, which needs gcsfs. Install it: pip install "cure-jax[cloud]".'
        )
    return epath.Path(text)


def _has_gcsfs() -> bool:
    return importlib.util.find_spec("gcsfs") is not None


def is_bucket(path: AnyPath) -> bool:
    """Whether objects are written as a whole, and directories are nothing but parts of names."""
    return not isinstance(path, Path)


@contextlib.contextmanager
def writing(what: str, where: str | os.PathLike) -> Iterator[None]:
    """Around what writes files: says in one sentence what could not be written.

    Args:
      what: Is written.
      where: It goes.

    Raises:
      OSError: For any other OSError from within, such as that of a full disk, of a read-only one, of a directory that
        is gone.
    """
    try:
        yield
    except OSError as error:
        if error.errno is None:
            # A sentence already.
            raise
        forbidden = error.errno in (errno.EACCES, errno.EPERM, errno.EROFS)
        advice = "Choose another directory, or change its permissions" if forbidden else "Make room"
        raise OSError(
            f"{what} could not be written to {where} ({error.strerror}); a directory that can be written and has room "
            f"was expected. {advice}, and give the same command again: what is complete is kept."
        ) from error


def write_atomically(path: AnyPath, text: str) -> None:
    """Write a file in one step: readers see what was there before or all of `text`, even after a crash.

    Raises:
      OSError: If it cannot be written; what was there before still is.
    """
    with writing(path.name, path.parent):
        if not isinstance(path, Path):
            path.write_text(text)
            return
        temporary = path.with_name(f"{path.name}.tmp")
        try:
            with temporary.open("w") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            # It is there only if something went wrong.
            temporary.unlink(missing_ok=True)
