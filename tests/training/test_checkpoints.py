"""Checkpoints: exact round trips, every kind of damage noticed and survived, nothing lost."""

import logging
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cure_jax.training.checkpoint_files import CheckpointError
from cure_jax.training.checkpoints import Checkpoints, load, load_variables


class State(NamedTuple):
    step: jax.Array
    params: dict
    optimizer: optax.OptState
    key: jax.Array
    extra: tuple = ()


def _state(seed: int, width: int = 300) -> State:
    params = {
        "Dense_0": {"kernel": jax.random.normal(jax.random.key(seed), (40, width)), "bias": jnp.zeros(width)},
        "half": jnp.full(3, seed, jnp.bfloat16),
    }
    optimizer = optax.chain(optax.scale_by_adam(), optax.scale_by_learning_rate(0.1)).init(params)
    return State(jnp.int32(seed), params, optimizer, jax.random.key(seed))


def _data(tree: State) -> State:
    def data(leaf: jax.Array) -> jax.Array:
        is_key = jnp.issubdtype(getattr(leaf, "dtype", np.dtype(float)), jax.dtypes.prng_key)
        return jax.random.key_data(leaf) if is_key else leaf

    return jax.tree.map(data, tree)


def _assert_same(restored: State, state: State) -> None:
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    assert [getattr(leaf, "dtype", type(leaf)) for leaf in jax.tree.leaves(restored)] == [
        getattr(leaf, "dtype", type(leaf)) for leaf in jax.tree.leaves(state)
    ]
    chex.assert_trees_all_equal(_data(restored), _data(state))


_ABSTRACT = jax.eval_shape(lambda: _state(0))


def _save(directory: Path, *steps: int, **options: int) -> None:
    with Checkpoints(directory, **options) as checkpoints:
        for step in steps:
            checkpoints.save(step, _state(step), {"position": step, "rate": 0.1})


