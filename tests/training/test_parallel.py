"""One device or eight, jit, shard_map or pmap: the same training."""

from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from cure_jax.training.checks import check
from cure_jax.training.config import build_recipe
from cure_jax.training.loop import initial_state
from cure_jax.training.parallel import compile_steps
from cure_jax.training.state import TrainState
from tests.training import tiny

_STEPS_PER_EPOCH = 2
_ROWS = np.stack([np.random.default_rng(step).permutation(32)[:16] for step in range(6)]).astype(np.int32)


def _train(
    model: nn.Module, config: ml_collections.ConfigDict, modes: list[str], dtype: type = np.float32
) -> list[tuple[TrainState, dict[str, jax.Array]]]:
    """Three epochs, natural, ramp and full radius, on eight devices ("jit": on one)."""
    check(config)
    recipe = build_recipe(config, model, _STEPS_PER_EPOCH)
    images, labels = tiny.data(size=32)
    state = jax.jit(lambda: initial_state(config, recipe, images[:1]))()

    def run(mode: str) -> tuple[TrainState, dict[str, jax.Array]]:
        result = compile_steps(recipe, mode)(_as(dtype, state), *_as(dtype, (images, labels)), _ROWS)
        return jax.device_get((_without_keys(result[0]), result[1]))

    # In float64, flax's BatchNorm relies on promotion.
    with jax.enable_x64(dtype == np.float64), jax.numpy_dtype_promotion("standard"):
        return [run(mode) for mode in modes]


def _as(dtype: type, tree: Any) -> Any:
    """The same tree with its floating-point leaves in another precision."""

    def cast(leaf: jax.Array | np.ndarray) -> jax.Array:
        return jnp.asarray(leaf, dtype if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf.dtype)

    return jax.tree.map(cast, tree)


def _without_keys(state: TrainState) -> TrainState:
    def plain(leaf: jax.Array) -> jax.Array:
        return jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf

    return jax.tree.map(plain, state)


def test_cure_scratch_with_batch_norm_is_the_same_however_it_is_divided() -> None:
    (state, metrics), pmapped, single = _train(
        tiny.TinyConvNet(), tiny.scratch(), ["shard_map", "pmap", "jit"], np.float64
    )
    chex.assert_trees_all_equal((state, metrics), pmapped)
    # While the radius is 0, the regulariser divides by widths of 1e-6.
    chex.assert_trees_all_close(state, single[0], rtol=1e-11, atol=1e-11)
    chex.assert_trees_all_close(metrics, single[1], rtol=1e-10, atol=1e-10)

    # The comparison is worth something: every stage was reached, every part of the loss took part.
    assert state.step == 6
    np.testing.assert_array_equal(metrics["radius_scale"][[0, 1, 2, 4, 5]], [0, 0, 0, 1, 1])
    assert 0 < metrics["radius_scale"][3] < 1
    assert np.all(metrics["alignment"] > 0)
    assert np.all(metrics["regularizer"] > 0)
    assert len(state.vectors) == 1


def test_random_norm_deals_out_the_batch_alike_however_it_is_divided() -> None:
    # Two examples a device are one of each norm.
    losses = {"linf": {"kind": "ibp"}, "l2": {"kind": "dual_norm"}}
    config = tiny.config(combine="random_norm", losses=losses, warmup_regularizer=0.0)
    sharded, single = _train(tiny.TinyMLP(), config, ["shard_map", "jit"])
    chex.assert_trees_all_close(sharded, single, rtol=1e-4, atol=1e-4)


def test_noise_is_drawn_alike_however_the_batch_is_divided() -> None:
    losses = {"l2": {"kind": "noise", "noise": "gaussian", "levels": 255, "samples": 2, "consistency": 1.0}}
    sharded, single = _train(tiny.TinyMLP(), tiny.config(losses=losses, warmup_regularizer=0.0), ["shard_map", "jit"])
    chex.assert_trees_all_close(sharded, single, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("mode", ["shard_map", "pmap"])
def test_a_batch_that_does_not_divide_is_refused(mode: str) -> None:
    config, (images, labels) = tiny.config(), tiny.data(size=32)
    recipe = build_recipe(config, tiny.TinyMLP(), _STEPS_PER_EPOCH)
    state = jax.eval_shape(lambda: initial_state(config, recipe, images[:1]))
    with pytest.raises(ValueError, match=r"batch_size 16 does not divide over 3 devices.*multiple of 3"):
        compile_steps(recipe, mode, jax.devices()[:3])(state, jnp.asarray(images), jnp.asarray(labels), _ROWS)


def test_an_unknown_mode_is_refused() -> None:
    recipe = build_recipe(tiny.config(), tiny.TinyMLP(), _STEPS_PER_EPOCH)
    with pytest.raises(ValueError, match=r"parallel must be one of jit, shard_map, pmap; got 'ddp'"):
        compile_steps(recipe, "ddp")
