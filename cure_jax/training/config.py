"""The configuration of a training run: every field, its default, and what is made of it.

A config is an `ml_collections.ConfigDict`: start from `default_config()`, override, pass it on. It is read here and in
launchers, nowhere else: the rest of the library receives values.
"""

import dataclasses
import difflib
import functools
import itertools
import math
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import flax.linen as nn
import jax
import ml_collections
import optax
from jax.tree_util import Partial

from cure_jax import smoothing
from cure_jax.models.registry import with_tuples
from cure_jax.regions import LpBall, lp_ball
from cure_jax.training import multi_norm, objectives, optimizers, schedules
from cure_jax.training.augmentation import augmentation
from cure_jax.training.gradient_projection import EpochProjectionState, epoch_projection, gradient_projection
from cure_jax.training.parallel import MODES
from cure_jax.training.step import Alignment, Recipe

__all__ = [
    "PIXELS",
    "Config",
    "build_recipe",
    "check",
    "default_config",
    "from_fields",
    "make_regions",
    "norm_exponent",
]

# An `ml_collections.ConfigDict`, whose fields have no static types.
Config: TypeAlias = Any
PIXELS = (0.0, 1.0)
# The fields of `losses.NORM` besides `kind`, with their defaults. fraction: of the radius, in training;
# attack_fraction: of the radius, for the attack alone (0: the same as fraction).
_LOSS_FIELDS: Mapping[str, Mapping[str, Any]] = {
    "natural": {},
    "pgd": {"fraction": 1.0},
    "ibp": {"fraction": 1.0, "shrinking": 0.0},
    "small_box": {"fraction": 1.0, "attack_fraction": 0.0, "ratio": 0.4, "inside": False, "shrinking": 0.0},
    "crown_ibp": {"fraction": 1.0, "final": 0.0},
    "expressive": {"fraction": 1.0, "attack_fraction": 0.0, "combination": "mtl", "alpha": 0.1},
    "dual_norm": {"fraction": 1.0},
    "box_ball": {"fraction": 1.0},
    "lipschitz": {"fraction": 1.0},
    # For smoothing: its own scale, in pixels, instead of a fraction of the radius.
    "noise": {"noise": "gaussian", "scale": 0.25, "levels": 255, "samples": 1, "consistency": 0.0, "entropy": 0.5},
}
_CHOICES: Mapping[str, tuple[str, ...]] = {
    "combine": ("joint", "worst", "random_norm"),
    "optimizer": tuple(optimizers.SCALINGS),
    "precision": ("default", "high", "highest"),
    "initialization": ("ibp", "default"),
    "projection.every": ("step", "epoch"),
    "parallel": ("auto", *MODES),
}
# The least value of every number.
_LEAST: Mapping[str, int] = {
    **dict.fromkeys(("epochs", "batch_size", "scan_steps", "checkpoint_every", "keep_checkpoints", "attack_steps"), 1),
    **dict.fromkeys(("seed", "learning_rate", "milestone_factor", "natural_epochs", "kappa_ramp_epochs"), 0),
    **dict.fromkeys(("ramp_end", "regularizer", "l1", "weight_decay", "gradient_clip", "alignment.weight"), 0),
    **dict.fromkeys(("augmentation.padding", "augmentation.crop", "warmup_epochs"), 0),
}


