"""One checkpoint on disk: which there are, what was written, and whether it is still that.

Leaves lie there as host arrays by name, like `params.Dense_0.kernel`, beside a record: the SHA-256 digest of the whole
state, a description of each leaf, metadata, and a seal over all of it. In a run of several processes all of them read,
and agree on what they found.
"""

import hashlib
import json
import zipfile
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from jaxtyping import PyTree

from cure_jax import distributed
from cure_jax.training.leaves import describe, digest, host_array, is_key, like, named_leaves
from cure_jax.training.workdir import AnyPath

__all__ = [
    "CheckpointError",
    "DamagedError",
    "agreed",
    "alone",
    "candidates",
    "check_fit",
    "read",
    "read_arrays",
    "read_npz",
    "read_record",
    "record_of",
    "saved_steps",
]


class CheckpointError(RuntimeError):
    """A checkpoint is missing, damaged or of another configuration."""


class DamagedError(Exception):
    """One checkpoint cannot be used; the text is the reason."""


def saved_steps(directory: AnyPath) -> list[int]:
    """The steps of which there is a checkpoint, in any order; none if there is no such directory."""
    if not directory.is_dir():
        return []
    return [int(path.name) for path in directory.iterdir() if path.name.isdecimal() and path.is_dir()]


def candidates(directory: AnyPath, step: int | None) -> list[int]:
    """The steps to try, newest first."""
    steps = sorted(saved_steps(directory), reverse=True)
    if step is None:
        return steps
    if step not in steps:
        raise CheckpointError(
            f"No checkpoint of step {step} in {directory}; one of the steps {steps[::-1]} was expected. Choose one of "
            "them, or none for the newest."
        )
    return [step]


def record_of(
    leaves: Mapping[str, Any], arrays: Mapping[str, np.ndarray], metadata: Mapping[str, Any]
) -> dict[str, Any]:
    """What is written beside the arrays of a state, as JSON gives it back.

    Args:
      leaves: Of the state, by name.
      arrays: The same on the host.
      metadata: What goes with it.

    Raises:
      TypeError: If `metadata` is not JSON-serialisable.
    """
    record = {
        "sha256": digest(arrays),
        "leaves": {name: describe(leaf) for name, leaf in leaves.items()},
        "key_impls": {name: str(jax.random.key_impl(leaf)) for name, leaf in leaves.items() if is_key(leaf)},
        "metadata": dict(metadata),
    }
    record = json.loads(json.dumps(record))
    return {**record, "seal": _seal(record)}


def read(path: AnyPath, abstract_state: PyTree) -> tuple[PyTree, dict[str, Any]]:
    """Read and check one checkpoint.

    Raises:
      DamagedError: If it is not, to the last bit, what was saved; agreed between all processes.
      CheckpointError: If it is undamaged but of another state than `abstract_state`.
    """
    failure: Exception | None = None
    arrays, record = {}, {}
    abstract_leaves = named_leaves(abstract_state)
    try:
        record = read_record(path)
        check_fit(path, record["leaves"], abstract_leaves)
        arrays = read_arrays(path, abstract_leaves, record["sha256"])
    except (DamagedError, CheckpointError) as error:
        failure = error
    _raise_everywhere(failure)
    leaves = [like(leaf, arrays[name], record["key_impls"].get(name)) for name, leaf in abstract_leaves.items()]
    return jax.tree.unflatten(jax.tree.structure(abstract_state), leaves), record["metadata"]


def _raise_everywhere(failure: Exception | None) -> None:
    """Raises what went wrong here, or that something did elsewhere: on all processes or on none."""
    if jax.process_count() > 1:
        failed = np.flatnonzero(multihost_utils.process_allgather(np.asarray(failure is not None)))
        if failed.size and failure is None:
            failure = DamagedError(
                f"process {failed[0]} cannot use it, see its log; all processes must see the same files"
            )
    if failure is not None:
        raise failure


def agreed(look: Callable[[], Any]) -> Any:
    """What the first process finds in checkpoints, or raises, on all of them."""
    return distributed.first_finds(look, DamagedError, CheckpointError)


def read_record(path: AnyPath) -> dict[str, Any]:
    """What `record_of` had put there.

    Raises:
      DamagedError: If it is not that.
    """
    record = _read_item(path, "record", ocp.args.JsonRestore())
    if not isinstance(record, dict) or record.get("seal") != _seal(record):
        raise DamagedError("its record is incomplete or has changed since it was saved")
    return record


