"""Experiments by name: `load("digits:scratch")`. Each is a file with `get_config(method)`.

The files lie in `configs/` at the top of a checkout; a wheel has them here. Either way they are modules of this
package, such as `cure_jax.configs.digits`, and a file of your own imports them by that name, wherever it lies.
"""

import importlib
import importlib.util
import pkgutil
import sys
from pathlib import Path
from types import ModuleType

import ml_collections

from cure_jax.training.config import Config, from_fields
from cure_jax.training.workdir import read_config

__all__ = ["load", "names"]

# Nothing but a wheel has the files beside this one; there, a folder `configs` two floors up is somebody else's.
if not (Path(__file__).parent / "methods.py").exists():
    __path__ = [str(Path(__file__).parents[2] / "configs")]


def load(spelling: str) -> Config:
    """The config of an experiment.

    Args:
      spelling: SETTING, one of `names()`, or the path of a Python file that has `get_config`. What stands behind a
        colon is the argument of `get_config`: in these settings the method, see `cure_jax.configs.methods`. Or the path
        of the `config.json` of a work directory.

    Returns:
      What `get_config` returns, to be changed at will.

    Raises:
      ValueError: for an unknown setting or method, or a file whose `get_config` is missing or returns no config.

    Examples:
      >>> load("digits:max").radii.l2
      0.45
    """
    setting, colon, argument = spelling.partition(":")
    if Path(setting).name == "config.json":
        return from_fields(read_config(Path(setting).parent))
    get_config = getattr(_module(setting), "get_config", None)
    config = get_config(*([argument] if colon else [])) if callable(get_config) else None
    if not isinstance(config, ml_collections.ConfigDict):
        raise ValueError(
            f"{setting} has no get_config that returns a config; expected one that starts from "
            "training.default_config(). Write it."
        )
    return config


def names() -> tuple[str, ...]:
    """Returns the settings that `load` knows."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name != "methods"))


def _module(setting: str) -> ModuleType:
    path = Path(setting)
    # A path into this package means its module, so that there is one copy of each.
    own = path.suffix == ".py" and path.resolve().parent in [Path(place).resolve() for place in __path__]
    name = path.stem if own else setting
    if name in names():
        return importlib.import_module(f"{__name__}.{name}")
    if path.is_file():
        return _from_file(path)
    raise ValueError(
        f"Unknown setting {setting!r}; expected one of {', '.join(names())}, or the path of a file. Correct it: it is "
        "SETTING:METHOD, as in digits:scratch, or PATH.py:METHOD."
    )


def _from_file(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"config_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{path} is no Python file; expected one whose name ends in .py. Rename it.")
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
