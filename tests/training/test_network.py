"""Between batches and one example: statistics of the clean batch, exact and differentiable.

Those of BatchNorm as it mostly is; test_batch_stats.py has what else `batch_stats` may hold.
"""

import functools
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cure_jax.training.multi_norm import cross_entropy
from cure_jax.training.network import (
    Statistics,
    apply_batch,
    check_network,
    classifier,
    clean_statistics,
    initial_variables,
    running_statistics,
)
from tests.training import tiny


def _layers(images: jax.Array, scale: float, **norm: Any) -> jax.Array:
    """Statistics of the second BatchNorm depend on those of the first."""
    x = scale * images.reshape(images.shape[0], -1)
    for index, width in enumerate((5, 4)):
        x = nn.relu(nn.BatchNorm(name=f"norm{index}", **norm)(nn.Dense(width, name=f"dense{index}")(x)))
    return nn.Dense(tiny.CLASSES, name="last")(x)


class Own(nn.Module):
    """With the fields that `clean_statistics` can set."""

    momentum: float = 0.8
    axis_name: str | None = None
    scale: float = 1.0

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        fields = {"momentum": self.momentum, "axis_name": self.axis_name}
        return _layers(images, self.scale, use_running_average=not train, **fields)


class Foreign(nn.Module):
    """Without them; a great scale makes great statistics, as inner layers may have."""

    scale: float = 1.0

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        return _layers(images, self.scale, use_running_average=not train, momentum=0.97)


_IMAGES, _LABELS = (jnp.asarray(array) for array in tiny.data(size=16))
_MODELS = [Own(), Foreign(), Foreign(scale=300.0)]
_ids = ["own", "foreign", "foreign-great"]


@functools.cache
def _variables(model: nn.Module) -> dict[str, Any]:
    """Parameters, and running averages that are not those of the batch."""
    variables = tiny.variables(model)
    return {**variables, "batch_stats": jax.tree.map(lambda leaf: leaf + 0.1, variables["batch_stats"])}


def _expected_statistics(model: nn.Module, params: dict[str, Any]) -> dict[str, Any]:
    """The forward pass of a training batch, in float64 NumPy."""
    x = model.scale * np.asarray(_IMAGES, np.float64).reshape(len(_IMAGES), -1)
    statistics = {}
    for index in range(2):
        dense, norm = params[f"dense{index}"], params[f"norm{index}"]
        x = x @ np.asarray(dense["kernel"], np.float64) + np.asarray(dense["bias"])
        mean, var = x.mean(axis=0), x.var(axis=0)
        statistics[f"norm{index}"] = {"mean": mean, "var": var}
        x = np.maximum((x - mean) / np.sqrt(var + 1e-5) * np.asarray(norm["scale"]) + np.asarray(norm["bias"]), 0)
    return statistics


