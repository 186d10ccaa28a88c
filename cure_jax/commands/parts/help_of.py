"""What `--help` says of a command: what it is for, examples, and its flags."""

import textwrap
from collections.abc import Sequence
from types import ModuleType

from absl import flags

_WORDS = ("--help", "-help", "-h", "--helpshort", "-helpshort")
_WIDTH = 120


def is_wanted(arguments: Sequence[str]) -> bool:
    """Whether help is asked for; what stands behind `--` is for other programs."""
    before, _, _ = " ".join(["", *arguments, ""]).partition(" -- ")
    return any(word in before.split() for word in _WORDS)


def text(module: ModuleType, program: str) -> str:
    """The docstring of a command's module, and its flags with their defaults.

    Args:
      module: Whose docstring begins with what the command does, and has examples.
      program: As it was called.

    Returns:
      Lines to be printed.
    """
    own = flags.FLAGS.get_key_flags_for_module(module)
    described = (_described(flag) for flag in sorted(own, key=lambda flag: flag.name))
    return "\n".join([str(module.__doc__).strip(), "", f"Flags of {program}:", "", *described])


def _described(flag: flags.Flag) -> str:
    name = f"--[no]{flag.name}" if flag.boolean else f"--{flag.name}"
    default = "" if flag.default is None else f" Default: {flag.default_as_str}"
    lines = textwrap.wrap(f"{flag.help}{default}", _WIDTH - 6)
    return "\n".join([f"  {name}", *(f"      {line}" for line in lines)])