def _largest_file(directory: Path) -> Path:
    return max((path for path in directory.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def _flip_a_bit(step: Path) -> None:
    path = _largest_file(step / "state")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def _flip_a_bit_of_the_record(step: Path) -> None:
    path = _largest_file(step / "record")
    path.write_text(path.read_text().replace('"position"', '"positiom"'))


def _truncate(step: Path) -> None:
    path = _largest_file(step / "state")
    path.write_bytes(path.read_bytes()[:100])


def _delete_arrays(step: Path) -> None:
    for path in (step / "state").rglob("d"):
        shutil.rmtree(path)


def _delete_record(step: Path) -> None:
    shutil.rmtree(step / "record")


def _empty(step: Path) -> None:
    shutil.rmtree(step)
    step.mkdir()


_DAMAGES = {
    _flip_a_bit: "SHA-256",
    _flip_a_bit_of_the_record: "record is incomplete or has changed",
    _truncate: "state cannot be read",
    _delete_arrays: "state cannot be read",
    _delete_record: "record cannot be read",
    _empty: "directory is empty",
}
_every_damage = pytest.mark.parametrize(
    ("damage", "reason"), _DAMAGES.items(), ids=[damage.__name__.strip("_") for damage in _DAMAGES]
)


def test_round_trip_is_exact_for_keys_optimizer_states_and_odd_leaves(tmp_path: Path) -> None:
    odd = (jnp.zeros((0, 3)), np.float64([0.1, 0.2]), 7, 0.1, True, jax.random.key(3, impl="rbg"), None)
    state = _state(1)._replace(extra=odd)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(5, state, {"epoch": 2, "rate": 0.1, "names": ("a", "b")})
        step, restored, metadata = checkpoints.restore(state)
    assert (step, metadata) == (5, {"epoch": 2, "rate": 0.1, "names": ["a", "b"]})
    _assert_same(restored, state)
    assert [type(leaf) for leaf in restored.extra[1:5]] == [np.ndarray, int, float, bool]
    np.testing.assert_array_equal(
        jax.random.normal(restored.extra[5], (3,)), jax.random.normal(jax.random.key(3, impl="rbg"), (3,))
    )


def test_shardings_of_the_abstract_state_are_kept_and_others_left_open(tmp_path: Path) -> None:
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    replicated = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    state = {"replicated": jax.device_put(jnp.arange(8.0), replicated), "anywhere": jnp.arange(8.0)}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state, {})
        _, restored, _ = checkpoints.restore(state)
        _, abstract, _ = checkpoints.restore(jax.eval_shape(lambda: state))
    assert restored["replicated"].sharding == replicated
    assert not restored["anywhere"].committed
    assert not abstract["replicated"].committed
    chex.assert_trees_all_equal(jax.device_get(restored), jax.device_get(state))


def test_saved_is_the_state_at_the_time_of_saving_even_if_its_buffers_are_donated(tmp_path: Path) -> None:
    step = jax.jit(lambda x: x + 1, donate_argnums=0)
    x = jnp.zeros(100_000)
    with Checkpoints(tmp_path, max_to_keep=10) as checkpoints:
        for i in range(4):
            checkpoints.save(i, {"x": x}, {})
            x = step(x)
        _, restored, _ = checkpoints.restore({"x": jnp.zeros(100_000)}, 2)
        np.testing.assert_array_equal(restored["x"], 2.0)


def test_without_checkpoints_there_is_none(tmp_path: Path) -> None:
    with Checkpoints(tmp_path / "new") as checkpoints:
        assert checkpoints.restore(_ABSTRACT) is None


def test_newest_are_kept_and_restored_and_older_ones_on_request(tmp_path: Path) -> None:
    _save(tmp_path, 1, 2, 3, max_to_keep=2)
    with Checkpoints(tmp_path, max_to_keep=2) as checkpoints:
        step, restored, _ = checkpoints.restore(_ABSTRACT)
        assert step == 3
        _assert_same(restored, _state(3))
        assert checkpoints.restore(_ABSTRACT, 2)[0] == 2
        with pytest.raises(CheckpointError, match=r"step 1 in .*\[2, 3\]"):
            checkpoints.restore(_ABSTRACT, 1)


@_every_damage
def test_restore_walks_back_over_damage_sets_it_aside_and_saves_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: Callable, reason: str
) -> None:
    _save(tmp_path, 1, 2, 3)
    damage(tmp_path / "3")
    left = sorted(path.name for path in (tmp_path / "3").rglob("*"))
    with Checkpoints(tmp_path) as checkpoints, caplog.at_level(logging.WARNING):
        step, restored, metadata = checkpoints.restore(_ABSTRACT)
        assert (step, metadata["position"]) == (2, 2)
        _assert_same(restored, _state(2))
        assert "Checkpoint 3" in caplog.text
        assert reason in caplog.text
        assert sorted(path.name for path in (tmp_path / "damaged" / "3").rglob("*")) == left
        checkpoints.save(3, _state(33), {})
    with Checkpoints(tmp_path) as checkpoints:
        step, restored, _ = checkpoints.restore(_ABSTRACT)
    assert step == 3
    _assert_same(restored, _state(33))
    assert {path.name for path in tmp_path.iterdir()} == {"1", "2", "3", "damaged"}


def test_several_damaged_steps_and_damage_at_the_same_step_again(tmp_path: Path) -> None:
    _save(tmp_path, 1, 2, 3)
    (tmp_path / "9").mkdir()
    for _ in range(2):
        _flip_a_bit(tmp_path / "3")
        with Checkpoints(tmp_path) as checkpoints:
            assert checkpoints.restore(_ABSTRACT)[0] == 2
            checkpoints.save(3, _state(3), {})
    assert {path.name for path in (tmp_path / "damaged").iterdir()} == {"9", "3", "3.1"}


def test_a_leftover_of_a_crashed_save_is_not_a_checkpoint(tmp_path: Path) -> None:
    _save(tmp_path, 1)
    shutil.copytree(tmp_path / "1", tmp_path / "2.orbax-checkpoint-tmp-0")
    assert load(tmp_path, _ABSTRACT)[0] == 1
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.restore(_ABSTRACT)[0] == 1