@pytest.mark.parametrize("model", _MODELS, ids=_ids)
def test_clean_statistics_are_those_of_the_batch(model: nn.Module) -> None:
    variables = _variables(model)
    clean = jax.jit(lambda variables: clean_statistics(model, variables, _IMAGES))(variables)
    chex.assert_trees_all_close(clean.batch, _expected_statistics(model, variables["params"]), rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("model", _MODELS, ids=_ids)
def test_logits_and_gradients_are_those_of_the_batched_training_pass(model: nn.Module) -> None:
    variables = _variables(model)

    def one_by_one(params: dict[str, Any]) -> tuple[jax.Array, jax.Array]:
        clean = clean_statistics(model, {**variables, "params": params}, _IMAGES)
        logits = jax.vmap(classifier(model, {"params": params, "batch_stats": clean.batch}))(_IMAGES)
        return jnp.mean(cross_entropy(logits, _LABELS)), logits

    def batched(params: dict[str, Any]) -> tuple[jax.Array, jax.Array]:
        logits, _ = model.apply({**variables, "params": params}, _IMAGES, train=True, mutable=["batch_stats"])
        return jnp.mean(cross_entropy(logits, _LABELS)), logits

    gradients, logits = jax.jit(jax.grad(one_by_one, has_aux=True))(variables["params"])
    expected_gradients, expected_logits = jax.jit(jax.grad(batched, has_aux=True))(variables["params"])
    chex.assert_trees_all_close(logits, expected_logits, rtol=1e-3, atol=1e-4)
    chex.assert_trees_all_close(gradients, expected_gradients, rtol=1e-3, atol=1e-4)
    assert min(float(jnp.max(jnp.abs(leaf["kernel"]))) for name, leaf in gradients.items() if "norm" not in name) > 1e-3


def test_parts_of_a_batch_on_an_axis_have_the_statistics_of_the_whole() -> None:
    model = Own()
    variables, parts = _variables(model), _IMAGES.reshape(4, 4, *tiny.SHAPE)
    divided = jax.jit(jax.vmap(lambda part: clean_statistics(model, variables, part, "parts"), axis_name="parts"))(
        parts
    )
    whole = jax.jit(lambda images: clean_statistics(model, variables, images))(_IMAGES)
    chex.assert_trees_all_close(divided, jax.tree.map(lambda leaf: jnp.stack([leaf] * 4), whole), rtol=1e-5, atol=1e-6)


def test_an_axis_needs_a_field_to_name_it() -> None:
    variables = _variables(Foreign())
    with pytest.raises(ValueError, match=r"Foreign has BatchNorm but no field `axis_name`.*parallel='jit'"):
        clean_statistics(Foreign(), variables, _IMAGES, "parts")


def test_a_network_without_batch_norm_has_no_statistics() -> None:
    model = tiny.TinyMLP()
    assert clean_statistics(model, tiny.variables(model), _IMAGES, "parts").batch == {}


def test_the_classifier_of_one_example_uses_running_averages_and_not_its_own_statistics() -> None:
    model = Own()
    variables = _variables(model)
    f = classifier(model, variables)
    alone = jax.jit(f)(_IMAGES[0])
    expected = jax.jit(model.apply)(variables, _IMAGES)
    np.testing.assert_allclose(alone, expected[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(jax.jit(jax.vmap(f))(_IMAGES), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(jax.jit(apply_batch, static_argnums=0)(model, variables, _IMAGES), expected)
    itself, _ = model.apply(variables, _IMAGES[:1], train=True, mutable=["batch_stats"])
    assert np.max(np.abs(alone - itself[0])) > 1e-2


def test_classifiers_of_equal_networks_are_compiled_once() -> None:
    traces = []

    @jax.jit
    def logits(f: jax.tree_util.Partial, x: jax.Array) -> jax.Array:
        traces.append(None)
        return f(x)

    variables = tiny.variables(tiny.TinyMLP())
    first = logits(classifier(tiny.TinyMLP(), variables), _IMAGES[0])
    doubled = logits(classifier(tiny.TinyMLP(), jax.tree.map(lambda leaf: 2 * leaf, variables)), _IMAGES[0])
    assert len(traces) == 1
    assert not np.allclose(first, doubled)


@pytest.mark.parametrize("model", [Own(momentum=0.0), Own(momentum=0.8), Own(momentum=0.99), Foreign()])
def test_running_averages_move_as_those_of_flax(model: nn.Module) -> None:
    variables = _variables(model)

    @jax.jit
    def both(variables: dict[str, Any]) -> tuple[dict, dict]:
        clean = clean_statistics(model, variables, _IMAGES)
        _, updated = model.apply(variables, _IMAGES, train=True, mutable=["batch_stats"])
        return running_statistics(variables["batch_stats"], clean), updated["batch_stats"]

    chex.assert_trees_all_close(*both(variables), rtol=1e-5, atol=1e-6)


def test_running_averages_pass_no_gradient() -> None:
    running = {"norm": {"mean": jnp.array([1.0, 2.0])}}

    def moved(new: jax.Array) -> jax.Array:
        clean = Statistics({"norm": {"mean": new}}, {"norm": {"mean": jnp.float32(0.9)}})
        return running_statistics(running, clean)["norm"]["mean"]

    np.testing.assert_allclose(moved(jnp.array([11.0, -8.0])), [2.0, 1.0], rtol=1e-6)
    np.testing.assert_array_equal(jax.grad(lambda new: jnp.sum(moved(new)))(jnp.ones(2)), [0.0, 0.0])


class Sowing(nn.Module):
    """Its argument `train` has no default, and it leaves notes."""

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        self.sow("notes", "inputs", images)
        return nn.BatchNorm(use_running_average=not train)(nn.Dense(3)(images.reshape(images.shape[0], -1)))


def test_notes_are_left_out_and_train_needs_no_default() -> None:
    assert check_network(Sowing(), jax.ShapeDtypeStruct(_IMAGES.shape, _IMAGES.dtype)) == 3
    assert initial_variables(Sowing(), jax.random.key(0), _IMAGES).keys() == {"params", "batch_stats"}


class Centered(nn.Module):
    """A network with an array field."""

    mean: Any

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        return nn.Dense(3)(images.reshape(images.shape[0], -1) - self.mean)


def test_equal_array_fields_share_a_compiled_program_and_others_do_not() -> None:
    traces = []

    @jax.jit
    def logits(f: jax.tree_util.Partial, x: jax.Array) -> jax.Array:
        traces.append(None)
        return f(x)

    means = np.arange(16, dtype=np.float32)[None]
    variables = tiny.variables(Centered(means))
    for mean, count in [
        (means, 1),
        (means.copy(), 1),
        (means + 1, 2),
        (jnp.asarray(means), 3),
        (jnp.asarray(means), 3),
    ]:
        found = logits(classifier(Centered(mean), variables), _IMAGES[0])
        expected = jax.jit(Centered(mean).apply)(variables, _IMAGES[:1])[0]
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
        assert len(traces) == count


@pytest.mark.parametrize(
    ("last", "told"),
    [
        (nn.softmax, "softmax"),
        (nn.log_softmax, "log_softmax"),
        (nn.sigmoid, "sigmoid"),
        (nn.relu, None),
        (lambda logits: logits / 2.0, None),
        (lambda logits: logits, None),
    ],
)
def test_a_softmax_inside_the_network_is_told(last, told, caplog) -> None:
    network = nn.Sequential([lambda images: images.reshape(len(images), -1), nn.Dense(3), last])
    assert check_network(network, jax.ShapeDtypeStruct((1, 2, 2, 1), np.float32)) == 3
    assert (f"ends in {told}; expected logits" in caplog.text) if told else not caplog.text
