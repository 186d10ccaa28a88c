"""Configs: every mistake is named before anything runs, and every experiment of configs/ takes a step."""

import importlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import chex
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import pytest
from jax.tree_util import Partial

from cure_jax import configs, models
from cure_jax.configs.methods import METHODS
from cure_jax.training import fit, objectives
from cure_jax.training.checks import check, warn
from cure_jax.training.config import build_recipe, default_config, make_regions, norm_exponent
from cure_jax.training.gradient_projection import epoch_projection
from cure_jax.training.loop import initial_state
from cure_jax.training.objectives import Network
from cure_jax.training.step import train_step
from tests.training import tiny

_NAN = float("nan")
_SMALL = {"kind": "small_box"}
_BOTH = {"linf": _SMALL, "l2": _SMALL}
_ALIGNED = {"losses": _BOTH, "alignment.weight": 1.0}


def _config(fields: dict[str, Any]) -> ml_collections.ConfigDict:
    config = default_config()
    for path, value in fields.items():
        *parents, name = path.split(".")
        parent = config
        for part in parents:
            parent = parent[part]
        with parent.unlocked(), parent.ignore_type():
            parent[name] = value
    return config


def test_the_default_config_is_right() -> None:
    check(default_config())


@pytest.mark.parametrize("epochs", [1, 2, 5, 20, 70, 1000])
def test_what_is_counted_in_epochs_goes_with_them(epochs: int, caplog: pytest.LogCaptureFixture) -> None:
    config = default_config(epochs=epochs)
    check(config)
    warn(config, (8, 8, 1), 500)
    assert not caplog.records
    assert 0 < config.natural_epochs <= config.ramp_end < epochs
    assert config.ramp_end == pytest.approx(0.4 * epochs)


