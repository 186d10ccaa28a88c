import json
import os
from pathlib import Path

import numpy as np
import pytest

from cure_jax.commands.parts import entries

DIGITS = "configs/digits.py"


def test_a_plain_entry_is_named_after_its_method():
    first, second = entries.parse([f"{DIGITS}:scratch,configs/mnist_cpu.py"])
    assert (first.name, first.directory, first.config, first.overrides) == (
        "scratch",
        "scratch",
        f"{DIGITS}:scratch",
        (),
    )
    assert (second.name, second.config) == ("mnist_cpu", "configs/mnist_cpu.py")


def test_overrides_name_the_row_and_its_directory():
    [entry] = entries.parse([f"{DIGITS}:scratch+projection.beta=0+losses.l2={{'kind': 'lipschitz', 'fraction': 9e-1}}"])
    assert entry.name == "scratch, projection.beta=0, losses.l2={'kind': 'lipschitz', 'fraction': 9e-1}"
    assert entry.directory == "scratch_projection.beta=0_losses.l2=_kind_lipschitz_fraction_9e-1"
    assert entry.overrides[:2] == (
        "--config.projection.beta=0",
        "--config.losses.l2={'kind': 'lipschitz', 'fraction': 9e-1}",
    )
    assert entry.overrides[2] == f"--config.name={entry.name}"


def test_a_name_of_ones_own():
    [entry] = entries.parse([f"{DIGITS}:scratch+alignment.weight=0+name=no alignment α"])
    assert (entry.name, entry.directory) == ("no alignment α", "no_alignment_α")
    assert entry.overrides == ("--config.alignment.weight=0", "--config.name=no alignment α")


def test_a_name_cannot_leave_the_root():
    [entry] = entries.parse([f"{DIGITS}:scratch+name=../../elsewhere"])
    assert entry.directory == "elsewhere"
    with pytest.raises(ValueError, match=r"has the name '\.\.'; expected letters or digits"):
        entries.parse([f"{DIGITS}:scratch+name=.."])


def test_commas_and_plus_signs_within_values():
    words = [
        f"{DIGITS}:max+milestones=(3,5)+learning_rate=1e+0",
        f"{DIGITS}:l2+reported={{'l1': 1, 'l2': 2}},{DIGITS}:linf",
    ]
    parsed = entries.parse(words)
    assert [entry.config for entry in parsed] == [f"{DIGITS}:max", f"{DIGITS}:l2", f"{DIGITS}:linf"]
    assert parsed[0].overrides[:2] == ("--config.milestones=(3,5)", "--config.learning_rate=1e+0")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "Got no configs"),
        ([" , "], "Got no configs"),
        ([f"{DIGITS}:max", "configs/mnist_cpu.py:max"], "Got 2 entries named 'max'"),
        ([f"{DIGITS}:max+seed=3"], "sets the seed"),
    ],
)
def test_entries_that_cannot_be_told_apart_are_refused(words, message):
    with pytest.raises(ValueError, match=message):
        entries.parse(words)


def test_the_config_is_what_the_launchers_see_and_own_overrides_win():
    [entry] = entries.parse([f"{DIGITS}:scratch+projection.beta=0+epochs=7"])
    config = entries.read_config(entry, ["--config.epochs=3", "--config.batch_size=64", "--config.seed=2"])
    assert (config["epochs"], config["batch_size"], config["seed"]) == (7, 64, 2)
    assert config["projection"]["beta"] == 0.0
    assert config["name"] == entry.name
    assert isinstance(config["milestones"], list)
    # A second one is not mixed up with the first.
    [plain] = entries.parse([f"{DIGITS}:max"])
    assert entries.read_config(plain, [])["name"] == "max"


@pytest.mark.parametrize(
    ("word", "message"),
    [
        (f"{DIGITS}:srcatch", "srcatch: .*Unknown method 'srcatch'"),
        (f"{DIGITS}:max+epochz=3", "epochz"),
        (f"{DIGITS}:max+epochs=many", "epochs"),
        ("configs/nothing.py:max", "max: .*nothing.py"),
    ],
)
def test_what_no_launcher_would_accept_is_refused_before_anything_runs(word, message):
    with pytest.raises(ValueError, match=message) as caught:
        entries.read_config(entries.parse([word])[0], [])
    assert "\n" not in str(caught.value)


def test_words_after_the_dashes_must_be_overrides():
    with pytest.raises(ValueError, match="Got the argument 'epochs=3' after --"):
        entries.read_config(entries.parse([f"{DIGITS}:max"])[0], ["epochs=3"])