def test_if_none_is_usable_nothing_is_touched(tmp_path: Path) -> None:
    _save(tmp_path, 1, 2)
    _flip_a_bit(tmp_path / "1")
    _truncate(tmp_path / "2")
    before = sorted(tmp_path.rglob("*"))
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(CheckpointError) as error:
        checkpoints.restore(_ABSTRACT)
    assert "step 2: its state cannot be read" in str(error.value)
    assert "step 1: its SHA-256" in str(error.value)
    assert "backup" in str(error.value)
    assert sorted(tmp_path.rglob("*")) == before


def test_another_model_is_refused_by_the_names_of_its_leaves(tmp_path: Path) -> None:
    _save(tmp_path, 1, 2)
    before = sorted(tmp_path.rglob("*"))
    wider = jax.eval_shape(lambda: _state(0, width=301))
    fewer = _ABSTRACT._replace(params={"other": _ABSTRACT.params["half"]})
    with Checkpoints(tmp_path) as checkpoints:
        with pytest.raises(
            CheckpointError, match=r"params\.Dense_0\.kernel is float32\[40,300\], expected .*\[40,301\]"
        ):
            checkpoints.restore(wider)
        with pytest.raises(CheckpointError, match=r"params\.other is absent, expected bfloat16\[3\]"):
            checkpoints.restore(fewer)
    with pytest.raises(CheckpointError, match="Use the config it was made with"):
        load(tmp_path, wider)
    assert sorted(tmp_path.rglob("*")) == before


def test_saving_a_step_again_is_idempotent_and_never_overwrites(tmp_path: Path) -> None:
    _save(tmp_path, 1)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, _state(1), {"position": 1, "rate": 0.1})
        with pytest.raises(CheckpointError, match="already saved"):
            checkpoints.save(1, _state(2), {"position": 1, "rate": 0.1})
        assert checkpoints.restore(_ABSTRACT)[0] == 1


def test_saving_below_the_newest_step_saves(tmp_path: Path) -> None:
    _save(tmp_path, 1, 9, 5)
    with Checkpoints(tmp_path) as checkpoints:
        _assert_same(checkpoints.restore(_ABSTRACT, 5)[1], _state(5))


def test_saving_over_a_damaged_step_sets_it_aside(tmp_path: Path) -> None:
    _save(tmp_path, 1, 2)
    _delete_record(tmp_path / "2")
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.restore(_ABSTRACT, 1)[0] == 1
        checkpoints.save(2, _state(2), {})
        assert checkpoints.restore(_ABSTRACT)[0] == 2
    assert (tmp_path / "damaged" / "2").exists()


def test_a_save_that_fails_says_so_and_the_newest_good_one_stays(tmp_path: Path) -> None:
    state = {"x": np.random.default_rng(0).uniform(size=10_000)}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state, {})
        checkpoints._wait()
        # As good as a full disk: no file may grow beyond 20 kB.
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
        try:
            checkpoints.save(2, state, {})
            with pytest.raises(
                CheckpointError, match=r"step 2 could not be saved.*File too large.*command.*point, 1\."
            ):
                checkpoints._wait()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert load(tmp_path, state)[0] == 1
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.restore(state)[0] == 1
        checkpoints.save(2, state, {})
    assert load(tmp_path, state)[0] == 2


def test_metadata_that_is_not_json_is_refused(tmp_path: Path) -> None:
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(TypeError, match="JSON"):
        checkpoints.save(1, _state(1), {"config": object()})
    assert list(tmp_path.iterdir()) == []


def test_load_never_writes(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="Run cure-jax train"):
        load(tmp_path / "missing", _ABSTRACT)
    assert not (tmp_path / "missing").exists()
    _save(tmp_path, 1, 2)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    step, restored, metadata = load(tmp_path, _ABSTRACT)
    assert (step, metadata) == (2, {"position": 2, "rate": 0.1})
    _assert_same(restored, _state(2))
    assert load(tmp_path, _ABSTRACT, 1)[0] == 1
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


@_every_damage
def test_load_refuses_a_damaged_checkpoint(tmp_path: Path, damage: Callable, reason: str) -> None:
    _save(tmp_path, 1, 2)
    damage(tmp_path / "2")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(CheckpointError, match=rf"Checkpoint 2 .*{reason}.*\[1\]"):
        load(tmp_path, _ABSTRACT)
    assert sorted(tmp_path.rglob("*")) == before


