"""Prints the completion of a shell for `cure-jax`: commands, flags, settings, methods and fields of configs.

    eval "$(cure-jax completion bash)"                                      # in ~/.bashrc
    eval "$(cure-jax completion zsh)"                                       # in ~/.zshrc, after compinit
    cure-jax completion fish > ~/.config/fish/completions/cure-jax.fish

What it completes is that of this version: print it again after an upgrade.
"""

import argparse
import dataclasses
import shlex
import sys
from collections.abc import Mapping

from absl import flags
from flax.traverse_util import flatten_dict

from cure_jax import configs, models, training
from cure_jax.certification import METHODS
from cure_jax.commands.parts import help_of
from cure_jax.commands.program import COMMANDS, command
from cure_jax.configs import methods  # pyright: ignore[reportAttributeAccessIssue]

__all__ = ["Flag", "Words", "run", "script", "words_of"]

_SHELLS = ("bash", "zsh", "fish")


@dataclasses.dataclass(frozen=True)
class Flag:
    """A flag of a command.

    Attributes:
      name: Without dashes.
      summary: One sentence.
      values: What it may be; empty if that is not known: files are offered.
      is_switch: Whether it takes no value.
    """

    name: str
    summary: str = ""
    values: tuple[str, ...] = ()
    is_switch: bool = False


@dataclasses.dataclass(frozen=True)
class Words:
    """What may stand behind a command.

    Attributes:
      flags: Its flags.
      bare: Words without dashes.
    """

    flags: tuple[Flag, ...] = ()
    bare: tuple[str, ...] = ()


def run() -> None:
    """Prints the completion of the shell that is named."""
    if help_of.is_wanted(sys.argv[1:]):
        print(str(__doc__).strip())
    elif len(sys.argv) != 2 or sys.argv[1] not in _SHELLS:
        sys.exit(f"error: got {' '.join(sys.argv[1:]) or 'no shell'}; expected one of {', '.join(_SHELLS)}. Name it.")
    else:
        print(script(sys.argv[1], {name: words_of(name) for name in COMMANDS}), end="")


def words_of(name: str) -> Words:
    """The words of a command; its flags are taken out of absl again, so that those of the next one find room.

    Args:
      name: One of `COMMANDS`.

    Returns:
      Its flags, with what they may be where that is known, and other words.
    """
    if name == "completion":
        return Words(bare=_SHELLS)
    module = command(name)
    if name == "benchmark":
        return _words_of_parser(module.argument_parser())
    defined = flags.FLAGS.get_key_flags_for_module(module)
    for flag in flags.FLAGS.get_flags_for_module(module):
        delattr(flags.FLAGS, flag.name)
    known = _known_values()
    found = [
        Flag(flag.name, _first_sentence(flag.help), known.get(flag.name) or _choices(flag), flag.boolean)
        for flag in defined
    ]
    if any(flag.name == "config" for flag in found):
        found += [Flag(f"config.{field}") for field in flatten_dict(training.default_config().to_dict(), sep=".")]
    return Words((*found, Flag("help", "what it does, examples, and its flags", is_switch=True)))


def script(shell: str, commands: Mapping[str, Words]) -> str:
    """The completion of a shell.

    Args:
      shell: bash, zsh or fish.
      commands: The words of each.

    Returns:
      A program of that shell.
    """
    return {"bash": _bash, "zsh": _zsh, "fish": _fish}[shell](commands)


def _known_values() -> dict[str, tuple[str, ...]]:
    """What flags may be that absl knows as text."""
    spellings = (f"{setting}:{method}" for setting in configs.names() for method in methods.METHODS)
    experiments, bounds = tuple(filter(_is_experiment, spellings)), tuple(METHODS)
    return {
        "config": experiments,
        "configs": experiments,
        "method": bounds,
        "methods": bounds,
        "whole": bounds,
        "name": tuple(models.pretrained_names()),
    }


def _is_experiment(spelling: str) -> bool:
    try:
        configs.load(spelling)
    except ValueError:
        return False
    return True


def _choices(flag: flags.Flag) -> tuple[str, ...]:
    return tuple(flag.parser.enum_values) if isinstance(flag.parser, flags.EnumParser) else ()


def _first_sentence(text: str | None) -> str:
    return (text or "").replace("\n", " ").partition(". ")[0].partition("; ")[0].rstrip(".")