def test_differences_of_configs():
    done = {"epochs": 3, "name": "a", "radii": {"linf": 0.1}, "losses": {"l2": {"kind": "box"}}, "gone": 1}
    assert entries.differences(done, {**done, "name": "b", "data_dir": "/elsewhere"}) == []
    assert entries.differences(done, {**done, "epochs": 4}) == ["epochs"]
    assert entries.differences(done, {**done, "losses": {"l2": {"kind": "lipschitz"}}}) == ["losses.l2.kind"]
    # Another version of the library has other fields; other radii are another question.
    assert entries.differences(done, {name: value for name, value in done.items() if name != "gone"} | {"new": 1}) == []
    assert entries.differences(done, {**done, "radii": {"linf": 0.1, "l2": np.float64(0.5)}}) == ["radii"]
    assert entries.differences(done, {**done, "losses": {}}) == ["losses"]
    weighted = {**done, "norm_weights": {"l2": 1.0}}
    assert entries.differences({**done, "norm_weights": {}}, weighted) == ["norm_weights"]
    # What was certified before a field had its name.
    assert entries.differences({**done, "weights": {}, "l1": 0.0}, {**weighted, "l1_penalty": 0.1}) == [
        "norm_weights",
        "l1_penalty",
    ]
    assert entries.differences({**done, "model": {"options": {}}}, {**done, "model": {"options": {"width": 32}}}) == [
        "model"
    ]


def test_a_fine_tuning_starts_from_its_own_sweep_and_seed():
    workdirs = {("digits", "linf", seed): Path(f"elsewhere/linf/seed_{seed}") for seed in (0, 1)}
    config = {"setting": "digits", "seed": 1, "start_from": "runs/digits/linf"}
    assert entries.own_start(config, ["--config.epochs=3"], workdirs) == Path("elsewhere/linf/seed_1")
    # There is none of that setting, seed or name, another one was asked for, or nothing is fine-tuned.
    assert (
        entries.own_start({**config, "setting": "mnist_large", "start_from": "runs/mnist_large/linf"}, [], workdirs)
        is None
    )
    assert entries.own_start({**config, "seed": 2}, [], workdirs) is None
    assert entries.own_start({**config, "start_from": "runs/digits/l2"}, [], workdirs) is None
    # Entries of pods have directories such as digits_linf_512.
    pods = {("digits", "linf", 1, 512): Path("here"), ("digits", "linf", 1, 64): Path("there")}
    assert entries.own_start({**config, "batch_size": 512}, [], pods) == Path("here")
    assert entries.own_start(config, ["--config.start_from=runs/digits/linf"], workdirs) is None
    assert entries.own_start({"seed": 1, "start_from": ""}, [], workdirs) is None
    assert entries.own_start({"seed": 1}, [], workdirs) is None


WANTED = {"method": "crown", "arithmetic": "float32", "num_examples": 100}
CONFIG = {"epochs": 3, "radii": {"linf": 0.1}, "reported": {}}
DONE = {**WANTED, "split_examples": 300, "config": CONFIG}


@pytest.fixture
def result(tmp_path):
    """Writes the files of a finished certification."""

    def write(done):
        path = tmp_path / "certify.json"
        path.write_text(json.dumps(done))
        path.with_suffix(".npz").touch()
        path.with_suffix(".png").touch()
        return path

    return write


def test_what_was_certified_this_way_is_done(result):
    assert entries.is_done(result(DONE), CONFIG, WANTED)
    # There are no more than these.
    assert entries.is_done(result({**DONE, "split_examples": 100}), CONFIG, {**WANTED, "num_examples": 1000})
    # Results of earlier versions say neither the arithmetic nor how many images there are.
    old = {name: value for name, value in DONE.items() if name not in ("arithmetic", "split_examples")}
    assert entries.is_done(result(old), CONFIG, WANTED)


@pytest.mark.parametrize(
    "change",
    [{"num_examples": 30}, {"num_examples": 101}, {"method": "ibp"}, {"arithmetic": "outward"},
     {"config": {**CONFIG, "epochs": 4}}, {"config": {**CONFIG, "reported": {"l1": 1.0}}}],
)  # fmt: skip
def test_what_was_certified_otherwise_is_not_done(result, change):
    assert not entries.is_done(result({**DONE, **change}), CONFIG, WANTED)


def test_a_network_that_was_trained_further_is_not_done(result, tmp_path):
    path = result({**DONE, "step": 40})
    (tmp_path / "checkpoints" / "40").mkdir(parents=True)
    (tmp_path / "checkpoints" / "damaged").mkdir()
    assert entries.is_done(path, CONFIG, WANTED)
    (tmp_path / "checkpoints" / "100").mkdir()
    assert not entries.is_done(path, CONFIG, WANTED)


@pytest.mark.parametrize("start", ["source", "weights.npz"])
def test_a_fine_tuning_is_not_done_when_its_source_is_newer(result, tmp_path, start):
    config = {**CONFIG, "start_from": str(tmp_path / start)}
    path = result({**DONE, "config": config})
    assert entries.is_done(path, config, WANTED)
    saved = tmp_path / "source" / "checkpoints" / "40"
    saved.mkdir(parents=True)
    (tmp_path / "weights.npz").touch()
    for seconds, expected in ((-10, True), (10, False)):
        when = path.stat().st_mtime + seconds
        for each in (saved, tmp_path / "weights.npz"):
            os.utime(each, (when, when))
        assert entries.is_done(path, config, WANTED) == expected


@pytest.mark.parametrize("suffix", [".json", ".npz", ".png"])
def test_what_was_interrupted_is_not_done(result, suffix):
    path = result(DONE)
    path.with_suffix(suffix).unlink()
    assert not entries.is_done(path, CONFIG, WANTED)