def test_a_training_of_no_epochs_has_no_config() -> None:
    with pytest.raises(ValueError, match="epochs is 0; expected at least 1"):
        default_config(epochs=0)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"epoch": 3}, r"Unknown config field 'epoch'.*Did you mean 'epochs'\?"),
        ({"alignment.wieght": 1.0}, r"Unknown config field 'alignment\.wieght'.*Did you mean 'alignment\.weight'\?"),
        ({"xyz": 3}, r"Unknown config field 'xyz'.*Known: alignment, attack_steps"),
        ({"l1": 1e-5}, r"The config field 'l1' is called 'l1_penalty' now.*Rename it"),
        ({"epochs": "3"}, r"config\.epochs is '3'; expected a whole number"),
        ({"epochs": 2.5}, r"config\.epochs is 2\.5; expected a whole number"),
        ({"seed": True}, r"config\.seed is True; expected a whole number"),
        ({"milestones": "50"}, r"config\.milestones is '50'; expected a tuple of numbers"),
        ({"augmentation.flip": 1}, r"config\.augmentation\.flip is 1; expected True or False"),
        ({"alignment": 0.5}, r"config\.alignment is 0\.5; expected the fields higher, lower, weight"),
        ({"radii": 0.1}, r"config\.radii is 0\.1; expected a dictionary, as \{'linf': 0\.1"),
        ({"losses": {"linf": "ibp"}}, r"config\.losses\.linf is 'ibp'; expected a dictionary, as \{'kind': 'ibp'\}"),
        ({"radii": {}}, r"config\.radii is {}"),
        ({"radii.l2": -0.1}, r"config\.radii\.l2 is -0\.1; expected a finite radius >= 0"),
        ({"radii.l2": math.inf}, r"config\.radii\.l2 is inf"),
        ({"radii.l2": _NAN}, r"config\.radii\.l2 is nan"),
        ({"radii.l2": "0.1"}, r"config\.radii\.l2 is '0\.1'"),
        ({"radii.l0": 0.1}, r"Unknown norm 'l0'"),
        ({"radii.2": 0.1}, r"Unknown norm '2'"),
        ({"reported.l1": -1.0}, r"config\.reported\.l1 is -1\.0"),
        ({"reported.x": 1.0}, r"Unknown norm 'x'"),
        ({"reported.l2": 0.1}, r"config\.reported .*norms outside of radii, which has l2 too"),
        ({"losses": {}}, r"config\.losses is {}; expected at least one norm to train"),
        ({"losses": {"l1": _SMALL}}, r"config\.losses\.l1 is .*expected a norm that has a radius \(l2, linf\)"),
        ({"losses.linf.kind": "sabr"}, r"config\.losses\.linf\.kind is 'sabr'; expected one of natural, pgd"),
        ({"losses": {"linf": {}}}, r"config\.losses\.linf\.kind is None"),
        (
            {"losses": {"linf": {"kind": "ibp", "ratio": 0.4}}},
            r"config\.losses\.linf\.ratio is 0\.4.*kind, fraction, shrinking for ibp",
        ),
        ({"losses.linf.ratio": 1.5}, r"config\.losses\.linf\.ratio is 1\.5"),
        ({"losses.linf.ratio": _NAN}, r"config\.losses\.linf\.ratio is nan"),
        ({"losses": {"l2": {"kind": "dual_norm", "fraction": -1.0}}}, r"config\.losses\.l2\.fraction is -1\.0"),
        (
            {"losses": {"linf": {"kind": "lipschitz"}}},
            r"config\.losses\.linf\.kind is 'lipschitz'; expected .* l2 only",
        ),
        ({"combine": "sum"}, r"config\.combine is 'sum'; expected one of joint, worst, random_norm"),
        ({"precision": "bf16"}, r"config\.precision is 'bf16'; expected one of default, high, highest"),
        ({"initialization": "kaiming"}, r"config\.initialization is 'kaiming'"),
        ({"parallel": "ddp"}, r"config\.parallel is 'ddp'; expected one of auto, jit, shard_map, pmap"),
        ({"norm_weights": {"linf": 1.0}}, r"config\.norm_weights .*only joint has weights"),
        ({"norm_weights": {"linf": -1.0}, "combine": "joint"}, r"config\.norm_weights .*at least 0 and not all 0"),
        (
            {"norm_weights": {"l2": 1.0}, "combine": "joint"},
            r"config\.norm_weights is {'l2': 1\.0}; expected those of losses \(linf\)",
        ),
        ({"alignment.weight": -1.0}, r"config\.alignment\.weight is -1\.0"),
        ({**_ALIGNED, "alignment.lower": "l1"}, r"config\.alignment\.lower is 'l1'; expected a norm of losses"),
        ({**_ALIGNED, "alignment.higher": "l1"}, r"config\.alignment\.higher is 'l1'"),
        ({**_ALIGNED, "alignment.lower": "linf"}, r"config\.alignment\.higher is 'linf'; expected another norm"),
        ({**_ALIGNED, "combine": "random_norm"}, r"config\.combine is 'random_norm'; expected joint or worst"),
        ({"natural_epochs": 30.0}, r"config\.ramp_end is 22\.0; expected at least natural_epochs = 30\.0"),
        ({"milestones": (60, 50)}, r"config\.milestones is \(60, 50\); expected increasing epochs"),
        ({"milestones": (0, 50)}, r"config\.milestones is \(0, 50\)"),
        ({"projection.beta": 1.5}, r"config\.projection\.beta is 1\.5; expected a share in \[0, 1\]"),
        ({"projection.beta": _NAN}, r"config\.projection\.beta is nan"),
        ({"natural_weight": 2.0}, r"config\.natural_weight is 2\.0; expected a share in \[0, 1\]"),
        ({"average_decay": 1.0}, r"config\.average_decay is 1\.0; expected a decay in \[0, 1\)"),
        ({"optimizer": "sgd"}, r"config\.optimizer is 'sgd'; expected one of adam, radam"),
        ({"losses.linf.attack_fraction": -1.0}, r"config\.losses\.linf\.attack_fraction is -1\.0"),
        *[
            ({field: 0}, rf"config\.{field} is 0; expected a whole number, at least 1")
            for field in ("epochs", "batch_size", "scan_steps", "checkpoint_every", "keep_checkpoints", "attack_steps")
        ],
        *[
            ({field: value}, rf"config\.{field} is {value}")
            for field in (
                "learning_rate",
                "milestone_factor",
                "natural_epochs",
                "natural_ramp_epochs",
                "warmup_regularizer",
                "l1_penalty",
                "weight_decay",
                "gradient_clip",
            )
            for value in (-1.0, _NAN, math.inf)
        ],
        ({"seed": -1}, r"config\.seed is -1"),
        (
            {"learning_rate_decay": "linear"},
            r"config\.learning_rate_decay is 'linear'; expected one of milestones, cosine",
        ),
        ({"projection.every": "year"}, r"config\.projection\.every is 'year'; expected one of step, epoch"),
        ({"augmentation.crop": -1}, r"config\.augmentation\.crop is -1"),
        ({"losses": {"linf": {"kind": "small_box", "shrinking": 2.0}}}, r"losses\.linf\.shrinking is 2\.0"),
        ({"losses": {"linf": {"kind": "expressive", "combination": "x"}}}, r"combination is 'x'; expected one of cc"),
        ({"losses": {"l2": {"kind": "noise", "noise": "pink"}}}, r"losses\.l2\.noise is 'pink'; expected one of gauss"),
        ({"losses": {"l2": {"kind": "noise", "scale": 0.0}}}, r"config\.losses\.l2 is .*gaussian got sigma=0\.0"),
        (
            {"losses": {"l2": {"kind": "noise", "consistency": 1.0}}},
            r"config\.losses\.l2 is .*expected at least one view",
        ),
        (
            {"losses": {"l2": {"kind": "noise", "entropy": -1.0}}},
            r"losses\.l2\.entropy is -1\.0; expected a finite number, at least 0",
        ),
    ],
    ids=str,
)
def test_every_mistake_is_named(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check(_config(fields))


def test_fit_checks_before_it_computes_or_writes(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"config\.radii\.l2 is -0\.1"):
        fit(tiny.TinyMLP(), tiny.data(), _config({"radii.l2": -0.1}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_right_variations_pass() -> None:
    check(_config({"losses": {"linf": {"kind": "ibp"}, "l2": {"kind": "lipschitz", "fraction": 0.5}}}))
    check(_config({"losses": _BOTH, "combine": "joint", "norm_weights": {"l2": 0.3, "linf": 0.7}}))
    check(
        _config({"losses": {"l2": {"kind": "noise", "noise": "splitting", "scale": 1, "samples": 2, "consistency": 5}}})
    )
    check(_config({"radii": {"l1": 1.0, "l3": 0.2}, "losses": {"l3": {"kind": "pgd"}}, "reported": {"l2": 0.0}}))
    check(_config({**_ALIGNED, "milestones": (), "natural_epochs": 0.0, "ramp_end": 0.0, "learning_rate": 0.0}))


@pytest.mark.parametrize(("name", "p"), [("linf", math.inf), ("l2", 2.0), ("l1", 1.0), ("l1.5", 1.5)])
def test_norms_have_their_exponents_and_regions_the_pixel_box(name: str, p: float) -> None:
    assert norm_exponent(name) == p
    x = jnp.array([0.0, 0.95])
    region = make_regions({name: 0.1})[name](x)
    assert region.p == p
    np.testing.assert_allclose(region.bounding_box().lower, [0.0, 0.85], atol=1e-6)
    np.testing.assert_allclose(region.bounding_box().upper, [0.1, 1.0], atol=1e-6)


def test_regions_of_the_same_radius_are_compiled_once() -> None:
    traces = []

    @jax.jit
    def upper(make: jax.tree_util.Partial, x: jax.Array) -> jax.Array:
        traces.append(None)
        return make(x).bounding_box().upper

    values = [upper(make_regions({"l2": eps})["l2"], jnp.zeros(2)) for eps in (0.1, 0.2)]
    np.testing.assert_allclose(values, [[0.1, 0.1], [0.2, 0.2]], atol=1e-6)
    assert len(traces) == 1


def test_the_recipe_follows_the_schedules_of_the_config() -> None:
    fields = {
        "natural_epochs": 1.0,
        "ramp_end": 3.0,
        "milestones": (4, 5),
        "learning_rate": 0.1,
        "projection.beta": 0.5,
    }
    recipe = build_recipe(_config(fields), tiny.TinyMLP(), steps_per_epoch=10)
    assert [float(recipe.natural_weight(step)) for step in (0, 9, 10)] == [1, 1, 0]
    assert [float(recipe.radius_scale(step)) for step in (10, 30)] == [0, 1]
    assert 0 < recipe.radius_scale(11) < recipe.radius_scale(29) < 1
    assert recipe.projection_start == 30
    later = build_recipe(_config({**fields, "projection.start_epoch": 3.5}), tiny.TinyMLP(), steps_per_epoch=10)
    assert later.projection_start == 35
    assert build_recipe(default_config(), tiny.TinyMLP(), 10).projection_start is None


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"milestones": (1, 2), "milestone_factor": 0.5}, [0.1, 0.1, 0.05, 0.05, 0.025]),
        (
            {"learning_rate_decay": "cosine", "epochs": 3},
            [0.05 * (1 + math.cos(math.pi * step / 6)) for step in range(7)],
        ),
        (
            {"learning_rate_decay": "cosine", "epochs": 2, "warmup_epochs": 1.0},
            [0.05, 0.1 * 0.5 * (1 + 0.5**0.5), 0.05],
        ),
    ],
)
def test_the_learning_rate_falls_as_the_config_says(fields: dict[str, Any], expected: list[float]) -> None:
    recipe = build_recipe(_config({"learning_rate": 0.1, **fields}), tiny.TinyMLP(), steps_per_epoch=2)
    params = jnp.zeros(1)
    state, rates = recipe.optimizer.init(params), []
    for _ in expected:
        # Of a constant gradient, Adam's step is the learning rate.
        update, state = recipe.optimizer.update(jnp.ones(1), state, params)
        rates.append(-float(update[0]))
    np.testing.assert_allclose(rates, expected, rtol=1e-4, atol=1e-8)


