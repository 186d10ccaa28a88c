"""What a sweep runs, skips, repeats and reports: with stand-ins for train and certify, in real processes."""

import json
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# They write what the real ones write, as far as a sweep looks at it.
STAND_IN = """
import json, os, pathlib, sys

flags = dict(word.removeprefix("--").split("=", 1) for word in sys.argv[2:])
workdir = pathlib.Path(flags["workdir"])
command = sys.argv[1]
print("a first line")
print("a line on standard error", file=sys.stderr, flush=True)
if command + ":" + workdir.parent.name in os.environ.get("FAIL", ""):
    sys.exit("error: no such luck")
"""
TRAIN = """
(workdir / "checkpoints" / "40").mkdir(parents=True, exist_ok=True)
if "SECONDS" in os.environ:
    (workdir / "seconds.json").write_text(json.dumps({"training": float(os.environ["SECONDS"])}))
print("preempted" if workdir.parent.name in os.environ.get("STOP", "") else "trained to step 40")
"""
CERTIFY = """
import numpy as np

seed = int(flags["config.seed"])
config = {"seed": seed, "radii": {"linf": 0.13, "l2": 0.45}, "reported": {}}
result = {
    "clean": 1.0, "certified": {"linf": 0.75, "l2": 0.5}, "empirical": {},
    "union": 0.25 + 0.25 * (seed == 1) + float(flags.get("config.learning_rate", 0)),
    "radii": config["radii"], "num_examples": min(4, int(flags["num_examples"])), "split_examples": 4, "seconds": 2.0,
    "method": flags["method"], "arithmetic": flags["arithmetic"], "config": config,
    "training_seconds": json.loads((workdir / "seconds.json").read_text())["training"],
    "curve": {"linf": {"radii": [0.0, 0.1], "certified": [1.0, 0.75]}},
}
name = "validation" if flags["split"] == "validation" else "certify"
(workdir / f"{name}.json").write_text(json.dumps(result))
verdicts = {"verified.linf": [1, 1, 1, 0], "verified.l2": [1, seed == 1, 0, seed != 1], "correct": [1, 1, 1, 1]}
margins = {"margin.linf": np.arange(4.0), "margin.l2": np.ones(4)}
np.savez(workdir / f"{name}.npz", **{name: np.array(value, bool) for name, value in verdicts.items()}, **margins)
(workdir / f"{name}.png").write_bytes(b"")
print("certified")
"""
RUNNER = """
import sys
from cure_jax.commands import sweep

sweep._PROGRAM = (sys.executable, sys.argv.pop(1))
sweep.run()
"""
CONFIGS = "configs/digits.py:max,configs/digits.py:l2,configs/digits.py:scratch+projection.beta=0+name=no projection"


@pytest.fixture
def sweep(tmp_path):
    """Runs a sweep in `tmp_path / "runs"`."""
    stand_ins = tmp_path / "stand_ins.py"
    bodies = (("train", TRAIN), ("certify", CERTIFY))
    cases = (f"if command == {name!r}:\n" + textwrap.indent(body, "    ") for name, body in bodies)
    stand_ins.write_text(STAND_IN + "\n".join(cases))

    def run(*arguments, fail="", stop=""):
        command = [sys.executable, "-c", RUNNER, str(stand_ins), f"--root={tmp_path / 'runs'}", *arguments]
        environment = {
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "PYTHONPATH": str(ROOT),
            "FAIL": fail,
            "STOP": stop,
            "COLUMNS": "100",
        }
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)

    return run


def _calls(log: Path) -> list[str]:
    """What was started, by the log of a run."""
    lines = [line.split() for line in log.read_text().splitlines() if line.startswith("$ ")]
    return [words[3] for words in lines]


def test_a_sweep_reports_survives_failures_and_resumes(sweep, tmp_path):
    runs, arguments = tmp_path / "runs", [f"--configs={CONFIGS}", "--seeds=0,1", "--jobs=3"]
    first = sweep(*arguments, fail="certify:max", stop="l2")
    assert first.returncode == 1
    assert "4 of 6 runs failed, and are not in the tables" in first.stderr
    log = runs / "max" / "seed_1" / "log.txt"
    assert f"certify ended with exit status 1 (error: no such luck), see {log}" in first.stderr
    # A training that was told to stop is not certified.
    assert f"{runs / 'l2' / 'seed_0'}: train stopped before its end" in first.stderr
    assert _calls(runs / "l2" / "seed_0" / "log.txt") == ["train"]
    assert "Traceback" not in first.stderr
    assert "a line on standard error" in log.read_text()
    assert _calls(log) == ["train", "certify"]
    # The others are in the table, by the names of their entries.
    assert (
        "| no projection | 2 | 100.0 ± 0.0 | 75.0 ± 0.0 | 50.0 ± 0.0 | 37.5 ± 12.5 |" in (runs / "table.md").read_text()
    )
    assert "max" not in (runs / "table.md").read_text()

    second = sweep(*arguments)
    assert second.returncode == 0, second.stderr
    assert second.stdout.count("done before") == 2
    assert _calls(log) == ["train", "certify"] * 2
    assert _calls(runs / "no_projection" / "seed_0" / "log.txt") == ["train", "certify"]
    for name in ("methods", "radius", "union", "alignment", "trade_off"):
        assert (runs / f"{name}.png").read_bytes().startswith(b"\x89PNG"), name
    head, _, worst, _, other, *_ = (runs / "table.md").read_text().splitlines()
    assert "| training s | certification s |" in head
    assert worst.startswith("| max | 2 |")
    assert other.startswith("| no projection | 2 |")
    assert r"\begin{tabular}" in (runs / "table.tex").read_text()


