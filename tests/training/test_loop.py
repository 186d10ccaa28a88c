"""The loop: it learns, stops at NaN, resumes to the last bit, and never touches what is not its own."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from jax import lax

from cure_jax.training import CheckpointError, TrainingDiverged, WorkdirError, fit, load, loop, restore
from cure_jax.training.metrics import read_metrics
from cure_jax.training.network import clean_statistics
from cure_jax.training.parallel import compile_steps
from cure_jax.training.state import TrainState
from tests.training import tiny

_MLP = tiny.TinyMLP()
_DATA = tiny.data(size=32)


def _quick(**fields: Any) -> ml_collections.ConfigDict:
    """IBP alone on one device, which compiles fast."""
    ibp = {"losses": {"linf": {"kind": "ibp"}}, "warmup_regularizer": 0.0, "parallel": "jit"}
    return tiny.config(**{**ibp, **fields})


def _arrays(state: TrainState) -> TrainState:
    """Without keys, which NumPy cannot compare."""

    def plain(leaf: jax.Array) -> jax.Array:
        return jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf

    return jax.device_get(jax.tree.map(plain, state))


def _files(directory: Path) -> dict[str, tuple[bytes, int]]:
    return {
        str(path.relative_to(directory)): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in directory.rglob("*")
        if path.is_file()
    }


class _Interrupted:
    """Ctrl-C in one of the compiled runs of steps; and what is compiled once serves every training of this config."""

    def __init__(self) -> None:
        self.run: Callable | None = None
        self.calls_left = -1
        self.rows: list[np.ndarray] = []

    def compile_steps(self, *args: Any) -> Callable:
        self.run = self.run or compile_steps(*args)
        return self

    def __call__(self, *args: Any) -> Any:
        self.calls_left -= 1
        self.rows.extend(args[3])
        if self.calls_left == 0:
            raise KeyboardInterrupt
        return self.run(*args)


def test_it_learns_to_classify_and_to_certify_and_records_the_truth_about_it(tmp_path: Path) -> None:
    config = _quick(epochs=20, learning_rate=0.05, milestones=(), scan_steps=10, checkpoint_every=20)
    validation = tiny.data(size=64, seed=1)
    fitted = fit(_MLP, _DATA, config, tmp_path, validation=validation)
    first, last = fitted.history[0], fitted.history[-1]
    assert first["worst_accuracy/linf"] < 0.9 < 0.99 < last["worst_accuracy/linf"]
    assert last["loss"] < 0.1 * first["loss"]
    assert (int(fitted.state.step), last["step"], last["radius_scale"]) == (40, 40, 1.0)

    predictions = [int(jnp.argmax(fitted.classifier(jnp.asarray(image)))) for image in validation[0]]
    accuracy = np.mean(np.equal(predictions, validation[1]))
    assert accuracy > 0.9
    assert last["validation_accuracy"] == pytest.approx(accuracy)
    assert [record["step"] for record in fitted.history if "validation_accuracy" in record] == [20, 40]
    assert read_metrics(tmp_path) == [{"tag": "train", **record} for record in fitted.history]


def test_uint8_images_are_trained_on_as_what_they_mean() -> None:
    images = np.round(255 * _DATA[0]).astype(np.uint8)
    whole = fit(_MLP, (images, _DATA[1]), _quick(epochs=2))
    halves = fit(_MLP, ((images / 255).astype(np.float64), _DATA[1].astype(np.int64)), _quick(epochs=2))
    chex.assert_trees_all_close(whole.variables, halves.variables, rtol=1e-5, atol=1e-6)


def test_a_run_that_was_interrupted_resumes_to_the_last_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Everything that must come back: vectors of power iterations, both optimiser states, the keys of attacks.
    config, steps = tiny.scratch(epochs=4, parallel="jit"), _Interrupted()
    monkeypatch.setattr(loop, "compile_steps", steps.compile_steps)
    undisturbed = fit(_MLP, _DATA, config, tmp_path / "undisturbed")
    # Two batches an epoch: every example once in each, in another order.
    epochs = np.reshape(steps.rows, (4, 32))
    np.testing.assert_array_equal(np.sort(epochs, axis=1), np.tile(np.arange(32), (4, 1)))
    assert len(np.unique(epochs, axis=0)) == 4
    steps.calls_left = 4
    with pytest.raises(KeyboardInterrupt):
        fit(_MLP, _DATA, config, tmp_path / "interrupted")
    assert [record["step"] for record in read_metrics(tmp_path / "interrupted")] == [2, 4, 6]
    resumed = fit(_MLP, _DATA, config, tmp_path / "interrupted")
    assert [record["step"] for record in resumed.history] == [6, 8]
    chex.assert_trees_all_equal(_arrays(resumed.state), _arrays(undisturbed.state))
    metrics = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("interrupted", "undisturbed")]
    assert metrics[0] == metrics[1]
    assert len(metrics[0].splitlines()) == 4


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, loop.Fitted]:
    """A finished run of `_quick()`."""
    workdir = tmp_path_factory.mktemp("finished")
    return workdir, fit(_MLP, _DATA, _quick(), workdir)


def test_a_training_that_stopped_early_is_restored_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    config, steps = _quick(epochs=4), _Interrupted()
    monkeypatch.setattr(loop, "compile_steps", steps.compile_steps)
    steps.calls_left = 4
    with pytest.raises(KeyboardInterrupt):
        fit(_MLP, _DATA, config, tmp_path)
    stopped = int(restore(_MLP, _DATA[0][:1], config, tmp_path).state.step)
    assert 0 < stopped < 8
    assert f"stopped at step {stopped} of 8" in caplog.text
    caplog.clear()
    fit(_MLP, _DATA, config, tmp_path)
    assert int(restore(_MLP, _DATA[0][:1], config, tmp_path).state.step) == 8
    assert "stopped" not in caplog.text


@pytest.mark.parametrize(
    ("validation", "message"),
    [
        ((np.zeros((3, 2), np.float32), np.zeros(3, np.int32)), "validation has images of shape"),
        ((3 * _DATA[0], _DATA[1]), r"expected finite pixels in \[0, 1\]"),
        ((_DATA[0], _DATA[1][:-1]), "32 images and 31 labels"),
    ],
)
def test_validation_images_are_checked_before_the_training(validation: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit(_MLP, _DATA, _quick(), validation=validation)


def test_a_finished_run_is_not_trained_again(finished: tuple[Path, loop.Fitted]) -> None:
    workdir, fitted = finished
    metrics = (workdir / "metrics.jsonl").read_text()
    # Where it runs and how many checkpoints are kept is no other experiment.
    again = fit(_MLP, _DATA, _quick(parallel="shard_map", keep_checkpoints=1), workdir)
    assert again.history == []
    chex.assert_trees_all_equal(_arrays(again.state), _arrays(fitted.state))
    assert (workdir / "metrics.jsonl").read_text() == metrics


def test_a_work_directory_of_another_config_is_refused_and_left_alone(finished: tuple[Path, loop.Fitted]) -> None:
    workdir, _ = finished
    before = _files(workdir)
    other = _quick(learning_rate=0.5, **{"radii.linf": 0.25})
    expected = r"learning_rate was 0.01, now 0.5; radii.linf was 0.05, now 0.25.*Nothing was changed"
    with pytest.raises(WorkdirError, match=expected):
        fit(_MLP, _DATA, other, workdir)
    with pytest.raises(WorkdirError, match=expected):
        restore(_MLP, _DATA[0][:1], other, workdir)
    assert _files(workdir) == before


def test_restore_reads_the_network_and_writes_nothing(finished: tuple[Path, loop.Fitted]) -> None:
    workdir, fitted = finished
    before = _files(workdir)
    # Images may be as they are on disk.
    restored = restore(_MLP, np.zeros((1, *tiny.SHAPE), np.uint8), _quick(), workdir)
    chex.assert_trees_all_equal(_arrays(restored.state), _arrays(fitted.state))
    image = jnp.asarray(_DATA[0][0])
    np.testing.assert_array_equal(restored.classifier(image), fitted.classifier(image))
    assert _files(workdir) == before


def test_restore_of_another_network_is_refused(finished: tuple[Path, loop.Fitted]) -> None:
    with pytest.raises(CheckpointError, match=r"another model.*Dense_1\.bias is float32\[6\], expected float32\[7\]"):
        restore(tiny.TinyMLP(width=7), _DATA[0][:1], _quick(), finished[0])


def test_a_radius_that_is_never_reached_is_told(caplog: pytest.LogCaptureFixture) -> None:
    for ramp_end, told in ((1.0, False), (2.0, True)):
        fit(_MLP, _DATA, _quick(epochs=1, ramp_end=ramp_end, milestones=()))
        assert ("The radius is reached at epoch 2 (ramp_end), but the training ends after 1" in caplog.text) == told


def test_other_data_do_not_continue_a_training(finished: tuple[Path, loop.Fitted], tmp_path: Path) -> None:
    workdir = tmp_path / "run"
    shutil.copytree(finished[0], workdir)
    images, labels = _DATA
    for other in ((images[::-1], labels), (images, np.roll(labels, 1)), (images[:-1], labels[:-1])):
        with pytest.raises(WorkdirError, match="was trained on other images or labels"):
            fit(_MLP, other, _quick(), workdir)
    fit(_MLP, _DATA, _quick(), workdir)


def test_a_fine_tuned_network_needs_its_source_no_more(finished: tuple[Path, loop.Fitted], tmp_path: Path) -> None:
    source, tuned = tmp_path / "source", tmp_path / "tuned"
    shutil.copytree(finished[0], source)
    config = _quick(start_from=str(source))
    fitted = fit(_MLP, _DATA, config, tuned)
    assert fit(_MLP, _DATA, config, tuned).history == []
    # Trained again, otherwise: the tuned network is not what this config gives any more.
    shutil.rmtree(source)
    fit(_MLP, _DATA, _quick(seed=7), source)
    with pytest.raises(WorkdirError, match="began from other parameters"):
        fit(_MLP, _DATA, config, tuned)
    shutil.rmtree(source)
    restored = restore(_MLP, _DATA[0][:1], config, tuned)
    chex.assert_trees_all_equal(_arrays(restored.state), _arrays(fitted.state))
    again = fit(_MLP, _DATA, config, tuned)
    chex.assert_trees_all_equal(_arrays(again.state), _arrays(fitted.state))
    with pytest.raises(CheckpointError):
        fit(_MLP, _DATA, config, tmp_path / "new")


class _WithDropout(nn.Module):
    rate: float

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        x = nn.Dropout(self.rate, deterministic=not train)(images.reshape(images.shape[0], -1))
        return nn.Dense(tiny.CLASSES)(x)


def test_dropout_is_refused_where_it_would_do_something() -> None:
    with pytest.raises(ValueError, match=r"Dropout at a rate of 0\.5"):
        fit(_WithDropout(0.5), _DATA, _quick())
    assert int(fit(_WithDropout(0.0), _DATA, _quick(epochs=1)).state.step) == 2


def test_augmentation_of_what_is_no_image_is_refused() -> None:
    flat = _DATA[0].reshape(len(_DATA[0]), -1)
    with pytest.raises(ValueError, match=r"config\.augmentation is .*expected \[height, width, channels\]"):
        fit(_MLP, (flat, _DATA[1]), _quick(**{"augmentation.flip": True}))


def test_restore_without_a_run_or_without_a_checkpoint_says_so(
    finished: tuple[Path, loop.Fitted], tmp_path: Path
) -> None:
    with pytest.raises(WorkdirError, match=r"There is no .*config\.json"):
        restore(_MLP, _DATA[0][:1], _quick(), tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()
    (tmp_path / "config.json").write_bytes((finished[0] / "config.json").read_bytes())
    with pytest.raises(CheckpointError, match="No checkpoint in"):
        restore(_MLP, _DATA[0][:1], _quick(), tmp_path)
    assert list(tmp_path.iterdir()) == [tmp_path / "config.json"]


def test_a_loss_that_is_not_finite_stops_the_run_and_loses_nothing(tmp_path: Path) -> None:
    # The learning rate explodes at the milestone, step 4, so the loss of step 5 is the first bad one.
    config = _quick(milestone_factor=1e30, checkpoint_every=2)
    with pytest.raises(
        TrainingDiverged, match=r"The loss at step 5 is (nan|inf).*lower learning_rate.*another work directory"
    ):
        fit(_MLP, _DATA, config, tmp_path)
    assert [record["step"] for record in read_metrics(tmp_path)] == [2, 4]
    restored = restore(_MLP, _DATA[0][:1], config, tmp_path)
    assert int(restored.state.step) == 4
    assert max(float(jnp.max(jnp.abs(leaf))) for leaf in jax.tree.leaves(restored.state.params)) < 10
    assert np.isfinite(restored.classifier(jnp.asarray(_DATA[0][0]))).all()


def _with(array: np.ndarray, index: tuple[int, ...], value: float) -> np.ndarray:
    array = array.copy()
    array[index] = value
    return array


@pytest.mark.parametrize(
    ("images", "labels", "fields", "message"),
    [
        (_DATA[0], _with(_DATA[1], (5,), 3), {}, r"labels\[5\] is 3; expected 0\.\.2"),
        (_DATA[0], _with(_DATA[1], (5,), -1), {}, r"labels\[5\] is -1"),
        (
            _with(_DATA[0], (4, 1, 2, 0), 1.5),
            _DATA[1],
            {},
            r"images\[4, 1, 2, 0\] is 1\.5; expected finite pixels in \[0",
        ),
        (_with(_DATA[0], (4, 1, 2, 0), np.nan), _DATA[1], {}, r"images\[4, 1, 2, 0\] is nan"),
        (_DATA[0], _DATA[1][:-1], {}, r"32 images and 31 labels"),
        (_DATA[0], _DATA[1], {"batch_size": 33}, r"batch_size 33 exceeds the 32 training examples"),
        (_DATA[0], _DATA[1], {"batch_size": 12, "parallel": "auto"}, r"batch_size 12 does not divide over 8 devices"),
        (_DATA[0], _DATA[1], {"epochs": 0}, r"config\.epochs is 0"),
        (_DATA[0], _DATA[1], {"norm_weights": {"l1": 1.0}, "combine": "joint"}, r"norm_weights"),
        (_DATA[0], _DATA[1], {"parallel": "ddp"}, r"parallel .*'ddp'"),
    ],
)
def test_what_does_not_fit_is_refused_and_claims_no_work_directory(
    images: np.ndarray, labels: np.ndarray, fields: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        fit(_MLP, (images, labels), _quick(**fields), tmp_path / "run")
    # With the mistake put right, the same directory can be used.
    assert not (tmp_path / "run" / "config.json").exists()


class _Unbounded(nn.Module):
    """Takes a function of its pixels for which there is no bound."""

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        return nn.Dense(3)(lax.lgamma(images.reshape(images.shape[0], -1)))


def test_a_network_without_bounds_is_refused_naming_the_line_and_claims_no_work_directory(tmp_path: Path) -> None:
    with pytest.raises(NotImplementedError, match=r"`lgamma`.*test_loop\.py"):
        fit(_Unbounded(), _DATA, _quick(), tmp_path)
    assert not (tmp_path / "config.json").exists()


def test_batch_norm_without_a_device_axis_trains_on_one_device_and_is_refused_on_eight() -> None:
    model = tiny.ForeignConvNet()
    with pytest.raises(ValueError, match=r"ForeignConvNet has BatchNorm but no field `axis_name`.*parallel='jit'"):
        fit(model, _DATA, _quick(parallel="shard_map"))
    fitted = fit(model, _DATA, _quick())
    means = fitted.variables["batch_stats"]["BatchNorm_0"]["mean"]
    assert np.all(means != 0)
    assert fitted.classifier(jnp.asarray(_DATA[0][0])).shape == (3,)


def test_what_is_certified_is_the_average_with_the_statistics_of_all_images(tmp_path: Path) -> None:
    """Also after a run that was finished is read again."""
    model, fields = tiny.TinyConvNet(), {"average_decay": 0.5, "population_statistics": True}
    fitted = fit(model, _DATA, _quick(**fields), tmp_path)
    last = fit(model, _DATA, _quick())
    chex.assert_trees_all_equal(fitted.variables["params"], fitted.state.average)
    kernels = (fitted.variables["params"]["Dense_0"]["kernel"], last.variables["params"]["Dense_0"]["kernel"])
    assert np.max(np.abs(kernels[0] - kernels[1])) > 1e-4
    variables, images = fitted.variables, jnp.asarray(_DATA[0])
    halves = [clean_statistics(model, variables, images[start : start + 16]).batch for start in (0, 16)]
    means = jax.tree.map(lambda a, b: (a + b) / 2, *halves)
    chex.assert_trees_all_close(dict(variables["batch_stats"]), means, rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_equal(load(tmp_path, model).variables, variables)


def test_fine_tuning_starts_from_the_network_of_another_run(finished: tuple[Path, loop.Fitted]) -> None:
    workdir, source = finished
    config = _quick(start_from=str(workdir), learning_rate=0.0, seed=5)
    tuned = fit(_MLP, _DATA, config)
    chex.assert_trees_all_equal(tuned.state.params, source.state.params)
    with pytest.raises(CheckpointError, match="of another model"):
        fit(tiny.TinyMLP(width=7), _DATA, config)