def _quickly_compiled(function: Callable, *args: Any) -> Callable:
    """Compiling takes nearly all the time here, so the compiler is told not to optimise."""
    return jax.jit(function).lower(*args).compile({"xla_backend_optimization_level": 0})


_SETTINGS = (
    "mnist_small",
    "mnist_large",
    "cifar10_small",
    "cifar10_large",
    "tinyimagenet",
    "mnist_cpu",
    "cifar_cpu",
    "cifar_cpu_deep",
    "cifar_cpu_long",
    "cifar_cpu_large",
    "cifar_three_norms",
    "mnist_cpu_long",
    "tinyimagenet_cpu",
    "mnist_three_norms",
)


def _setting(name: str, method: str) -> ml_collections.ConfigDict:
    return configs.load(f"{name}:{method}")


@pytest.mark.parametrize("name", ["digits", *_SETTINGS])
def test_every_setting_has_every_method(name: str) -> None:
    methods = {method: _setting(name, method) for method in METHODS}
    for method, config in methods.items():
        check(config)
        assert (config.setting, config.name) == (name, method)
        assert set(config.losses) == ({method} if method in ("linf", "l2") else {"linf", "l2"})
        assert bool(config.alignment.weight) == bool(config.projection.beta) == (method in _PROJECTED)
    paper, scratch, finetune = (methods[method] for method in ("paper", "scratch", "finetune"))
    assert (paper.projection.every, scratch.projection.every) == ("epoch", "step")
    defaults = {"fraction": 1.0, "inside": False, "shrinking": 0.0}
    assert paper.losses.l2.to_dict() == {"kind": "small_box", "ratio": 1e-5, **defaults}
    assert paper.losses.linf.to_dict() == methods["linf"].losses.linf.to_dict()
    assert finetune.start_from == f"runs/{name}/linf"
    assert finetune.ramp_end < finetune.epochs <= scratch.epochs / 3


