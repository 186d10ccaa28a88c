"""The networks that come with the library prove what their index says, and no other file is taken for them."""

import hashlib
import re
import shutil
from pathlib import Path

import chex
import jax
import numpy as np
import pytest

import cure_jax as cj
from cure_jax import models, training
from cure_jax.models import archive
from cure_jax.training.checks import check
from cure_jax.training.config import from_fields

INDEX = models.pretrained_index()
# Networks of one architecture are compiled once, but those with convolutions still take a minute.
NAMES = [
    pytest.param(name, marks=[] if entry["config"]["dataset"] == "digits" else [pytest.mark.slow])
    for name, entry in INDEX.items()
]


def test_there_are_networks_and_they_are_small():
    assert "digits/max" in models.pretrained_names()
    files = {path.name: path.stat().st_size for path in Path(str(archive.DIRECTORY)).glob("*.npz")}
    assert sorted(files) == sorted(entry["file"] for entry in INDEX.values())
    assert sum(files.values()) <= 10_000_000


@pytest.mark.parametrize("name", NAMES)
def test_ten_images_are_certified_as_the_index_says(name):
    fitted, examples, entry = models.pretrained(name), models.pretrained_examples(name), INDEX[name]["examples"]
    assert len(examples.labels) == 10
    regions = training.make_regions({**fitted.config.radii, **fitted.config.reported})
    assert set(entry["verified"]) == set(regions)
    found = cj.certify_dataset(fitted.classifier, *examples, regions, method=entry["method"], batch_size=10)
    assert found.correct.tolist() == entry["correct"]
    for norm, margins in found.margin.items():
        np.testing.assert_allclose(margins, entry["margin"][norm], rtol=1e-3, atol=1e-3)
        # Within the tolerance of zero either verdict will do.
        clear = np.abs(margins) > 1e-2
        np.testing.assert_array_equal(found.verified[norm][clear], np.array(entry["verified"][norm])[clear])
        assert clear.sum() >= 8


@pytest.mark.parametrize("name", INDEX)
def test_a_network_comes_with_a_whole_config_and_figures_that_fit_together(name):
    fitted, entry = models.pretrained(name), INDEX[name]
    check(from_fields(fitted.config.to_dict()))
    assert fitted.config.data_dir == ""
    assert {leaf.dtype.name for leaf in jax.tree.leaves(fitted.variables)} == {"float32"}
    assert re.fullmatch("[0-9a-f]{40}", entry["commit"])
    assert entry["training_seconds"] > 0
    assert set(entry["certified"]) == set(fitted.config.radii)
    assert entry["union"] <= min(entry["certified"].values()) <= max(entry["certified"].values()) <= entry["clean"]


@pytest.fixture
def directory(tmp_path, monkeypatch):
    """A copy, to be damaged."""
    copy = tmp_path / "pretrained"
    shutil.copytree(str(archive.DIRECTORY), copy)
    monkeypatch.setattr(archive, "DIRECTORY", copy)
    return copy


def test_a_damaged_or_missing_file_is_refused(directory):
    path = directory / INDEX["digits/max"]["file"]
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    found = hashlib.sha256(content).hexdigest()
    for read in (models.pretrained, models.pretrained_examples):
        with pytest.raises(
            ValueError, match=rf"digits_max\.npz is damaged or missing: it has the checksum {found}; ex"
        ):
            read("digits/max")
    path.unlink()
    with pytest.raises(ValueError, match="is damaged or missing"):
        models.pretrained("digits/max")


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"Unknown network 'digits/maks'; expected one of .*digits/max"):
        models.pretrained("digits/maks")


def test_what_is_added_comes_back_and_the_others_stay(directory):
    model = models.create("cnn5", 3, width=2, dense=4)
    variables = model.init(jax.random.key(0), np.zeros((1, 8, 8, 1), np.float32))
    config = training.default_config()
    config.model = {"name": "cnn5", "options": {"width": 2, "dense": 4}}
    examples = archive.Examples(np.arange(128, dtype=np.uint8).reshape(2, 8, 8, 1), np.array([0, 2], np.int32))
    facts = {"config": config.to_dict(), "num_classes": 3, "clean": 0.5}
    for clean in (0.5, 0.75):
        path = archive.add(directory, "new/network", variables, examples, {**facts, "clean": clean})
    assert path == directory / "new_network.npz"
    assert models.pretrained_names() == tuple(sorted([*INDEX, "new/network"]))
    assert models.pretrained_index()["new/network"]["clean"] == 0.75
    assert models.pretrained_index()["digits/max"] == INDEX["digits/max"]
    fitted, found = models.pretrained("new/network"), models.pretrained_examples("new/network")
    assert (fitted.model, fitted.example_shape) == (model, (8, 8, 1))
    chex.assert_trees_all_equal(fitted.variables, variables)
    assert fitted.config.to_dict() == config.to_dict()
    assert found.images.dtype == np.uint8
    chex.assert_trees_all_equal(found, examples)
