import functools
import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cure_jax import models

CIFAR10 = {"mean": (0.4914, 0.4822, 0.4465), "std": (0.2023, 0.1994, 0.2010)}
# Narrow versions, so that a test costs milliseconds.
SMALL = {
    "mlp": {"features": (16, 8)},
    "conv_small": {},
    "conv_medium": {},
    "conv_deep": {},
    "lipschitz_net": {"stages": ((4,), (6,)), "dense": (8,)},
    "cnn5": {"width": 4, "dense": 8},
    "cnn7": {"width": 4, "dense": 8},
    "cnn7_narrow": {"width": 4, "dense": 8},
    "cnn7_wide": {"width": 4, "dense": 8},
    "resnet": {"widths": (4, 8)},
}
WITH_BATCH_NORM = ["cnn5", "cnn7", "cnn7_narrow", "cnn7_wide", "resnet"]


def _images(batch=6, size=8, channels=1):
    return np.random.default_rng(0).uniform(size=(batch, size, size, channels)).astype(np.float32)


def _variables(model, images):
    """Random variables of every kind: an untrained BatchNorm would hide mistakes, and flax's init compiles for long."""
    rng = np.random.default_rng(1)

    def draw(path, leaf):
        if path[-1].key == "kernel":
            return (rng.normal(size=leaf.shape) / np.sqrt(leaf.size / leaf.shape[-1])).astype(np.float32)
        low, high = (0.5, 1.5) if path[-1].key in ("scale", "var") else (-0.2, 0.2)
        return rng.uniform(low, high, leaf.shape).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, jax.eval_shape(model.init, jax.random.key(0), images))


def _initialized(name, images, **kwargs):
    model = models.create(name, 10, **SMALL[name], **kwargs)
    return model, _variables(model, images)


def _parameter_count(model, size, channels):
    image = jax.ShapeDtypeStruct((1, size, size, channels), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), image)
    return sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))


def _convolution(kernel, inputs, outputs):
    return (kernel * kernel * inputs + 1) * outputs


def test_every_network_is_tested():
    assert set(models.names()) == set(SMALL)


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("channels", [1, 3])
def test_forward_shape_and_finiteness(name, channels):
    images = _images(channels=channels)
    model, variables = _initialized(name, images, **(CIFAR10 if channels == 3 else {}))
    logits = jax.jit(model.apply)(variables, images)
    assert logits.shape == (6, 10)
    assert logits.dtype == jnp.float32
    assert jnp.isfinite(logits).all()
    assert jnp.std(logits) > 0


@pytest.mark.parametrize("name", SMALL)
def test_inference_treats_examples_apart(name):
    images = _images()
    model, variables = _initialized(name, images)
    one_by_one = jnp.concatenate([model.apply(variables, images[i : i + 1]) for i in range(3)])
    np.testing.assert_allclose(one_by_one, model.apply(variables, images)[:3], atol=1e-5)


def test_cnn7_parameter_count_by_hand():
    mnist = (
        (640 + 36_928 + 73_856 + 147_584 + 147_584)  # convolutions 1-64-64-128-128-128
        + 2 * (64 + 64 + 128 + 128 + 128)  # their BatchNorms
        + (14 * 14 * 128 + 1) * 512  # dense
        + 2 * 512  # its BatchNorm
        + (512 + 1) * 10  # logits
    )
    assert mnist == 13_259_338
    assert _parameter_count(models.CNN7(), size=28, channels=1) == mnist
    assert _parameter_count(models.CNN7(num_classes=10), size=32, channels=3) == 17_192_650


@pytest.mark.parametrize(
    ("model", "width", "dense"),
    [(models.CNN7(), 64, 512), (models.CNN7_narrow(), 32, 216), (models.CNN7_wide(), 96, 512)],
)
def test_cnn7_variants_parameter_count(model, width, dense):
    widths = [1, width, width, 2 * width, 2 * width, 2 * width]
    expected = sum(_convolution(3, *pair) + 2 * pair[1] for pair in itertools.pairwise(widths))
    expected += (14 * 14 * 2 * width + 1) * dense + 2 * dense + (dense + 1) * 10
    assert _parameter_count(model, size=28, channels=1) == expected


def test_cnn7_halves_the_image_at_the_third_convolution():
    model = models.CNN7(width=2, dense=3)
    _, state = model.apply(
        _variables(model, _images()),
        _images(),
        capture_intermediates=lambda module, _: isinstance(module, nn.Conv),
        mutable=["intermediates"],
    )
    outputs = state["intermediates"]
    shapes = [outputs[f"Conv_{i}"]["__call__"][0].shape[1:] for i in range(5)]
    assert shapes == [(8, 8, 2), (8, 8, 2), (4, 4, 4), (4, 4, 4), (4, 4, 4)]


