"""Trains and certifies a list of configs and seeds, and makes tables and pictures of them.

    cure-jax sweep --configs=digits:linf,digits:scratch --seeds=0,1,2 --root=runs/digits

A config may carry overrides of its own, for ablations; `name=` gives the row another name than config and overrides:

    --configs=digits:scratch+projection.beta=0,digits:scratch+alignment.weight=0+name=unaligned

Each run is `cure-jax train` and `cure-jax certify` in processes of their own, in ROOT/NAME (one seed) or
ROOT/NAME/seed_S; what they say goes to log.txt there. What is done is skipped, what was interrupted resumes, and a run
that fails does not stop the others: the sweep reports it at its end, with exit status 1. Tables go to the terminal,
ROOT/table.md and ROOT/table.tex, pictures to ROOT: methods.png, radius.png, union.png, alignment.png and trade_off.png.
A fine-tuning begins from the run of this sweep and its seed that its config names. Arguments after `--` go to every
train and certify, for example `-- --config.epochs=5`.

A search draws trials from ranges and lists of values, trains them for a share of the epochs, and then the better half
of them for longer, by what is certified of validation images. Each rung has a folder, ROOT/search.md is the table:

    search="losses.l2.fraction=0.3..1.0,learning_rate=1e-3..1e-2:log"
    cure-jax sweep --configs=digits:max --search="$search" --trials=8 --split=validation --root=runs/search
"""

import concurrent.futures
import dataclasses
import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from cure_jax.commands.parts import common, entries, provenance, search
from cure_jax.commands.parts.entries import Entry
from cure_jax.commands.parts.summary import write_report
from cure_jax.training.workdir import writing

_CONFIGS = flags.DEFINE_multi_string("configs", None, "Configs, each with a method after a colon, and +FIELD=VALUE.")
_SEEDS = flags.DEFINE_list("seeds", ["0"], "Seeds of each config.")
_ROOT = flags.DEFINE_string("root", None, "Where the work directories go.")
_METHOD = flags.DEFINE_string("method", "crown", "How to bound, see cure-jax certify.")
_ARITHMETIC = flags.DEFINE_string("arithmetic", "float32", "How bounds are rounded, see cure-jax certify.")
_NUM_EXAMPLES = flags.DEFINE_integer("num_examples", 1000, "Images to certify.")
_SPLIT = flags.DEFINE_enum("split", "test", ["test", "validation"], "What to certify.")
_SEARCH = flags.DEFINE_string("search", None, "FIELD=LOW..HIGH, FIELD=LOW..HIGH:log or FIELD=A|B, with commas between.")
_TRIALS = flags.DEFINE_integer("trials", 8, "Of a search, in its first rung.", lower_bound=1)
_RUNGS = flags.DEFINE_list("rungs", ["0.25", "0.5", "1"], "Of a search: shares of the epochs, increasing.")
_JOBS = flags.DEFINE_integer("jobs", 1, "Runs at the same time.", lower_bound=1)

# -P: what lies in the current directory is not what runs here.
_PROGRAM = (sys.executable, "-P", "-m", "cure_jax")


@dataclasses.dataclass(frozen=True)
class Run:
    """One training and its certification."""

    entry: Entry
    workdir: Path
    arguments: list[str]
    config: dict[str, Any]

    @property
    def result(self) -> Path:
        """Where certify puts its figures; other files lie beside it."""
        return self.workdir / ("certify.json" if _SPLIT.value == "test" else "validation.json")


class RunFailed(Exception):
    """A process ended with another exit status than 0."""


def run() -> None:
    """Reads the command line, and does it."""
    common.run(main, required=["configs", "root"], takes_more=True)


def main(arguments: Sequence[str]) -> None:
    """Runs what is missing, and reports."""
    root = Path(str(_ROOT.value))
    try:
        if _SEARCH.value:
            _search(root, arguments)
            return
        runs, failures = _sweep(root, _CONFIGS.value or [], arguments)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    _say_failures(runs, failures)


