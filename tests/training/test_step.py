"""One training step: what the loss is made of, which gradients are taken, and what moves on."""

import dataclasses
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cure_jax.training.average import averaged
from cure_jax.training.config import build_recipe
from cure_jax.training.gradient_projection import gradient_projection
from cure_jax.training.loop import initial_state
from cure_jax.training.multi_norm import Outcome, cross_entropy, joint
from cure_jax.training.objectives import Network, natural
from cure_jax.training.state import TrainState
from cure_jax.training.step import Recipe, train_step
from tests.training import tiny

_CONV = tiny.TinyConvNet()
_IMAGES, _LABELS = (jnp.asarray(array) for array in tiny.data(size=16))


def _simple(**fields: Any) -> Recipe:
    """Plain gradient ascent on the clean loss of a network with BatchNorm."""
    recipe = Recipe(
        model=_CONV,
        objective=joint({"natural": natural()}),
        optimizer=optax.with_extra_args_support(optax.identity()),
        radius_scale=lambda step: jnp.float32(1.0),
        natural_weight=lambda step: jnp.float32(0.0),
    )
    return dataclasses.replace(recipe, **fields)


def _state(recipe: Recipe, step: int = 0) -> TrainState:
    variables = tiny.variables(recipe.model)
    return TrainState(
        step=jnp.int32(step),
        params=variables["params"],
        batch_stats=variables.get("batch_stats", {}),
        opt_state=recipe.optimizer.init(variables["params"]),
        key=jax.random.key(1),
        vectors=(),
    )


def _step(recipe: Recipe, state: TrainState, images: jax.Array = _IMAGES) -> tuple[TrainState, dict[str, jax.Array]]:
    return jax.jit(lambda state, images: train_step(recipe, state, images, _LABELS, None))(state, images)


def _clean_loss(params: Any, batch_stats: Any, images: jax.Array = _IMAGES) -> tuple[jax.Array, Any]:
    """Of the batched training pass, with what flax makes of the running averages."""
    variables = {"params": params, "batch_stats": batch_stats}
    logits, updated = _CONV.apply(variables, images, train=True, mutable=["batch_stats"])
    return jnp.mean(cross_entropy(logits, _LABELS)), updated["batch_stats"]


def test_the_loss_is_the_sum_of_its_parts_in_every_stage() -> None:
    config = tiny.scratch(l1_penalty=0.01, warmup_regularizer=0.7)
    recipe = build_recipe(config, _CONV, steps_per_epoch=2)
    state = jax.jit(lambda: initial_state(config, recipe, np.zeros((1, *tiny.SHAPE), np.float32)))()
    step = jax.jit(lambda state: train_step(recipe, state, _IMAGES, _LABELS, None))
    for index in range(6):
        after, metrics = step(state)
        norm = sum(np.sum(np.abs(leaf)) for leaf in jax.tree.leaves(state.params))
        # Two natural steps; two of the ramp, which starts at 0; two at full radius.
        main = metrics["natural_loss"] if index < 2 else metrics["certified_loss"] + metrics["alignment"]
        warmup = 0.7 * (1 - metrics["radius_scale"]) * metrics["regularizer"]
        assert float(metrics["loss"]) == pytest.approx(float(main + warmup + 0.01 * norm), rel=1e-5)
        assert (float(metrics["radius_scale"]) == 0, float(metrics["radius_scale"]) == 1) == (index < 3, index > 3)
        assert metrics["regularizer"] > 0

        expected, running = _clean_loss(state.params, state.batch_stats)
        assert float(metrics["natural_loss"]) == pytest.approx(float(expected), rel=1e-4)
        chex.assert_trees_all_close(after.batch_stats, running, rtol=1e-5, atol=1e-6)
        natural_adam = after.opt_state[0].natural
        assert int(natural_adam.count) == max(0, index - 3), "natural gradients count from the end of the ramp"
        assert int(after.step) == index + 1
        chex.assert_trees_all_equal(jax.random.key_data(after.key), jax.random.key_data(state.key))
        state = after


def test_the_update_is_made_of_the_gradient_of_the_loss() -> None:
    recipe = _simple(l1=0.1)
    state = _state(recipe)
    after, metrics = _step(recipe, state)
    # A parameter that is 0 is where the l1 norm is least: it stays.
    penalty = jax.tree.map(lambda leaf: 0.1 * jnp.sign(leaf), state.params)
    gradient = jax.grad(lambda params: _clean_loss(params, state.batch_stats)[0])(state.params)
    expected = jax.tree.map(jnp.add, gradient, penalty)
    moved = jax.tree.map(jnp.subtract, after.params, state.params)
    chex.assert_trees_all_close(moved, expected, rtol=1e-4, atol=1e-5)
    assert float(metrics["gradient_norm"]) == pytest.approx(float(optax.tree.norm(expected)), rel=1e-4)


def test_projection_combines_the_certified_with_the_natural_gradient() -> None:
    def energy(network: Network, images: jax.Array, labels: jax.Array, scale: Any, keys: Any) -> Outcome:
        return Outcome(jnp.sum(jax.vmap(network.certified)(images) ** 2, axis=1), {}, None)

    recipe = _simple(objective=energy, optimizer=gradient_projection(optax.identity(), 0.3, 2), projection_start=2)

    def certified_loss(params: Any, batch_stats: Any) -> jax.Array:
        variables = {"params": params, "batch_stats": batch_stats}
        logits, _ = _CONV.apply(variables, _IMAGES, train=True, mutable=["batch_stats"])
        return jnp.mean(jnp.sum(logits**2, axis=1))

    state = _state(recipe)
    before_start, _ = _step(recipe, state)
    certified = jax.grad(certified_loss)(state.params, state.batch_stats)
    moved = jax.tree.map(jnp.subtract, before_start.params, state.params)
    chex.assert_trees_all_close(moved, certified, rtol=1e-4, atol=1e-5)

    opt_state = state.opt_state._replace(step=jnp.int32(2))
    projected, _ = _step(recipe, dataclasses.replace(state, step=jnp.int32(2), opt_state=opt_state))
    clean = jax.grad(lambda params: _clean_loss(params, state.batch_stats)[0])(state.params)

    def combined(g_c: jax.Array, g_n: jax.Array) -> np.ndarray:
        g_c, g_n = np.asarray(g_c, np.float64), np.asarray(g_n, np.float64)
        cosine = np.sum(g_c * g_n) / max(np.linalg.norm(g_c) * np.linalg.norm(g_n), 1e-30)
        return 0.7 * g_c + 0.3 * max(cosine, 0.0) * g_n

    moved = jax.tree.map(jnp.subtract, projected.params, state.params)
    chex.assert_trees_all_close(moved, jax.tree.map(combined, certified, clean), rtol=1e-3, atol=1e-5)


def test_augmentation_is_drawn_anew_for_every_example_and_step_and_never_from_the_images() -> None:
    seen = []

    def record(network: Network, images: jax.Array, labels: jax.Array, scale: Any, keys: Any) -> Outcome:
        jax.debug.callback(lambda images: seen.append(np.array(images)), images)
        return Outcome(jnp.sum(jax.vmap(network.certified)(images) ** 2, axis=1), {}, None)

    recipe = _simple(objective=record, augment=lambda key, image: jax.random.uniform(key, image.shape))
    state = _state(recipe)
    for step, images in ((0, _IMAGES), (0, 1 - _IMAGES), (1, _IMAGES)):
        after, _ = _step(recipe, dataclasses.replace(state, step=jnp.int32(step)), images)
        jax.block_until_ready(after.params)
    jax.effects_barrier()
    first, again, later = seen
    np.testing.assert_array_equal(first, again)
    assert len(np.unique(np.stack([first, later]))) == 2 * first.size


def test_attacks_look_at_the_running_averages_and_bounds_at_the_clean_batch() -> None:
    seen = {}

    def record(network: Network, images: jax.Array, labels: jax.Array, scale: Any, keys: Any) -> Outcome:
        for name in ("certified", "attacked"):
            logits = jax.vmap(getattr(network, name))(images)
            jax.debug.callback(lambda logits, name=name: seen.update({name: np.array(logits)}), logits)
        return Outcome(jnp.sum(jax.vmap(network.certified)(images) ** 2, axis=1), {}, None)

    recipe = _simple(objective=record)
    state = _state(recipe)
    jax.block_until_ready(_step(recipe, state)[0].params)
    jax.effects_barrier()
    clean, _ = _CONV.apply(state.variables, _IMAGES, train=True, mutable=["batch_stats"])
    np.testing.assert_allclose(seen["certified"], clean, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(seen["attacked"], _CONV.apply(state.variables, _IMAGES), rtol=1e-4, atol=1e-5)
    assert np.max(np.abs(seen["certified"] - seen["attacked"])) > 0.1


def test_the_average_forgets_its_beginning_and_follows_slowly() -> None:
    recipe = _simple(average=0.6)
    state = dataclasses.replace(_state(recipe, step=3), average=tiny.variables(_CONV, seed=5)["params"])
    after, _ = _step(recipe, state)
    weight = 3 / 13
    expected = jax.tree.map(lambda old, new: weight * old + (1 - weight) * new, state.average, after.params)
    chex.assert_trees_all_close(after.average, expected, rtol=1e-5)
    old, new = {"kernel": jnp.zeros(2)}, {"kernel": jnp.ones(2)}
    first, late = (averaged(old, new, 0.6, jnp.int32(step))["kernel"] for step in (0, 1000))
    np.testing.assert_allclose([*first, *late], [1, 1, 0.4, 0.4], rtol=1e-5)
    assert averaged(None, new, 0.0, jnp.int32(0)) is None
