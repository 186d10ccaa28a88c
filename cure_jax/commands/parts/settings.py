"""The flag --config: a setting by name or by path, and overrides of its fields; and what is wrong with them."""

import re
from collections.abc import Iterable
from typing import Any

from absl import flags
from ml_collections import config_flags

from cure_jax import configs
from cure_jax.training.config import Config
from cure_jax.training.fields import FIELDS
from cure_jax.training.names import is_known, unknown

# The flag is one of the command's own.
flags.disclaim_key_flags()

# What --help says where a finished work directory is read.
TRAINED_WITH = "The config that the network was trained with; that of the work directory if left out."
_EXPECTED = "A setting, or the path of a config, with a method after a colon."


def define_config(help_string: str = _EXPECTED, flag_values: flags.FlagValues = flags.FLAGS, **options: Any) -> Any:
    """Defines --config=SETTING:METHOD or PATH.py:METHOD, and --config.FIELD=VALUE.

    Args:
      help_string: What --help says.
      flag_values: Where; those of the program if left out.
      **options: Others of `config_flags.DEFINE_config_file`.

    Returns:
      The flag, whose `value` is the config, or None if it was left out.
    """
    holder = config_flags.DEFINE_config_file("config", None, help_string, flag_values, **options)
    # Its own parser knows paths only.
    flag_values["config"].parser = _Parser()
    return holder


def explained(error: BaseException, arguments: Iterable[str]) -> str:
    """Why arguments could not be parsed, in a sentence.

    Args:
      error: that parsing raised.
      arguments: the whole command.
    """
    paths = [match[1] for argument in arguments if (match := _OVERRIDE.match(argument))]
    for path in paths:
        if not is_known(path):
            return unknown(path)
    said = in_one_line(error)
    for path in paths:
        whole = next((name for name, field in FIELDS.items() if field.is_open and path.startswith(f"{name}.")), None)
        parts = path.removeprefix(whole or path).split(".")
        if whole and said.strip("'\"") in parts and isinstance(error, KeyError | AttributeError):
            return (
                f"{path} is no part of this config; expected one that is there. Set {whole} as a whole: "
                f'--config.{whole}="{FIELDS[whole].default}".'
            )
    return f"{said}. Expected flags of --help and fields of training.default_config()."


def in_one_line(error: BaseException) -> str:
    """What went wrong."""
    message = str(error.args[0] if isinstance(error, KeyError) and error.args else error)
    return " ".join(message.replace("\\n", " ").split()).rstrip(".")


_OVERRIDE = re.compile(r"--?config\.([\w.]+)[=\[]")


class _Parser(flags.ArgumentParser):
    """Fields of the config cannot be added, only set."""

    def parse(self, argument: str) -> Config:
        return configs.load(argument).lock()
