"""Trains in many ways and under many mishaps on this machine, and compares how it ends.

    python launch/checks/soak.py --root=/tmp/soak --table=docs/pods.md

Jobs of one and two processes with CPU devices, on loopback: the same training divided differently, processes killed,
SIGTERM, damaged checkpoints, full disks. The table goes to the terminal and, with --table, between the two marks of
that file. --quick is the part for continuous integration. What is done is not done again: ROOT keeps it.
Exits 1 if a row fails. Takes about 40 minutes on 2 CPU cores; full disks need the right to mount a tmpfs.
"""

import datetime
import functools
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from absl import app, flags
from absl import logging as absl_logging

from launch.checks import endings, mishaps
from launch.pods import local

_ROOT = flags.DEFINE_string("root", None, "Where the runs go.")
_TABLE = flags.DEFINE_string("table", None, "Markdown file to put the table into, between its marks.")
_QUICK = flags.DEFINE_bool("quick", False, "Three equality runs, one kill, one SIGTERM.")
_KILLS = flags.DEFINE_integer("kills", 10, "How often a process is killed.")
_SIGTERMS = flags.DEFINE_integer("sigterms", 5, "How often SIGTERM is sent.")
_SEED = flags.DEFINE_integer("seed", 0, "Of the points of interruption.")

TIMEOUT = 600.0
# The exit status that stands for a job that took longer, as of the program timeout.
HUNG = 124
MARKS = ("<!-- soak: begin -->", "<!-- soak: end -->")
CONFIG = ("--config=configs/digits.py:scratch",)
# Fifty steps through all stages; as many calls as steps, so that a mishap finds many places. At the rate of the config,
# single float32 parameters end further apart (docs/pods.md says why); float64 keeps that rate.
STEPS = (
    "--config.epochs=5",
    "--config.ramp_end=3.0",
    "--config.milestones=(4,)",
    "--config.learning_rate=1e-4",
    "--config.scan_steps=1",
    "--config.checkpoint_every=10",
    "--config.keep_checkpoints=50",
)
# A network that has something to certify.
TRAINED = ("--config.epochs=20", "--config.ramp_end=8.0", "--config.milestones=(14,)")
# Longer, because a SIGTERM is heard about a second later.
LONG = (*STEPS, "--config.epochs=10")
QUICK = (*LONG, "--config.ramp_end=1.5", "--config.milestones=()", "--config.model.options.features=(16,)")


class Job(NamedTuple):
    """How a training is divided."""

    processes: int
    devices: int
    parallel: str

    def __str__(self) -> str:
        return f"{self.processes} x {self.devices}, {self.parallel}"


class Row(NamedTuple):
    """One line of the table."""

    trial: str
    measured: str
    passed: bool


class End(NamedTuple):
    """How a job ended: exit status of the launcher, what it wrote to the log."""

    status: int
    log: str


Disturb = Callable[[Sequence[subprocess.Popen], Path], None]


def main(arguments: Sequence[str]) -> None:
    """Runs everything, prints the table."""
    del arguments
    root, start = Path(str(_ROOT.value)).absolute(), time.monotonic()
    root.mkdir(parents=True, exist_ok=True)
    absl_logging.set_verbosity(absl_logging.WARNING)
    spent, rows = root / "seconds", []
    before = float(spent.read_text()) if spent.exists() else 0.0
    for row in quick(root) if _QUICK.value else everything(root):
        rows.append(row)
        print(f"{'ok  ' if row.passed else 'FAIL'} {row.trial}: {row.measured}", flush=True)
        seconds = before + time.monotonic() - start
        spent.write_text(str(seconds))
        if _TABLE.value:
            _write(Path(_TABLE.value), table(rows, minutes=seconds / 60))
    if not all(row.passed for row in rows):
        sys.exit(1)


def _write(path: Path, text: str) -> None:
    before, _, rest = path.read_text().partition(MARKS[0])
    path.write_text(f"{before}{MARKS[0]}\n{text}{MARKS[1]}{rest.partition(MARKS[1])[2]}")