def _sweep(root: Path, words: Sequence[str], arguments: Sequence[str]) -> tuple[list[Run], dict[Path, str]]:
    """Runs entries below a root, and reports; returns them, and what went wrong by work directory."""
    runs = [_planned(root, entry, seed, arguments) for entry in entries.parse(words) for seed in _SEEDS.value or []]
    runs = _with_own_starts(runs)
    workdirs = {str(run.workdir) for run in runs}
    later = [run for run in runs if run.config.get("start_from") in workdirs]
    failures = _run_all([run for run in runs if run not in later])
    orphans = {run.workdir: run.config["start_from"] for run in later if Path(run.config["start_from"]) in failures}
    failures |= {workdir: f"not begun, as {start} failed" for workdir, start in orphans.items()}
    failures |= _run_all([run for run in later if run.workdir not in orphans])
    if done := [run for run in runs if run.workdir not in failures]:
        reports = root if _SPLIT.value == "test" else root / _SPLIT.value
        with writing("The report", reports):
            write_report(reports, [(run.entry.name, run.result) for run in done])
    return runs, failures


def _say_failures(runs: Sequence[Run], failures: Mapping[Path, str]) -> None:
    if failures:
        listed = "".join(f"\n  {workdir}: {error}" for workdir, error in failures.items())
        sys.exit(f"error: {len(failures)} of {len(runs)} runs failed, and are not in the tables:{listed}")


def _search(root: Path, arguments: Sequence[str]) -> None:
    """Successive halving: rungs of sweeps, each with the better half of the one before."""
    word, trials, rungs = _planned_search()
    alive, table = list(trials), search.Table(rungs)
    for rung in rungs:
        [plain] = entries.parse([word])
        shorter = search.shortened(entries.read_config(plain, arguments), float(rung))
        words = [f"{word}+{'+'.join((*trials[name], *shorter))}+name={name}" for name in alive]
        runs, failures = _sweep(root / f"rung_{rung}", words, arguments)
        results = {run.entry.name: json.loads(run.result.read_text()) for run in runs if run.workdir not in failures}
        scores = {name: search.score(result) for name, result in results.items()}
        table.add(rung, scores)
        with writing("The table of the search", root / "search.md"):
            (root / "search.md").write_text(table.markdown())
        _say_failures(runs, failures)
        alive = search.better_half(scores)
    print(f"best: --configs={word}+{'+'.join(trials[alive[0]])}")


def _planned_search() -> tuple[str, dict[str, tuple[str, ...]], list[str]]:
    """The one entry, the trials by name, and the rungs."""
    words = [word for text in _CONFIGS.value or [] for word in entries.split(text)]
    if len(words) != 1 or len(_SEEDS.value or []) != 1:
        raise ValueError(f"A search got {len(words)} configs and the seeds {_SEEDS.value}; expected one of each.")
    if _SPLIT.value != "validation":
        raise ValueError("A search got --split=test; expected --split=validation: test images are for the last table.")
    rungs = list(_RUNGS.value or [])
    if not rungs or rungs != sorted(set(rungs), key=float):
        raise ValueError(f"The rungs are {','.join(rungs)}; expected increasing shares of the epochs, such as 0.25,1.")
    trials = search.draw(search.parse(str(_SEARCH.value)), _TRIALS.value, int(_SEEDS.value[0]))
    # No commas: they stand between entries.
    return words[0], {" ".join(trial): trial for trial in trials}, rungs


def _planned(root: Path, entry: Entry, seed: str, overrides: Sequence[str]) -> Run:
    """A run whose config is known to be readable."""
    directory, seeds = root / entry.directory, _SEEDS.value or []
    workdir = directory / f"seed_{seed}"
    if len(seeds) == 1 and not workdir.exists():
        workdir = directory
    overrides = [*overrides, f"--config.seed={seed}"]
    return Run(entry, workdir, entries.arguments_of(entry, overrides), entries.read_config(entry, overrides))