def test_a_run_whose_log_cannot_be_written_is_reported_beside_the_others(sweep, tmp_path):
    log = tmp_path / "runs" / "max" / "log.txt"
    log.parent.mkdir(parents=True)
    log.symlink_to("/dev/full")
    done = sweep("--configs=configs/digits.py:max,configs/digits.py:l2")
    assert done.returncode == 1
    assert f"{log.parent}: The log could not be written to {log} (No space left on device)" in done.stderr
    assert "Traceback" not in done.stderr
    assert "| l2 | 1 |" in (tmp_path / "runs" / "table.md").read_text()


def test_a_fine_tuning_whose_source_failed_does_not_begin(sweep, tmp_path):
    runs, configs = tmp_path / "runs", "configs/digits.py:linf,configs/digits.py:finetune"
    first = sweep(f"--configs={configs}", "--seeds=0,1", fail="train:linf")
    assert first.returncode == 1
    assert f"{runs / 'finetune' / 'seed_1'}: not begun, as {runs / 'linf' / 'seed_1'} failed" in first.stderr
    assert not (runs / "finetune" / "seed_1" / "log.txt").exists()
    assert sweep(f"--configs={configs}", "--seeds=0,1").returncode == 0


def test_another_certification_trains_nothing_again(sweep, tmp_path):
    workdir, config = tmp_path / "runs" / "max", "--configs=configs/digits.py:max"
    counts, seconds = [], []
    for number in (2, 1000, 300):
        assert sweep(config, f"--num_examples={number}").returncode == 0
        counts.append(json.loads((workdir / "certify.json").read_text())["num_examples"])
        seconds.append(json.loads((workdir / "seconds.json").read_text())["training"])
    assert counts == [2, 4, 4]
    # All four that there are were certified before: nothing is left to do.
    assert _calls(workdir / "log.txt") == ["train", "certify"] * 2
    # A process that finds the training complete does not add to its seconds.
    assert 0 < seconds[0] == seconds[1] == seconds[2]


def test_the_seconds_that_a_training_wrote_down_itself_are_not_added_again(sweep, tmp_path, monkeypatch):
    monkeypatch.setenv("SECONDS", "5.0")
    assert sweep("--configs=digits:max", "--num_examples=2").returncode == 0
    assert json.loads((tmp_path / "runs" / "max" / "seconds.json").read_text()) == {"training": 5.0}


def test_a_mistake_is_found_before_anything_runs(sweep, tmp_path):
    done = sweep("--configs=configs/digits.py:max,configs/digits.py:l2+epochz=3")
    assert done.returncode == 1
    assert done.stderr.startswith("error: l2, epochz=3:")
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "runs").exists()


SEARCH = (
    "--configs=digits:max",
    "--search=learning_rate=0.01..0.24,optimizer=adam|radam",
    "--trials=4",
    "--rungs=0.5,1",
    "--split=validation",
)


def test_a_search_trains_the_better_half_for_longer_and_names_the_best(sweep, tmp_path):
    runs = tmp_path / "runs"
    first = sweep(*SEARCH, fail="certify:rung_1")
    assert first.returncode == 1
    done = sweep(*SEARCH)
    assert done.returncode == 0, done.stderr
    table = (runs / "search.md").read_text().splitlines()
    trials = [re.match(r"\| (learning_rate=(\S+) optimizer=r?adam) \|", line) for line in table[2:6]]
    rates = [float(trial[2]) for trial in trials]
    assert rates == sorted(rates, reverse=True)
    # Two of four reach the last rung, and the best one wins.
    cells = [line.split("|")[3].strip() for line in table[2:6]]
    assert [bool(cell) for cell in cells] == [True, True, False, False]
    assert done.stdout.splitlines()[-1] == f"best: --configs=digits:max+{trials[0][1].replace(' ', '+')}"
    # The first rung was not repeated, and had half of the epochs.
    logs = sorted((runs / "rung_0.5").glob("*/log.txt"))
    assert len(logs) == 4
    assert all(_calls(log) == ["train", "certify"] for log in logs)
    assert all("--config.epochs=50" in log.read_text() for log in logs)
    # No curve is drawn of what is only compared.
    assert all("--curve=" in log.read_text() for log in logs)
    assert len(list((runs / "rung_1").glob("*/log.txt"))) == 2


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ("--split=test", "test images are for the last table"),
        ("--rungs=1,0.5", "increasing shares"),
        ("--seeds=0,1", "expected one of each"),
        ("--search=learning_rate", "expected FIELD=LOW..HIGH"),
    ],
)
def test_a_search_says_what_is_wrong(sweep, changed, message):
    done = sweep(*SEARCH, changed)
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr
