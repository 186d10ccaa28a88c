"""What `batch_stats` holds beside the averages of one BatchNorm: moved as flax moves it, held, or refused by name."""

from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cure_jax.training.network import check_network, classifier, clean_statistics, running_statistics
from tests.training import tiny

_IMAGES = jnp.asarray(tiny.data(size=16)[0])


class _Block(nn.Module):
    """As `nn.scan` takes it."""

    train: bool

    @nn.compact
    def __call__(self, x: jax.Array, _: None = None) -> tuple[jax.Array, None]:
        norm = nn.BatchNorm(use_running_average=not self.train, momentum=0.9)
        return nn.relu(norm(nn.Dense(4)(x))), None


class _Calling(nn.BatchNorm):
    """BatchNorm by another name."""

    @nn.compact
    def __call__(self, x: jax.Array, **kwargs: Any) -> jax.Array:
        return super().__call__(2.0 * x, **kwargs)


_JitBlock = nn.jit(_Block)


_OVER_LAYERS: Any = {"variable_axes": {"params": 0, "batch_stats": 0}, "split_rngs": {"params": True}}


def _two_momenta(x: jax.Array, train: bool, momentum: float) -> jax.Array:
    x = nn.BatchNorm(use_running_average=not train, momentum=momentum)(x)
    return nn.BatchNorm(momentum=0.999)(nn.relu(x), use_running_average=not train)


def _axes(x: jax.Array, train: bool, momentum: float) -> jax.Array:
    fields: Any = {"axis": (1, 2), "use_fast_variance": False, "use_bias": False, "momentum": momentum}
    return nn.BatchNorm(use_running_average=not train, **fields)(x.reshape(-1, 2, 2)).reshape(-1, 4)


class _Counting(nn.Module):
    """State of other types than averages have."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        count = self.variable("batch_stats", "count", lambda: jnp.zeros((), jnp.int32))
        flags = self.variable("batch_stats", "flags", lambda: {"best": jnp.full((), jnp.inf), "odd": jnp.bool_(False)})
        if train:
            count.value = count.value + 1
            flags.value = {**flags.value, "odd": ~flags.value["odd"]}
        return x


_LAYERS: dict[str, Any] = {
    "two momenta": _two_momenta,
    "subclass": lambda x, train, _: _Calling(use_running_average=not train)(x),
    "remat": lambda x, train, _: nn.remat(_Block)(train)(nn.remat(nn.BatchNorm)(use_running_average=not train)(x))[0],
    "jit": lambda x, train, _: _JitBlock(train)(x)[0],
    "scan": lambda x, train, _: nn.scan(_Block, length=2, **_OVER_LAYERS)(train)(x, None)[0],
    "vmap": lambda x, train, _: nn.vmap(_Block, in_axes=None, axis_size=2, **_OVER_LAYERS)(train)(x)[0].sum(axis=0),
    "axes": _axes,
    "one frozen": lambda x, train, _: nn.BatchNorm(True)(nn.BatchNorm(not train)(x)),
    "spectral": lambda x, train, _: nn.SpectralNorm(nn.Dense(4))(x, update_stats=train),
    "counters": lambda x, train, _: _Counting()(x, train),
}


class Mixed(nn.Module):
    """A network whose statistics are not one BatchNorm's; `momentum` is that of some at most."""

    kind: str
    momentum: float = 0.5

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        x = nn.Dense(4)(images.reshape(images.shape[0], -1))
        return nn.Dense(tiny.CLASSES)(_LAYERS[self.kind](x, train, self.momentum))


