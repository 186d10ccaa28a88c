"""A work directory alone gives its network back: the right one, or a sentence that says what is missing."""

import json
from pathlib import Path
from typing import Any

import chex
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from cure_jax import models
from cure_jax.models import Fitted
from cure_jax.training import CheckpointError, WorkdirError, fit, load, loop, restore
from cure_jax.training.names import RENAMED, identity
from tests.training import tiny

_MODEL = {"name": "mlp", "options": {"features": (6,)}}


def _config(**fields: Any) -> ml_collections.ConfigDict:
    """IBP alone on one device, which compiles fast; with things that change no training."""
    quick = {
        "losses": {"linf": {"kind": "ibp"}},
        "warmup_regularizer": 0.0,
        "parallel": "jit",
        "epochs": 1,
        "ramp_end": 1.0,
    }
    config = tiny.config(**{**quick, "milestones": (), "setting": "tiny", "name": "ibp", **fields})
    config.model, config.reported = ml_collections.ConfigDict(_MODEL), {"l1": 0.5}
    return config


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Fitted]:
    """A run as launch/train.py makes it: the model is that of the config."""
    workdir = tmp_path_factory.mktemp("finished")
    return workdir, fit(models.create("mlp", tiny.CLASSES, features=(6,)), tiny.data(32), _config(), workdir)


def test_a_work_directory_gives_network_and_config_back(finished: tuple[Path, Fitted]) -> None:
    workdir, fitted = finished
    before = {path: path.stat().st_mtime_ns for path in workdir.rglob("*")}
    loaded = load(workdir)
    assert (loaded.model, loaded.config.to_dict()) == (fitted.model, fitted.config.to_dict())
    assert loaded.config.milestones == ()
    assert (loaded.example_shape, fitted.example_shape, loaded.history) == (tiny.SHAPE, tiny.SHAPE, [])
    chex.assert_trees_all_equal(loaded.state.params, fitted.state.params)
    image = jnp.asarray(tiny.data(1)[0][0])
    np.testing.assert_array_equal(loaded.classifier(image), fitted.classifier(image))
    assert {path: path.stat().st_mtime_ns for path in workdir.rglob("*")} == before


def test_parameters_are_rounded_as_the_config_says_after_training_and_when_it_is_loaded(
    finished: tuple[Path, Fitted],
) -> None:
    workdir, fitted = finished
    rounded = load(workdir, config=_config(round_to="bfloat16"))
    expected = jax.tree.map(lambda x: np.asarray(x).astype(jnp.bfloat16).astype(np.float32), fitted.variables["params"])
    chex.assert_trees_all_equal(rounded.variables["params"], expected)
    # The state stays, to go on from.
    chex.assert_trees_all_equal(rounded.state.params, fitted.state.params)
    trained = fit(models.create("mlp", tiny.CLASSES, features=(6,)), tiny.data(32), _config(round_to="bfloat16"))
    chex.assert_trees_all_equal(trained.variables["params"], expected)


def test_a_fitted_network_keeps_its_config_when_the_next_one_is_written() -> None:
    config = _config()
    fitted = fit(models.create("mlp", tiny.CLASSES, features=(6,)), tiny.data(32), config)
    config.radii.linf = 0.5
    assert fitted.config.radii.linf == 0.05


def test_a_config_may_report_other_norms_but_not_train_otherwise(finished: tuple[Path, Fitted]) -> None:
    config = _config()
    config.reported = {"l1": 2.0}
    assert load(finished[0], config=config).config.reported.l1 == 2.0
    with pytest.raises(WorkdirError, match=r"made with another config \(seed was 0, now 7\)"):
        load(finished[0], config=_config(seed=7))


def test_the_config_of_the_work_directory_restores_it(finished: tuple[Path, Fitted]) -> None:
    workdir, fitted = finished
    config = ml_collections.ConfigDict(json.loads((workdir / "config.json").read_text()))
    restored = restore(fitted.model, tiny.data(1)[0], config, workdir)
    chex.assert_trees_all_equal(restored.variables, fitted.variables)
    with config.unlocked():
        del config.reported, config.setting
    with pytest.raises(ValueError, match=r"The config has no reported, setting; expected every field of training\."):
        restore(fitted.model, tiny.data(1)[0], config, workdir)


@pytest.mark.parametrize(
    "model",
    [
        tiny.TinyMLP(),
        # Of the very shapes that the config would give, and another function.
        models.create("mlp", tiny.CLASSES, features=(6,), std=(0.5,)),
    ],
    ids=["own", "other fields"],
)
def test_a_network_that_its_config_does_not_name_is_asked_for(model: Any, tmp_path: Path) -> None:
    fitted = fit(model, tiny.data(32), _config(), tmp_path)
    with pytest.raises(
        WorkdirError, match=r"none that models\.create makes of its config \('mlp', .*load\(workdir, mo"
    ):
        load(tmp_path)
    loaded = load(tmp_path, model)
    assert loaded.model == model
    chex.assert_trees_all_equal(loaded.variables, fitted.variables)
    with pytest.raises(CheckpointError, match="of another model"):
        load(tmp_path, tiny.TinyMLP(width=7))


@pytest.mark.parametrize("crop", [0, 4])
def test_what_earlier_versions_wrote_is_read_by_the_data_set_of_its_config(
    crop: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = _config(**{"augmentation.crop": crop})
    images = np.random.default_rng(0).uniform(size=(32, 8, 8, 1)).astype(np.float32)
    monkeypatch.setattr(loop._Trainer, "_record", _without_interface)
    fitted = fit(models.create("mlp", 10, features=(6,)), (images, np.arange(32) % 10), config, tmp_path)
    then = {new: old for old, new in RENAMED.items()}
    fields = {then.get(name, name): value for name, value in identity(config.to_dict()).items()}
    assert "l1" in fields
    (tmp_path / "config.json").write_text(json.dumps(fields))
    loaded = load(tmp_path)
    chex.assert_trees_all_equal(loaded.variables, fitted.variables)
    assert loaded.example_shape == ((4, 4, 1) if crop else (8, 8, 1))
    assert loaded.config.reported.to_dict() == {}


def _without_interface(trainer: Any, state: Any, record: Any, save: bool, files: Any) -> None:
    if save:
        files.checkpoints.save(int(record["step"]), state, {"total_steps": trainer.total})


def test_what_is_missing_is_named(finished: tuple[Path, Fitted], tmp_path: Path) -> None:
    with pytest.raises(
        WorkdirError, match=r"There is no .*config\.json; the work directory of a training was expected"
    ):
        load(tmp_path / "nowhere")
    fields = json.loads((finished[0] / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(fields))
    with pytest.raises(CheckpointError, match="No checkpoint in"):
        load(tmp_path)