def default_config() -> Config:
    """Every field of a config, with its default.

    Radii are in pixels of [0, 1]; epochs are counted from 0; `losses` says which norms are trained and how, `radii`
    which are certified and attacked, `reported` which are certified beside them without entering the union.

    Examples:
      >>> config = default_config()
      >>> config.radii.linf, config.losses.linf.kind
      (0.1, 'small_box')
    """
    return ml_collections.ConfigDict(
        {
            # How tables call the setting and the method.
            "setting": "",
            "name": "",
            "seed": 0,
            "dataset": "digits",
            "data_dir": "",
            "model": {"name": "mlp", "options": {}},
            "radii": {"linf": 0.1, "l2": 0.4},
            "reported": {},
            "losses": {"linf": {"kind": "small_box", "ratio": 0.4, "inside": False}},
            # joint (weights by norm, empty: equal) | worst (per example) | random_norm
            "combine": "worst",
            "weights": {},
            "attack_steps": 8,
            "epochs": 70,
            "batch_size": 256,
            # adam | radam; weight_decay: decoupled, as in AdamW, for arrays of two axes or more.
            "optimizer": "adam",
            "weight_decay": 0.0,
            # The largest 2-norm of a gradient, which is scaled down to it; 0: none.
            "gradient_clip": 0.0,
            "learning_rate": 5e-4,
            "milestones": (50, 60),
            "milestone_factor": 0.2,
            # The learning rate rises along a straight line from 0.
            "warmup_epochs": 0.0,
            # Natural training before the ramp; the ramp of the radius runs from its end to ramp_end.
            "natural_epochs": 1.0,
            "kappa_ramp_epochs": 0.0,
            # The weight of the natural loss that stays after its ramp.
            "kappa_final": 0.0,
            "ramp_end": 22.0,
            "regularizer": 0.5,
            "l1": 1e-5,
            # Before training: the parameters of another work directory, or an .npz of them; empty: random ones.
            "start_from": "",
            # Crops of this size (0: of the image's) from the image padded by its edges; certified is the middle.
            "augmentation": {"flip": False, "padding": 0, "crop": 0},
            # Bound alignment: weight * KL(lower || higher); lower is the norm with the lower certified accuracy, or
            # "all": the mean over all ordered pairs of norms.
            "alignment": {"weight": 0.0, "lower": "l2", "higher": "linf"},
            # Gradient projection from start_epoch on (negative: from the end of the ramp); beta 0 switches it off.
            # every: step | epoch (as published: of whole epochs of both trainings).
            "projection": {"beta": 0.0, "start_epoch": -1.0, "every": "step"},
            "initialization": "ibp",
            # Decay of the moving average of the parameters that replaces them at the end of the training; 0: none.
            "average": 0.0,
            # At the end of the training, the statistics of BatchNorm are computed anew, on all training images.
            "population_statistics": False,
            # Of matrix products in training bounds: default | high | highest. Certification always uses highest.
            "precision": "default",
            # auto: jit on one device, else shard_map.
            "parallel": "auto",
            # Steps in one compiled call; checkpoints and metrics fall on its multiples.
            "scan_steps": 100,
            "checkpoint_every": 1000,
            "keep_checkpoints": 3,
            # (first, last): a profiler trace of the compiled runs that hold these steps, in WORKDIR/profile.
            "profile_steps": (),
        }
    )


def from_fields(fields: Mapping[str, Any]) -> Config:
    """A config from its fields as JSON has them: tuples are lists there, and fields of later versions are missing.

    Examples:
      >>> from_fields({"milestones": [3, 5], "radii": {"l1": 1.0}}).milestones
      (3, 5)
    """
    known = default_config().to_dict()
    # What has fields of its own, always the same ones, is filled up; radii, losses and the like are taken as they are.
    groups = {name: known[name] | dict(fields.get(name, {})) for name in ("alignment", "augmentation", "projection")}
    return ml_collections.ConfigDict(with_tuples(known | dict(fields) | groups))


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
    """By norm, a function from an example to its region of that radius, cut by the pixel box."""
    return {name: Partial(_Ball(norm_exponent(name)), eps) for name, eps in radii.items()}


@dataclasses.dataclass(frozen=True)
class _Ball:
    """Compares equal for equal norms, so that compiled functions are found again."""

    p: float

    def __call__(self, eps: jax.Array | float, x: jax.Array) -> LpBall:
        return lp_ball(x, eps, self.p, PIXELS)


def check(config: Config) -> None:
    """Checks a config before anything is computed or written.

    Raises:
      ValueError: naming the field, what it holds and what was expected: an unknown field, loss, norm or mode, a radius
        that is negative or not a number, norms that do not fit together.
    """
    _check_fields(config, default_config(), "", free=("model.options", "radii", "reported", "losses", "weights"))
    for path, least in _LEAST.items():
        value = functools.reduce(getattr, path.split("."), config)
        _require(least <= value < math.inf, path, value, f"a finite number, at least {least}")
    for path, known in _CHOICES.items():
        value = functools.reduce(getattr, path.split("."), config)
        _require(value in known, path, value, f"one of {', '.join(known)}")
    _check_norms(config)
    _check_schedules(config)


