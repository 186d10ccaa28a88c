"""The entries of a sweep: a config, its method, and overrides of its own for an ablation, in one word each.

digits:scratch+projection.beta=0+alignment.weight=0+name=scratch without both
"""

import dataclasses
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from flax.traverse_util import flatten_dict

from cure_jax.commands.parts import provenance
from cure_jax.commands.parts.settings import define_config, explained
from cure_jax.training.names import with_new_names

# Where a run happens and how it is called, not what it computes.
_INCIDENTAL = ("name", "data_dir", "parallel", "keep_checkpoints")
# A plus sign starts an override only where `field=` follows: 1e+5 is a number.
_WHOLE = ("radii", "reported", "norm_weights", "model")
_OVERRIDE = re.compile(r"\+(?=[A-Za-z_][\w.]*=)")


@dataclasses.dataclass(frozen=True)
class Entry:
    """One row of the table.

    Attributes:
      name: Of the row.
      directory: Of its work directories, below the root.
      config: What --config= gets: a setting or a path, and a method after a colon.
      overrides: Its own `--config.FIELD=VALUE`.
    """

    name: str
    directory: str
    config: str
    overrides: tuple[str, ...]


def parse(words: Iterable[str]) -> list[Entry]:
    """Parses the entries of a sweep.

    Args:
      words: Entries separated by commas; a comma within brackets belongs to a value.

    Returns:
      The entries, in their order.

    Raises:
      ValueError: There is none, or two have the same name.
    """
    entries = [_entry(word) for text in words for word in split(text)]
    if not entries:
        raise ValueError("Got no configs; expected at least one, e.g. --configs=digits:scratch.")
    for entry in entries:
        same = [other for other in entries if other.directory == entry.directory]
        if len(same) > 1:
            raise ValueError(
                f"Got {len(same)} entries named {entry.directory!r}; expected a name of its own for each, as it is the "
                "name of the work directory too. Put +name=... behind all but one."
            )
    return entries


def read_config(entry: Entry, overrides: Sequence[str]) -> dict[str, Any]:
    """The config that the commands will see.

    Args:
      entry: Of the sweep.
      overrides: Further `--config.FIELD=VALUE`.

    Returns:
      Its fields, as certify.json has them.

    Raises:
      ValueError: A field, a method or a file is unknown, or a value does not fit.
    """
    values, arguments = flags.FlagValues(), ["sweep", *arguments_of(entry, overrides)]
    define_config(flag_values=values, sys_argv=arguments)
    try:
        rest, fields = values(arguments), values.config.to_dict()
    except (KeyError, AttributeError, ValueError, TypeError, OSError, flags.Error) as error:
        raise ValueError(f"{entry.name}: {explained(error, arguments)}") from error
    if len(rest) > 1:
        raise ValueError(f"Got the argument {rest[1]!r} after --; expected --config.FIELD=VALUE. Correct it.")
    # As JSON has them: lists for tuples.
    return json.loads(json.dumps(fields))


def arguments_of(entry: Entry, overrides: Sequence[str]) -> list[str]:
    """What train and certify get; the entry's own overrides come last, so they win."""
    return [f"--config={entry.config}", *overrides, *entry.overrides]


def differences(done: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """The fields in which a finished run's config is not the wanted one.

    A field that only one of them has does not count: it came or went with another version. But of radii, weights, the
    model and the norms that are trained every entry counts.

    Args:
      done: `config` in certify.json.
      wanted: From `read_config`.

    Returns:
      Names of fields.
    """
    done = with_new_names(done)
    old, new = (flatten_dict(dict(fields), sep=".") for fields in (done, wanted))
    whole = [part for part in ("radii", "reported") if done.get(part) != wanted.get(part)]
    whole += [part for part in ("norm_weights", "model") if part in done and done[part] != wanted.get(part)]
    whole += ["losses"] if "losses" in done and {*done["losses"]} != {*wanted.get("losses", {})} else []
    shared = [name for name in new if name in old and name not in _INCIDENTAL and old[name] != new[name]]
    return [*whole, *(name for name in shared if name.partition(".")[0] not in _WHOLE)]


def own_start(config: Mapping[str, Any], arguments: Sequence[str], workdirs: Mapping[tuple, Path]) -> Path | None:
    """The run of the same sweep, setting and seed from whose weights a fine-tuning begins.

    A config names one directory for all seeds, such as `runs/digits/linf`; a sweep has a network for each.

    Args:
      config: From `read_config`; `start_from` is empty or the work directory of another training.
      arguments: What its commands get; a `--config.start_from` among them is obeyed.
      workdirs: {(setting, directory of the entry, seed): work directory} of the sweep, and {(setting, name, seed, batch
        size): work directory}.

    Returns:
      The work directory of that run; None if there is no such one, or a start was asked for.
    """
    start = config.get("start_from")
    if not start or any(argument.startswith("--config.start_from=") for argument in arguments):
        return None
    key = (config["setting"], Path(start).name, config["seed"])
    # Entries such as digits:linf@512 have directories of other names.
    return workdirs.get(key) or workdirs.get((*key, config.get("batch_size")))


def is_done(result: Path, config: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """Whether a certification was finished, of this config and in this way.

    Args:
      result: Path of certify.json (or validation.json); the picture beside it is what certify writes last.
      config: From `read_config`.
      wanted: `method`, `arithmetic` and `num_examples` that certify would be called with.

    Returns:
      Whether there is nothing left to do.
    """
    if not all(result.with_suffix(suffix).exists() for suffix in (".json", ".npz", ".png")):
        return False
    done = json.loads(result.read_text())
    # A data set may have fewer images than were asked for.
    count = min(wanted["num_examples"], done.get("split_examples", wanted["num_examples"]))
    # A training that went on since then has another network.
    newest = provenance.last_checkpoint(result.parent)
    if newest is not None and done.get("step", newest) != newest:
        return False
    # And so, perhaps, has a fine-tuning whose source was trained again: training knows.
    if (saved := provenance.last_saved(config.get("start_from", ""))) is not None and saved > result.stat().st_mtime:
        return False
    same = (done["method"], done.get("arithmetic", "float32")) == (wanted["method"], wanted["arithmetic"])
    return same and done["num_examples"] == count and not differences(done["config"], config)


def _entry(word: str) -> Entry:
    config, *settings = _OVERRIDE.split(word.strip())
    names = [setting.removeprefix("name=") for setting in settings if setting.startswith("name=")]
    settings = [setting.strip() for setting in settings if not setting.startswith("name=")]
    stem = config.rpartition("/")[2].removesuffix(".py")
    name = names[-1].strip() if names else ", ".join([config.partition(":")[2] or stem, *settings])
    directory = re.sub(r"[^\w.=-]+", "_", name).strip("_.")
    if any(setting.startswith("seed=") for setting in settings):
        raise ValueError(
            f"The entry {word!r} sets the seed; expected no seed, as all entries have the same ones. Use --seeds."
        )
    if not directory:
        raise ValueError(f"The entry {word!r} has the name {name!r}; expected letters or digits. Put +name=... behind.")
    named = (f"--config.name={name}",) if settings or names else ()
    return Entry(name, directory, config, (*(f"--config.{setting}" for setting in settings), *named))


def split(text: str) -> list[str]:
    """Splits at the commas that lie outside of brackets."""
    words, depth = [""], 0
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        if character == "," and depth == 0:
            words.append("")
        else:
            words[-1] += character
    return [word for word in words if word.strip()]
