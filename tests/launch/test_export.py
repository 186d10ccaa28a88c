"""The export launcher: from a work directory to files with the verdicts of launch/certify.py."""

import json

import numpy as np

import cure_jax as cj
from cure_jax import data, interop, models, training
from cure_jax.configs import digits
from tests.launch.test_launchers import CONFIG, launch, mistake

SMALL = ("--config.epochs=1", "--config.ramp_end=1.0", "--config.milestones=()", "--config.model.options.features=(8,)")


def test_a_trained_network_is_exported_with_its_regions(tmp_path):
    workdir, output = tmp_path / "run", tmp_path / "export"
    trained = launch("train", CONFIG, f"--workdir={workdir}", *SMALL)
    assert trained.returncode == 0, trained.stderr
    arguments = (f"--workdir={workdir}", f"--output={output}", "--method=crown_ibp")
    exported = launch("export", *arguments)
    assert exported.returncode == 0, exported.stderr
    assert "crown_ibp, {'l2': 0.45, 'linf': 0.13}, for cpu, cuda, tpu" in exported.stdout
    assert json.loads((output / "metadata.json").read_text())["radii"] == {"linf": 0.13, "l2": 0.45}

    images, labels, classes = data.load("digits", "test")
    config = digits.get_config("scratch")
    config.update({"epochs": 1, "ramp_end": 1.0, "milestones": ()})
    config.model.options.features = (8,)
    model = models.create("mlp", classes, features=(8,))
    f = training.restore(model, images[:1], config, workdir).classifier
    expected = cj.certify_dataset(f, images[:20], labels[:20], training.make_regions(config.radii), method="crown_ibp")
    found = interop.load_certifier(output)(images[:20], labels[:20])
    for norm in ("linf", "l2"):
        np.testing.assert_array_equal(found["verified"][norm], expected.verified[norm])
        np.testing.assert_allclose(found["margin"][norm], expected.margin[norm], atol=1e-4)
    assert "is not empty" in mistake(launch("export", CONFIG, *arguments, *SMALL))


def test_a_network_of_the_library_is_exported_by_its_name(tmp_path):
    output = f"--output={tmp_path / 'export'}"
    exported = launch("export", "--name=digits/max", output, "--method=ibp")
    assert exported.returncode == 0, exported.stderr
    examples = models.pretrained_examples("digits/max")
    found = interop.load_certifier(tmp_path / "export")(*examples)
    assert found["correct"].tolist() == models.pretrained_index()["digits/max"]["examples"]["correct"]
    assert "expected one of them" in mistake(launch("export", output))