def _check_norms(config: Config) -> None:
    for group in ("radii", "reported"):
        for name, eps in dict(getattr(config, group)).items():
            norm_exponent(name)
            is_radius = isinstance(eps, int | float) and 0 <= eps < math.inf
            _require(is_radius, f"{group}.{name}", eps, "a finite radius >= 0 in pixels of [0, 1]")
    both = [norm for norm in config.reported if norm in config.radii]
    _require(not both, "reported", dict(config.reported), f"norms outside of radii, which has {', '.join(both)} too")
    _require(len(config.radii) > 0, "radii", dict(config.radii), "at least one norm to certify")
    _require(len(config.losses) > 0, "losses", {}, "at least one norm to train")
    for name, loss in config.losses.items():
        _check_loss(config, name, loss)
    if weights := dict(config.weights):
        _require(config.combine == "joint", "weights", weights, f"none for {config.combine}, as only joint has weights")
        _require(
            set(weights) == set(config.losses), "weights", weights, f"those of losses ({', '.join(config.losses)})"
        )
        in_range = all(0 <= share < math.inf for share in weights.values()) and any(weights.values())
        _require(in_range, "weights", weights, "finite numbers, at least 0 and not all 0")
    if config.alignment.weight:
        _check_alignment(config)


def _check_alignment(config: Config) -> None:
    lower, higher = config.alignment.lower, config.alignment.higher
    if lower == "all":
        lower, higher = next(iter(_alignment_pairs(config)), ("all", "none"))
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
    for path in ("projection.beta", "kappa_final"):
        value = functools.reduce(getattr, path.split("."), config)
        _require(0 <= value <= 1, path, value, "a share in [0, 1]")
    _require(0 <= config.average < 1, "average", config.average, "a decay in [0, 1)")


def _check_loss(config: Config, name: str, loss: Config) -> None:
    norm_exponent(name)
    _require(
        name in config.radii, f"losses.{name}", dict(loss), f"a norm that has a radius ({', '.join(config.radii)})"
    )
    kind = loss.get("kind")
    _require(kind in _LOSS_FIELDS, f"losses.{name}.kind", kind, f"one of {', '.join(_LOSS_FIELDS)}")
    for field, value in loss.items():
        known = ("kind", *_LOSS_FIELDS[kind])
        _require(field in known, f"losses.{name}.{field}", value, f"only the fields {', '.join(known)} for {kind}")
        if field == "ratio":
            _require(0 <= value <= 1, f"losses.{name}.ratio", value, "a share of the radius, in [0, 1]")
        if field in ("alpha", "final", "shrinking"):
            _require(0 <= value <= 1, f"losses.{name}.{field}", value, "a share in [0, 1]")
        if field == "combination":
            known = objectives.COMBINATIONS
            _require(value in known, f"losses.{name}.combination", value, f"one of {', '.join(known)}")
        if field in ("consistency", "entropy"):
            _require(0 <= value < math.inf, f"losses.{name}.{field}", value, "a finite weight, at least 0")
        if field in ("fraction", "attack_fraction"):
            _require(0 <= value < math.inf, f"losses.{name}.{field}", value, "a multiple of the radius, at least 0")
    if kind == "noise":
        _check_noise(config, name, loss)
    if kind == "lipschitz":
        _require(name == "l2", f"losses.{name}.kind", kind, "this loss for l2 only")


def _check_noise(config: Config, name: str, loss: Config) -> None:
    noise = loss.get("noise", "gaussian")
    _require(noise in smoothing.NOISES, f"losses.{name}.noise", noise, f"one of {', '.join(smoothing.NOISES)}")
    try:
        _objective(config, name, loss)
    except ValueError as error:
        raise ValueError(f"config.losses.{name} is {dict(loss)}: {error}") from error


