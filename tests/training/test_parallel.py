"""One device or eight, jit, shard_map or pmap: the same training."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from cure_jax.training.config import build_recipe, check
from cure_jax.training.loop import initial_state
from cure_jax.training.parallel import compile_steps
from cure_jax.training.state import TrainState
from tests.training import tiny

_STEPS_PER_EPOCH = 2
_ROWS = np.stack([np.random.default_rng(step).permutation(32)[:16] for step in range(6)]).astype(np.int32)


def _train(
    model: nn.Module, config: ml_collections.ConfigDict, parallel: str, dtype: type = np.float32, devices: int = 8
) -> tuple[TrainState, dict[str, jax.Array]]:
    """Three epochs: natural, ramp, full radius (and, with projection, natural gradients)."""
    check(config)
    images, labels = tiny.data(size=32, dtype=dtype)
    recipe = build_recipe(config, model, _STEPS_PER_EPOCH)
    state = jax.jit(lambda: initial_state(config, recipe, images[:1]))()
    run = compile_steps(recipe, parallel, jax.devices()[:devices])
    state, metrics = run(_as(dtype, state), jnp.asarray(images), jnp.asarray(labels), _ROWS)
    return jax.device_get(_without_keys(state)), jax.device_get(metrics)


def _as(dtype: type, state: TrainState) -> TrainState:
    return jax.tree.map(lambda leaf: leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf, state)


def _without_keys(state: TrainState) -> TrainState:
    def plain(leaf: jax.Array) -> jax.Array:
        return jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf

    return jax.tree.map(plain, state)


def test_cure_scratch_with_batch_norm_is_the_same_however_it_is_divided() -> None:
    config, model = tiny.scratch(), tiny.TinyConvNet()
    with jax.enable_x64(True):
        state, metrics = _train(model, config, "shard_map", np.float64)
        pmapped = _train(model, config, "pmap", np.float64)
        single = _train(model, config, "jit", np.float64)
    chex.assert_trees_all_equal((state, metrics), pmapped)
    chex.assert_trees_all_close(state, single[0], rtol=1e-12, atol=1e-12)
    # While the radius is 0, the regulariser divides by widths of 1e-6.
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
    config = tiny.config(combine="random_norm", losses=losses, regularizer=0.0)
    state, metrics = _train(tiny.TinyMLP(), config, "shard_map")
    single = _train(tiny.TinyMLP(), config, "jit")
    chex.assert_trees_all_close((state, metrics), single, rtol=1e-4, atol=1e-4)
    assert "alignment" not in metrics


def test_a_batch_that_does_not_divide_is_refused() -> None:
    for mode in ("shard_map", "pmap"):
        with pytest.raises(ValueError, match=r"batch_size 16 does not divide over 3 devices.*multiple of 3"):
            _train(tiny.TinyMLP(), tiny.config(), mode, devices=3)


def test_random_norm_needs_a_batch_for_every_norm_on_every_device() -> None:
    config = tiny.config(combine="random_norm", batch_size=8)
    recipe = build_recipe(config, tiny.TinyMLP(), _STEPS_PER_EPOCH)
    images, labels = tiny.data(size=32)
    state = jax.jit(lambda: initial_state(config, recipe, images[:1]))()
    with pytest.raises(ValueError, match=r"random_norm got 1 examples a device; expected a multiple of 2.*batch_size"):
        compile_steps(recipe, "shard_map")(state, jnp.asarray(images), jnp.asarray(labels), _ROWS[:, :8])


def test_an_unknown_mode_is_refused() -> None:
    recipe = build_recipe(tiny.config(), tiny.TinyMLP(), _STEPS_PER_EPOCH)
    with pytest.raises(ValueError, match=r"parallel must be one of jit, shard_map, pmap; got 'ddp'"):
        compile_steps(recipe, "ddp")
