"""The launchers as a user runs them: processes, files, and one sentence for every mistake."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
CONFIG = "--config=configs/digits.py:scratch"
SMALL = (
    "--config.epochs=4",
    "--config.ramp_end=2.0",
    "--config.milestones=(3,)",
    "--config.model.options.features=(16,)",
    "--config.scan_steps=10",
    "--config.checkpoint_every=20",
)


def launch(script: str, *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, f"launch/{script}.py", *arguments]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def mistake(result: subprocess.CompletedProcess) -> str:
    """The message of a run that must have failed in one line, without a traceback."""
    assert result.returncode != 0
    assert "Traceback" not in result.stderr, result.stderr
    return result.stderr.strip().splitlines()[-1]


@pytest.fixture(scope="module")
def workdir(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("runs") / "scratch"
    result = launch("train", CONFIG, f"--workdir={directory}", *SMALL)
    assert result.returncode == 0, result.stderr
    assert "trained to step 40" in result.stdout
    return directory


@pytest.fixture(scope="module")
def certified(workdir) -> Path:
    result = launch(
        "certify", CONFIG, f"--workdir={workdir}", *SMALL, "--num_examples=30", "--attack_steps=3", "--curve=0.5",
        "--config.reported={'l1': 0.5}",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    # The norms of the union, it, and the one beside it.
    *_, last = result.stdout.splitlines()
    summary = json.loads((workdir / "certify.json").read_text())
    shares = {**summary["certified"], "union": summary["union"], **summary["reported"]}
    assert re.findall(r"(\w+) ([\d.]+)%", last) == [
        ("clean", f"{100 * summary['clean']:.1f}"),
        *((name, f"{100 * share:.1f}") for name, share in shares.items()),
    ]
    assert list(summary["reported"]) == ["l1"]
    return workdir


def test_certify_writes_verdicts_and_a_summary_that_agree(certified):
    summary = json.loads((certified / "certify.json").read_text())
    verdicts = np.load(certified / "certify.npz")
    assert summary["num_examples"] == 30
    assert summary["method"] == "crown"
    assert set(summary["certified"]) == {"linf", "l2"}
    assert set(summary["reported"]) == {"l1"}
    assert set(summary["empirical"]) == {"linf", "l2", "union"}
    assert summary["union"] == pytest.approx((verdicts["verified.linf"] & verdicts["verified.l2"]).mean())
    for norm in ("linf", "l2"):
        assert summary["certified"][norm] == pytest.approx(verdicts[f"verified.{norm}"].mean())
        assert summary["certified"][norm] <= summary["empirical"][norm] <= summary["clean"] <= 1
        assert np.all(verdicts[f"margin.{norm}"][verdicts[f"verified.{norm}"]] > 0)
    assert summary["union"] <= summary["empirical"]["union"]
    assert summary["radii"] == {"linf": pytest.approx(summary["config"]["radii"]["linf"]), "l2": summary["radii"]["l2"]}
    assert {"seconds", "arithmetic", "backend", "versions", "precision", "commit"} <= set(summary)
    assert re.fullmatch("[0-9a-f]{12}", summary["checkpoint_sha256"])
    for norm, curve in summary["curve"].items():
        share = {**summary["certified"], **summary["reported"]}[norm]
        # Radius 0, one half and the whole of it.
        assert curve["certified"][0] == curve["attacked"][0] == summary["clean"]
        assert curve["radii"][2] == pytest.approx(2 * curve["radii"][1])
        assert curve["certified"][2] == share <= curve["attacked"][2]
    for name in ("certify.png", "certify_union.png"):
        assert (certified / name).read_bytes().startswith(b"\x89PNG")


def test_a_sweep_over_what_is_done_only_reports(certified):
    files = {path: path.stat().st_mtime for path in certified.rglob("*")}
    overrides = [*SMALL, "--config.reported={'l1': 0.5}"]
    arguments = [f"--root={certified.parent}", "--num_examples=30", "--", *overrides]
    result = launch("sweep", "--configs=configs/digits.py:scratch", *arguments)
    assert result.returncode == 0, result.stderr
    assert f"{certified}: done before" in result.stdout
    assert {path: path.stat().st_mtime for path in certified.rglob("*")} == files
    table = (certified.parent / "table.md").read_text()
    union = json.loads((certified / "certify.json").read_text())["union"]
    assert f" {100 * union:.1f} |" in table
    assert "certified ℓ1 (0.5), not in the union" in table
    for name in ("methods", "radius", "union", "alignment", "trade_off"):
        assert (certified.parent / f"{name}.png").read_bytes().startswith(b"\x89PNG"), name


def test_training_again_is_a_resume_that_has_nothing_to_do(workdir):
    before = (workdir / "metrics.jsonl").read_text()
    result = launch("train", CONFIG, f"--workdir={workdir}", *SMALL)
    assert "already complete" in result.stdout, result.stderr
    assert (workdir / "metrics.jsonl").read_text() == before


def test_a_teacher_is_loaded_by_its_name(tmp_path):
    distilled = (*SMALL, "--config.losses={'linf': {'kind': 'distilled', 'alpha': 0.5}}")
    arguments = ("train", "--config=configs/digits.py:linf", f"--workdir={tmp_path / 'pupil'}", *distilled)
    assert "expected fit(..., teacher=f)" in mistake(launch(*arguments))
    result = launch(*arguments, "--config.teacher=digits/linf")
    assert "trained to step 40" in result.stdout, result.stderr


def test_another_config_is_refused_and_nothing_changes(workdir):
    before = sorted(path.stat().st_mtime for path in workdir.rglob("*"))
    message = mistake(launch("train", CONFIG, f"--workdir={workdir}", *SMALL, "--config.seed=7"))
    assert "seed was 0, now 7" in message
    assert sorted(path.stat().st_mtime for path in workdir.rglob("*")) == before


def test_a_missing_work_directory_is_named(tmp_path):
    message = mistake(launch("certify", CONFIG, f"--workdir={tmp_path / 'nothing'}"))
    assert "nothing" in message
    assert "cure-jax train" in message
    assert not (tmp_path / "nothing").exists()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--config.epochz=3",), "epochz"),
        (("--config.radii.l2=-0.1",), "config.radii.l2 is -0.1; expected a finite radius >= 0"),
        (("--config.losses.l2.kind=best",), "config.losses.l2.kind is 'best'; expected one of natural"),
        (("--config.combine=sum",), "config.combine is 'sum'; expected one of joint"),
        (("--config.dataset=mnits",), "Unknown data set 'mnits'"),
        (("--config.model.name=cnn70",), "Unknown network 'cnn70'"),
        (("--config.teacher=digits/lin",), "digits/lin"),
    ],
)
def test_mistakes_in_a_config_are_named(tmp_path, arguments, expected):
    result = launch("train", CONFIG, f"--workdir={tmp_path / 'run'}", *arguments)
    assert expected in mistake(result)
    assert not (tmp_path / "run").exists()


def test_an_unknown_training_method_is_named(tmp_path):
    result = launch("train", "--config=configs/digits.py:srcatch", f"--workdir={tmp_path}")
    assert result.returncode != 0
    assert "Unknown method 'srcatch'; expected one of linf, l2" in result.stderr


def test_an_unknown_certification_method_is_named(workdir):
    message = mistake(launch("certify", CONFIG, f"--workdir={workdir}", *SMALL, "--method=milp"))
    assert "Unknown method 'milp'; expected one of ibp, crown_ibp, crown" in message