@pytest.mark.parametrize("name", configs.names())
def test_every_setting_in_the_package_is_right(name: str) -> None:
    check(configs.load(name))


@pytest.mark.parametrize("name", ["digits_smoothing", "mnist_smoothing", "cifar_smoothing"])
def test_settings_of_smoothing_train_on_the_noise_of_their_method(name: str) -> None:
    module = importlib.import_module(f"cure_jax.configs.{name}")
    for method, (norm, noise, scale, consistency) in module.METHODS.items():
        config = configs.load(f"{name}:{method}")
        check(config)
        loss = config.losses[norm]
        assert (config.setting, config.name, *config.losses) == (name, method, norm)
        assert (loss.kind, loss.noise, loss.scale, loss.consistency) == ("noise", noise, scale, consistency)
        assert config.l1_penalty == config.warmup_regularizer == 0


_PROJECTED = ("scratch", "finetune", "paper")


def _takes_a_step(config: ml_collections.ConfigDict, size: int, channels: int) -> None:
    """Training from the first step on with everything; as it is but for its size."""
    config.update({"attack_steps": 1, "natural_epochs": 0.0, "ramp_end": 0.0, "start_from": ""})
    method, crop = config.name, config.augmentation.crop
    images = np.random.default_rng(0).uniform(size=(4, size, size, channels)).astype(np.float32)
    labels = jnp.arange(4, dtype=jnp.int32)
    recipe = build_recipe(config, models.create(config.model.name, 10, **config.model.options.to_dict()), 1)
    example = images[:1, :crop, :crop] if crop else images[:1]
    state = _quickly_compiled(lambda: initial_state(config, recipe, example))()
    # RAdam of optax raises a Python float to an integer step.
    with jax.numpy_dtype_promotion("standard" if config.optimizer == "radam" else "strict"):
        step = _quickly_compiled(lambda state: train_step(recipe, state, jnp.asarray(images), labels, None), state)
    after, metrics = step(state)
    assert all(np.all(np.isfinite(metric)) for metric in metrics.values())
    assert metrics["radius_scale"] == 1
    moved = jax.tree.map(lambda new, old: np.any(new != old), after.params, state.params)
    assert all(jax.tree.leaves(moved))
    names = {name.removeprefix("worst_accuracy/") for name in metrics if name.startswith("worst_accuracy/")}
    assert names == (set() if method == "random" else set(config.losses))
    assert ("alignment" in metrics) == (recipe.projection_start is not None) == (method in _PROJECTED)