def test_orbax_is_quiet_and_others_are_heard(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from absl import logging as absl_logging

    with caplog.at_level(logging.INFO), caplog.at_level(logging.INFO, logger="absl"):
        _save(tmp_path, 1)
        assert not caplog.records
        absl_logging.info("a message of the user")
        assert [record.message for record in caplog.records] == ["a message of the user"]


def _variables(seed: int) -> dict:
    return {"params": _state(seed).params}


def test_another_training_can_start_from_the_parameters_of_a_work_directory(tmp_path: Path) -> None:
    _save(tmp_path / "checkpoints", 3, 7)
    found = load_variables(tmp_path, jax.eval_shape(lambda: _variables(0)))
    chex.assert_trees_all_equal(found, _variables(7))


def test_another_training_can_start_from_a_file(tmp_path: Path) -> None:
    state = {"params": {"Dense_0": {"kernel": jnp.ones((2, 3)), "bias": jnp.zeros(3)}}}
    arrays = {"params.Dense_0.kernel": np.ones((2, 3), np.float32), "params.Dense_0.bias": np.zeros(3, np.float32)}
    np.savez(tmp_path / "weights.npz", **arrays)
    chex.assert_trees_all_equal(load_variables(tmp_path / "weights.npz", state), state)
    np.savez(tmp_path / "other.npz", **{**arrays, "params.Dense_0.bias": np.zeros(4, np.float32)})
    with pytest.raises(CheckpointError, match=r"bias is float32\[4\], expected float32\[3\]"):
        load_variables(tmp_path / "other.npz", state)


def test_keys_among_the_parameters_are_keys_again(tmp_path: Path) -> None:
    variables = {"params": {"key": jax.random.key(7, impl="rbg"), "half": jnp.full(3, 7, jnp.float8_e5m2)}}
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        checkpoints.save(3, variables, {})
    found = load_variables(tmp_path, jax.eval_shape(lambda: variables))
    assert found["params"]["key"] == variables["params"]["key"]
    chex.assert_trees_all_equal(found["params"]["half"], variables["params"]["half"])


def test_a_file_may_hold_bfloat16_and_other_types_of_jax_are_refused(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(2, 3))
    for dtype, message in (("bfloat16", None), ("float8_e4m3fn", r"kernel is \|V1"), ("float8_e5m2", "cannot be read")):
        state = {"params": {"kernel": jnp.asarray(values.astype(jnp.dtype(dtype)))}}
        np.savez(tmp_path / "weights.npz", **{"params.kernel": np.asarray(state["params"]["kernel"])})
        if message is None:
            chex.assert_trees_all_equal(load_variables(tmp_path / "weights.npz", state), state)
        else:
            with pytest.raises(CheckpointError, match=message):
                load_variables(tmp_path / "weights.npz", state)


def test_a_file_that_is_no_npz_of_numbers_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "one.npy", np.zeros(3))
    np.savez(tmp_path / "objects.npz", **{"params.half": np.array([None])})
    whole = (tmp_path / "objects.npz").read_bytes()
    for content in (b"", b"nonsense", whole, whole[:-30], (tmp_path / "one.npy").read_bytes()):
        (tmp_path / "weights.npz").write_bytes(content)
        with pytest.raises(CheckpointError, match=r"weights\.npz cannot be read \(.*Write it again with numpy\.savez"):
            load_variables(tmp_path / "weights.npz", _variables(0))


@pytest.mark.parametrize(("name", "message"), [("nowhere", "Train there first"), ("none.npz", "No file")])
def test_what_there_is_not_cannot_be_started_from(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        load_variables(tmp_path / name, _variables(0))


def test_a_damaged_checkpoint_is_not_started_from(tmp_path: Path) -> None:
    _save(tmp_path / "checkpoints", 3)
    largest = max((tmp_path / "checkpoints" / "3").rglob("*"), key=lambda path: path.stat().st_size * path.is_file())
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 4
    largest.write_bytes(content)
    with pytest.raises(CheckpointError, match="is damaged"):
        load_variables(tmp_path, _variables(0))