def read_arrays(path: AnyPath, abstract_leaves: dict[str, Any], sha256: str) -> dict[str, np.ndarray]:
    """The arrays of a checkpoint, by name.

    Args:
      path: Its directory.
      abstract_leaves: All of its leaves, as the digest is that of the whole state.
      sha256: The digest in its record.

    Raises:
      DamagedError: If they cannot be read, or have another digest.
    """
    arrays = {}
    for name, leaf in abstract_leaves.items():
        if 0 in np.shape(leaf):
            arrays[name] = host_array(jnp.empty(leaf.shape, leaf.dtype))
            continue
        # One at a time: if one of many cannot be read, orbax leaves the others behind in a closed event loop.
        args = ocp.args.PyTreeRestore(
            item={name: 0}, restore_args={name: ocp.RestoreArgs(restore_type=np.ndarray)}, partial_restore=True
        )
        arrays[name] = _read_item(path, "state", args)[name]
    if digest(arrays) != sha256:
        raise DamagedError("its SHA-256 digest is wrong, so its arrays have changed since they were saved")
    return arrays


def read_npz(path: AnyPath) -> dict[str, np.ndarray]:
    """The arrays of a file that another program wrote, by name.

    Raises:
      CheckpointError: If they cannot be read.
    """
    try:
        with path.open("rb") as file, np.load(file) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (ValueError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise CheckpointError(
            f"{path} cannot be read ({type(error).__name__}: {error}); an .npz of numbers was expected. Write it again "
            "with numpy.savez; of the types that NumPy does not have itself, it keeps bfloat16 alone."
        ) from error
    # What NumPy makes of bfloat16: two bytes without a meaning. No other type of JAX's own has two.
    return {name: array.view(jnp.bfloat16) if array.dtype == "V2" else array for name, array in arrays.items()}


def _read_item(path: AnyPath, item: str, args: ocp.args.CheckpointArgs) -> Any:
    if not any(path.iterdir()):
        raise DamagedError("its directory is empty")
    options = alone()
    state = ocp.PyTreeCheckpointHandler(multiprocessing_options=options)
    handler = ocp.CompositeCheckpointHandler(state=state, record=ocp.JsonCheckpointHandler())
    try:
        with ocp.Checkpointer(handler, multiprocessing_options=options) as checkpointer:
            return checkpointer.restore(path, args=ocp.args.Composite(**{item: args}))[item]
    # Damaged files make orbax and what lies below it raise nearly anything; only running out of memory is our fault.
    except MemoryError:
        raise
    except Exception as error:
        reason = str(error).strip().partition("\n")[0][:200]
        raise DamagedError(f"its {item} cannot be read ({type(error).__name__}: {reason})") from error


def check_fit(path: AnyPath, saved: dict[str, str], abstract_leaves: dict[str, Any]) -> None:
    """Refuses the leaves of another model.

    Args:
      path: Where they come from.
      saved: Descriptions of leaves, by name.
      abstract_leaves: Those that were expected.

    Raises:
      CheckpointError: Naming the leaves that differ.
    """
    expected = {name: describe(leaf) for name, leaf in abstract_leaves.items()}
    names = [name for name in {**expected, **saved} if saved.get(name) != expected.get(name)]
    if not names:
        return
    listed = "; ".join(
        f"{name} is {saved.get(name, 'absent')}, expected {expected.get(name, 'absent')}" for name in names[:10]
    )
    more = f"; and {len(names) - 10} more" if len(names) > 10 else ""
    raise CheckpointError(
        f"Checkpoint {path} is of another model or optimizer: {listed}{more}. Use the config it was made with, or "
        "choose another work directory. Nothing was changed."
    )


def _seal(record: Mapping[str, Any]) -> str:
    """SHA-256 of the record itself, without its seal."""
    unsealed = {name: value for name, value in record.items() if name != "seal"}
    return hashlib.sha256(json.dumps(unsealed, sort_keys=True).encode()).hexdigest()


def alone() -> ocp.options.MultiprocessingOptions:
    """Orbax waits for no other process."""
    own = jax.process_index()
    return ocp.options.MultiprocessingOptions(
        primary_host=own, active_processes={own}, barrier_sync_key_prefix=f"process_{own}"
    )
