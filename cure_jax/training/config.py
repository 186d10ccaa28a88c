"""The configuration of a training run, and what is made of it.

A config is an `ml_collections.ConfigDict`: start from `default_config()`, override, pass it on. It is read here, in
`checks` and in launchers, nowhere else: the rest of the library receives values. `fields` says what there is.
"""

import dataclasses
import functools
import inspect
import itertools
import math
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import jax
import ml_collections
import optax
from flax.traverse_util import unflatten_dict
from jax.tree_util import Partial

from cure_jax import smoothing
from cure_jax.models.functional import functional
from cure_jax.models.registry import with_tuples
from cure_jax.perturbations import by_name
from cure_jax.regions import LpBall, lp_ball
from cure_jax.training import multi_norm, objectives, optimizers, reference, schedules
from cure_jax.training.augmentation import augmentation
from cure_jax.training.fields import FIELDS
from cure_jax.training.gradient_projection import EpochProjectionState, epoch_projection, gradient_projection
from cure_jax.training.losses import LOSSES
from cure_jax.training.names import with_new_names
from cure_jax.training.step import Alignment, Recipe
from cure_jax.validation import described

__all__ = [
    "PIXELS",
    "Config",
    "build_recipe",
    "default_config",
    "from_fields",
    "make_regions",
    "norm_exponent",
]

# An `ml_collections.ConfigDict`, whose fields have no static types.
Config: TypeAlias = Any
PIXELS = (0.0, 1.0)


def default_config(epochs: int | None = None) -> Config:
    """Every field of a config, with its default.

    Args:
      epochs: how long to train. What is counted in epochs goes with it: `ramp_end` is 0.4 of them, the `milestones` are
        at 70 and 87 %, `natural_epochs` a tenth and at most 1. All of these are defaults of other lengths if left out.

    Raises:
      ValueError: if epochs is below 1.

    Examples:
      >>> config = default_config()
      >>> config.radii.linf, config.losses.linf.kind
      (0.1, 'small_box')
      >>> config = default_config(epochs=20)
      >>> config.epochs, config.natural_epochs, config.ramp_end, config.milestones
      (20, 1.0, 8.0, (14, 17))
    """
    fields = {path: field.default for path, field in FIELDS.items()}
    if epochs is not None:
        fields |= _schedule(epochs)
    return ml_collections.ConfigDict(unflatten_dict(fields, sep="."))


def _schedule(epochs: int) -> dict[str, Any]:
    """The fields that are counted in epochs."""
    if epochs < 1:
        raise ValueError(f"epochs is {epochs}; expected at least 1. Leave it out for the default.")
    milestones = {round(0.7 * epochs), round(0.87 * epochs)} - {epochs}
    natural, ramp_end = min(1.0, epochs / 10), round(0.4 * epochs, 2)
    return {
        "epochs": epochs, "natural_epochs": natural, "ramp_end": ramp_end, "milestones": tuple(sorted(milestones))
    }  # fmt: skip


# For `help(default_config)`.
default_config.__doc__ = f"{inspect.getdoc(default_config)}\n\n{reference.text()}"


def from_fields(fields: Mapping[str, Any]) -> Config:
    """A config from its fields as JSON has them: with lists for tuples, old names, and without later fields.

    Examples:
      >>> config = from_fields({"milestones": [3, 5], "radii": {"l1": 1.0}, "l1": 1e-6})
      >>> config.milestones, config.l1_penalty
      ((3, 5), 1e-06)
    """
    known = default_config().to_dict()
    # What has fields of its own, always the same ones, is filled up; radii, losses and the like are taken as they are.
    groups = {name: known[name] | dict(fields.get(name, {})) for name in ("alignment", "augmentation", "projection")}
    return ml_collections.ConfigDict(with_tuples(known | with_new_names(fields) | groups))


def norm_exponent(name: str) -> float:
    """The exponent p of a norm's name: "linf", "l2", "l1"; "l1.5" is "l1_5" too, as fields of a config have no dots.

    Raises:
      ValueError: for any other name, or p < 1.
    """
    try:
        p = float(name.removeprefix("l").replace("_", ".")) if name.startswith("l") else math.nan
    except ValueError:
        p = math.nan
    if not p >= 1:
        raise ValueError(f"Unknown norm {name!r}; expected 'linf', 'l2', 'l1' or 'lP' with P >= 1. Correct the name.")
    return p


def ball_of(name: str) -> Callable[..., LpBall]:
    """`(x, eps) -> region`: the ball of a norm by name, cut by the pixel box."""
    return functools.partial(lp_ball, p=norm_exponent(name), within=PIXELS)


def make_regions(radii: Mapping[str, float] | ml_collections.ConfigDict) -> dict[str, Callable[[jax.Array], LpBall]]:
    """By norm, a function from an example to its region of that radius, cut by the pixel box.

    Raises:
      TypeError: if `radii` are no numbers by norm.
      ValueError: for an unknown norm.
    """
    if not isinstance(radii, Mapping | ml_collections.ConfigDict):
        raise TypeError(
            f"make_regions got {described(radii)}; expected radii by norm. Write {{'linf': 0.1, 'l2': 0.4}}."
        )
    return {name: Partial(_Ball(norm_exponent(name)), eps) for name, eps in radii.items()}


@dataclasses.dataclass(frozen=True)
class _Ball:
    """Compares equal for equal norms, so that compiled functions are found again."""

    p: float

    def __call__(self, eps: jax.Array | float, x: jax.Array) -> LpBall:
        return lp_ball(x, eps, self.p, PIXELS)