def quick(root: Path) -> Iterator[Row]:
    """The part for continuous integration: seven jobs."""
    steps = QUICK
    one, two = Job(1, 1, "jit"), Job(2, 1, "shard_map")
    for job in (one, Job(1, 2, "pmap"), two):
        train(root / _name(job), job, steps)
    yield from equality(root, one, [Job(1, 2, "pmap"), two])
    workdir = root / "interrupted"
    found = [interrupt(workdir, two, steps, functools.partial(kill_one, after=14, delay=0.05))]
    found.append(interrupt(workdir, two, steps, functools.partial(terminate_one, after=40, delay=0.0)))
    train(workdir, two, steps)
    same = endings.identical(workdir, root / _name(two))
    after_kill = "resumed" if "Resumed at step" in found[1].log else "began anew"
    yield Row("kill -9 of one of two processes", f"exit {found[0].status}, {after_kill}", found[0].status != 0)
    yield Row("SIGTERM to one of two processes", _stopped(found[1]), _saved(found[1]))
    yield Row("resumed after both", f"{_resumed(workdir)}; {_same(same)}", same)


def everything(root: Path) -> Iterator[Row]:
    """All rows of the table."""
    one = Job(1, 1, "jit")
    jobs = [Job(*size, mode) for size in ((1, 1), (1, 8), (2, 2)) for mode in ("pmap", "shard_map")]
    for job in (one, *jobs):
        train(root / _name(job), job, STEPS)
    yield from equality(root, one, jobs)
    yield from wide_equality(root, one, jobs[2:])
    yield from verdicts(root, one, [job for job in jobs[2:] if job.parallel == "shard_map"])
    two = Job(2, 2, "shard_map")
    undisturbed = root / "undisturbed"
    train(undisturbed, two, LONG)
    yield from damages(undisturbed, two)
    yield full_disk(undisturbed, two, "4m")
    yield full_disk(undisturbed, two, "16k", part="tensorboard")
    yield from interruptions(undisturbed, two)
    yield from other_sizes(undisturbed, two, [Job(1, 8, "pmap"), one])


def equality(root: Path, one: Job, jobs: Sequence[Job]) -> Iterator[Row]:
    """Every way of dividing the training against one device, and pmap against shard_map."""
    for job in jobs:
        difference = endings.apart(endings.parameters(root / _name(one)), endings.parameters(root / _name(job)))
        yield Row(f"{job}: float32 parameters against {one}", f"{difference:.1e} apart", difference <= 1e-4)
    for job, other in _pairs(jobs):
        same = endings.identical(root / _name(job), root / _name(other))
        yield Row(f"{job} against {other.parallel}", _same(same), same)


def wide_equality(root: Path, one: Job, jobs: Sequence[Job]) -> Iterator[Row]:
    """The same in float64."""
    for job in (one, *jobs):
        steps = [step for step in STEPS if "learning_rate" not in step]
        work(root / f"{_name(job)}.float64", job, "float64", *steps)
    found = {job: _load(root / f"{_name(job)}.float64_0.npz") for job in (one, *jobs)}
    for job in jobs:
        difference = endings.apart(found[one], found[job])
        yield Row(f"{job}: float64 parameters against {one}", f"{difference:.1e} apart", difference <= 1e-12)
    for job, other in _pairs(jobs):
        same = endings.apart(found[job], found[other]) == 0
        yield Row(f"{job} against {other.parallel}, float64", _same(same), same)


def verdicts(root: Path, one: Job, jobs: Sequence[Job]) -> Iterator[Row]:
    """Per-example certificates of one network, on every host."""
    train(root / "trained", one, TRAINED)
    for job in (one, *jobs):
        work(root / f"{_name(job)}.verdicts", job, "verdicts", *TRAINED, f"--workdir={root / 'trained'}")
    expected = _load(root / f"{_name(one)}.verdicts_0.npz")
    for job in jobs:
        hosts = [_load(root / f"{_name(job)}.verdicts_{process}.npz") for process in range(job.processes)]
        different = sum(int(np.sum(host[name] != expected[name])) for host in hosts for name in expected)
        counted = f"{different} of {sum(map(np.size, expected.values())) * len(hosts)} verdicts differ"
        shares = ", ".join(f"{name} {np.mean(value):.0%}" for name, value in expected.items())
        yield Row(
            f"{job.processes} x {job.devices}: certify_dataset against {one}", f"{counted} ({shares})", different == 0
        )


