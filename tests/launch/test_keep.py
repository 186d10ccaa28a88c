"""From a work directory alone to certificates, a comparison, a kept network and an export."""

import json
import shutil

import chex
import pytest

from cure_jax import models, training
from cure_jax.models import archive
from tests.launch.test_launchers import launch, mistake

SMALL = ("--config.epochs=1", "--config.ramp_end=1.0", "--config.milestones=()", "--config.model.options.features=(8,)")
FEW = ("--num_examples=12", "--attack_steps=1")


@pytest.fixture(scope="module")
def certified(tmp_path_factory):
    """A run of launch/train.py that was certified by its work directory alone."""
    directory = tmp_path_factory.mktemp("run")
    done = launch("train", "--config=digits:l2", f"--workdir={directory}", "--config.reported={'l1': 0.5}", *SMALL)
    assert done.returncode == 0, done.stderr
    done = launch("certify", f"--workdir={directory}", "--curve=", *FEW)
    assert done.returncode == 0, done.stderr
    return directory


@pytest.mark.slow
def test_the_work_directory_alone_certifies_and_compares(certified):
    result = json.loads((certified / "certify.json").read_text())
    assert (result["config"]["setting"], result["config"]["name"]) == ("digits", "l2")
    assert set(result["certified"]) == {"linf", "l2"}
    assert set(result["reported"]) == {"l1"}
    assert result["training_seconds"] > 0
    compared = launch("compare", f"--workdir={certified}", "--methods=ibp", "--whole=", *FEW)
    assert compared.returncode == 0, compared.stderr
    assert set(json.loads((certified / "compare.json").read_text())["radii"]) == {"linf", "l2", "l1"}


def test_a_certified_network_is_kept(certified, tmp_path, monkeypatch):
    done = launch("keep", f"--workdir={certified}", "--name=tiny/l2", f"--directory={tmp_path}", "--method=crown_ibp")
    assert done.returncode == 0, done.stderr
    monkeypatch.setattr(archive, "DIRECTORY", tmp_path)
    kept, trained, entry = models.pretrained("tiny/l2"), training.load(certified), models.pretrained_index()["tiny/l2"]
    chex.assert_trees_all_equal(kept.variables, trained.variables)
    assert (kept.model, kept.config.to_dict()) == (trained.model, trained.config.to_dict())
    result = json.loads((certified / "certify.json").read_text())
    for field in (
        "clean",
        "certified",
        "union",
        "reported",
        "commit",
        "training_seconds",
        "checkpoint_sha256",
        "method",
    ):
        assert entry[field] == result[field], field
    assert entry["examples"]["method"] == "crown_ibp"
    assert {len(verdicts) for verdicts in entry["examples"]["verified"].values()} == {10}
    assert set(entry["examples"]["margin"]) == {"linf", "l2", "l1"}
    lines = launch("keep", "--table", f"--directory={tmp_path}").stdout.splitlines()
    assert lines[0].startswith("| method | n | clean | certified ℓ∞ (0.13) | certified ℓ2 (0.45) | union certified")
    (row,) = [line for line in lines if line.startswith("| tiny/l2 | 1 |")]
    assert f"`{entry['checkpoint_sha256']}`" in row


def test_a_network_that_was_certified_rounded_is_verified_and_kept_rounded(certified, tmp_path, monkeypatch):
    workdir, kept = tmp_path / "run", tmp_path / "kept"
    shutil.copytree(certified, workdir)
    config = ("--config=digits:l2", "--config.reported={'l1': 0.5}", *SMALL, "--config.round_to=bfloat16")
    done = launch("verify", f"--workdir={workdir}", "--num_examples=12", "--timeout=2", "--method=ibp", *config)
    assert done.returncode == 0, done.stderr
    assert json.loads((workdir / "verify.json").read_text())["round_to"] == "bfloat16"
    # So that verdicts on the network as it was trained are not taken for this one's when an interrupted search goes on.
    assert json.loads((workdir / "verify_parts.jsonl").read_text().splitlines()[0])["round_to"] == "bfloat16"
    result = json.loads((workdir / "certify.json").read_text())
    result["config"]["round_to"] = "bfloat16"
    (workdir / "certify.json").write_text(json.dumps(result))
    done = launch("keep", f"--workdir={workdir}", "--name=tiny/rounded", f"--directory={kept}", "--method=crown_ibp")
    assert done.returncode == 0, done.stderr
    monkeypatch.setattr(archive, "DIRECTORY", kept)
    expected = models.rounded(training.load(certified).variables, "bfloat16")
    chex.assert_trees_all_equal(models.pretrained("tiny/rounded").variables, expected)


@pytest.mark.parametrize(
    ("change", "name", "expected"),
    [
        ("nothing", "../tiny", "expected words with slashes between them"),
        ("remove", "tiny", r"There is no .*certify.json"),
        ("step", "tiny", "has step 1, its newest checkpoint 10; expected the same network"),
        ("checkpoint_sha256", "tiny", "has checkpoint_sha256 1, its newest checkpoint "),
    ],
)
def test_what_does_not_belong_together_is_not_kept(certified, tmp_path, change, name, expected):
    workdir, kept = tmp_path / "run", tmp_path / "kept"
    shutil.copytree(certified, workdir)
    path = workdir / "certify.json"
    if change == "remove":
        path.unlink()
    else:
        path.write_text(json.dumps({**json.loads(path.read_text()), change: 1}))
    assert expected.replace(".*", str(workdir) + "/") in mistake(
        launch("keep", f"--workdir={workdir}", f"--name={name}", f"--directory={kept}")
    )
    assert not kept.exists()
