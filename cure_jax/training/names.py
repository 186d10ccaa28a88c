"""Names of config fields: which there are, which there were, and which of them determine the result of a run."""

import difflib
from collections.abc import Mapping
from typing import Any

from cure_jax.training.fields import FIELDS, Field

__all__ = ["RENAMED", "identity", "is_known", "unknown", "with_new_names"]

# Fields that once had another name. Work directories and results of then keep it; nobody else may use it.
RENAMED: Mapping[str, str] = {
    "l1": "l1_penalty",
    "weights": "norm_weights",
    "regularizer": "warmup_regularizer",
    "average": "average_decay",
    "kappa_ramp_epochs": "natural_ramp_epochs",
    "kappa_final": "natural_weight",
}


def is_known(path: str) -> bool:
    """Whether there is a field, a group of fields, or a part of a field whose names are the user's.

    Examples:
      >>> is_known("alignment"), is_known("alignment.weight"), is_known("losses.l2.kind"), is_known("weight")
      (True, True, True, False)
    """
    is_part = any(field.is_open and path.startswith(f"{name}.") for name, field in FIELDS.items())
    return path in FIELDS or is_part or any(name.startswith(f"{path}.") for name in FIELDS)


def unknown(path: str) -> str:
    """What is wrong with the name of a field that is not known, and what to write instead."""
    first, dot, rest = path.partition(".")
    if first in RENAMED:
        now = RENAMED[first] + dot + rest
        return f"The config field {path!r} is called {now!r} now; expected the new name. Rename it."
    group, dot, name = path.rpartition(".")
    prefix = group + dot
    siblings = {known.removeprefix(prefix).partition(".")[0] for known in FIELDS if known.startswith(prefix)}
    close = difflib.get_close_matches(name, sorted(siblings), n=1)
    hint = f"Did you mean {prefix + close[0]!r}?" if close else f"Known: {', '.join(sorted(siblings))}."
    return f"Unknown config field {path!r}; expected fields of training.default_config(). {hint}"


def with_new_names(fields: Any) -> dict[str, Any]:
    """The fields of a config that was written down, by the names that they have today.

    Examples:
      >>> with_new_names({"l1": 1e-5, "epochs": 70})
      {'l1_penalty': 1e-05, 'epochs': 70}
    """
    return {RENAMED.get(name, name): value for name, value in fields.items()}


def identity(fields: Any) -> dict[str, Any]:
    """What determines the result of a run: by today's names, without what changes nothing.

    Args:
      fields: of a config, old or new, or the config itself.
    """
    fields = with_new_names(fields)
    # Of what is certified beside the norms, what is trained.
    trained = {
        name: value for name, value in fields.get("perturbations", {}).items() if name in fields.get("losses", {})
    }
    return {
        name: value for name, value in fields.items() if not (name in FIELDS and _changes_nothing(FIELDS[name], value))
    } | ({"perturbations": trained} if trained else {})


def _changes_nothing(field: Field, value: Any) -> bool:
    return field.is_incidental or (field.is_later and value == field.default)
