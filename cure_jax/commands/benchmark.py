"""Times parts of the library against references in the same run, and prints ratios.

    cure-jax benchmark bounds --eps 0.05 0.1 0.3
    cure-jax benchmark bounds --weights=WEIGHTS.npz --auto_lirpa=CHECKOUT --peer_python=ENV/bin/python
    cure-jax benchmark convolution
    cure-jax benchmark domains --networks digits/max mnist_cpu/max
    cure-jax benchmark memory --model=cnn7 --method=alpha_crown
    cure-jax benchmark methods --networks mnist_cpu/max cifar_cpu/l2
    cure-jax benchmark projection --json=projection.json
    cure-jax benchmark train --network small medium --loss natural max --peer_python=ENV/bin/python

The programs of a table take turns, so that whatever else the machine does meets all of them. Seconds are of that
machine and moment; read the ratios. On a machine that others use too, put `taskset --cpu-list 0` before the command and
read the cpu ratio: threads that wait for each other lose most there, and that is no property of a program.

Results are checked beside: bounds that a sampled input breaks or that are looser than those of the other verifier,
gradients or projections that differ, end with status 1.
"""

import argparse
import dataclasses
import importlib.metadata
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
from rich.console import Console

from cure_jax.commands.benchmarks import bounds, convolution, domains, memory, methods, projection, train
from cure_jax.commands.benchmarks.timing import Report, table
from cure_jax.training.workdir import write_atomically

_BENCHMARKS = {
    "bounds": bounds,
    "convolution": convolution,
    "domains": domains,
    "memory": memory,
    "methods": methods,
    "projection": projection,
    "train": train,
}

_NOTE = (
    "Time of one call: shortest, median, least of all cores together (cpu), and first, which compiles. Ratios of the "
    "shortest, of the cpu, and the median ratio within a round. {rounds} rounds, the programs alternating in each. "
    "Load average {load}: if that is more than the cores, {cores}, others were using them too; see --help."
)


def run() -> None:
    """Reads the command line, and does it."""
    sys.exit(main())


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one benchmark; returns 1 if what it computes is wrong."""
    parser = argument_parser()
    options = parser.parse_args(arguments)
    try:
        reports = options.run(options)
    except (ValueError, OSError) as error:
        if os.environ.get("CURE_JAX_TRACEBACK"):
            raise
        parser.exit(1, f"error: {' '.join(str(error).split()).rstrip('.')}.\n")
    console = Console()
    for report in reports:
        console.print(table(report.title, report.rows))
        for name, check in report.checks.items():
            console.print(f"{'ok ' if check.holds else 'BAD'} {name}: {check.value:.3g}")
    load = f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown"
    console.print(_NOTE.format(rounds=options.rounds, cores=_cores(), load=load), style="dim")
    if options.json:
        write_atomically(options.json, json.dumps(_result(options, reports, load), indent=2) + "\n")
    return int(not all(check.holds for report in reports for check in report.checks.values()))


def argument_parser() -> argparse.ArgumentParser:
    """What the command line may hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="BENCHMARK", dest="benchmark")
    for name, module in _BENCHMARKS.items():
        summary = str(module.__doc__).partition("\n")[0]
        command = commands.add_parser(name, help=summary, description=module.__doc__, allow_abbrev=False)
        command.add_argument("--rounds", type=positive, default=10, help="how often each program is timed")
        command.add_argument("--seed", type=int, default=0, help="of random weights, images and labels")
        command.add_argument("--json", type=Path, help="where the figures go too")
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    return parser


def positive(text: str) -> int:
    """Reads a number that must be at least 1."""
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{value} given, at least 1 expected")
    return value


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _result(options: argparse.Namespace, reports: Sequence[Report], load: str) -> dict[str, Any]:
    """What the tables say, and where and with what it was measured."""
    settings = {name: value for name, value in vars(options).items() if not isinstance(value, Callable)}
    versions = {name: importlib.metadata.version(name) for name in ("cure-jax", "jax", "jaxlib")}
    return {
        **{name: str(value) if isinstance(value, Path) else value for name, value in settings.items()},
        "device": jax.devices()[0].device_kind,
        "cores": _cores(),
        "load": load,
        "versions": versions,
        "reports": [dataclasses.asdict(report) for report in reports],
    }
