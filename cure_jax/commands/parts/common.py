"""What the commands share: start-up, data and model of a config, one-line errors."""

import contextlib
import functools
import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

import flax.linen as nn
import jax
from absl import app, flags

from cure_jax import data, models, training
from cure_jax.commands.parts import help_of, settings, xla_flags
from cure_jax.commands.parts.settings import in_one_line
from cure_jax.training import CheckpointError, TrainingDiverged, WorkdirError
from cure_jax.training.augmentation import center_crop
from cure_jax.training.config import Config

# What a user can put right; anything else is a bug and keeps its traceback.
_USER_ERRORS = (ValueError, OSError, ModuleNotFoundError, CheckpointError, TrainingDiverged, WorkdirError)


def run(main: Callable[..., None], required: Sequence[str] = (), takes_more: bool = False) -> None:
    """Runs a command: a mistake of the user's ends in one sentence and exit status 1, Ctrl-C in one and 130.

    Args:
      main: What it does. `--help` shows the docstring of its module, and the flags that are defined there.
      required: Flags that must be given.
      takes_more: Whether `main` takes what is left of the command line; else nothing may be left.
    """
    flags.mark_flags_as_required(required)

    def guarded(arguments: Sequence[str]) -> None:
        if len(arguments) > 1 and not takes_more:
            sys.exit(f"error: unexpected argument {arguments[1]!r}; expected only flags. See --help.")
        logging.getLogger("cure_jax").setLevel(logging.INFO)
        # It reports every accelerator that this machine does not have.
        logging.getLogger("jax._src.xla_bridge").setLevel(logging.WARNING)
        # It reports every read from a bucket.
        logging.getLogger("gcsfs").setLevel(logging.WARNING)
        _enable_compilation_cache()
        xla_flags.use()
        try:
            main(*([arguments[1:]] if takes_more else []))
        except _USER_ERRORS as error:
            if os.environ.get("CURE_JAX_TRACEBACK"):
                _fail_at_once()
                raise
            _say(f"error: {in_one_line(error)}.")
            _fail_at_once()
            sys.exit(1)
        except KeyboardInterrupt:
            _say("error: interrupted. Give the same command again.")
            _fail_at_once()
            sys.exit(128 + signal.SIGINT)
        except Exception:
            _fail_at_once()
            raise

    app.run(guarded, flags_parser=functools.partial(_parse_flags, sys.modules[main.__module__]))


def _say(sentence: str) -> None:
    # The log may lie on the disk that is full.
    with contextlib.suppress(OSError):
        print(sentence, file=sys.stderr, flush=True)


def _fail_at_once() -> None:
    """Ends one of several processes here: on its way out it would wait for the others, which wait for it."""
    if jax.distributed.is_initialized() and jax.process_count() > 1:
        said = isinstance(sys.exception(), (*_USER_ERRORS, KeyboardInterrupt))
        with contextlib.suppress(OSError):
            if not said or os.environ.get("CURE_JAX_TRACEBACK"):
                traceback.print_exc()
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(1)


def _parse_flags(module: ModuleType, arguments: list[str]) -> list[str]:
    """Parses flags; an unknown config field or method ends in one sentence too."""
    if help_of.is_wanted(arguments[1:]):
        print(help_of.text(module, arguments[0]))
        sys.exit()
    try:
        return flags.FLAGS(arguments)
    except (KeyError, AttributeError, ValueError, TypeError, FileNotFoundError, flags.Error) as error:
        if os.environ.get("CURE_JAX_TRACEBACK"):
            raise
        sys.exit(f"error: {settings.explained(error, arguments)}")


def load_split(config: Config, split: str) -> data.Dataset:
    """One split of the config's data set; what is not trained on is cut to the size that is certified."""
    loaded = data.load(config.dataset, split, config.data_dir or None)
    if split == "train":
        return loaded
    return loaded._replace(images=center_crop(loaded.images, config.augmentation.crop))


def create_model(config: Config, num_classes: int) -> nn.Module:
    """The config's network."""
    return models.create(config.model.name, num_classes, **config.model.options.to_dict())


def load_teacher(config: Config) -> Callable[[jax.Array], jax.Array] | None:
    """The classifier that `config.teacher` names, a pretrained one or that of a work directory; None without one."""
    if not config.teacher:
        return None
    is_kept = config.teacher in models.pretrained_names()
    return (models.pretrained(config.teacher) if is_kept else training.load(config.teacher)).classifier


def _enable_compilation_cache() -> None:
    """Compiled programs are kept between runs; JAX_COMPILATION_CACHE_DIR chooses where."""
    if jax.config.jax_compilation_cache_dir is None:  # pyright: ignore[reportAttributeAccessIssue]
        root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        jax.config.update("jax_compilation_cache_dir", str(Path(root) / "cure_jax"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