_QUICK = ("scratch", "random", "paper")


@pytest.mark.parametrize(
    "method", [method if method in _QUICK else pytest.param(method, marks=pytest.mark.slow) for method in METHODS]
)
def test_every_method_of_the_digits_takes_a_step(method: str) -> None:
    config = _setting("digits", method)
    config.model.options.features = (6,)
    _takes_a_step(config, 8, 1)


# The others take minutes to compile together.
_QUICK = (("cifar10_small", "scratch"), ("mnist_cpu", "paper"))
_CONVS = {"convs": ((2, 4, 2), (2, 4, 2)), "dense": (8,)}
_NARROW = {"cnn7": {"width": 2, "dense": 8}, "conv_small": _CONVS, "conv_deep": _CONVS}


@pytest.mark.parametrize(
    ("name", "method"),
    [
        pytest.param(name, method, marks=[] if (name, method) in _QUICK else [pytest.mark.slow])
        for name in _SETTINGS
        for method in METHODS
    ],
)
def test_every_setting_takes_a_step_at_a_reduced_size(name: str, method: str) -> None:
    config = _setting(name, method)
    config.model.options.update(_NARROW[config.model.name])
    config.augmentation.crop = 8 if config.augmentation.crop else 0
    size = {"mnist": 8, "cifar10": 8, "tiny_imagenet": 10}[config.dataset]
    _takes_a_step(config, size, 1 if config.dataset == "mnist" else 3)


def test_an_unknown_method_is_refused() -> None:
    with pytest.raises(ValueError, match=r"Unknown method 'cure'; expected one of linf, l2, joint"):
        _setting("digits", "cure")


def test_alignment_of_all_pairs() -> None:
    config = _config({**_ALIGNED, "alignment.lower": "all"})
    check(config)
    recipe = build_recipe(config, tiny.TinyMLP(), 1)
    assert recipe.alignment is not None
    assert set(recipe.alignment.pairs) == {("linf", "l2"), ("l2", "linf")}
    with pytest.raises(ValueError, match="at least two norms"):
        check(_config({"losses": {"linf": _SMALL}, "alignment.weight": 1.0, "alignment.lower": "all"}))


