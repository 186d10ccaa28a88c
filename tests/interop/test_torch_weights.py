"""Weights of PyTorch give the network that PyTorch has: compared with its layers in its own layout."""

import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from jax import lax

from cure_jax import models
from cure_jax.interop import load_torch_weights

RANDOM = np.random.default_rng(0)
SHAPE = (8, 6, 2)


def normal(*shape):
    return (RANDOM.normal(size=shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)


def convolution(name, inputs, outputs, kernel, bias=True):
    return {f"{name}.weight": normal(outputs, inputs, kernel, kernel)} | (
        {f"{name}.bias": normal(outputs)} if bias else {}
    )


def linear(name, inputs, outputs):
    return {f"{name}.weight": normal(outputs, inputs), f"{name}.bias": normal(outputs)}


def batch_norm(name, features):
    weights = {own: normal(features) for own in ("weight", "bias", "running_mean")}
    weights |= {"running_var": 0.5 + RANDOM.uniform(size=features).astype(np.float32)}
    weights |= {"num_batches_tracked": np.array(7)}
    return {f"{name}.{own}": value for own, value in weights.items()}


class Reference:
    """The layers of PyTorch on channels-first images."""

    def __init__(self, state):
        self.state = state

    def convolution(self, x, name, stride, padding):
        weight, bias = (
            self.state[f"{name}.weight"],
            self.state.get(f"{name}.bias", 0 * self.state[f"{name}.weight"][:, 0, 0, 0]),
        )
        around = [(padding, padding)] * 2
        y = lax.conv_general_dilated(x, weight, (stride, stride), around, dimension_numbers=("NCHW", "OIHW", "NCHW"))
        return y + bias[None, :, None, None]

    def linear(self, x, name):
        return x @ self.state[f"{name}.weight"].T + self.state[f"{name}.bias"][None]

    def batch_norm(self, x, name):
        shape = (1, -1, *[1] * (x.ndim - 2))
        weight, bias, mean, variance = (
            self.state[f"{name}.{own}"].reshape(shape) for own in ("weight", "bias", "running_mean", "running_var")
        )
        return (x - mean) / np.sqrt(variance + np.float32(1e-5)) * weight + bias


def flat(x):
    return x.reshape(len(x), -1)


def conv_small():
    state = convolution("0", 2, 3, 4) | convolution("2", 3, 5, 3) | linear("5", 60, 7) | linear("7", 7, 10)
    layers = Reference(state)

    def forward(x):
        x = nn.relu(layers.convolution(x, "0", 2, 1))
        x = nn.relu(layers.convolution(x, "2", 1, 1))
        return layers.linear(nn.relu(layers.linear(flat(x), "5")), "7")

    model = models.create("conv_small", 10, convs=((3, 4, 2), (5, 3, 1)), dense=(7,))
    return state, model, forward


def cnn():
    """CNN7 with two of its convolutions."""
    state = {}
    for i, (inputs, outputs) in enumerate([(2, 3), (3, 6)]):
        state |= convolution(f"features.{3 * i}", inputs, outputs, 3) | batch_norm(f"features.{3 * i + 1}", outputs)
    state |= linear("classifier.0", 6 * 4 * 3, 5) | batch_norm("classifier.1", 5) | linear("classifier.3", 5, 10)
    layers = Reference(state)

    def forward(x):
        for i, stride in enumerate((1, 2)):
            x = layers.convolution(x, f"features.{3 * i}", stride, 1)
            x = nn.relu(layers.batch_norm(x, f"features.{3 * i + 1}"))
        x = nn.relu(layers.batch_norm(layers.linear(flat(x), "classifier.0"), "classifier.1"))
        return layers.linear(x, "classifier.3")

    return state, models.create("cnn7", 10, width=3, convolutions=((1, 1), (2, 2)), dense=5), forward


def resnet():
    state = convolution("conv1", 2, 4, 3, bias=False) | batch_norm("bn1", 4)
    for stage, (inputs, outputs) in enumerate([(4, 4), (4, 8)]):
        name = f"layer{stage}.0"
        state |= convolution(f"{name}.conv1", inputs, outputs, 3, bias=False) | batch_norm(f"{name}.bn1", outputs)
        state |= convolution(f"{name}.conv2", outputs, outputs, 3, bias=False) | batch_norm(f"{name}.bn2", outputs)
    state |= convolution("layer1.0.shortcut.0", 4, 8, 1, bias=False) | batch_norm("layer1.0.shortcut.1", 8)
    state |= linear("fc", 8, 10)
    layers = Reference(state)

    def forward(x):
        x = nn.relu(layers.batch_norm(layers.convolution(x, "conv1", 1, 1), "bn1"))
        for stage, stride in enumerate((1, 2)):
            name = f"layer{stage}.0"
            y = nn.relu(layers.batch_norm(layers.convolution(x, f"{name}.conv1", stride, 1), f"{name}.bn1"))
            y = layers.batch_norm(layers.convolution(y, f"{name}.conv2", 1, 1), f"{name}.bn2")
            if stride > 1:
                x = layers.batch_norm(layers.convolution(x, f"{name}.shortcut.0", stride, 0), f"{name}.shortcut.1")
            x = nn.relu(x + y)
        return layers.linear(jnp.mean(x, axis=(2, 3)), "fc")

    return state, models.create("resnet", 10, widths=(4, 8)), forward


NETWORKS = {"conv_small": conv_small, "cnn": cnn, "resnet": resnet}


def agree(model, variables, forward):
    images = RANDOM.uniform(size=(3, *SHAPE)).astype(np.float32)
    expected = forward(jnp.asarray(images.transpose(0, 3, 1, 2)))
    np.testing.assert_allclose(model.apply(variables, images), expected, atol=1e-5)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_network_is_that_of_pytorch(name, tmp_path):
    state, model, forward = NETWORKS[name]()
    variables = load_torch_weights(state, model, SHAPE)
    agree(model, variables, forward)
    assert jax.tree.structure(variables) == jax.tree.structure(
        dict(model.init(jax.random.key(0), jnp.zeros((1, *SHAPE))))
    )
    safetensors.numpy.save_file(state, tmp_path / "network.safetensors")
    # Such files keep no order, so that "classifier.1" comes before "features.1".
    path, names = tmp_path / "network.safetensors", {"BatchNorm_2": "classifier.1"} if name == "cnn" else None
    if name != "resnet":
        agree(model, load_torch_weights(path, model, SHAPE, names=names), forward)


class Deep(nn.Module):
    """Twelve layers of one shape."""

    @nn.compact
    def __call__(self, x):
        x = x.reshape(len(x), -1)
        for _ in range(12):
            x = nn.Dense(96)(x)
        return x


def test_numbers_in_names_count_by_their_value(tmp_path):
    state = {}
    for i in range(12):
        state |= linear(f"layer{i}", 96, 96)
    safetensors.numpy.save_file(state, tmp_path / "deep.safetensors")
    variables = load_torch_weights(tmp_path / "deep.safetensors", Deep(), SHAPE)
    for i in range(12):
        np.testing.assert_array_equal(variables["params"][f"Dense_{i}"]["kernel"], state[f"layer{i}.weight"].T)


class Pooled(nn.Module):
    """A linear layer behind pooling."""

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(3, (3, 3))(x).reshape(-1, 4, 2, 3, 2, 3).mean(axis=(2, 4))
        return nn.Dense(4)(x.reshape(len(x), -1))


def test_columns_behind_pooling_are_in_the_order_of_the_smaller_image():
    state = convolution("0", 2, 3, 3) | linear("3", 3 * 4 * 3, 4)
    layers = Reference(state)

    def forward(x):
        x = layers.convolution(x, "0", 1, 1).reshape(3, 3, 4, 2, 3, 2).mean(axis=(3, 5))
        return layers.linear(flat(x), "3")

    agree(Pooled(), load_torch_weights({"state_dict": state}, Pooled(), SHAPE), forward)


def test_layers_in_another_order_are_named():
    state, model, forward = resnet()
    first = {name: array for name, array in state.items() if "shortcut" in name}
    moved = first | {name: array for name, array in state.items() if name not in first}
    with pytest.raises(ValueError, match=r"shortcut.0.weight has the shape .*Conv_0/kernel has .* or `names`"):
        load_torch_weights(moved, model, SHAPE)
    names = {"Conv_5": "layer1.0.shortcut.0", "BatchNorm_5": "layer1.0.shortcut.1"}
    agree(model, load_torch_weights(moved, model, SHAPE, names=names), forward)
    with pytest.raises(ValueError, match=r"names has Conv_5 -> nowhere, Conv_9; the model has Conv_0"):
        load_torch_weights(state, model, SHAPE, names={"Conv_9": "fc", "Conv_5": "nowhere"})


class Scaled(nn.Module):
    """A network with a variable of its own."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(4)(x.reshape(len(x), -1)) * self.param("scale", nn.initializers.ones, ())


@pytest.mark.parametrize(
    ("change", "model", "expected"),
    [
        (
            lambda state: {k: v for k, v in state.items() if not k.startswith("7")},
            None,
            "2 layers of the kind linear layer",
        ),
        (lambda state: state | {"7.weight": state["7.weight"][:, :6]}, None, r"7.weight has the shape \(10, 6\)"),
        (lambda state: {k: v for k, v in state.items() if k != "0.bias"}, None, "has params/Conv_0/bias, but its"),
        (
            lambda state: state | {"9.weight": np.zeros((2, 2, 2, 2, 2))},
            None,
            "9 has weight .* expected a 2-D convolution",
        ),
        (lambda state: state | {"optimizer": "adam"}, None, "optimizer is str; expected a state dict"),
        (lambda state: linear("0", 96, 4), Scaled(), "variables that are no weights .* params/scale"),
    ],
)
def test_what_does_not_correspond_is_named(change, model, expected):
    state, own, _ = conv_small()
    with pytest.raises(ValueError, match=expected):
        load_torch_weights(change(state), model or own, SHAPE)


def test_files_that_cannot_be_read(tmp_path, monkeypatch):
    _, model, _ = conv_small()
    with pytest.raises(FileNotFoundError, match="There is no file"):
        load_torch_weights(tmp_path / "missing.pt", model, SHAPE)
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(b"nothing")
    with pytest.raises(ValueError, match="no safetensors file"):
        load_torch_weights(damaged, model, SHAPE)
    monkeypatch.setitem(sys.modules, "torch", None)
    (tmp_path / "network.pt").write_bytes(b"")
    with pytest.raises(ImportError, match="torch is not installed"):
        load_torch_weights(tmp_path / "network.pt", model, SHAPE)
