"""Checkpoints that are either exactly what was saved, or refused.

Only this module, which writes, and `checkpoint_files`, which reads, know orbax. Orbax stores and names things well, but
notices neither a flipped bit nor, always, a missing file, takes an empty directory for the latest checkpoint, and skips
saves silently as long as a newer step exists. So every checkpoint carries the SHA-256 digest of its whole state, a
damaged one is moved aside (never deleted) once an older one has proved usable, and a save either happens or raises.

Leaves are saved as host arrays by name, like `params.Dense_0.kernel`. A checkpoint thus depends neither on the number
of devices nor on how the training step was distributed over them. In a run of several processes all of them call
every method, and a checkpoint counts only if all of them can read it. The first one writes, as all hold the same state,
and orbax works in each process alone: where it waits for others, an error in one of them, such as a full disk, leaves
all of them waiting.
"""

import contextlib
import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from jaxtyping import PyTree

from cure_jax import distributed
from cure_jax.training.checkpoint_files import (
    CheckpointError,
    DamagedError,
    agreed,
    alone,
    candidates,
    check_fit,
    read,
    read_arrays,
    read_npz,
    read_record,
    record_of,
    saved_steps,
)
from cure_jax.training.leaves import abstract, describe, host_array, like, named_leaves
from cure_jax.training.workdir import AnyPath, as_path, is_bucket

_LOGGER = logging.getLogger(__name__)
_DAMAGED = "damaged"
_VARIABLES = ("params.", "batch_stats.")

__all__ = ["Checkpoints", "load", "load_metadata", "load_variables"]


