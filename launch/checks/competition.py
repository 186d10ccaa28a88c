"""Runs `launch/verify.py` on instances of VNN-COMP whose verdicts are known, and compares.

    python launch/checks/competition.py --instances=DIR/instances.csv --benchmarks=acasxu --output=runs/competition.csv

The table of instances has the columns benchmark, network, property and verdict (`sat`, `unsat` or `unknown`); the files
lie in a folder of each benchmark, with or without .gz. Each instance is a process of its own with an empty compilation
cache; its seconds count from its start. What the output has already is not run again. Exit status 1 after a wrong
verdict.
"""

import csv
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from absl import flags

from cure_jax.commands.parts import common

_INSTANCES = flags.DEFINE_string("instances", None, "The table of instances.", required=True)
_BENCHMARKS = flags.DEFINE_list("benchmarks", [], "Which of them; all by default.")
_KNOWN = flags.DEFINE_bool("known", False, "Only those whose verdict is known.")
_OUTPUT = flags.DEFINE_string("output", "runs/competition.csv", "Verdicts and seconds.")
_TIMEOUT = flags.DEFINE_float("timeout", 116.0, "Seconds for each instance.")

_COLUMNS = ("benchmark", "network", "property", "expected", "found", "seconds")
_DECIDED = ("sat", "unsat")


def main() -> None:
    """Runs what is not done yet, then prints the table."""
    table = Path(str(_INSTANCES.value))
    output = Path(str(_OUTPUT.value))
    output.parent.mkdir(parents=True, exist_ok=True)
    rows = list(csv.DictReader(output.open())) if output.exists() else []
    done = {tuple(row[name] for name in _COLUMNS[:3]) for row in rows}
    with table.open() as file:
        instances = [
            row
            for row in csv.DictReader(file)
            if (not _BENCHMARKS.value or row["benchmark"] in _BENCHMARKS.value)
            and (row["verdict"] in _DECIDED or not _KNOWN.value)
        ]
    with output.open("a", newline="") as file:
        writer = csv.DictWriter(file, _COLUMNS)
        if not rows:
            writer.writeheader()
        for instance in instances:
            key = tuple(instance[name] for name in _COLUMNS[:3])
            if key in done:
                continue
            found, seconds = _run(table.parent / key[0], *key[1:])
            row = dict(zip(_COLUMNS, (*key, instance["verdict"], found, f"{seconds:.1f}"), strict=True))
            writer.writerow(row)
            file.flush()
            rows.append(row)
            print(" ".join(map(str, row.values())), flush=True)
    wanted = {instance["benchmark"] for instance in instances}
    print(summary([row for row in rows if row["benchmark"] in wanted]))
    if any(is_wrong(row) for row in rows):
        sys.exit(1)


def is_wrong(row: dict[str, str]) -> bool:
    """Whether a verdict contradicts the known one."""
    return row["found"] in _DECIDED and row["expected"] in _DECIDED and row["found"] != row["expected"]


def summary(rows: list[dict[str, str]]) -> str:
    """A line for each benchmark, in Markdown."""
    lines = ["| benchmark | instances | decided | of those known | wrong | median s | longest s |"]
    lines.append("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for benchmark in dict.fromkeys(row["benchmark"] for row in rows):
        own = [row for row in rows if row["benchmark"] == benchmark]
        known = [row for row in own if row["expected"] in _DECIDED]
        decided = [row for row in own if row["found"] in _DECIDED]
        seconds = sorted(float(row["seconds"]) for row in decided) or [float("nan")]
        share = sum(row["found"] in _DECIDED for row in known) / max(len(known), 1)
        lines.append(
            f"| {benchmark} | {len(own)} | {len(decided)} | {share:.0%} of {len(known)} | {sum(map(is_wrong, own))} "
            f"| {seconds[len(seconds) // 2]:.1f} | {seconds[-1]:.1f} |"
        )
    return "\n".join(lines)


def _run(folder: Path, network: str, property_name: str) -> tuple[str, float]:
    files = [
        next(path for path in (folder / name, folder / f"{name}.gz") if path.exists())
        for name in (network, property_name)
    ]
    command = [sys.executable, "launch/verify.py", f"--network={files[0]}", f"--property={files[1]}"]
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as cache:
        # Ten seconds to load, compile and end beside what verification may take.
        done = subprocess.run(
            [*command, f"--timeout={_TIMEOUT.value - 10}"],
            env={**os.environ, "JAX_COMPILATION_CACHE_DIR": cache},
            capture_output=True,
            text=True,
            check=False,
        )
    seconds = time.monotonic() - start
    found = (done.stdout.splitlines() or ["error"])[0]
    if found == "error":
        print(done.stderr[-500:], file=sys.stderr)
    return ("timeout" if seconds > _TIMEOUT.value else found), seconds


if __name__ == "__main__":
    common.run(main)
