"""Exported certifiers: the verdicts of the library, in a process that has never heard of it."""

import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
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
