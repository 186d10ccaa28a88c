"""Training steps: with and without XLA's flags of `cure-jax train` and, if given, beside PyTorch.

Each program is a process of its own, as flags are read once; they take turns on the same cores, with the same random
images and initial weights of its own kind. A step is all of it: attack, bounds, gradients, Adam. PyTorch runs the same
step as `peer_torch.py` has it, with channels first and last: the faster of both counts. For two norms it attacks
both in one batch, and with `--separate` one after the other, as the published code does.
"""

import argparse
import contextlib
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cure_jax.commands.benchmarks import peer
from cure_jax.commands.benchmarks.timing import Check, Report, Seconds, rows, take_turns
from cure_jax.commands.parts.xla_flags import known_flags

_CNN7 = [(32, 3, 1), (32, 3, 1), (64, 3, 2), (64, 3, 1), (64, 3, 1)]
NETWORKS: dict[str, dict[str, Any]] = {
    "narrow": {"shape": (28, 28, 1), "batch": 16, "convs": _CNN7, "dense": [216]},
    "narrow_bn": {"shape": (28, 28, 1), "batch": 16, "convs": _CNN7, "dense": [216], "batch_norm": True},
    "small": {"shape": (28, 28, 1), "batch": 128, "convs": [(16, 4, 2), (32, 4, 2)], "dense": [100]},
    "medium": {"shape": (32, 32, 3), "batch": 128, "convs": [(32, 3, 1), (32, 3, 2), (64, 3, 2)], "dense": [256]},
}
# Those that the peer has, and those that it lacks.
SHARED, OURS = ("natural", "ibp", "small_box", "max"), ("lipschitz", "box_ball")
_REFERENCE = "cure_jax"
# Steps of l_inf attacks have the signs of gradients, and rounding decides some of them.
_TOLERANCE = 1e-2


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Adds what to train, and beside what."""
    command.add_argument(
        "--network", choices=list(NETWORKS), nargs="+", default=["small"], help="a table for each loss"
    )
    command.add_argument("--loss", choices=[*SHARED, *OURS], nargs="+", default=["max"])
    command.add_argument("--batch", type=int, help="images in a batch; the network's own if left out")
    command.add_argument("--attack_steps", type=int, default=8, help="of small_box and max")
    command.add_argument("--steps", type=int, default=4, help="training steps in one measurement")
    command.add_argument(
        "--xla_flags", default=known_flags(), help="of the first program; those of cure-jax train if left out"
    )
    command.add_argument("--separate", action="store_true", help="PyTorch attacks one norm after the other")
    command.add_argument("--peer_python", help="interpreter of an environment with torch and numpy")


def run(options: argparse.Namespace) -> list[Report]:
    """Times every loss of every network."""
    given = {"attack_steps": options.attack_steps} | ({"batch": options.batch} if options.batch else {})
    return [report for name in options.network for report in _reports(options, name, NETWORKS[name] | given)]


def _reports(options: argparse.Namespace, name: str, network: Mapping[str, Any]) -> Iterator[Report]:
    generator = np.random.default_rng(options.seed)
    images = generator.uniform(size=(network["batch"], *network["shape"])).astype(np.float32)
    labels = generator.integers(0, 10, network["batch"])
    problem = {"images": images, "labels": labels, "network": json.dumps(network)}
    here = Path(__file__)
    with contextlib.ExitStack() as stack:

        def start(python: str, script: str, source: str) -> peer.Ask:
            return stack.enter_context(peer.started(python, here.with_name(script), source, problem))

        worker = "train_worker.py"
        ours = {
            _REFERENCE: start(sys.executable, worker, options.xla_flags),
            "no flags": start(sys.executable, worker, ""),
        }
        theirs = start(options.peer_python, "peer_torch.py", "") if options.peer_python else None
        for loss in options.loss:
            request = {"loss": loss, "steps": options.steps, "separate": options.separate}
            asked = {program: (ask, request) for program, ask in ours.items()}
            if theirs is not None and loss in SHARED:
                asked |= {f"torch, channels {at}": (theirs, request | {"channels": at}) for at in ("first", "last")}
            answers: dict[str, Any] = {}

            def ask(program: str, asked: Any = asked, answers: Any = answers) -> Seconds:
                function, request = asked[program]
                answers[program] = function(request)
                return Seconds(answers[program]["wall"], answers[program]["cpu"])

            programs = {program: (lambda program=program, ask=ask: ask(program)) for program in asked}
            taken = take_turns(programs, options.rounds)
            with_flags, without = (answers[program]["loss"] for program in ours)
            change = abs(with_flags - without) / abs(without)
            checks = {"relative change of the loss by the flags": Check(change, change <= _TOLERANCE)}
            yield Report(f"{name}, {loss}, batch {network['batch']}", rows(taken, _REFERENCE), checks, answers)
