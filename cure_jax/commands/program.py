"""The installed program `cure-jax`, and `python -m cure_jax`."""

import difflib
import importlib
import sys
from types import ModuleType

import cure_jax

__all__ = ["COMMANDS", "command", "main"]

COMMANDS = {
    "train": "train a network, or resume",
    "certify": "prove and attack the predictions of a trained network",
    "verify": "decide what certificates leave open, or a property of VNN-COMP",
    "compare": "show what every method proves of a network",
    "sweep": "train and certify many configs and seeds, with tables and pictures",
    "export": "write a network with its certification to files that need jax and numpy only",
    "benchmark": "time parts of the library against references",
    "completion": "print the completion of a shell: bash, zsh or fish",
}

_EXAMPLES = """
  cure-jax train --config=digits:scratch --workdir=runs/digits/scratch
  cure-jax certify --workdir=runs/digits/scratch --method=best
  cure-jax verify --workdir=runs/digits/scratch --timeout=30
  cure-jax sweep --configs=digits:linf,digits:scratch --seeds=0,1,2 --root=runs/digits
  cure-jax export --name=digits/max --output=exported/digits
  eval "$(cure-jax completion bash)"
"""


def main() -> None:
    """Reads the name of a command, which reads the rest."""
    name, *rest = sys.argv[1:] or ["--help"]
    if name in ("--help", "-h", "-help", "help"):
        print(usage())
    elif name in ("--version", "-version"):
        print(f"cure-jax {cure_jax.__version__}")
    elif name in COMMANDS:
        sys.argv = [f"cure-jax {name}", *rest]
        command(name).run()
    else:
        close = difflib.get_close_matches(name, COMMANDS, n=1)
        advice = f"Perhaps {close[0]}?" if close else "See cure-jax --help."
        sys.exit(f"error: unknown command {name!r}; expected one of {', '.join(COMMANDS)}. {advice}")


def usage() -> str:
    """What `cure-jax --help` says."""
    width = max(map(len, COMMANDS))
    listed = "\n".join(f"  {name:{width}}  {summary}" for name, summary in COMMANDS.items())
    return (
        f"Certified robustness in JAX.\n\ncure-jax COMMAND [--FLAG=VALUE ...]\n\n{listed}\n\nExamples:\n{_EXAMPLES}\n"
        "cure-jax COMMAND --help shows what it does, more examples, and its flags."
    )


def command(name: str) -> ModuleType:
    """The module of a command: `run` reads the command line.

    Args:
      name: One of `COMMANDS`.

    Returns:
      The module. It defines its flags when it is imported, so one process is for one command.
    """
    return importlib.import_module(f"cure_jax.commands.{name}")
