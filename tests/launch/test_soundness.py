"""The hunt for broken certificates: finds none in the library, and every planted one."""

import functools
import json
import os
import subprocess
import sys
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cure_jax as cj
from cure_jax import data
from cure_jax.verification import Status
from launch.checks import changing, soundness
from launch.checks.findings import Tally, enter
from launch.checks.hunting_grounds import extreme_radii, grounds
from tests import mutants

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def network():
    return soundness._train(soundness.Network("mlp", {"features": (16,)}, {"epochs": 3}), 0)


@pytest.fixture(autouse=True)
def one_small_network(network, monkeypatch):
    monkeypatch.setattr(soundness, "_train", lambda *_: network)


def run(workdir, norm, pairs=soundness.BATCH_SIZE):
    return soundness.hunt(workdir, pairs=pairs, seed=0, networks=["mlp"], norms=[norm])


def test_what_is_sound_is_counted_and_not_broken(tmp_path, monkeypatch):
    monkeypatch.setattr(soundness, "METHODS", {name: None for name in soundness.CHEAP})
    assert run(tmp_path, "l2", pairs=4 * soundness.BATCH_SIZE) == 0
    report = json.loads((tmp_path / "soundness.json").read_text())
    total = report["total"]
    assert (total["pairs"], total["broken"]) == (240, 0)
    assert total["bounds"] == 3 * 240
    assert total["attacked_points"] > 40 * 240
    assert 0 < total["certified"]["ibp"] <= total["certified"]["crown"] < 240
    assert report["by_network_and_norm"]["mlp l2"]["pairs"] == 240
    assert not (tmp_path / "counterexample.npz").exists()


@pytest.mark.parametrize(
    ("plant", "norm"),
    [
        (mutants.linf_ball_with_the_2_norm, "linf"),
        (mutants.margins_off_by_one, "linf"),
        (mutants.few_pixels_and_one_less, "l0, 1 pixel"),
    ],
)
def test_planted_bugs_are_found_and_end_in_status_1(plant, norm, network, tmp_path, monkeypatch):
    monkeypatch.setattr(soundness, "METHODS", {"crown_ibp": None})
    for flag, value in (("_WORKDIR", str(tmp_path)), ("_PAIRS", 120), ("_SEED", 0)):
        monkeypatch.setattr(soundness, flag, types.SimpleNamespace(value=value))
    hunt = functools.partial(soundness.hunt, networks=["mlp"], norms=[norm])
    monkeypatch.setattr(soundness, "hunt", hunt)
    with mutants.planted(plant), pytest.raises(SystemExit) as ended:
        soundness.main()
    assert ended.value.code == 1
    found = np.load(tmp_path / "counterexample.npz")
    # With the library as it is, the point is in the region and has the margin that was claimed.
    region = grounds(0)[norm].make(jnp.asarray(found["eps"]), jnp.asarray(found["image"]))
    assert region.contains(jnp.asarray(found["point"]), 1e-5)
    margin = jnp.min(cj.margins(network, int(found["label"]))(jnp.asarray(found["point"])))
    np.testing.assert_allclose(margin, found["margin"], atol=1e-4)
    assert found["bound.crown_ibp"] > margin + 1e-4


@pytest.mark.slow
def test_perturbations_are_put_to_the_test(tmp_path):
    # Three blocks of images: each name once.
    names, pairs = ["rotation", "contrast", "patch"], 3 * soundness.BATCH_SIZE
    assert soundness.hunt(tmp_path, pairs=pairs, seed=0, networks=["mlp"], norms=names) == 0
    found = json.loads((tmp_path / "soundness.json").read_text())["by_network_and_norm"]
    assert {name: found[f"mlp {name}"]["pairs"] for name in names} == dict.fromkeys(names, soundness.BATCH_SIZE)
    proved = {name: sum(found[f"mlp {name}"]["certified"].values()) for name in names}
    assert all(0 < count < soundness.BATCH_SIZE for count in proved.values()), proved


def test_cells_that_do_not_cover_a_perturbation_are_found(tmp_path):
    hunt = functools.partial(soundness.hunt, pairs=60, networks=["mlp"], norms=["rotation"])
    with mutants.planted(mutants.half_of_each_cell_forgotten):
        assert hunt(tmp_path, seed=1) > 0
    found = np.load(tmp_path / "counterexample.npz")
    assert (str(found["norm"]), bool(found["verified.ibp"])) == ("rotation", True)
    assert found["margin"] < 0


@pytest.mark.parametrize("honest", [True, False])
def test_searches_for_proofs_are_put_to_the_test(honest, network, monkeypatch):
    monkeypatch.setattr(soundness, "METHODS", {"ibp": None})
    if not honest:
        monkeypatch.setattr(cj, "verify", lambda *args, **options: types.SimpleNamespace(status=Status.VERIFIED))
    split = data.load("digits", "train")
    # From where splitting alone proves to where nothing is true.
    radii = np.linspace(0.02, 0.2, soundness.SEARCHED).astype(np.float32)
    batch = soundness.Batch("mlp", "linf", radii, split.images[:6], split.labels[:6], thorough=True)
    found = soundness._examine(network, grounds(0)["linf"], batch, jax.random.key(0))
    verified = found["bounds"]["verify"].verified
    tally = Tally()
    enter(tally, found)
    assert tally.certified["verify"] == np.sum(verified) > 0
    assert (tally.broken > 0) == (not honest)
    if honest:
        assert np.sum(found["bounds"]["ibp"].verified) < np.sum(verified) < soundness.SEARCHED


@pytest.mark.slow
@pytest.mark.parametrize("plant", [mutants.functions_known_by_identity, mutants.labels_in_eight_bits])
def test_bugs_of_calls_that_are_not_compiled_are_found(plant, monkeypatch):
    monkeypatch.setattr(changing, "METHODS", ("ibp",))
    monkeypatch.setattr(changing, "ACTIVATIONS", {"relu": changing.ACTIVATIONS["relu"]})
    monkeypatch.setattr(changing, "LABELS", (jnp.int8,))

    def broken() -> int:
        tally, closure, images = soundness.Tally(), changing.Changing(), np.full((8, 8, 8, 1), 0.5, np.float32)
        for call in range(4):
            rng = np.random.default_rng(call)
            _, found = closure.examine(images, np.full(8, 1e-3, np.float32), rng)
            soundness.enter(tally, found)
        return tally.broken

    assert broken() == 0
    with mutants.planted(plant):
        assert broken() > 0


def test_radii_are_of_all_sizes():
    radii = extreme_radii(1000, np.random.default_rng(0))
    assert np.all(np.isfinite(radii))
    assert np.min(radii) < 1e-25
    assert np.max(radii) > 1e37


def test_as_a_program(tmp_path):
    command = [sys.executable, "launch/checks/soundness.py", f"--workdir={tmp_path}", "--pairs=0"]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith("error: pairs is 0; expected at least 1.")