def build_recipe(
    config: Config, model: Any, steps_per_epoch: int, teacher: Callable[[jax.Array], jax.Array] | None = None
) -> Recipe:
    """Everything that a training step needs, from a checked config; `teacher` as in `fit`."""

    def steps(epochs: float | int) -> int:
        return round(epochs * steps_per_epoch)

    ramp_end = steps(config.ramp_end)
    starts_at_ramp_end = config.projection.start_epoch < 0
    start = ramp_end if starts_at_ramp_end else steps(config.projection.start_epoch)
    projects, by_epoch = config.projection.beta > 0, config.projection.every == "epoch"
    if config.learning_rate_decay == "cosine":
        rate = schedules.cosine(config.learning_rate, steps(config.epochs))
    else:
        milestones = [steps(epoch) for epoch in config.milestones]
        rate = schedules.milestones(config.learning_rate, milestones, config.milestone_factor)
    rate = schedules.warmup(rate, steps(config.warmup_epochs))
    scaling = optimizers.scaling(config.optimizer, config.gradient_clip)
    # Without it there is no part for it, whose state older checkpoints would lack.
    decay = [optimizers.weight_decay(config.weight_decay)] if config.weight_decay else []
    if projects and by_epoch:
        scaling = optax.chain(scaling, *decay) if decay else scaling
        optimizer = epoch_projection(scaling, config.projection.beta, start, steps_per_epoch, rate)
    else:
        projected = gradient_projection(scaling, config.projection.beta, start) if projects else scaling
        rate = optax.scale_by_learning_rate(rate)
        optimizer = optax.chain(optax.with_extra_args_support(projected), *decay, rate)
    return Recipe(
        model=functional(model),
        objective=_batch_objective(config),
        optimizer=optimizer,
        radius_scale=schedules.exponential_ramp(steps(config.natural_epochs), ramp_end),
        natural_weight=schedules.natural_weight(
            steps(config.natural_epochs), steps(config.natural_ramp_epochs), config.natural_weight
        ),
        alignment=Alignment(config.alignment.weight, alignment_pairs(config)) if config.alignment.weight else None,
        regularizer=config.warmup_regularizer,
        l1=config.l1_penalty,
        average=config.average_decay,
        projection_start=start if projects else None,
        natural_point=_natural_path if projects and by_epoch else _certified_path,
        augment=augmentation(**config.augmentation.to_dict()),
        precision=jax.lax.Precision(config.precision) if config.precision != "default" else None,
        needs_lipschitz=any(loss.kind in ("lipschitz", "box_ball") for loss in config.losses.values()),
        teacher=teacher,
    )


def _certified_path(opt_state: Any, params: Any) -> Any:
    del opt_state
    return params


def _natural_path(opt_state: EpochProjectionState, params: Any) -> Any:
    del params
    return opt_state.natural_params


def alignment_pairs(config: Config) -> tuple[tuple[str, str], ...]:
    """The norms that bound alignment compares, lower and higher."""
    if config.alignment.lower == "all":
        return tuple(itertools.permutations(config.losses, 2))
    return ((config.alignment.lower, config.alignment.higher),)


def _batch_objective(config: Config) -> multi_norm.BatchObjective:
    single = {name: objective_of(config, name, loss) for name, loss in config.losses.items()}
    if config.combine == "joint":
        return multi_norm.joint(single, dict(config.norm_weights) or None)
    return multi_norm.worst(single) if config.combine == "worst" else multi_norm.random_norm(single)


def objective_of(config: Config, name: str, loss: Config) -> objectives.Objective:
    """The loss of one norm, `loss` being `config.losses[name]`; ValueError where its fields do not fit together."""
    defaults = {field: known.default for field, known in LOSSES[loss.kind].fields.items()}
    settings = {**defaults, **{field: value for field, value in loss.items() if field != "kind"}}
    if loss.kind == "cells":
        return objectives.cells(by_name(name, config.perturbations[name]), **settings)
    # Training at another radius is all that a fraction does.
    fraction = settings.pop("fraction", 1.0)
    ball, eps, steps = ball_of(name), config.radii[name] * fraction, config.attack_steps
    if "attack_fraction" in settings:
        settings["attack_eps"] = config.radii[name] * (settings.pop("attack_fraction") or fraction)
    makers: dict[str, Callable[..., objectives.Objective]] = {
        "natural": objectives.natural,
        "pgd": functools.partial(objectives.adversarial, ball, eps, steps=steps),
        "ibp": functools.partial(objectives.box, ball, eps),
        "small_box": functools.partial(objectives.small_box, ball, eps, steps=steps),
        "crown_ibp": functools.partial(objectives.crown_ibp, ball, eps),
        "expressive": functools.partial(objectives.expressive, ball, eps, steps=steps),
        "distilled": functools.partial(objectives.distilled, ball, eps, steps=steps),
        "dual_norm": functools.partial(objectives.dual_norm, ball, eps),
        "box_ball": functools.partial(objectives.box_ball, ball, eps),
        "lipschitz": functools.partial(objectives.lipschitz, eps),
        "noise": _noisy,
    }
    return makers[loss.kind](**settings)


def _noisy(noise: str, scale: float | int, levels: int, **fields: Any) -> objectives.Objective:
    return objectives.noisy(smoothing.NOISES[noise](scale, levels=levels), **fields)
