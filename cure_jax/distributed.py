"""Several processes, one computation: how they find each other, and how arrays go in and come out.

Every process runs the same program on the same data and holds the same replicated state. With one process, everything
here is the identity.
"""

import glob
import hashlib
import importlib.util
import json
import os
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

__all__ = [
    "check_same",
    "digest",
    "divide",
    "fetch",
    "first_finds",
    "first_says",
    "initialize",
    "local",
    "mesh_of_all",
    "ordered_devices",
    "replicate",
    "spans_processes",
]

_ADVICE = "Pass coordinator_address (HOST:PORT of process 0), num_processes and process_id, all three."
# How a launcher of ours hands these over where no cluster does.
_VARIABLES = {
    "coordinator_address": "JAX_COORDINATOR_ADDRESS",
    "num_processes": "JAX_NUM_PROCESSES",
    "process_id": "JAX_PROCESS_ID",
}


def initialize(
    coordinator_address: str | None = None, num_processes: int | None = None, process_id: int | None = None
) -> str:
    """Joins the processes of this run, if there are several; call it before anything asks JAX for its devices.

    Arguments win over the variables JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID, these over what the
    cluster says: Slurm (inside `srun`), Open MPI, GKE and Cloud TPU VMs. A run of one process joins nothing.

    Args:
      coordinator_address: `host:port` of process 0.
      num_processes: how many there are; 1: run alone, whatever the environment says.
      process_id: which one this is, from 0.

    Returns:
      Where the number of processes came from: "arguments", "slurm", "open_mpi", "tpu" or "alone".

    Raises:
      ValueError: if only some of the three are known, or they do not fit together.
      RuntimeError: if the others cannot be reached.
    """
    source, options = _plan(coordinator_address, num_processes, process_id, os.environ)
    if source != "alone":
        jax.distributed.initialize(**options)
    return source


def _plan(
    coordinator_address: str | None,
    num_processes: int | None,
    process_id: int | None,
    environment: Mapping[str, str],
) -> tuple[str, dict[str, Any]]:
    """Where this run was started, and the arguments of `jax.distributed.initialize`."""
    if num_processes == 1:
        return "alone", {}
    given: dict[str, Any] = {
        "coordinator_address": coordinator_address or environment.get(_VARIABLES["coordinator_address"]),
        "num_processes": _number("num_processes", num_processes, environment),
        "process_id": _number("process_id", process_id, environment),
    }
    if given["num_processes"] == 1:
        return "alone", {}
    # The address alone is no choice: clusters set that variable too.
    if given["num_processes"] is not None or given["process_id"] is not None:
        return "arguments", _complete(given)
    if _several(environment, "SLURM_NTASKS") and "SLURM_STEP_NODELIST" in environment:
        return "slurm", {"cluster_detection_method": "slurm"}
    if _several(environment, "OMPI_COMM_WORLD_SIZE"):
        return "open_mpi", _open_mpi(environment)
    return ("tpu", {}) if _on_tpu(environment) else ("alone", {})


def _complete(given: dict[str, Any]) -> dict[str, Any]:
    missing = [name for name, value in given.items() if value is None]
    if missing:
        raise ValueError(
            f"Got {', '.join(f'{name}={value!r}' for name, value in given.items() if value is not None)} but not "
            f"{', '.join(missing)}. {_ADVICE}"
        )
    if not 0 <= given["process_id"] < given["num_processes"]:
        raise ValueError(
            f"Got process_id {given['process_id']} of num_processes {given['num_processes']}; expected 0.."
            f"{given['num_processes'] - 1}. Give every process its own number."
        )
    return given


def _open_mpi(environment: Mapping[str, str]) -> dict[str, Any]:
    if "OMPI_MCA_orte_hnp_uri" in environment:
        return {"cluster_detection_method": "ompi"}
    # Open MPI 5 does not say where its first process is.
    if environment.get(_VARIABLES["coordinator_address"]):
        return {
            "coordinator_address": environment[_VARIABLES["coordinator_address"]],
            "num_processes": int(environment["OMPI_COMM_WORLD_SIZE"]),
            "process_id": int(environment["OMPI_COMM_WORLD_RANK"]),
        }
    if importlib.util.find_spec("mpi4py") is not None:
        return {"cluster_detection_method": "mpi4py"}
    raise ValueError(
        "Open MPI 5 started this process, which does not say where process 0 runs; its address was expected. Set "
        "JAX_COORDINATOR_ADDRESS=HOST:PORT (mpirun -x JAX_COORDINATOR_ADDRESS), or install mpi4py."
    )


def _number(name: str, value: int | None, environment: Mapping[str, str]) -> int | None:
    text = environment.get(_VARIABLES[name], "")
    if value is not None or not text:
        return value
    if not text.isdecimal():
        raise ValueError(f"{_VARIABLES[name]} is {text!r}; expected an integer from 0. Correct it, or unset it.")
    return int(text)


def _several(environment: Mapping[str, str], variable: str) -> bool:
    return environment.get(variable, "").isdecimal() and int(environment[variable]) > 1


