"""Checks of a config before anything is computed or written: each mistake in a sentence.

What a single field may hold stands beside it, in `fields` and `losses`; what fields must be to each other stands here.
`warn` says what is allowed and rarely meant.
"""

import functools
import itertools
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import ml_collections

from cure_jax.perturbations import by_names
from cure_jax.training.config import Config, alignment_pairs, default_config, norm_exponent, objective_of
from cure_jax.training.fields import FIELDS, Field
from cure_jax.training.losses import LOSSES
from cure_jax.training.names import unknown
from cure_jax.validation import described, reaches_all

__all__ = ["check", "warn"]

_LOGGER = logging.getLogger(__name__)


def check(config: Config) -> None:
    """Checks a config before anything is computed or written.

    Raises:
      TypeError: if it is no config.
      ValueError: naming the field, what it holds and what was expected: an unknown field, one by its old name, a value
        of another kind or out of range, an unknown loss, norm or mode, norms that do not fit together.
    """
    if not isinstance(config, ml_collections.ConfigDict):
        raise TypeError(
            f"The config is {described(config)}; expected that of training.default_config(), with fields overridden. "
            "Write training.fit(model, (images, labels), config)."
        )
    _check_names(config, default_config(), "")
    for path, field in FIELDS.items():
        _check_value(path, functools.reduce(getattr, path.split("."), config), field)
    _check_norms(config)
    _check_schedules(config)


def warn(config: Config, shape: Sequence[int], steps_per_epoch: int) -> None:
    """Logs what a config says that is rarely meant.

    Args:
      config: a checked one.
      shape: of an example.
      steps_per_epoch: of the training.
    """
    for sentence in _doubts(config, shape, steps_per_epoch):
        _LOGGER.warning(sentence)


def _doubts(config: Config, shape: Sequence[int], steps_per_epoch: int) -> Iterator[str]:
    epochs, every, run = config.epochs, config.checkpoint_every, config.scan_steps
    if config.ramp_end > epochs:
        yield (
            f"The radius is reached at epoch {config.ramp_end:g} (ramp_end), but the training ends after {epochs}: "
            f"raise epochs, or lower ramp_end (0.4 of {epochs} epochs: {0.4 * epochs:.1f})."
        )
    late = [milestone for milestone in config.milestones if milestone >= epochs]
    if late and config.learning_rate_decay == "milestones":
        yield (
            f"The learning rate falls at {late} (milestones), but the training ends after {epochs}: raise epochs, or "
            f"lower milestones (70 and 87 % of {epochs} epochs: {round(0.7 * epochs)} and {round(0.87 * epochs)})."
        )
    for group in ("radii", "reported"):
        for norm, eps in config[group].items():
            if doubt := reaches_all(f"config.{group}.{norm}", eps, norm_exponent(norm), shape):
                yield doubt
    if every % run and every < epochs * steps_per_epoch:
        yield (
            f"checkpoint_every {every} is no multiple of scan_steps {run}, between whose calls checkpoints fall: they "
            f"come up to {run - 1} steps late. Choose a multiple."
        )


def _check_names(config: Config, known: Config, prefix: str) -> None:
    for name in config:
        if name not in known:
            raise ValueError(unknown(prefix + name))
    if missing := [prefix + name for name in known if name not in config]:
        raise ValueError(
            f"The config has no {', '.join(missing)}; expected every field of training.default_config(). Start from "
            "it and override, or load a trained network with its config: training.load(workdir)."
        )
    for name, value in config.items():
        path = prefix + name
        if isinstance(known[name], ml_collections.ConfigDict) and path not in FIELDS:
            _require(isinstance(value, ml_collections.ConfigDict), path, value, f"the fields {', '.join(known[name])}")
            _check_names(value, known[name], path + ".")


def _check_value(path: str, value: Any, field: Field) -> None:
    default = field.default
    if field.choices:
        _require(value in field.choices, path, value, f"one of {', '.join(field.choices)}")
    elif isinstance(default, bool):
        _require(isinstance(value, bool), path, value, "True or False")
    elif isinstance(default, int | float):
        _check_number(path, value, field)
    elif isinstance(default, str):
        _require(isinstance(value, str), path, value, "a text, in quotes")
    elif isinstance(default, tuple):
        _require(isinstance(value, tuple | list) and all(map(_is_number, value)), path, value, "a tuple of numbers")
    else:
        _require(isinstance(value, Mapping | ml_collections.ConfigDict), path, value, f"a dictionary, as {default}")