def interruptions(undisturbed: Path, job: Job) -> Iterator[Row]:
    """Kills and SIGTERMs at random points; each job resumed once and compared with an undisturbed one."""
    generator = random.Random(_SEED.value)
    for kind, disturb, count in (("kill -9", kill_one, _KILLS.value), ("SIGTERM", terminate_one, _SIGTERMS.value)):
        for number in range(count):
            workdir = undisturbed.parent / f"{kind.replace(' ', '')}_{number}"
            # Point 0 is before the first step: joining, loading, compiling.
            point, delay, victim = generator.randrange(60), generator.uniform(0, 0.3), generator.randrange(2)
            act = functools.partial(disturb, after=point, delay=delay, victim=victim)
            end = interrupt(workdir, job, LONG, act)
            train(workdir, job, LONG)
            same = endings.identical(workdir, undisturbed)
            # Before it has joined, a process does not listen and dies of SIGTERM: there is nothing to save.
            as_due = _saved(end) if kind == "SIGTERM" and (point or not end.status) else end.status != 0
            said = _stopped(end) if kind == "SIGTERM" else f"exit {end.status}"
            trial = f"{kind} to process {victim} after step {point} ({job})"
            yield Row(trial, f"{said}; {_resumed(workdir)}; {_same(same)}", same and as_due)


def other_sizes(undisturbed: Path, job: Job, sizes: Sequence[Job]) -> Iterator[Row]:
    """A job that is stopped, and resumed on other numbers of devices and processes."""
    for size in sizes:
        workdir = undisturbed.parent / f"moved_to_{_name(size)}"
        end = interrupt(workdir, job, LONG, functools.partial(terminate_one, after=24, delay=0.0))
        train(workdir, size, LONG)
        difference = endings.apart(endings.parameters(undisturbed), endings.parameters(workdir))
        trial = f"SIGTERM at {job}, resumed at {size}"
        yield Row(trial, f"{_stopped(end)}; {difference:.1e} apart", difference <= 1e-4 and _saved(end))


def damages(undisturbed: Path, job: Job) -> Iterator[Row]:
    """Resumes a job whose newest checkpoint is damaged."""
    for name, damage in mishaps.DAMAGES.items():
        workdir = undisturbed.parent / f"damaged_{damage.__name__}"
        if not workdir.exists():
            shutil.copytree(undisturbed, workdir)
            mishaps.keep_until(workdir / "checkpoints", 30)
            damage(workdir / "checkpoints" / "30")
        train(workdir, job, LONG)
        log = (workdir.parent / f"{workdir.name}.log").read_text()
        message = next(iter(re.findall(r"Checkpoint 30 in \S+ is damaged: ([^.(]*)", log)), "no message")
        message = message.strip()
        aside = (workdir / "checkpoints" / "damaged" / "30").exists()
        same = endings.identical(workdir, undisturbed)
        trial = f"newest checkpoint: {name} ({job})"
        yield Row(trial, f'"{message}"; {_resumed(workdir)}; {_same(same)}', same and aside and "damaged" in log)


def full_disk(undisturbed: Path, job: Job, size: str, part: str = "run") -> Row:
    """A job whose work directory, or a part of it, lies on a small disk; then there is room."""
    trial, disk = f"full disk: a tmpfs of {size.upper()}B for {part}/ ({job})", undisturbed.parent / f"disk_{size}"
    if not mishaps.mount(disk, size):
        return Row(trial, "not tried: no right to mount a tmpfs", True)
    cramped, roomy = (undisturbed.parent / f"{disk.name}.{name}.log" for name in ("cramped", "roomy"))
    for log in (cramped, cramped.with_suffix(".status"), roomy):
        log.unlink(missing_ok=True)
    try:
        workdir = disk / part if part == "run" else mishaps.partly_on(disk, part)
        end = interrupt(workdir, job, LONG, lambda processes, workdir: None, log=cramped)
        steps = endings.steps(workdir / "checkpoints")
        mishaps.mount(disk, "200m", again=True)
        train(workdir, job, LONG, log=roomy)
        same = endings.identical(workdir, undisturbed)
    finally:
        mishaps.unmount(disk)
    message = next(iter(re.findall(r"error: (The \w+ of step \d+ could not be \w+)", end.log)), "no message")
    said = f'exit {end.status}, "{message}"; {_resumed(roomy.with_suffix(""))}; {_same(same)}'
    return Row(trial, said, same and end.status == 1 and message != "no message" and 0 < max(steps, default=0) < 100)


def train(workdir: Path, job: Job, steps: Sequence[str], log: Path | None = None) -> None:
    """Trains to the end; nothing if it is done.

    Raises:
      RuntimeError: if it fails.
    """
    log = log or workdir.parent / f"{workdir.name}.log"
    if log.exists() and "trained to step" in log.read_text():
        return
    with log.open("w") as file:
        processes = local.start(_launcher(workdir, job, steps), job.processes, job.devices, stdout=file, stderr=file)
        status = local.wait(processes, TIMEOUT)
    if status:
        raise RuntimeError(f"{workdir} ended with status {status}:\n{log.read_text()[-3000:]}")


