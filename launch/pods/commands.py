"""Commands of launchers that start jobs elsewhere: shown, or run one after the other."""

import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from absl import flags

DRY_RUN = flags.DEFINE_bool("dry_run", False, "Print the commands instead of running them.")
ENV = flags.DEFINE_multi_string("env", [], "NAME=VALUE, a variable of the environment of the job; several times.")
# Directories that no two hosts have in common.
_OF_ONE_HOST = ("/tmp", "/var/tmp", "/dev/shm", "/run", "/proc", "/sys")


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


def training(arguments: Sequence[str], *, only_buckets: bool) -> list[str]:
    """The arguments of launch/train.py, which a job on other machines cannot do without; checked before it is sent.

    Args:
      arguments: what stands after --.
      only_buckets: whether the hosts of the job share nothing but buckets.

    Raises:
      SystemExit: if the config or the work directory is missing, the config is wrong, or the hosts cannot share the
        work directory.
    """
    for flag in ("--config=", "--workdir="):
        if not any(argument.startswith(flag) for argument in arguments):
            sys.exit(f"error: got no {flag}... after --; expected the flags of launch/train.py there.")
    # Only where it is needed: it takes seconds.
    from cure_jax.commands.parts import settings
    from cure_jax.training.checks import check

    values = flags.FlagValues()
    settings.define_config(flag_values=values, sys_argv=["train", *arguments])
    flags.DEFINE_string("workdir", None, "As launch/train.py has it.", flag_values=values)
    try:
        values(["train", *arguments], known_only=True)
        check(values["config"].value)
    except (KeyError, AttributeError, ValueError, TypeError, OSError, flags.Error) as error:
        sys.exit(f"error: {settings.explained(error, arguments)}")
    _check_shared(str(values["workdir"].value), only_buckets)
    return ["launch/train.py", *arguments]


def _check_shared(workdir: str, only_buckets: bool) -> None:
    """Refuses a work directory that each host would have for itself."""
    if workdir.startswith("gs://"):
        return
    if only_buckets:
        sys.exit(
            f"error: --workdir={workdir} is a directory of each host; expected one that all of them share. Give "
            "gs://BUCKET/..."
        )
    if local := next((root for root in _OF_ONE_HOST if Path(workdir).absolute().is_relative_to(root)), None):
        sys.exit(
            f"error: --workdir={workdir} lies in {local}, which each host has for itself; expected a directory that "
            "all of them share. Give one of a network file system, or gs://BUCKET/..."
        )


def environment() -> dict[str, str]:
    """The variables of --env, by name."""
    pairs = [text.partition("=") for text in ENV.value]
    for name, equals, value in pairs:
        if not (equals and name.isidentifier()):
            sys.exit(
                f"error: got --env={name}{equals}{value}; expected NAME=VALUE, as in --env=TFDS_DATA_DIR=gs://B/data."
            )
    return {name: value for name, _, value in pairs}