class Checkpoints:
    """The checkpoints of a training run: saved in the background, restored only if undamaged.

    A context manager: leaving it waits for the last save.

    Args:
      directory: Where they lie, one directory a step; made if missing. A path, or `gs://...`.
      max_to_keep: How many of the newest to keep.

    Raises:
      ValueError: If `directory` is another URL.

    Examples:
      >>> import tempfile, jax, jax.numpy as jnp
      >>> state = {"params": {"kernel": jnp.arange(3.0)}, "key": jax.random.key(0)}
      >>> with tempfile.TemporaryDirectory() as directory, Checkpoints(directory) as checkpoints:
      ...     checkpoints.save(10, state, {"epoch": 1})
      ...     step, restored, metadata = checkpoints.restore(jax.eval_shape(lambda: state))
      >>> step, restored["params"]["kernel"].tolist(), metadata
      (10, [0.0, 1.0, 2.0], {'epoch': 1})
    """

    def __init__(self, directory: str | os.PathLike, *, max_to_keep: int = 3) -> None:
        self._directory = as_path(directory)
        self._saving: int | None = None
        logging.getLogger("absl").addFilter(_drop_orbax_chatter)
        self._manager: ocp.CheckpointManager | None = None
        if jax.process_index() == 0:
            self._directory.mkdir(parents=True, exist_ok=True)
            self._manager = ocp.CheckpointManager(
                self._directory,
                item_names=("state", "record"),
                options=ocp.CheckpointManagerOptions(
                    create=False,
                    preservation_policy=ocp.checkpoint_managers.LatestN(max_to_keep),
                    cleanup_tmp_directories=True,
                    enable_async_checkpointing=True,
                    multiprocessing_options=alone(),
                ),
            )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self.close()
        except CheckpointError as failure:
            if error is None:
                raise
            # What went wrong first is what the user should see.
            _LOGGER.error("%s", failure)

    def close(self) -> None:
        """Wait for the last save and release what orbax holds.

        Raises:
          CheckpointError: If the last save failed.
        """
        try:
            self._wait()
        finally:
            if self._manager is not None:
                self._manager.close()

    def save(self, step: int, state: PyTree, metadata: Mapping[str, Any]) -> None:
        """Save a state. Returns once it is copied to the host; the files are written in the background.

        Saving the same state at the same step again does nothing.

        Args:
          step: The step, unique within the directory.
          state: Any pytree of arrays, PRNG keys and Python scalars.
          metadata: What goes with it, JSON-serialisable.

        Raises:
          CheckpointError: If another state was saved at this step, or the last save failed: a full disk is
            noticed when the next state is saved, or at the end.
          TypeError: If `metadata` is not JSON-serialisable.
        """
        leaves = named_leaves(state)
        arrays = {name: host_array(leaf) for name, leaf in leaves.items()}
        record = record_of(leaves, arrays, metadata)
        self._wait()
        if distributed.first_says(step in saved_steps(self._directory)) and self._is_saved(step, record):
            return
        # Orbax refuses arrays without elements. They are made anew from their description.
        stored = {name: array for name, array in arrays.items() if array.size}
        items = ocp.args.Composite(state=ocp.args.PyTreeSave(stored), record=ocp.args.JsonSave(record))
        if self._manager is None:
            return
        self._saving = step
        try:
            # Without force, orbax skips, silently, what is not newer than the newest step.
            self._manager.save(step, args=items, force=True)
        except Exception as error:
            raise self._not_saved(error) from error

    def restore(self, abstract_state: PyTree, step: int | None = None) -> tuple[int, PyTree, dict[str, Any]] | None:
        """Restore the newest usable checkpoint.

        Walks back over damaged checkpoints, logging a warning for each. They are moved to `damaged/` in the same
        directory, but only if an older one is usable.

        Args:
          abstract_state: A state or its `jax.eval_shape`. Leaves with a sharding (for arrays: committed ones) are put
            there, others on the default device. NumPy arrays and Python scalars come back as such.
          step: Restore this step and no other.

        Returns:
          The step, the state and its metadata; or None if there is no checkpoint.

        Raises:
          CheckpointError: If there are checkpoints, but none is usable, or the newest usable one does not fit
            `abstract_state`. Nothing is touched then.
        """
        self._wait()
        damaged: dict[int, str] = {}
        for candidate in agreed(lambda: candidates(self._directory, step)):
            try:
                state, metadata = read(self._directory / str(candidate), abstract_state)
            except DamagedError as error:
                damaged[candidate] = str(error)
                _LOGGER.warning("Checkpoint %d in %s is damaged: %s.", candidate, self._directory, error)
            else:
                self._set_aside(damaged)
                return candidate, state, metadata
        if damaged:
            raise CheckpointError(
                f"No usable checkpoint in {self._directory} ("
                + "; ".join(f"step {candidate}: {reason}" for candidate, reason in damaged.items())
                + "); at least one undamaged was expected. Restore the files from a backup, or start again in "
                "another work directory. Nothing was changed."
            )
        return None

    def _wait(self) -> None:
        """Wait for the last save; it failed or is complete."""
        if self._manager is None:
            return
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            raise self._not_saved(error) from error
        self._saving = None

    def _not_saved(self, error: Exception) -> CheckpointError:
        """Whatever orbax and the file system below it raise, in one sentence; the next save is a new attempt."""
        step, self._saving = self._saving, None
        reason = " ".join(str(error).split())
        if len(reason) > 300:
            reason = f"{reason[:150]} ... {reason[-150:]}"
        newest = max(saved_steps(self._directory), default="none yet")
        return CheckpointError(
            f"The checkpoint of step {step} could not be saved in {self._directory} ({type(error).__name__}: "
            f"{reason}); a directory that can be written and has room was expected. Make room, and give the same "
            f"command: it resumes at the newest complete checkpoint, {newest}."
        )

    def _is_saved(self, step: int, record: dict[str, Any]) -> bool:
        """Whether this very checkpoint is there already; a damaged one in its place is moved aside."""
        try:
            saved = agreed(lambda: read_record(self._directory / str(step)))
        except DamagedError as error:
            _LOGGER.warning("Checkpoint %d in %s is damaged: %s.", step, self._directory, error)
            self._set_aside([step])
            return False
        if saved != record:
            raise CheckpointError(
                f"Step {step} is already saved in {self._directory}, with another state or metadata; a step that is "
                "not there yet was expected. Choose another work directory, or move the newer checkpoints away."
            )
        return True

    def _set_aside(self, steps: Mapping[int, str] | list[int]) -> None:
        if not steps:
            return
        if self._manager is not None:
            for step in steps:
                target = next(path for path in _free_names(self._directory / _DAMAGED / str(step)) if not path.exists())
                target.parent.mkdir(exist_ok=True)
                if is_bucket(target):
                    # In a bucket a directory is there once there is something in it.
                    (target.parent / "README").write_text("Checkpoints that are not what was saved.\n")
                (self._directory / str(step)).rename(target)
                _LOGGER.warning("Moved the damaged checkpoint %d to %s.", step, target)
            self._manager.reload()
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("damaged checkpoints set aside")