def _with_own_starts(runs: list[Run]) -> list[Run]:
    """Lets each fine-tuning begin from the network of this sweep and its seed."""
    workdirs: dict[tuple, Path] = {}
    for run in runs:
        setting, name, seed, batch_size = (run.config[field] for field in ("setting", "name", "seed", "batch_size"))
        workdirs[setting, run.entry.directory, seed] = run.workdir
        workdirs[setting, name, seed, batch_size] = run.workdir
    changed = []
    for run in runs:
        start = entries.own_start(run.config, run.arguments, workdirs)
        if start is not None:
            arguments = [*run.arguments, f"--config.start_from={start}"]
            run = dataclasses.replace(run, arguments=arguments, config={**run.config, "start_from": str(start)})
        changed.append(run)
    return changed


def _run_all(runs: list[Run]) -> dict[Path, str]:
    """Runs them, several at a time; returns what went wrong, by work directory."""
    failures = {}
    with concurrent.futures.ThreadPoolExecutor(_JOBS.value) as pool:
        futures = {pool.submit(_run, run): run for run in runs}
        try:
            for future in concurrent.futures.as_completed(futures):
                if isinstance(error := future.exception(), RunFailed | OSError):
                    failures[futures[future].workdir] = str(error)
                    print(f"{futures[future].workdir}: failed", flush=True)
                elif error is not None:
                    raise error
        except BaseException:
            # Ctrl-C, or a bug: what has not begun shall not begin.
            pool.shutdown(cancel_futures=True)
            raise
    return {run.workdir: failures[run.workdir] for run in runs if run.workdir in failures}


def _run(run: Run) -> None:
    wanted = {"method": _METHOD.value, "arithmetic": _ARITHMETIC.value, "num_examples": _NUM_EXAMPLES.value}
    if entries.is_done(run.result, run.config, wanted):
        print(f"{run.workdir}: done before", flush=True)
        return
    # In one piece, as several runs print at the same time.
    print(f"{run.workdir}: started\n", end="", flush=True)
    with writing("A run", run.workdir):
        run.workdir.mkdir(parents=True, exist_ok=True)
    arguments = [*run.arguments, f"--workdir={run.workdir}"]
    before, start = provenance.last_checkpoint(run.workdir), time.monotonic()
    spent = provenance.training_seconds(run.workdir)
    try:
        output = _call(run, "train", arguments)
    finally:
        trained = provenance.last_checkpoint(run.workdir) != before
        if trained and provenance.training_seconds(run.workdir) == spent:
            # It was killed, and could not write it down itself.
            provenance.add_training_seconds(run.workdir, time.monotonic() - start)
    if "trained to step" not in output:
        # Stopped in good order but before its end, as on a machine that is taken away: nothing to certify yet.
        raise RunFailed(f"train stopped before its end, see {run.workdir / 'log.txt'}; give the same command again")
    certify = [f"--method={_METHOD.value}", f"--arithmetic={_ARITHMETIC.value}"]
    certify += [f"--num_examples={_NUM_EXAMPLES.value}", f"--split={_SPLIT.value}"]
    if _SEARCH.value:
        # Trials are compared at the radius itself.
        certify += ["--curve="]
    _call(run, "certify", [*arguments, *certify])


def _call(run: Run, name: str, arguments: list[str]) -> str:
    """Runs a command, its output going to the end of the log; returns the output."""
    log, command = run.workdir / "log.txt", [*_PROGRAM, name, *arguments]
    with writing("The log", log), log.open("a") as file:
        print(f"$ {' '.join(command)}", file=file, flush=True)
        start = file.tell()
        status = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, check=False).returncode
    output = log.read_bytes()[start:].decode(errors="replace").strip()
    last = output.rpartition("\n")[2].strip()[:300]
    if status:
        raise RunFailed(f"{name} ended with exit status {status} ({last}), see {log}")
    print(last, flush=True)
    return output
