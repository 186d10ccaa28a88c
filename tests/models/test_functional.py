"""One network for three kinds: statistics, gradients and kernels are those of flax, and what cannot be is refused."""

from collections.abc import Callable
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax.traverse_util import flatten_dict

from cure_jax import models
from cure_jax.models.functional import functional
from cure_jax.models.layers import flatten
from cure_jax.training.initializers import ibp_init
from cure_jax.training.network import apply_batch, check_network, classifier, clean_statistics, running_statistics
from tests.training import tiny, twins

_IMAGES = jnp.asarray(tiny.data(size=16)[0])
_BATCH = jax.ShapeDtypeStruct(_IMAGES.shape, _IMAGES.dtype)
_OTHERS = ("nnx", "functions")


def _linen(batch_norm: bool) -> tuple[nn.Module, dict[str, Any]]:
    """A module, and its variables, the running averages not those of the batch."""
    model = twins.twin("linen", batch_norm, {})
    variables = tiny.variables(model)
    if batch_norm:
        variables["batch_stats"] = jax.tree.map(lambda leaf: leaf + 0.1, variables["batch_stats"])
    return model, variables


@pytest.mark.parametrize("kind", _OTHERS)
def test_twins_have_the_statistics_and_the_gradients_of_the_linen_module(kind: str) -> None:
    linen, variables = _linen(batch_norm=True)
    other = twins.twin(kind, True, variables)

    def results(model: Any, variables: Any) -> Any:
        def loss(params: Any) -> Any:
            clean = clean_statistics(model, {**variables, "params": params}, _IMAGES)
            logits = jax.vmap(classifier(model, {"params": params, "batch_stats": clean.batch}))(_IMAGES)
            moved = running_statistics(variables["batch_stats"], clean)
            return jnp.sum(logits**2), (logits, clean.batch, clean.momentum, moved)

        gradients, (logits, *statistics) = jax.grad(loss, has_aux=True)(variables["params"])
        return {"params": gradients}, logits, [{"batch_stats": tree} for tree in statistics]

    gradients, logits, statistics = jax.jit(lambda: results(linen, variables))()
    expected = twins.as_twins(gradients), logits, [twins.as_twins({"params": {}, **tree}) for tree in statistics]
    found = jax.jit(lambda variables: results(other, variables))(twins.as_twins(variables))
    chex.assert_trees_all_close(found, expected, rtol=1e-4, atol=1e-5)
    # Without the gradient of the statistics it is another one.
    assert float(jnp.max(jnp.abs(gradients["params"]["Conv_0"]["kernel"]))) > 1e-3


@pytest.mark.parametrize("kind", _OTHERS)
def test_parts_of_a_batch_on_an_axis_have_the_statistics_of_the_whole(kind: str) -> None:
    _, variables = _linen(batch_norm=True)
    model, variables = twins.twin(kind, True, variables), twins.as_twins(variables)

    def of(images: jax.Array, axis: str | None) -> Any:
        return clean_statistics(model, variables, images, axis)

    divided = jax.jit(jax.vmap(lambda part: of(part, "parts"), axis_name="parts"))(_IMAGES.reshape(4, 4, *tiny.SHAPE))
    whole = jax.jit(lambda images: of(images, None))(_IMAGES)
    chex.assert_trees_all_close(divided, jax.tree.map(lambda leaf: jnp.stack([leaf] * 4), whole), rtol=1e-5, atol=1e-6)


class _Doubling(nnx.BatchNorm):
    """BatchNorm by another name."""

    def __call__(self, x: jax.Array, *args: Any, **kwargs: Any) -> jax.Array:
        return super().__call__(2.0 * x, *args, **kwargs)


def _norm(width: int = 4, kind: type = nnx.BatchNorm, **fields: Any) -> Any:
    return kind(width, rngs=nnx.Rngs(0), **fields)


# What makes the layers, and what calls them.
_LAYERS: dict[str, tuple[Callable[[], list], Callable]] = {
    "two momenta": (lambda: [_norm(momentum=0.5), _norm(momentum=0.9)], lambda a, x, train: a[1](nnx.relu(a[0](x)))),
    "subclass": (lambda: [_norm(kind=_Doubling)], lambda a, x, train: a[0](x)),
    "twice": (lambda: [_norm(momentum=0.8)], lambda a, x, train: a[0](3.0 * nnx.relu(a[0](x)) + 1.0)),
    "jit": (lambda: [_norm()], lambda a, x, train: nnx.jit(lambda norm, x: norm(x))(a[0], x)),
    "remat": (lambda: [_norm()], lambda a, x, train: nnx.remat(lambda norm, x: norm(x))(a[0], x)),
    "axes": (
        lambda: [_norm(2, axis=2, use_fast_variance=False, use_bias=False, use_scale=False)],
        lambda a, x, train: a[0](x.reshape(-1, 2, 2)).reshape(-1, 4),
    ),
    "mask": (lambda: [_norm()], lambda a, x, train: a[0](x, mask=x > 0)),
    "one frozen": (
        lambda: [_norm(), _norm()],
        lambda a, x, train: a[1](a[0](x), use_running_average=True),
    ),
    "argument": (
        lambda: [_norm(use_running_average=True)],
        lambda a, x, train: a[0](x, use_running_average=not train),
    ),
    "half precision": (lambda: [_norm(dtype=jnp.bfloat16)], lambda a, x, train: a[0](x).astype(jnp.float32)),
}