def load(
    directory: str | os.PathLike, abstract_state: PyTree, step: int | None = None
) -> tuple[int, PyTree, dict[str, Any]]:
    """Load the newest checkpoint of a finished or running training, without writing anything.

    In contrast to `Checkpoints.restore`, a damaged newest checkpoint is an error: whoever evaluates a network should
    know which one.

    Args:
      directory: The directory of the checkpoints.
      abstract_state: A state or its `jax.eval_shape`, see `Checkpoints.restore`.
      step: Load this step instead of the newest.

    Returns:
      The step, the state and its metadata.

    Raises:
      CheckpointError: If there is no checkpoint, it is damaged, or it does not fit `abstract_state`.
    """
    directory = as_path(directory)
    with _usable(directory, step) as newest:
        state, metadata = read(directory / str(newest), abstract_state)
    return newest, state, metadata


def load_metadata(directory: str | os.PathLike) -> dict[str, Any]:
    """Load what was saved beside the newest state, without writing anything.

    Args:
      directory: The directory of the checkpoints.

    Raises:
      CheckpointError: If there is no checkpoint, or it is damaged.
    """
    directory = as_path(directory)
    with _usable(directory, None) as newest:
        return agreed(lambda: read_record(directory / str(newest)))["metadata"]


@contextlib.contextmanager
def _usable(directory: AnyPath, step: int | None) -> Iterator[int]:
    """The step to load; whoever evaluates a network should know if it is none, or damaged."""
    logging.getLogger("absl").addFilter(_drop_orbax_chatter)
    newest = next(iter(agreed(lambda: candidates(directory, step))), None)
    if newest is None:
        raise CheckpointError(
            f"No checkpoint in {directory}: one was expected. Run cure-jax train with this work directory first, or "
            "correct the path."
        )
    try:
        yield newest
    except DamagedError as error:
        others = [other for other in sorted(saved_steps(directory)) if other != newest]
        raise CheckpointError(
            f"Checkpoint {newest} in {directory} is damaged: {error}; an undamaged one was expected. Resume the "
            f"training, which moves it aside, or choose another step (there are: {others})."
        ) from error


def load_variables(path: str | os.PathLike, abstract_variables: PyTree) -> PyTree:
    """Parameters and running averages of another training, to start from.

    Args:
      path: A work directory, the newest of whose checkpoints is read; or an `.npz` with arrays by names like
        `params.Dense_0.kernel`, as other programs can write it.
      abstract_variables: What is expected, for example `{"params": ..., "batch_stats": ...}`.

    Returns:
      Arrays in the structure of `abstract_variables`.

    Raises:
      CheckpointError: If there is nothing, it is damaged, or it belongs to another model.
    """
    path, leaves, key_impls = as_path(path), named_leaves(abstract_variables), {}
    if path.suffix == ".npz":
        if not path.is_file():
            raise CheckpointError(f"No file {path}: an .npz with arrays named {', '.join(leaves)} was expected.")
        arrays = read_npz(path)
        check_fit(path, {name: describe(array) for name, array in arrays.items()}, leaves)
    else:
        newest = next(iter(candidates(path / "checkpoints", None)), None)
        if newest is None:
            raise CheckpointError(
                f"No checkpoint in {path / 'checkpoints'}: one was expected to start from. Train there first, or "
                "correct start_from."
            )
        path = path / "checkpoints" / str(newest)
        try:
            record = read_record(path)
            key_impls = record["key_impls"]
            variables = {name: leaf for name, leaf in record["leaves"].items() if name.startswith(_VARIABLES)}
            check_fit(path, variables, leaves)
            # All of them, as the digest is that of the whole state.
            arrays = read_arrays(
                path, {name: abstract(text) for name, text in record["leaves"].items()}, record["sha256"]
            )
        except DamagedError as error:
            raise CheckpointError(f"Checkpoint {path} is damaged: {error}; an undamaged one was expected.") from error
    found = [like(leaf, arrays[name], key_impls.get(name)) for name, leaf in leaves.items()]
    return jax.tree.unflatten(jax.tree.structure(abstract_variables), found)


def _drop_orbax_chatter(record: logging.LogRecord) -> bool:
    """Filter for absl's logger: orbax's warnings pass, its dozen of lines on every save do not.

    Nor do the tracebacks of its threads: what failed there is raised here again.
    """
    return "orbax" not in Path(record.pathname).parts or (record.levelno >= logging.WARNING and not record.exc_info)


def _free_names(path: AnyPath) -> Iterator[AnyPath]:
    yield path
    number = 1
    while True:
        yield path.with_name(f"{path.name}.{number}")
        number += 1