@pytest.mark.parametrize("kind", _LAYERS)
def test_batch_stats_move_as_in_flax_and_make_the_network_of_its_training_pass(kind: str) -> None:
    model = Mixed(kind)
    variables = tiny.variables(model)

    @jax.jit
    def ours(running: dict[str, Any]) -> tuple[jax.Array, dict[str, Any]]:
        clean = clean_statistics(model, {**variables, "batch_stats": running}, _IMAGES)
        f = classifier(model, {**variables, "batch_stats": clean.batch})
        return jax.vmap(f)(_IMAGES), running_statistics(running, clean)

    @jax.jit
    def flaxs(running: dict[str, Any]) -> tuple[jax.Array, dict[str, Any]]:
        logits, updated = model.apply(
            {**variables, "batch_stats": running}, _IMAGES, train=True, mutable=["batch_stats"]
        )
        return logits, updated["batch_stats"]

    found = expected = variables["batch_stats"]
    for _ in range(3):
        (logits, found), (expected_logits, expected) = ours(found), flaxs(expected)
        np.testing.assert_allclose(logits, expected_logits, rtol=1e-4, atol=1e-5)
        chex.assert_trees_all_close(found, expected, rtol=1e-5, atol=1e-6)
        chex.assert_trees_all_equal_dtypes(found, expected)
    unmoved = jax.tree.map(lambda old, new: bool(jnp.all(old == new)), variables["batch_stats"], found)
    assert not all(jax.tree.leaves(unmoved))


def test_spectral_norm_has_the_gradient_of_the_training_pass() -> None:
    model = Mixed("spectral")
    variables = tiny.variables(model)

    def ours(params: dict[str, Any]) -> jax.Array:
        clean = clean_statistics(model, {**variables, "params": params}, _IMAGES)
        return jnp.sum(jax.vmap(classifier(model, {"params": params, "batch_stats": clean.batch}))(_IMAGES) ** 2)

    def flaxs(params: dict[str, Any]) -> jax.Array:
        logits, _ = model.apply({**variables, "params": params}, _IMAGES, train=True, mutable=["batch_stats"])
        return jnp.sum(logits**2)

    gradients, expected = (jax.jit(jax.grad(loss))(variables["params"]) for loss in (ours, flaxs))
    chex.assert_trees_all_close(gradients, expected, rtol=1e-4, atol=1e-4)


class Shared(nn.Module):
    """One BatchNorm called twice, on different numbers."""

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        norm = nn.BatchNorm(use_running_average=not train, momentum=0.8)
        x = norm(nn.Dense(3)(images.reshape(images.shape[0], -1)))
        return norm(3.0 * nn.relu(x) + 1.0)


def test_a_batch_norm_called_twice_has_the_statistics_to_which_its_averages_tend() -> None:
    variables = tiny.variables(Shared())
    clean = jax.jit(lambda: clean_statistics(Shared(), variables, _IMAGES))()

    @jax.jit
    def step(running: dict[str, Any]) -> dict[str, Any]:
        _, updated = Shared().apply({**variables, "batch_stats": running}, _IMAGES, train=True, mutable=["batch_stats"])
        return updated["batch_stats"]

    running = step(variables["batch_stats"])
    chex.assert_trees_all_close(running_statistics(variables["batch_stats"], clean), running, rtol=1e-5, atol=1e-6)
    for _ in range(50):
        running = step(running)
    chex.assert_trees_all_close(clean.batch, running, rtol=1e-4, atol=1e-5)


def _seen(module: nn.Module, x: jax.Array, train: bool) -> jax.Array:
    seen = module.variable("batch_stats", "largest", lambda: jnp.zeros(()))
    if train:
        seen.value = jnp.maximum(seen.value, jnp.max(x))
    return x


def _retyped(module: nn.Module, x: jax.Array, train: bool) -> jax.Array:
    count = module.variable("batch_stats", "count", lambda: jnp.zeros((), jnp.int32))
    if train:
        count.value = count.value.astype(jnp.float32)
    return x


def _late(module: nn.Module, x: jax.Array, train: bool) -> jax.Array:
    if train:
        module.variable("batch_stats", "late", lambda: jnp.zeros(3))
    return nn.BatchNorm(not train)(x)