def _check_number(path: str, value: Any, field: Field) -> None:
    kind = "whole" if isinstance(field.default, int) else "finite"
    is_kind = _is_number(value) and math.isfinite(value) and (kind == "finite" or value == int(value))
    least, most = field.least, field.most
    if least is None:
        _require(is_kind, path, value, f"a {kind} number")
        return
    if most is not None:
        _require(is_kind and least <= value <= most, path, value, f"a share in [{least}, {most}]")
        return
    _require(is_kind and value >= least, path, value, f"a {kind} number, at least {least}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _check_norms(config: Config) -> None:
    for group in ("radii", "reported"):
        for name, eps in dict(getattr(config, group)).items():
            norm_exponent(name)
            is_radius = _is_number(eps) and 0 <= eps < math.inf
            _require(is_radius, f"{group}.{name}", eps, "a finite radius >= 0 in pixels of [0, 1]")
    both = [norm for norm in config.reported if norm in config.radii]
    _require(not both, "reported", dict(config.reported), f"norms outside of radii, which has {', '.join(both)} too")
    _require(len(config.radii) > 0, "radii", dict(config.radii), "at least one norm to certify")
    _require(len(config.losses) > 0, "losses", {}, "at least one norm to train")
    for name, loss in config.losses.items():
        _check_loss(config, name, loss)
    if weights := dict(config.norm_weights):
        path, combine = "norm_weights", config.combine
        _require(combine == "joint", path, weights, f"none for {combine}, as only joint has weights")
        _require(set(weights) == set(config.losses), path, weights, f"those of losses ({', '.join(config.losses)})")
        in_range = all(_is_number(share) and 0 <= share < math.inf for share in weights.values())
        _require(in_range and any(weights.values()), path, weights, "finite numbers, at least 0 and not all 0")
    if config.alignment.weight:
        _check_alignment(config)
    try:
        by_names(config.perturbations.to_dict())
    except (TypeError, ValueError) as error:
        raise ValueError(f"config.perturbations is {config.perturbations.to_dict()}: {error}") from error


def _check_loss(config: Config, name: str, loss: Any) -> None:
    path = f"losses.{name}"
    if is_beyond := bool(config.perturbations.get(name)):
        _require(name != "pixels", path, loss, "no loss of pixels, whose cell is no box")
    else:
        norm_exponent(name)
    example = {"kind": loss if str(loss) in LOSSES else "small_box"}
    is_loss = isinstance(loss, Mapping | ml_collections.ConfigDict)
    _require(is_loss, path, loss, f"a dictionary, as {example}")
    has_radius = name in config.radii or is_beyond
    _require(has_radius, path, dict(loss), f"a norm that has a radius ({', '.join(config.radii)})")
    kind = loss.get("kind")
    _require((kind == "cells") == is_beyond, f"{path}.kind", kind, "cells for what perturbations has, and for it alone")
    _require(kind in LOSSES, f"{path}.kind", kind, f"one of {', '.join(LOSSES)}")
    fields, norms = LOSSES[kind].fields, LOSSES[kind].norms
    for field, value in loss.items():
        if field != "kind":
            expected = f"only the fields {', '.join(('kind', *fields))} for {kind}"
            _require(field in fields, f"{path}.{field}", value, expected)
            _check_value(f"{path}.{field}", value, fields[field])
    _require(not norms or name in norms, f"{path}.kind", kind, f"this loss for {', '.join(norms)} only")
    try:
        objective_of(config, name, loss)
    except ValueError as error:
        raise ValueError(f"config.{path} is {dict(loss)}: {error}") from error


def _check_alignment(config: Config) -> None:
    lower, higher = config.alignment.lower, config.alignment.higher
    if lower == "all":
        lower, higher = next(iter(alignment_pairs(config)), ("all", "none"))
        _require(higher != "none", "alignment.lower", "all", "at least two norms in losses")
    for side, norm in (("lower", lower), ("higher", higher)):
        _require(norm in config.losses, f"alignment.{side}", norm, f"a norm of losses ({', '.join(config.losses)})")
    _require(lower != higher, "alignment.higher", higher, "another norm than alignment.lower")
    _require(
        config.combine != "random_norm", "combine", config.combine, "joint or worst, for alignment to compare norms"
    )


def _check_schedules(config: Config) -> None:
    natural, ramp_end, milestones = config.natural_epochs, config.ramp_end, tuple(config.milestones)
    _require(natural <= ramp_end, "ramp_end", ramp_end, f"at least natural_epochs = {natural}")
    increasing = all(earlier < later for earlier, later in itertools.pairwise((0, *milestones)))
    _require(increasing, "milestones", milestones, "increasing epochs after 0")
    profile = tuple(config.profile_steps)
    is_span = profile == () or (len(profile) == 2 and 0 <= profile[0] <= profile[1])
    _require(is_span, "profile_steps", profile, "(), or the first and the last step of a trace, such as (200, 299)")
    _require(config.average_decay < 1, "average_decay", config.average_decay, "a decay in [0, 1)")


def _require(condition: bool, field: str, value: Any, expected: str) -> None:
    if not condition:
        raise ValueError(f"config.{field} is {value!r}; expected {expected}. Change it.")