@pytest.mark.parametrize(
    ("name", "kwargs", "count"),
    [
        ("conv_small", {}, _convolution(4, 1, 16) + _convolution(4, 16, 32) + 1569 * 100 + 1010),
        ("conv_small", {"padding": 0}, _convolution(4, 1, 16) + _convolution(4, 16, 32) + 801 * 100 + 1010),
        ("conv_medium", {}, _convolution(4, 1, 16) + _convolution(4, 16, 32) + 1569 * 1000 + 10_010),
        (
            "conv_deep",
            {},
            _convolution(3, 1, 32) + _convolution(3, 32, 64) + _convolution(3, 64, 64) + 3137 * 256 + 2570,
        ),
        ("mlp", {}, 785 * 128 + 129 * 128 + 1290),
    ],
)
def test_parameter_count_by_hand(name, kwargs, count):
    assert _parameter_count(models.create(name, 10, **kwargs), size=28, channels=1) == count


@pytest.mark.parametrize("name", SMALL)
def test_normalization_is_the_first_layer(name):
    images = _images(channels=3)
    model, variables = _initialized(name, images, **CIFAR10)
    normalized = (images - np.float32(CIFAR10["mean"]).reshape(1, 1, 1, 3)) / np.float32(CIFAR10["std"]).reshape(
        1, 1, 1, 3
    )
    plain = models.create(name, 10, **SMALL[name])
    np.testing.assert_allclose(model.apply(variables, images), plain.apply(variables, normalized), rtol=1e-5, atol=1e-5)


def test_wrong_number_of_channels_is_refused():
    model = models.create("conv_small", 10, **CIFAR10)
    with pytest.raises(ValueError, match="3 means and 3 standard deviations for 1 channels"):
        model.init(jax.random.key(0), _images(channels=1))


def test_integer_images_are_refused():
    with pytest.raises(TypeError, match="images of type uint8; expected float"):
        models.MLP().init(jax.random.key(0), np.zeros((2, 8, 8, 1), np.uint8))


def test_image_smaller_than_the_kernel_is_refused():
    with pytest.raises(ValueError, match=r"kernel 4 and padding 0 got an image of \(3, 3\)"):
        models.ConvNet(padding=0).init(jax.random.key(0), _images(size=8))


@pytest.mark.parametrize("name", WITH_BATCH_NORM)
def test_batch_norm_trains_on_the_batch_and_infers_on_averages(name):
    images = _images(batch=16)
    model, variables = _initialized(name, images, momentum=0.9)
    trained, new = model.apply(variables, images, train=True, mutable=["batch_stats"])
    assert not np.allclose(trained, model.apply(variables, images), atol=1e-3)
    _, own = model.clone(momentum=0.0).apply(variables, images, train=True, mutable=["batch_stats"])
    jax.tree.map(
        lambda before, after, batch: np.testing.assert_allclose(after, 0.9 * before + 0.1 * batch, atol=1e-6),
        variables["batch_stats"],
        new["batch_stats"],
        own["batch_stats"],
    )
    inferred = model.apply({"params": variables["params"], **own}, images)
    np.testing.assert_allclose(inferred, trained, atol=2e-4)


@pytest.mark.parametrize("name", WITH_BATCH_NORM)
def test_batch_norm_over_devices_equals_one_device(name):
    images = _images(batch=8)
    model, variables = _initialized(name, images)
    one = jax.jit(functools.partial(model.apply, train=True, mutable=["batch_stats"]))
    synchronized = model.clone(axis_name="batch")
    many = jax.vmap(
        functools.partial(synchronized.apply, train=True, mutable=["batch_stats"]), (None, 0), axis_name="batch"
    )
    logits, stats = jax.jit(many)(variables, images.reshape(4, 2, 8, 8, 1))
    expected_logits, expected_stats = one(variables, images)
    np.testing.assert_allclose(logits.reshape(8, 10), expected_logits, atol=2e-4)
    jax.tree.map(lambda ours, expected: np.testing.assert_allclose(ours[0], expected, atol=1e-5), stats, expected_stats)


@pytest.mark.parametrize("name", sorted(set(SMALL) - set(WITH_BATCH_NORM)))
def test_networks_without_batch_norm_have_only_params(name):
    model, variables = _initialized(name, _images())
    assert set(variables) == {"params"}
    np.testing.assert_array_equal(model.apply(variables, _images(), train=True), model.apply(variables, _images()))


@pytest.mark.parametrize("name", WITH_BATCH_NORM)
def test_batch_norm_constants(name):
    model = models.create(name, 10)
    assert (model.momentum, model.axis_name) == (0.9, None)