def _both(module: nn.Module, x: jax.Array, train: bool) -> jax.Array:
    norm = nn.BatchNorm()
    return norm(x, use_running_average=not train) + norm(x, use_running_average=True)


def _counters(module: nn.Module, x: jax.Array, train: bool) -> jax.Array:
    calls = module.variable("counters", "calls", lambda: jnp.zeros((), jnp.int32))
    if train:
        calls.value = calls.value + 1
    return x


def _one_axis(module: nn.Module, x: jax.Array, train: bool) -> jax.Array:
    return nn.BatchNorm(not train)(nn.BatchNorm(not train, axis_name=getattr(module, "axis_name", None))(x))


_REFUSED: dict[str, Any] = {
    "seen": _seen,
    "retyped": _retyped,
    "late": _late,
    "both": _both,
    "counters": _counters,
    "one axis": _one_axis,
    "unmoving": lambda module, x, train: nn.BatchNorm(not train, momentum=1.0)(x),
    "constants": lambda module, x, train: x * module.variable("constants", "scale", lambda: jnp.ones((1, 4))).value,
    "always": lambda module, x, train: nn.BatchNorm(False)(x),
}


class Refused(nn.Module):
    """What `batch_stats` must not hold, or how it must not be used."""

    kind: str
    axis_name: str | None = None

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        x = nn.Dense(4)(images.reshape(images.shape[0], -1))
        return nn.Dense(tiny.CLASSES)(_REFUSED[self.kind](self, x, train))


class Named(nn.Module):
    """Switched by an argument that is not `train`."""

    @nn.compact
    def __call__(self, images: jax.Array, training: bool = False) -> jax.Array:
        return nn.BatchNorm(use_running_average=not training)(nn.Dense(3)(images.reshape(images.shape[0], -1)))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Refused("seen"), r"Refused makes largest in batch_stats of the images, and not by nn\.BatchNorm"),
        (Refused("retyped"), r"Refused makes float32\[\] of count .*expected int32\[\]"),
        (Refused("late"), r"Refused makes float32\[3\] of late .*expected nothing"),
        (Refused("unmoving"), r"BatchNorm \(BatchNorm_0\) of momentum 1"),
        (Refused("both"), r"BatchNorm \(BatchNorm_0\) with the statistics of the batch and with running averages"),
        (Refused("constants"), r'Refused cannot run .*collection "constants".*Make constants fields'),
        (Refused("counters"), r'Refused cannot run .*collection "counters"'),
        (Refused("always"), r'Refused cannot run .*collection "batch_stats" is immutable.*only if `train`'),
        (Named(), r"Named has a BatchNorm \(BatchNorm_0\) .*nobody sets \(training\); expected an argument `train`"),
    ],
    ids=lambda value: getattr(value, "kind", None),
)
def test_what_is_no_batch_norm_as_understood_is_refused_by_name(model: nn.Module, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_network(model, jax.ShapeDtypeStruct(_IMAGES.shape, _IMAGES.dtype))


def test_every_batch_norm_must_be_averaged_over_the_devices() -> None:
    model = Refused("one axis")
    variables = tiny.variables(model)
    clean_statistics(model, variables, _IMAGES)
    with pytest.raises(ValueError, match=r"no field `axis_name` that all of it \(BatchNorm_0\) takes"):
        jax.vmap(lambda part: clean_statistics(model, variables, part, "parts"), axis_name="parts")(_IMAGES[None])


def test_a_frozen_batch_norm_is_named(caplog: pytest.LogCaptureFixture) -> None:
    for kind in ("one frozen", "spectral"):
        check_network(Mixed(kind), jax.ShapeDtypeStruct(_IMAGES.shape, _IMAGES.dtype))
    (record,) = caplog.records
    assert record.getMessage() == "Mixed has a frozen BatchNorm; training leaves BatchNorm_0.mean, BatchNorm_0.var."