def _words_of_parser(parser: argparse.ArgumentParser) -> Words:
    """Its own, and those of all its subcommands."""
    found: dict[str, Flag] = {}
    bare: tuple[str, ...] = ()
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            bare += tuple(action.choices)
            found |= {flag.name: flag for each in action.choices.values() for flag in _words_of_parser(each).flags}
        elif action.option_strings:
            name, values = action.option_strings[-1].lstrip("-"), tuple(map(str, action.choices or ()))
            found[name] = Flag(name, _first_sentence(action.help), values, action.nargs == 0)
    return Words(tuple(found.values()), bare)


def _bash(commands: Mapping[str, Words]) -> str:
    cases = []
    for name, own in commands.items():
        for flag in own.flags:
            if flag.values:
                values = " ".join(f"--{flag.name}={value}" for value in flag.values)
                cases.append(f'"{name} --{flag.name}="*) candidates={shlex.quote(values)} ;;')
        cases.append(f'"{name} --"*=*) COMPREPLY=($(compgen -f -- "${{current#*=}}")); compopt -o filenames; return ;;')
        words = " ".join([*own.bare, *map(_spelling, own.flags)])
        cases.append(f'"{name} "*) candidates={shlex.quote(words)} ;;')
    listed = "\n            ".join(cases)
    return f"""# bash cuts words at = and :, and puts what is offered behind the last of them.
_cure_jax() {{
    local current="${{COMP_LINE:0:COMP_POINT}}" candidates= known
    current="${{current##*[[:space:]]}}"
    if ((COMP_CWORD == 1)); then
        candidates={shlex.quote(" ".join(commands))}
    else
        case "${{COMP_WORDS[1]}} $current" in
            {listed}
        esac
    fi
    COMPREPLY=($(compgen -W "$candidates" -- "$current"))
    [[ ${{#COMPREPLY[@]}} == 1 && ${{COMPREPLY[0]}} == *= ]] && compopt -o nospace
    known="${{current%"${{current##*[=:]}}"}}"
    COMPREPLY=("${{COMPREPLY[@]#"$known"}}")
}}
complete -F _cure_jax cure-jax
"""


def _spelling(flag: Flag) -> str:
    """How it stands in the command line, up to its value."""
    return f"--{flag.name}" if flag.is_switch else f"--{flag.name}="


def _zsh(commands: Mapping[str, Words]) -> str:
    described = " ".join(shlex.quote(f"{name}:{summary}") for name, summary in COMMANDS.items())
    cases = []
    for name, own in commands.items():
        arguments = [shlex.quote(f"1:word:({' '.join(own.bare)})")] if own.bare else []
        for flag in own.flags:
            summary = flag.summary.replace("[", "(").replace("]", ")").replace(":", ",")
            values = f"({' '.join(value.replace(':', chr(92) + ':') for value in flag.values)})"
            takes = "" if flag.is_switch else f":{flag.name}:{values if flag.values else '_files'}"
            arguments.append(shlex.quote(f"{_spelling(flag)}[{summary}]{takes}"))
        cases.append(f"{name}) _arguments {' '.join(arguments)} ;;")
    listed = "\n        ".join(cases)
    return f"""#compdef cure-jax
_cure_jax() {{
    local -a commands=({described})
    if ((CURRENT == 2)); then
        _describe command commands
        return
    fi
    local command="${{words[2]}}"
    shift words
    ((CURRENT--))
    case "$command" in
        {listed}
    esac
}}
compdef _cure_jax cure-jax
"""


def _fish(commands: Mapping[str, Words]) -> str:
    lines = ["complete -c cure-jax -f"]
    for name in commands:
        lines.append(f"complete -c cure-jax -n __fish_use_subcommand -a {name} -d {shlex.quote(COMMANDS[name])}")
    for name, own in commands.items():
        seen = f"complete -c cure-jax -n '__fish_seen_subcommand_from {name}'"
        if own.bare:
            lines.append(f"{seen} -a {shlex.quote(' '.join(own.bare))}")
        for flag in own.flags:
            values = f" -x -a {shlex.quote(' '.join(flag.values))}" if flag.values else " -r -F"
            summary = flag.summary.replace("'", "")
            lines.append(f"{seen} -l {flag.name}{'' if flag.is_switch else values} -d {shlex.quote(summary)}")
    return "\n".join(lines) + "\n"
