"""Exported certifiers: the verdicts of the library, in a process that has never heard of it."""

import json
import re
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.tree_util import Partial

import cure_jax as cj
from cure_jax import data, interop, models, training
from tests import networks

REGIONS = training.make_regions({"linf": 0.02, "l2": 0.1})
# -I: without the current directory and PYTHONPATH.
SCRIPT = """
import sys
sys.path.insert(0, sys.argv[1])
import numpy as np
from load_certifier import load_certifier
inputs = np.load(sys.argv[2])
result = load_certifier(sys.argv[1])(inputs["images"], inputs["labels"])
assert not {"cure_jax", "flax", "optax"} & set(sys.modules)
flat = {f"{kind}.{norm}": value for kind in ("verified", "margin") for norm, value in result[kind].items()}
np.savez(sys.argv[3], correct=result["correct"], **flat)
"""


@pytest.fixture(scope="module")
def digits() -> tuple[Partial, np.ndarray, np.ndarray]:
    """A small network of the digits, its output weights fitted to the training images."""
    images, labels, classes = data.load("digits", "train")
    model = models.create("mlp", classes, features=(16,))
    variables = jax.device_get(model.init(jax.random.key(0), images[:1]))
    params = variables["params"]
    hidden = np.maximum(images.reshape(len(images), -1) @ params["Dense_0"]["kernel"], 0)
    fitted, *_ = np.linalg.lstsq(hidden, np.eye(classes, dtype=np.float32)[labels], rcond=None)
    params["Dense_1"]["kernel"] = fitted.astype(np.float32)
    test, test_labels, _ = data.load("digits", "test")
    return training.classifier(model, variables), test[:40], test_labels[:40]


