"""IBP initialisation: which leaves it draws, with which spread, on models of every make."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cure_jax.training.initializers import ibp_init


class ConvNet(nn.Module):
    """Convolutions and BatchNorm; the head is declared before the body that runs before it."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        head = nn.Dense(10, name="aaa_head")
        for width in (32, 64):
            x = nn.Conv(width, (3, 3), strides=2)(x)
            x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
        x = x.reshape(x.shape[0], -1)
        x = nn.Dropout(0.5, deterministic=not train)(nn.relu(nn.Dense(128, name="zzz_body")(x)))
        return head(x)


_IMAGES = jnp.zeros((1, 16, 16, 8))
_MLP = nn.Sequential([nn.Dense(256), nn.relu, nn.Dense(128), nn.relu, nn.Dense(10)])


def _init(model: nn.Module, images: jax.Array) -> dict:
    return jax.jit(model.init)(jax.random.key(0), images)["params"]


def _assert_drawn(kernel: jax.Array, fan_in: int) -> None:
    """Mean, spread and kurtosis of N(0, 2 pi / fan_in^2), within five standard errors."""
    normal = np.asarray(kernel, np.float64).ravel() * fan_in / np.sqrt(2 * np.pi)
    error = 5 / np.sqrt(normal.size)
    assert abs(normal.mean()) < error
    assert abs((normal**2).mean() - 1) < error * np.sqrt(2)
    assert abs((normal**4).mean() - 3) < error * np.sqrt(96)


def test_mlp_hidden_kernels_are_drawn_and_the_last_layer_is_kept() -> None:
    images = jnp.zeros((1, 100))
    params = _init(_MLP, images)
    params["layers_0"]["bias"] = jnp.full(256, 3.0)
    drawn = ibp_init(_MLP, params, jax.random.key(1), images)
    chex.assert_trees_all_equal_shapes_and_dtypes(drawn, params)
    _assert_drawn(drawn["layers_0"]["kernel"], 100)
    _assert_drawn(drawn["layers_2"]["kernel"], 256)
    chex.assert_trees_all_equal(drawn["layers_4"], params["layers_4"])
    np.testing.assert_array_equal(drawn["layers_0"]["bias"], 3.0)


def test_conv_net_order_of_execution_decides_and_batch_norm_is_kept() -> None:
    params = _init(ConvNet(), _IMAGES)
    drawn = ibp_init(ConvNet(), params, jax.random.key(1), _IMAGES)
    _assert_drawn(drawn["Conv_0"]["kernel"], 9 * 8)
    _assert_drawn(drawn["Conv_1"]["kernel"], 9 * 32)
    _assert_drawn(drawn["zzz_body"]["kernel"], 4 * 4 * 64)
    for name in ("aaa_head", "BatchNorm_0", "BatchNorm_1"):
        chex.assert_trees_all_equal(drawn[name], params[name])


def test_kernels_depend_on_the_key_and_differ_between_layers() -> None:
    model = nn.Sequential([nn.Dense(8), nn.Dense(8), nn.Dense(8)])
    images = jnp.zeros((1, 8))
    params = _init(model, images)
    drawn, again, other = (ibp_init(model, params, jax.random.key(seed), images) for seed in (1, 1, 2))
    chex.assert_trees_all_equal(drawn, again)
    assert not np.allclose(drawn["layers_0"]["kernel"], other["layers_0"]["kernel"])
    assert not np.allclose(drawn["layers_0"]["kernel"], drawn["layers_1"]["kernel"])


def test_grouped_convolutions_and_scanned_layers_have_the_fan_in_of_one_layer() -> None:
    class Block(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array) -> tuple[jax.Array, None]:
            return nn.relu(nn.Dense(64)(x)), None

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            x = nn.Conv(64, (3, 3), feature_group_count=2, name="grouped")(x).mean((1, 2))
            blocks = nn.scan(Block, variable_axes={"params": 0}, split_rngs={"params": True}, length=4)
            x, _ = blocks(name="blocks")(x)
            return nn.Dense(10, name="head")(x)

    params = _init(Net(), _IMAGES)
    drawn = ibp_init(Net(), params, jax.random.key(1), _IMAGES)
    _assert_drawn(drawn["grouped"]["kernel"], 9 * 4)
    assert drawn["blocks"]["Dense_0"]["kernel"].shape == (4, 64, 64)
    _assert_drawn(drawn["blocks"]["Dense_0"]["kernel"], 64)
    chex.assert_trees_all_equal(drawn["head"], params["head"])


def test_jit_agrees() -> None:
    images = jax.ShapeDtypeStruct((1, 100), jnp.float32)
    params = _init(_MLP, jnp.zeros((1, 100)))
    jitted = jax.jit(lambda params, key: ibp_init(_MLP, params, key, images))(params, jax.random.key(1))
    chex.assert_trees_all_close(jitted, ibp_init(_MLP, params, jax.random.key(1), images), rtol=1e-6)


def test_a_model_without_affine_layers_and_foreign_parameters_are_refused() -> None:
    with pytest.raises(ValueError, match=r"layers of flax\.linen or flax\.nnx.*initialization = 'default'"):
        ibp_init(nn.LayerNorm(), {}, jax.random.key(0), jnp.zeros((1, 4)))
    params = _init(ConvNet(), _IMAGES)
    with pytest.raises(ValueError, match=r"layers_0\.kernel"):
        ibp_init(_MLP, params, jax.random.key(0), jnp.zeros((1, 4)))