class Mixed(nnx.Module):
    """A network whose statistics are not one BatchNorm's."""

    def __init__(self, kind: str) -> None:
        make, self.call = _LAYERS[kind]
        self.first, self.last = (nnx.Linear(size, 4, rngs=nnx.Rngs(size)) for size in (16, 4))
        self.layers = nnx.List(make())

    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        return self.last(self.call(self.layers, self.first(flatten(images)), train))


@pytest.mark.parametrize("kind", _LAYERS)
def test_batch_stats_move_as_in_nnx_and_make_the_network_of_its_training_pass(kind: str) -> None:
    model, flaxs = Mixed(kind), Mixed(kind)
    flaxs.train()
    network = functional(model)
    variables = found = network.init(None, _IMAGES)

    @jax.jit
    @jax.numpy_dtype_promotion("standard")
    def ours(variables: dict[str, Any]) -> tuple[jax.Array, dict[str, Any]]:
        clean = clean_statistics(network, variables, _IMAGES)
        logits = jax.vmap(classifier(network, {**variables, "batch_stats": clean.batch}))(_IMAGES)
        return logits, {**variables, "batch_stats": running_statistics(variables["batch_stats"], clean)}

    tolerance = 0.2 if kind == "half precision" else 1e-4
    for _ in range(2):
        # Without it, nnx has no half precision.
        with jax.numpy_dtype_promotion("standard"):
            expected_logits = nnx.jit(lambda model: model(_IMAGES, train=True))(flaxs)
        logits, found = ours(found)
        # Called twice, a BatchNorm has in training not the statistics to which its averages tend.
        if kind != "twice":
            np.testing.assert_allclose(logits, expected_logits, rtol=tolerance, atol=tolerance)
        expected = functional(flaxs).init(None, _IMAGES)
        chex.assert_trees_all_close(found, expected, rtol=1e-5, atol=1e-5)
    unmoved = jax.tree.map(lambda old, new: bool(jnp.all(old == new)), variables["batch_stats"], found["batch_stats"])
    assert not all(jax.tree.leaves(unmoved))
    # The module itself is as it came.
    chex.assert_trees_all_equal(functional(model).init(None, _IMAGES), variables)


class Refused(nnx.Module):
    """What a network must not hold, or do when it is called."""

    def __init__(self, kind: str) -> None:
        self.kind, self.rngs = kind, nnx.Rngs(0)
        self.dropout = nnx.Dropout(0.5 if kind == "dropout" else 0.0, rngs=self.rngs)
        self.norm = _norm(momentum=1.0 if kind == "unmoving" else 0.9)
        self.seen, self.calls = nnx.BatchStat(jnp.zeros(())), nnx.Variable(jnp.zeros(()))
        self.last = nnx.Linear(16, 3, rngs=self.rngs)

    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        x = flatten(images)
        if self.kind == "noise":
            x = x + 0.1 * jax.random.normal(self.rngs.noise(), x.shape)
        if self.kind == "calls" and train:
            self.calls[...] += 1
        if self.kind == "seen" and train:
            self.seen[...] = jnp.maximum(self.seen[...], jnp.max(x))
        x = self.last(self.dropout(x))
        return x if self.kind in ("noise", "calls", "seen") else self._normalized(x)

    def _normalized(self, x: jax.Array) -> jax.Array:
        x = jnp.pad(x, ((0, 0), (0, 1)))
        if self.kind == "both":
            return (self.norm(x) + self.norm(x, use_running_average=True))[:, :3]
        return self.norm(x, use_running_average=False if self.kind == "always" else None)[:, :3]


class Spectral(nnx.Module):
    """In nnx, SpectralNorm divides its parameters again in every call."""

    def __init__(self) -> None:
        self.first = nnx.SpectralNorm(nnx.Linear(16, 3, rngs=nnx.Rngs(1)), rngs=nnx.Rngs(2))

    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        return self.first(flatten(images), update_stats=train)