def _on_tpu(environment: Mapping[str, str]) -> bool:
    """Whether this is a host of a TPU; of one alone too, for which JAX finds one process."""
    if environment.get("JAX_PLATFORMS", "tpu").split(",")[0] not in ("tpu", ""):
        return False
    if importlib.util.find_spec("libtpu") is None:
        return False
    named = {"TPU_WORKER_HOSTNAMES", "TPU_PROCESS_ADDRESSES", "MEGASCALE_COORDINATOR_ADDRESS"} & set(environment)
    return bool(named) or bool(glob.glob("/dev/accel[0-9]*") or glob.glob("/dev/vfio/[0-9]*"))


def ordered_devices() -> list[Any]:
    """All devices, process by process, so that each process has one contiguous part of every batch."""
    return sorted(jax.devices(), key=lambda device: (device.process_index, device.id))


def mesh_of_all(axis_name: str = "data") -> Mesh:
    """The devices of all processes along one axis."""
    return Mesh(np.asarray(ordered_devices()), (axis_name,), axis_types=(AxisType.Auto,))


def spans_processes(devices: Any) -> bool:
    """Whether some of the devices belong to another process."""
    return any(device.process_index != jax.process_index() for device in devices)


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Arrays that every process holds alike, on all devices of a mesh."""
    sharding = NamedSharding(mesh, PartitionSpec())
    if not spans_processes(mesh.devices.flat):
        return jax.device_put(tree, sharding)

    def put(leaf: Any) -> Any:
        if isinstance(leaf, jax.Array) and leaf.sharding == sharding:
            return leaf
        if isinstance(leaf, jax.Array) and jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            data = put(jax.random.key_data(leaf))
            return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
        return jax.make_array_from_process_local_data(sharding, np.asarray(leaf))

    return jax.tree.map(put, tree)


def divide(tree: Any, mesh: Mesh, spec: PartitionSpec) -> Any:
    """Arrays of which every process holds the part of its own devices, as arrays over all devices of a mesh."""
    sharding = NamedSharding(mesh, spec)
    return jax.tree.map(lambda leaf: jax.make_array_from_process_local_data(sharding, np.asarray(leaf)), tree)


def local(tree: Any) -> Any:
    """Replicated arrays as arrays of this process alone, without communication; others as they are."""

    def own(leaf: Any) -> Any:
        is_global = isinstance(leaf, jax.Array) and not leaf.is_fully_addressable
        return leaf.addressable_data(0) if is_global else leaf

    return jax.tree.map(own, tree)


def fetch(tree: Any) -> Any:
    """Arrays that are divided over all processes, whole and on every host, as NumPy arrays."""
    if all(leaf.is_fully_addressable for leaf in jax.tree.leaves(tree)):
        return jax.device_get(tree)
    return multihost_utils.process_allgather(tree, tiled=True)


def first_says(value: Any) -> Any:
    """What the first process says, on all of them: JSON."""
    if jax.process_count() == 1:
        return value
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    size = int(multihost_utils.broadcast_one_to_all(np.asarray(text.size)))
    padded = np.zeros(size, np.uint8)
    padded[: min(size, text.size)] = text[:size]
    return json.loads(bytes(np.asarray(multihost_utils.broadcast_one_to_all(padded))))


def first_finds(look: Callable[[], Any], *errors: type[Exception]) -> Any:
    """What the first process finds, or raises, on all of them: they might see changes at different times.

    Args:
      look: called on the first process; returns JSON.
      *errors: that it may raise, made of one sentence; the first that fits is raised on all processes.
    """
    if jax.process_count() == 1:
        return look()
    answer: list[Any] = []
    if jax.process_index() == 0:
        try:
            answer = [-1, look()]
        except errors as error:
            answer = [next(index for index, kind in enumerate(errors) if isinstance(error, kind)), str(error)]
    kind, value = first_says(answer)
    if kind >= 0:
        raise errors[kind](value)
    return value


def check_same(**things: Any) -> None:
    """Checks that every process holds the same arrays or JSON values, by their SHA-256.

    Raises:
      RuntimeError: naming what differs; on every process.
    """
    if jax.process_count() == 1:
        return
    digests = np.stack([np.frombuffer(digest(thing), np.uint8) for thing in things.values()])
    everywhere = np.asarray(multihost_utils.process_allgather(digests))
    different = [name for index, name in enumerate(things) if np.any(everywhere[:, index] != everywhere[0, index])]
    if different:
        raise RuntimeError(
            f"The {jax.process_count()} processes hold different {', '.join(different)}; the same on all of them was "
            "expected. Give all hosts the same data files, versions of Python packages, and flags."
        )


def digest(thing: Any) -> bytes:
    """SHA-256 of a pytree of arrays, with their types and shapes, and JSON values."""
    sha256 = hashlib.sha256()
    for leaf in jax.tree.leaves(thing):
        if isinstance(leaf, np.ndarray | jax.Array):
            is_key = jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key)
            array = np.ascontiguousarray(jax.random.key_data(leaf) if is_key else leaf)
            sha256.update(f"{array.dtype}{array.shape}".encode())
            sha256.update(array.reshape(-1).view(np.uint8).data)
        else:
            sha256.update(json.dumps(leaf).encode())
    return sha256.digest()
