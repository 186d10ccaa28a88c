"""Commands of launchers that start jobs elsewhere: shown, or run one after the other."""

import shlex
import subprocess
import sys
from collections.abc import Sequence
from typing import NamedTuple

from absl import flags

DRY_RUN = flags.DEFINE_bool("dry_run", False, "Print the commands instead of running them.")


class Command(NamedTuple):
    """A command, and a file that it reads from its standard input."""

    words: Sequence[str]
    standard_input: str = ""

    def __str__(self) -> str:
        if not self.standard_input:
            return shlex.join(self.words)
        return f"{shlex.join(self.words)} <<'EOF'\n{self.standard_input}EOF"


def execute(commands: Sequence[Command]) -> None:
    """Runs commands until one fails, or with --dry_run prints them, ready to be pasted into a shell."""
    for command in commands:
        if DRY_RUN.value:
            print(command)
            continue
        print(f"+ {shlex.join(command.words)}", file=sys.stderr, flush=True)
        try:
            status = subprocess.run(
                command.words, input=command.standard_input or None, text=True, check=False
            ).returncode
        except FileNotFoundError:
            sys.exit(f"error: there is no program {command.words[0]!r} here. Install it, or use --dry_run.")
        if status:
            sys.exit(f"error: {command.words[0]} ended with status {status}.")


def training(arguments: Sequence[str]) -> list[str]:
    """The arguments of launch/train.py, which a job on other machines cannot do without.

    Raises:
      SystemExit: if the config or the work directory is missing.
    """
    for flag in ("--config=", "--workdir="):
        if not any(argument.startswith(flag) for argument in arguments):
            sys.exit(f"error: got no {flag}... after --; expected the flags of launch/train.py there.")
    return ["launch/train.py", *arguments]
