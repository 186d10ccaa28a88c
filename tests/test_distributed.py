"""How several processes find each other: arguments, variables, clusters; and what stays as it is with one process."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cure_jax import distributed

_CPU = {"JAX_PLATFORMS": "cpu"}
_SLURM = {"SLURM_NTASKS": "4", "SLURM_STEP_NODELIST": "node[1-4]"}
_OPEN_MPI = {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1"}
_ADDRESS = {"JAX_COORDINATOR_ADDRESS": "host:1"}


def _plan(environment: Mapping[str, str], **given: Any) -> tuple[str, dict[str, Any]]:
    arguments = {"coordinator_address": None, "num_processes": None, "process_id": None, **given}
    return distributed._plan(**arguments, environment={**_CPU, **environment})


@pytest.mark.parametrize(
    ("environment", "given", "expected"),
    [
        ({}, {}, ("alone", {})),
        (_SLURM, {"num_processes": 1}, ("alone", {})),
        ({**_SLURM, "SLURM_NTASKS": "1"}, {}, ("alone", {})),
        # A shell of an allocation, outside of srun.
        ({"SLURM_NTASKS": "4"}, {}, ("alone", {})),
        (_ADDRESS, {}, ("alone", {})),
        (_SLURM, {}, ("slurm", {"cluster_detection_method": "slurm"})),
        ({**_OPEN_MPI, "OMPI_MCA_orte_hnp_uri": "x"}, {}, ("open_mpi", {"cluster_detection_method": "ompi"})),
        (
            {**_OPEN_MPI, **_ADDRESS},
            {},
            ("open_mpi", {"coordinator_address": "host:1", "num_processes": 2, "process_id": 1}),
        ),
        (
            {**_SLURM, **_ADDRESS, "JAX_NUM_PROCESSES": "8", "JAX_PROCESS_ID": "0"},
            {"process_id": 3},
            ("arguments", {"coordinator_address": "host:1", "num_processes": 8, "process_id": 3}),
        ),
    ],
)
def test_where_processes_come_from(
    environment: Mapping[str, str], given: dict[str, Any], expected: tuple[str, dict[str, Any]]
) -> None:
    assert _plan(environment, **given) == expected


def test_a_tpu_is_recognised_by_its_library_and_its_hosts(monkeypatch: pytest.MonkeyPatch) -> None:
    hosts = {"JAX_PLATFORMS": "", "TPU_WORKER_HOSTNAMES": "a,b"}
    monkeypatch.setattr(distributed.importlib.util, "find_spec", lambda name: name == "libtpu" or None)
    monkeypatch.setattr(distributed.glob, "glob", lambda pattern: [])
    assert _plan(hosts) == ("tpu", {})
    assert _plan({"JAX_PLATFORMS": ""}) == ("alone", {})
    assert _plan({**hosts, "JAX_PLATFORMS": "cpu"}) == ("alone", {})
    monkeypatch.setattr(distributed.glob, "glob", lambda pattern: ["/dev/vfio/0"] if "vfio" in pattern else [])
    assert _plan({"JAX_PLATFORMS": "tpu,cpu"}) == ("tpu", {})
    monkeypatch.setattr(distributed.importlib.util, "find_spec", lambda name: None)
    assert _plan(hosts) == ("alone", {})


@pytest.mark.parametrize(
    ("environment", "given", "message"),
    [
        ({}, {"process_id": 1}, r"Got process_id=1 but not coordinator_address, num_processes.*all three"),
        (_ADDRESS, {"num_processes": 2}, r"coordinator_address='host:1', num_processes=2 but not process_id"),
        (_ADDRESS, {"num_processes": 2, "process_id": 2}, r"process_id 2 of num_processes 2; expected 0\.\.1"),
        ({"JAX_NUM_PROCESSES": "two"}, {}, r"JAX_NUM_PROCESSES is 'two'; expected an integer"),
        (_OPEN_MPI, {}, r"Open MPI 5.*JAX_COORDINATOR_ADDRESS=HOST:PORT"),
    ],
)
def test_half_a_story_is_refused(
    environment: Mapping[str, str], given: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distributed.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=message):
        _plan(environment, **given)


def test_alone_nothing_is_joined_and_nothing_changes() -> None:
    assert distributed.initialize(num_processes=1) == "alone"
    assert not jax.distributed.is_initialized()
    tree = {"a": jnp.arange(3.0), "key": jax.random.key(0), "b": np.arange(2)}
    assert distributed.local(tree) is not tree
    assert all(distributed.local(tree)[name] is leaf for name, leaf in tree.items())
    assert distributed.first_says({"step": [1, None]}) == {"step": [1, None]}
    distributed.check_same(anything=tree)


def test_replicated_means_on_every_device_of_the_mesh() -> None:
    mesh = distributed.mesh_of_all()
    assert mesh.axis_names == ("data",)
    assert list(mesh.devices) == distributed.ordered_devices() == jax.devices()
    replicated = distributed.replicate({"a": np.arange(3), "key": jax.random.key(0)}, mesh)
    assert all(leaf.sharding.is_fully_replicated and len(leaf.devices()) == 8 for leaf in replicated.values())
    divided = distributed.divide(np.arange(16), mesh, jax.sharding.PartitionSpec("data"))
    assert [shard.data.tolist() for shard in divided.addressable_shards] == [[2 * i, 2 * i + 1] for i in range(8)]
    np.testing.assert_array_equal(distributed.fetch(divided), np.arange(16))


def test_digests_see_values_types_and_shapes() -> None:
    a = np.arange(4.0)
    others = [a.astype(np.float32), a.reshape(2, 2), a + 1, {"seed": 0}, {"seed": 1}, [a, a], jax.random.key(0)]
    digests = [distributed.digest(thing) for thing in [a, *others, jax.random.key(1)]]
    assert len(set(digests)) == len(digests)
    assert distributed.digest(a.copy()) == digests[0]