def interrupt(workdir: Path, job: Job, steps: Sequence[str], disturb: Disturb, log: Path | None = None) -> End:
    """Starts a training and disturbs it; what is done is not done again."""
    log = log or workdir.parent / f"{workdir.name}.{getattr(disturb, 'func', disturb).__name__}.log"
    status = log.with_suffix(".status")
    if not status.exists():
        with log.open("w") as file:
            launcher = _launcher(workdir, job, steps)
            processes = local.start(launcher, job.processes, job.devices, stdout=file, stderr=file)
            disturb(processes, workdir)
            try:
                status.write_text(str(local.wait(processes, TIMEOUT)))
            except TimeoutError:
                # A job that waits for ever is a row that fails.
                status.write_text(str(HUNG))
    return End(int(status.read_text()), log.read_text())


def kill_one(
    processes: Sequence[subprocess.Popen], workdir: Path, *, after: int, delay: float, victim: int = 1
) -> None:
    """Kill -9."""
    _wait_for_step(processes, workdir, after, delay)
    processes[victim].kill()


def terminate_one(
    processes: Sequence[subprocess.Popen], workdir: Path, *, after: int, delay: float, victim: int = 1
) -> None:
    """SIGTERM."""
    _wait_for_step(processes, workdir, after, delay)
    processes[victim].send_signal(signal.SIGTERM)


def _wait_for_step(processes: Sequence[subprocess.Popen], workdir: Path, step: int, delay: float) -> None:
    """Waits until a step is recorded; for step 0 a while that usually ends before it."""
    until = time.monotonic() + (20 * delay if step == 0 else TIMEOUT)
    while time.monotonic() < until and all(process.poll() is None for process in processes):
        records = workdir / "metrics.jsonl"
        if step and records.exists() and f'"step": {step},' in records.read_text():
            time.sleep(delay)
            return
        time.sleep(0.02)


def work(output: Path, job: Job, task: str, *more: str) -> None:
    """Runs a task of `launch/checks/soak_worker.py`; nothing if it is done."""
    if output.with_name(f"{output.name}_0.npz").exists():
        return
    worker = ["launch/checks/soak_worker.py", *CONFIG, f"--config.parallel={job.parallel}", f"--task={task}"]
    worker += [f"--output={output}", *more]
    with output.with_name(f"{output.name}.log").open("w") as file:
        processes = local.start(worker, job.processes, job.devices, stdout=file, stderr=file)
        status = local.wait(processes, TIMEOUT)
    if status:
        raise RuntimeError(f"{output} ended with status {status}; see {output}.log.")


def _launcher(workdir: Path, job: Job, steps: Sequence[str]) -> list[str]:
    return ["launch/train.py", *CONFIG, f"--workdir={workdir}", *steps, f"--config.parallel={job.parallel}"]


def table(rows: Sequence[Row], minutes: float) -> str:
    """The Markdown."""
    lines = [f"`python {' '.join(sys.argv)}`, {datetime.date.today()}, {minutes:.0f} minutes.", ""]
    lines += ["| trial | measured | |", "| --- | --- | --- |"]
    lines += [f"| {row.trial} | {row.measured} | {'ok' if row.passed else '**fails**'} |" for row in rows]
    return "\n".join(lines) + "\n"


def _name(job: Job) -> str:
    return f"{job.processes}x{job.devices}_{job.parallel}"


def _pairs(jobs: Sequence[Job]) -> list[tuple[Job, Job]]:
    """Pmap and shard_map on the same devices."""
    return [(job, other) for job in jobs for other in jobs if job == other._replace(parallel="pmap") and job != other]


def _same(same: bool) -> str:
    return "same bits" if same else "other bits"


def _saved(end: End) -> bool:
    return end.status == 0 and "Preempted: saved the state at step" in end.log


def _stopped(end: End) -> str:
    steps = sorted(set(map(int, re.findall(r"saved the state at step (\d+)", end.log))))
    return f"exit {end.status}, saved at step {', '.join(map(str, steps)) or 'none'}"


def _resumed(workdir: Path) -> str:
    found = re.findall(r"Resumed at step (\d+)", (workdir.parent / f"{workdir.name}.log").read_text())
    return f"resumed at step {found[0]}" if found else "began anew"


def _load(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as arrays:
        return dict(arrays)


if __name__ == "__main__":
    flags.mark_flags_as_required(["root"])
    app.run(main)