def _check_fields(config: Config, known: Config, prefix: str, free: tuple[str, ...]) -> None:
    missing = [prefix + name for name in known if name not in config]
    if missing:
        raise ValueError(
            f"The config has no {', '.join(missing)}; expected every field of training.default_config(). Start from "
            "it and override, or load a trained network with its config: training.load(workdir)."
        )
    for name, value in config.items():
        path = prefix + name
        if name not in known:
            close = difflib.get_close_matches(name, list(known), n=1)
            hint = f"Did you mean {prefix + close[0]!r}?" if close else f"Known: {', '.join(known)}."
            raise ValueError(f"Unknown config field {path!r}; expected fields of training.default_config(). {hint}")
        if isinstance(known[name], ml_collections.ConfigDict) and path not in free:
            _check_fields(value, known[name], path + ".", free)


def _require(condition: bool, field: str, value: Any, expected: str) -> None:
    if not condition:
        raise ValueError(f"config.{field} is {value!r}; expected {expected}. Change it.")


def build_recipe(config: Config, model: nn.Module, steps_per_epoch: int) -> Recipe:
    """Everything that a training step needs, from a checked config."""

    def steps(epochs: float | int) -> int:
        return round(epochs * steps_per_epoch)

    ramp_end = steps(config.ramp_end)
    starts_at_ramp_end = config.projection.start_epoch < 0
    start = ramp_end if starts_at_ramp_end else steps(config.projection.start_epoch)
    projects, by_epoch = config.projection.beta > 0, config.projection.every == "epoch"
    rate = schedules.milestones(
        config.learning_rate, [steps(epoch) for epoch in config.milestones], config.milestone_factor
    )
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
        model=model,
        objective=_batch_objective(config),
        optimizer=optimizer,
        radius_scale=schedules.exponential_ramp(steps(config.natural_epochs), ramp_end),
        natural_weight=schedules.natural_weight(
            steps(config.natural_epochs), steps(config.kappa_ramp_epochs), config.kappa_final
        ),
        alignment=Alignment(config.alignment.weight, _alignment_pairs(config)) if config.alignment.weight else None,
        regularizer=config.regularizer,
        l1=config.l1,
        average=config.average,
        projection_start=start if projects else None,
        natural_point=_natural_path if projects and by_epoch else _certified_path,
        augment=augmentation(**config.augmentation.to_dict()),
        precision=jax.lax.Precision(config.precision) if config.precision != "default" else None,
        needs_lipschitz=any(loss.kind in ("lipschitz", "box_ball") for loss in config.losses.values()),
    )


def _certified_path(opt_state: Any, params: Any) -> Any:
    del opt_state
    return params


def _natural_path(opt_state: EpochProjectionState, params: Any) -> Any:
    del params
    return opt_state.natural_params


def _alignment_pairs(config: Config) -> tuple[tuple[str, str], ...]:
    if config.alignment.lower == "all":
        return tuple(itertools.permutations(config.losses, 2))
    return ((config.alignment.lower, config.alignment.higher),)


def _batch_objective(config: Config) -> multi_norm.BatchObjective:
    single = {name: _objective(config, name, loss) for name, loss in config.losses.items()}
    if config.combine == "joint":
        return multi_norm.joint(single, dict(config.weights) or None)
    return multi_norm.worst(single) if config.combine == "worst" else multi_norm.random_norm(single)


def _objective(config: Config, name: str, loss: Config) -> objectives.Objective:
    settings = {**_LOSS_FIELDS[loss.kind], **{field: value for field, value in loss.items() if field != "kind"}}
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
        "dual_norm": functools.partial(objectives.dual_norm, ball, eps),
        "box_ball": functools.partial(objectives.box_ball, ball, eps),
        "lipschitz": functools.partial(objectives.lipschitz, eps),
        "noise": _noisy,
    }
    return makers[loss.kind](**settings)


def _noisy(noise: str, scale: float | int, levels: int, **fields: Any) -> objectives.Objective:
    return objectives.noisy(smoothing.NOISES[noise](scale, levels=levels), **fields)