class Training(nnx.Module):
    """Switched by an argument that is not `train`."""

    def __init__(self) -> None:
        self.norm = _norm(16)

    def __call__(self, images: jax.Array, training: bool = False) -> jax.Array:
        return self.norm(flatten(images), use_running_average=not training)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Refused("dropout"), r"Dropout at a rate of 0\.5.*Set the rate to 0"),
        (lambda: Refused("noise"), r"Refused changes rngs\..*count when it is called after eval\(\)"),
        (
            lambda: Refused("calls"),
            r"Refused changes calls when it is called in training; .*nothing but nnx\.BatchStat",
        ),
        (lambda: Refused("always"), r"Refused changes norm\.(mean|var) when it is called after eval\(\)"),
        (lambda: Refused("seen"), r"Refused makes seen in batch_stats of the images, and not by .*BatchNorm"),
        (lambda: Refused("both"), r"BatchNorm \(norm\) with the statistics of the batch and with running averages"),
        (lambda: Refused("unmoving"), r"BatchNorm \(norm\) of momentum 1"),
        (Spectral, r"Spectral changes first\..*kernel when it is called"),
        (Training, r"Training has a BatchNorm \(norm\) .*nobody sets \(training\); expected an argument `train`"),
    ],
)
def test_what_is_no_function_of_variables_and_one_example_is_refused_by_name(make: Callable, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_network(make(), _BATCH)


def _largest(variables: Any, images: jax.Array, train: bool = False) -> Any:
    statistics = {"seen": jnp.maximum(variables["batch_stats"]["seen"], jnp.max(images))}
    logits = flatten(images)[:, :3] * variables["params"][None]
    return (logits, statistics) if train else logits


def test_functions_with_statistics_that_are_no_averages_or_of_other_names_are_refused() -> None:
    variables = {"params": jnp.ones(3), "batch_stats": {"seen": jnp.zeros(())}}
    with pytest.raises(
        ValueError, match=r"_largest makes of batch_stats what is no running average; expected m \* old"
    ):
        check_network((lambda key, images: variables, _largest), _BATCH)
    with pytest.raises(ValueError, match=r"argument `train`.*\['batch_stats', 'statistics'\].*expected params and"):
        check_network((lambda key, images: {"params": jnp.ones(3), "statistics": {}}, _largest), _BATCH)
    with pytest.raises(ValueError, match=r"_largest has batch_stats but no argument `axis_name`.*parallel='jit'"):
        clean_statistics((lambda key, images: variables, _largest), variables, _IMAGES, "parts")


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (twins.NnxMLP, r"is the class NnxMLP; expected a flax\.linen module.*NnxMLP\(\.\.\.\), of flax\.nnx with rngs"),
        (tiny.TinyMLP, r"is the class TinyMLP; .*Make a module of it: TinyMLP\(\.\.\.\)"),
        (
            twins.mlp,
            r"is the function mlp; expected .* a pair of functions \(init, apply\)\. Pass \(init, apply\) with",
        ),
        ({"kernel": np.zeros(3)}, r"is a dict; .*Pass what these are the parameters of"),
        ((twins.mlp, {"kernel": np.zeros(3)}), r"is a tuple of 2; .*Pass \(init, apply\)"),
        (None, r"is a NoneType; expected"),
        (nnx.List([nnx.Linear(2, 2, rngs=nnx.Rngs(0))]), r"List cannot be called; expected a module of batches"),
        (nnx.Sequential(nnx.Param({"kernel": jnp.zeros(3)})), r"layers\.0 holds a dict; expected an array"),
    ],
)
def test_what_is_no_network_is_refused(model: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        functional(model)
    assert functional(functional(tiny.TinyMLP())) == functional(tiny.TinyMLP())


def test_kernels_of_nnx_are_drawn_as_those_of_linen() -> None:
    for batch_norm in (True, False):
        linen, variables = _linen(batch_norm)
        module = twins.twin("nnx", batch_norm, variables)
        params = ibp_init(linen, variables["params"], jax.random.key(3), _IMAGES)
        drawn = ibp_init(module, twins.as_twins(variables)["params"], jax.random.key(3), _IMAGES)
        chex.assert_trees_all_equal(drawn, twins.as_twins({"params": params})["params"])
        old, new = (flatten_dict(tree) for tree in (twins.as_twins(variables)["params"], drawn))
        changed = [path for path in old if np.any(old[path] != new[path])]
        assert changed == [("conv", "kernel") if batch_norm else ("layers", "0", "kernel")]
    with pytest.raises(ValueError, match=r"no layer to initialise in mlp.*config\.initialization = 'default'"):
        ibp_init(twins.twin("functions", False, variables), {}, jax.random.key(0), _IMAGES)


def test_an_nnx_module_is_a_classifier_with_its_own_variables_compiled_once_for_equal_ones() -> None:
    traces = []

    @jax.jit
    def logits(f: jax.tree_util.Partial, x: jax.Array) -> jax.Array:
        traces.append(None)
        return f(x)

    for seed in (0, 1):
        module = twins.NnxConvNet(rngs=nnx.Rngs(seed))
        module(_IMAGES)
        found = logits(classifier(module), _IMAGES[0])
        # In training mode, but for the classifier.
        module.eval()
        np.testing.assert_allclose(found, module(_IMAGES)[0], rtol=1e-5, atol=1e-6)
    assert len(traces) == 1
    with pytest.raises(TypeError, match=r"classifier got TinyMLP without variables; expected them"):
        classifier(tiny.TinyMLP())


class Scaled(nnx.Module):
    """With a static number, an array that is no parameter, a variable that is none, and a key."""

    def __init__(self, scale: float = 1.0, shift: float = 0.0, offset: float = 0.0, seed: int = 0) -> None:
        self.scale, self.shift, self.offset = scale, jnp.full((1, 3), shift), nnx.Variable(jnp.full((1, 3), offset))
        self.last, self.key = nnx.Linear(16, 3, rngs=nnx.Rngs(0)), nnx.RngKey(jax.random.key(seed), tag="noise")

    def __call__(self, images: jax.Array) -> jax.Array:
        noise = jax.random.normal(self.key[...], (1, 3))
        return self.scale * self.last(flatten(images)) + self.shift + self.offset[...] + noise


def test_dropout_is_no_obstacle_to_a_classifier() -> None:
    module = nnx.Sequential(flatten, nnx.Dropout(0.5, rngs=nnx.Rngs(0)), nnx.Linear(16, 3, rngs=nnx.Rngs(1)))
    expected = module.layers[2](flatten(_IMAGES[:1]))[0]
    np.testing.assert_allclose(classifier(module)(_IMAGES[0]), expected, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match=r"Dropout at a rate of 0\.5"):
        check_network(module, _BATCH)


def test_what_is_compiled_for_an_nnx_module_is_never_found_for_another_one() -> None:
    logits = jax.jit(lambda f, x: f(x))
    for fields in ({}, {"scale": 2.0}, {"shift": 1.0}, {"offset": 1.0}, {"seed": 1}, {}):
        module = Scaled(**fields)
        np.testing.assert_allclose(logits(classifier(module), _IMAGES[0]), module(_IMAGES[:1])[0], rtol=1e-5, atol=1e-6)


def test_an_nnx_module_is_not_asked_for_the_attributes_of_a_protocol(monkeypatch) -> None:
    """flax deprecates some of them, and which are asked for depends on the hashes of their names."""

    class Asked(type):
        def __instancecheck__(cls, instance) -> bool:
            return pytest.fail(f"asked what {type(instance).__name__} has")

    monkeypatch.setattr("cure_jax.models.functional.Functional", Asked("Functional", (), {}))
    functional(nnx.bridge.ToNNX(tiny.TinyMLP(), rngs=nnx.Rngs(0)))


@pytest.mark.parametrize("model", [models.create("cnn5", 3, width=2, dense=4), tiny.TinyMLP()], ids=["cnn5", "mlp"])
def test_a_linen_network_is_an_nnx_module(model: nn.Module) -> None:
    variables = tiny.variables(model, seed=5)
    fitted = models.Fitted(model, None, jax.tree.map(lambda leaf: leaf + 0.1, variables), tiny.SHAPE)
    module = fitted.as_nnx()
    expected = jax.jit(apply_batch, static_argnums=0)(model, fitted.variables, _IMAGES)
    np.testing.assert_allclose(nnx.jit(lambda module: module(_IMAGES))(module), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(jax.jit(jax.vmap(classifier(module)))(_IMAGES), expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(TypeError, match="pair of functions"):
        models.Fitted((twins.mlp, twins.mlp), None, {}, tiny.SHAPE).as_nnx()


def test_channels_first_are_refused_after_a_training_with_channels_last() -> None:
    """A network that flattens its images would take them for others."""
    model = nn.Sequential([lambda images: images.reshape(images.shape[0], -1), nn.Dense(2)])
    for shape in [(4, 5, 2), (3, 3, 3), (6,)]:
        fitted = models.Fitted(model, None, model.init(jax.random.key(0), jnp.zeros((1, *shape))), shape)
        assert fitted.classifier(jnp.ones(shape)).shape == (2,)
        assert fitted.classifier.func == fitted.classifier.func
    wide = models.Fitted(model, None, model.init(jax.random.key(0), jnp.zeros((1, 4, 5, 2))), (4, 5, 2))
    with pytest.raises(ValueError, match=r"shape \(2, 4, 5\); expected \(4, 5, 2\), channels last"):
        wide.classifier(jnp.ones((2, 4, 5)))