@pytest.mark.parametrize("kind", ["pgd", "ibp", "small_box", "crown_ibp", "expressive", "dual_norm", "lipschitz"])
def test_a_fraction_trains_at_another_radius(kind: str) -> None:
    """Half of twice the radius is the radius."""
    x, label = jnp.asarray(tiny.data(1)[0][0]), jnp.int32(1)
    f = Partial(lambda w, x: w @ x.reshape(-1), jnp.asarray(np.random.default_rng(0).normal(size=(3, 16)), jnp.float32))
    network = Network(f, f, 1 - jnp.eye(3))

    def logits(**fields: Any) -> jax.Array:
        config = _config({"radii.l2": 0.1, "losses": {"l2": {"kind": kind}}, **fields})
        check(config)
        objective = build_recipe(config, tiny.TinyMLP(), 1).objective
        outcome = objective(network, x[None], label[None], jnp.float32(1), jax.random.key(0)[None])
        return outcome.worst["l2"].logits

    plain = logits()
    np.testing.assert_allclose(logits(**{"radii.l2": 0.2, "losses.l2.fraction": 0.5}), plain, rtol=1e-5)
    assert np.max(np.abs(logits(**{"losses.l2.fraction": 0.5}) - plain)) > 1e-3


def test_the_attack_has_a_fraction_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    made: dict[str, Any] = {}

    def small_box(ball: Callable, eps: float, **settings: Any) -> objectives.Objective:
        made.update(settings, eps=eps)
        return objectives.natural()

    monkeypatch.setattr(objectives, "small_box", small_box)
    for fields, expected in (
        ({"fraction": 1.5}, (0.15, 0.15)),
        ({"fraction": 1.5, "attack_fraction": 2.0}, (0.15, 0.2)),
    ):
        build_recipe(_config({"losses.linf": {**_SMALL, **fields}}), tiny.TinyMLP(), 1)
        np.testing.assert_allclose((made["eps"], made["attack_eps"]), expected)


@pytest.mark.parametrize("every", ["none", "step", "epoch"])
def test_the_optimizer_is_that_of_optax(every: str) -> None:
    """RAdam behind clipped gradients, with decoupled weight decay of kernels, however gradients are projected."""
    fields = {"optimizer": "radam", "gradient_clip": 0.5, "weight_decay": 0.1, "learning_rate": 0.2}
    projection = {} if every == "none" else {"projection.beta": 0.5, "projection.every": every}
    recipe = build_recipe(tiny.config(**{**fields, **projection}, milestones=()), tiny.TinyMLP(), 4)
    reference = optax.chain(
        optax.clip_by_global_norm(0.5),
        optax.scale_by_radam(),
        optax.masked(optax.add_decayed_weights(0.1), {"kernel": True, "bias": False}),
        optax.scale_by_learning_rate(0.2),
    )
    params = expected = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
    states = [recipe.optimizer.init(params), reference.init(params)]
    for step in range(8):
        gradients = jax.tree.map(
            lambda leaf, step=step: (step - 2.5) * leaf, {"kernel": jnp.eye(2), "bias": jnp.ones(2)}
        )
        extra = {} if every == "none" else {"natural": gradients}
        with jax.numpy_dtype_promotion("standard"):
            updates, states[0] = recipe.optimizer.update(gradients, states[0], params, **extra)
            other, states[1] = reference.update(gradients, states[1], expected)
        params, expected = optax.apply_updates(params, updates), optax.apply_updates(expected, other)
    chex.assert_trees_all_close(params, expected, rtol=1e-5)


def test_levers_that_are_off_leave_the_state_of_the_optimizer_as_it_was() -> None:
    """Checkpoints know its leaves by name."""
    params = {"kernel": jnp.ones((2, 2))}
    fields = {"projection.beta": 0.5, "projection.every": "epoch"}
    state = build_recipe(tiny.config(**fields), tiny.TinyMLP(), 4).optimizer.init(params)
    expected = epoch_projection(optax.scale_by_adam(), 0.5, 8, 4, optax.constant_schedule(1e-2)).init(params)
    assert jax.tree.structure(state) == jax.tree.structure(expected)