def test_another_process_with_jax_alone_gives_the_same_verdicts(digits, tmp_path):
    f, images, labels = digits
    directory = interop.export_certifier(f, images.shape[1:], REGIONS, tmp_path / "export", radii={"linf": 0.02})
    np.savez(tmp_path / "inputs.npz", images=images, labels=labels)
    paths = [str(directory), str(tmp_path / "inputs.npz"), str(tmp_path / "outputs.npz")]
    done = subprocess.run(
        [sys.executable, "-I", "-c", SCRIPT, *paths], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found, expected = np.load(tmp_path / "outputs.npz"), cj.certify_dataset(f, images, labels, REGIONS)
    np.testing.assert_array_equal(found["correct"], expected.correct)
    for norm in REGIONS:
        np.testing.assert_array_equal(found[f"verified.{norm}"], expected.verified[norm])
        np.testing.assert_allclose(found[f"margin.{norm}"], expected.margin[norm], atol=1e-5)
        assert 0 < expected.verified[norm].sum() < len(images)
    metadata = json.loads((directory / "metadata.json").read_text())
    assert metadata["platforms"] == ["cpu", "cuda", "tpu"]
    assert metadata["radii"] == {"linf": 0.02}
    assert (metadata["method"], metadata["precision"]) == ("crown", "highest")
    with np.load(directory / "weights.npz") as archive:
        assert sum(value.size for value in archive.values()) == 64 * 16 + 16 + 160 + 10


def test_convolutions_export_for_platforms_that_are_not_here(tmp_path):
    model = models.create("conv_small", 3, convs=((2, 3, 2),), dense=(4,))
    image = np.random.default_rng(0).uniform(size=(1, 6, 6, 1)).astype(np.float32)
    f = training.classifier(model, model.init(jax.random.key(0), image))
    regions = {"l2": lambda x: cj.l2_ball(x, 0.02, (0.0, 1.0))}
    directory = interop.export_certifier(f, (6, 6, 1), regions, tmp_path / "conv")
    label = np.array([int(np.argmax(f(jnp.asarray(image[0]))))])
    found = interop.load_certifier(directory)(image, label)
    expected = cj.certify_dataset(f, image, label, regions)
    np.testing.assert_allclose(found["margin"]["l2"], expected.margin["l2"], atol=1e-5)


@pytest.mark.parametrize(
    ("radii", "message"),
    [
        ({"linf": 0.03}, r"radii\['linf'\] = 0\.03, but that region has radii from 0\.02 to 0\.02"),
        ({"l2": 0.02}, "radii of l2, but the regions are linf"),
    ],
)
def test_metadata_says_what_is_proved(radii, message, tmp_path):
    f = Partial(networks.mlp, networks.mlp_params(0))
    regions = {"linf": lambda x: cj.linf_ball(x, 0.02)}
    with pytest.raises(ValueError, match=message):
        interop.export_certifier(f, (2,), regions, tmp_path / "export", radii=radii)
    assert not (tmp_path / "export").exists()


@pytest.fixture
def small(tmp_path):
    f = Partial(networks.mlp, networks.mlp_params(0))
    regions = {"linf": lambda x: cj.linf_ball(x, 0.05)}
    return interop.export_certifier(f, (2,), regions, tmp_path / "small", method="ibp", platforms=("cpu",))


def test_any_number_of_images_and_none_of_another_shape(small):
    certifier = interop.load_certifier(small)
    for count in (1, 3):
        assert certifier(np.full((count, 2), 0.5), np.zeros(count, int))["verified"]["linf"].shape == (count,)
    with pytest.raises(ValueError, match=r"images of shape \(2, 3\).*expected \[n, 2\]"):
        certifier(np.zeros((2, 3)), np.zeros(2, int))
    with pytest.raises(ValueError, match="type float64"):
        certifier(np.zeros((2, 2)), np.zeros(2))
    with pytest.raises(ValueError, match=r"images of shape \(0, 2\)"):
        certifier(np.zeros((0, 2)), np.zeros(0, int))


def test_pixels_of_another_unit_are_refused_but_bytes_are_understood(small):
    certifier = interop.load_certifier(small)
    pixels, label = np.array([[0, 51], [255, 204]], np.uint8), np.zeros(2, int)
    np.testing.assert_allclose(
        certifier(pixels, label)["margin"]["linf"], certifier(pixels / 255, label)["margin"]["linf"]
    )
    for images in (np.array([[0.0, 1.1]]), np.array([[-1e-3, 0.5]]), np.array([[np.nan, 0.5]]), np.array([[0, 1]])):
        with pytest.raises(ValueError, match=r"expected floats in \[0, 1\] or uint8"):
            certifier(images, np.zeros(1, int))


def test_what_does_not_belong_together_is_refused(small, tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="expected an export"):
        interop.load_certifier(tmp_path)
    with pytest.raises(FileExistsError, match="not empty"):
        interop.export_certifier(Partial(networks.mlp, networks.mlp_params(0)), (2,), REGIONS, small)
    with pytest.raises(ValueError, match="no regions"):
        interop.export_certifier(Partial(networks.mlp, networks.mlp_params(0)), (2,), {}, tmp_path / "new")
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    with pytest.raises(ValueError, match=r"exported for \['cpu'\]; this is 'tpu'"):
        interop.load_certifier(small)
    np.savez(small / "weights.npz", other=np.zeros(3))
    with pytest.raises(ValueError, match=r"weights\.npz has the checksum"):
        interop.load_certifier(small)


def test_a_missing_flatbuffers_is_named(tmp_path, monkeypatch):
    def absent(self):
        raise ModuleNotFoundError("No module named 'flatbuffers'")

    monkeypatch.setattr(jax.export.Exported, "serialize", absent)
    f, regions = Partial(networks.mlp, networks.mlp_params(0)), {"linf": lambda x: cj.linf_ball(x, 0.1)}
    with pytest.raises(ModuleNotFoundError, match=r"flatbuffers is not installed.*pip install 'cure-jax\[export\]'"):
        interop.export_certifier(f, (2,), regions, tmp_path / "new", method="ibp", platforms=("cpu",))
    assert not (tmp_path / "new").exists()


SMALL_BALL = {"l2": lambda x: cj.l2_ball(x, 0.02, (0.0, 1.0))}
IMAGES = np.array([[0.1, 0.7], [0.8, 0.4], [0.5, 0.5]], np.float32)


def reloaded(f, directory):
    exported = interop.export_certifier(f, (2,), SMALL_BALL, directory, method="ibp", platforms=("cpu",))
    return interop.load_certifier(exported)


def assert_same_verdicts(certifier, f):
    images, labels = np.repeat(IMAGES, 3, axis=0), np.tile(np.arange(3), 3)
    found = certifier(images, labels)
    expected = cj.certify_dataset(f, images, labels, SMALL_BALL, method="ibp", batch_size=9)
    np.testing.assert_array_equal(found["correct"], expected.correct)
    np.testing.assert_array_equal(found["verified"]["l2"], expected.verified["l2"])
    np.testing.assert_allclose(found["margin"]["l2"], expected.margin["l2"], atol=1e-5)


TYPES = ("float32", "float16", "bfloat16", "int8", "uint16", "bool", "int4", "uint4", "float8_e4m3fn", "float8_e5m2")
RARE_TYPES = ("float8_e4m3b11fnuz", "float8_e3m4", "float8_e8m0fnu", "float4_e2m1fn", "complex64")


def test_weights_of_every_type_come_back_to_the_last_bit(tmp_path):
    values = np.random.default_rng(0).uniform(0.5, 3.5, size=(2, 3))
    weights = {name: jnp.asarray(values.astype(jnp.dtype(name))) for name in TYPES + RARE_TYPES}

    def f(weights, x):
        real = [jnp.real(weight) if name == "complex64" else weight for name, weight in weights.items()]
        return sum(x @ weight.astype(jnp.float32) for weight in real)

    certifier = reloaded(Partial(f, weights), tmp_path / "export")
    assert [weight.dtype.name for weight in certifier.weights] == sorted(weights)
    for name, weight in zip(sorted(weights), certifier.weights, strict=True):
        assert np.asarray(weight).tobytes() == np.asarray(weights[name]).tobytes(), name
    assert_same_verdicts(certifier, Partial(f, weights))


@pytest.mark.parametrize("dtype", ["int2", "object", ">f4", "datetime64[s]"])
def test_weights_of_other_types_are_refused_by_name(dtype, tmp_path):
    weights = {"table": np.zeros((2, 3), jnp.dtype(dtype))}
    f = Partial(lambda weights, x: x @ weights["table"].astype(jnp.float32), weights)
    with pytest.raises(ValueError, match=rf"weights 000.*'table'.* are of the type {re.escape(str(jnp.dtype(dtype)))}"):
        reloaded(f, tmp_path / "export")
    assert not (tmp_path / "export").exists()


def test_float64_is_exported_as_such_and_runs_where_64_bit_types_are_off(tmp_path):
    weights = np.random.default_rng(0).normal(size=(2, 3))
    f = Partial(lambda weights, x: x @ weights, weights)
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        reloaded(f, tmp_path / "export")
        expected = cj.certify_dataset(f, IMAGES, np.zeros(3, int), SMALL_BALL, method="ibp").margin["l2"]
    certifier = interop.load_certifier(tmp_path / "export")
    found = certifier(IMAGES, np.zeros(3, int))["margin"]["l2"]
    assert (certifier.metadata["arithmetic"], found.dtype) == ("float64", np.float64)
    np.testing.assert_array_equal(np.asarray(certifier.weights[0]), weights)
    np.testing.assert_allclose(found, expected, atol=1e-12)


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(nn.relu(nn.Dense(8)(x)))


class WithRandomNumbers(nnx.Module):
    """Keys lie in the network itself and in its Dropout."""

    def __init__(self, rngs):
        self.first, self.last = nnx.Linear(2, 8, rngs=rngs), nnx.Linear(8, 3, rngs=rngs)
        self.dropout, self.rngs = nnx.Dropout(0.5, rngs=rngs), rngs

    def __call__(self, x):
        return self.last(self.dropout(nnx.relu(self.first(x))))


def callables():
    params, key = networks.mlp_params(0), jax.random.key(0)
    linen, model = Linen(), WithRandomNumbers(nnx.Rngs(0))
    model.eval()
    bound, split = linen.bind(linen.init(key, jnp.zeros(2))), nnx.split(model)
    return {
        "lambda": lambda x: networks.mlp(params, x),
        "jitted": jax.jit(lambda x: networks.mlp(params, x)),
        "linen bound": bound,
        "linen method": bound.__call__,
        "nnx": model,
        "nnx method": model.__call__,
        "nnx of batches": lambda x: model(x[None])[0],
        "nnx split": Partial(lambda graph, state, x: nnx.merge(graph, state)(x), *split),
        "with a number": Partial(lambda scale, params, x: scale * networks.mlp(params, x), 0.5, params),
        "with a key": Partial(lambda key, x: x @ jax.random.normal(key, (2, 3)), key),
    }


@pytest.mark.parametrize("name", list(callables()))
def test_any_callable_is_exported(name, tmp_path):
    f = callables()[name]
    certifier = reloaded(f, tmp_path / "export")
    assert_same_verdicts(certifier, f)
    constant = name in ("lambda", "jitted", "linen bound", "linen method", "nnx method", "nnx of batches")
    assert (len(certifier.weights) == 0) == constant


def test_what_is_no_network_in_inference_mode_is_refused(tmp_path):
    model = WithRandomNumbers(nnx.Rngs(0))
    for f in (model, lambda x: model(x)):
        with pytest.raises(ValueError, match=r"f changes when it is called \(.*RngCount.*nnx_model\.eval\(\)"):
            reloaded(f, tmp_path / "export")


def test_a_prediction_that_is_not_a_number_is_not_correct(tmp_path):
    f = Partial(networks.mlp, jax.tree.map(lambda leaf: leaf * np.float32(np.nan), networks.mlp_params(0)))
    assert_same_verdicts(reloaded(f, tmp_path / "export"), f)


@pytest.fixture(scope="module")
def certifier(tmp_path_factory):
    return reloaded(Partial(networks.mlp, networks.mlp_params(0)), tmp_path_factory.mktemp("labels") / "export")


@pytest.mark.parametrize("offset", [2**32, -(2**32), 2**31, 2**63, 2**70, -1])
def test_labels_out_of_range_are_never_verified(certifier, offset):
    images = np.repeat(IMAGES, 3, axis=0)
    labels = np.tile(np.arange(3), 3)
    assert certifier(images, labels)["correct"].sum() == 3
    found = certifier(images, [int(label) + offset if offset != -1 else -1 - int(label) for label in labels])
    assert not found["correct"].any()
    assert not found["verified"]["l2"].any()


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", ">i8"])
def test_labels_may_be_integers_of_any_width(certifier, dtype):
    largest = np.array([np.iinfo(dtype).max, 0, 1], dtype)
    expected = certifier(IMAGES, [-1, 0, 1])
    found = certifier(IMAGES, largest)
    np.testing.assert_array_equal(found["correct"], expected["correct"])
    np.testing.assert_array_equal(found["verified"]["l2"], expected["verified"]["l2"])


@pytest.mark.parametrize("labels", [[True, False, True], ["0", "1", "2"], [None, 0, 1], [0.0, 1.0, 2.0]])
def test_labels_that_are_no_integers_are_refused(certifier, labels):
    with pytest.raises(ValueError, match="give labels as class numbers"):
        certifier(IMAGES, labels)
