"""The flag --config: a setting by name or by path, and overrides of its fields."""

from typing import Any

from absl import flags
from ml_collections import config_flags

from cure_jax import configs
from cure_jax.training.config import Config

# The flag is one of the command's own.
flags.disclaim_key_flags()

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


class _Parser(flags.ArgumentParser):
    """Fields of the config cannot be added, only set."""

    def parse(self, argument: str) -> Config:
        return configs.load(argument).lock()
