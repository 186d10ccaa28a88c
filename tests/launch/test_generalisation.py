"""The tables of what networks keep beyond norms: what is proved and broken is an error, and smoothing is by radius."""

import json
import re
import types

import jax
import numpy as np
import pytest

import cure_jax as cj
from launch.checks import generalisation


def set_flags(monkeypatch, **values):
    for flag, value in values.items():
        monkeypatch.setattr(generalisation, flag, types.SimpleNamespace(value=value))


def test_what_is_proved_and_broken_is_an_error(monkeypatch):
    images, labels, _ = cj.data.load("digits", "test")
    f = cj.models.pretrained("digits/max").classifier
    set_flags(monkeypatch, _METHOD="ibp", _MAX_CELLS=20)
    wide = cj.perturbations.rotation(-90, 90)
    found = generalisation._measured(f, images[:4], labels[:4], wide)
    assert found["certified"] <= found["attacked"] < 1
    everything = types.SimpleNamespace(verified=np.ones(4, bool))
    monkeypatch.setattr(generalisation.perturbations, "certify_perturbation", lambda *_, **__: everything)
    with pytest.raises(AssertionError, match="proved and broken"):
        generalisation._measured(f, images[:4], labels[:4], wide)


def test_smoothing_of_networks_is_a_table_by_radius(monkeypatch, tmp_path, capsys):
    set_flags(
        monkeypatch,
        _NETWORKS=["digits/l2", "digits/max"],
        _IMAGES=12,
        _SMOOTHING="{'gaussian': 0.12, 'laplace': 0.085}",
        _VIEWS=500,
        _ALPHA=0.001,
        _RADII=["0.12", "0.25", "7"],
        _JSON=str(tmp_path / "smoothed.json"),
    )
    generalisation.main()
    kept = json.loads((tmp_path / "smoothed.json").read_text())
    assert [found["digits/max"]["norm"] for found in kept.values()] == ["l2", "l1"]
    # Of the same images and views, certified anew.
    images, labels, _ = cj.data.load("digits", "test")
    noise, f = cj.smoothing.gaussian(0.12, levels=16), cj.models.pretrained("digits/max").classifier
    expected = cj.smoothing.certify_dataset(f, images[:12], labels[:12], noise, jax.random.key(0), n=500)
    found = kept["gaussian 0.12"]["digits/max"]
    radii = np.where(expected.correct, expected.certificate.radius, 0)
    assert found["mean radius"] == pytest.approx(radii.mean())
    assert found["certified"] == [np.mean(expected.correct & (radii >= at)) for at in found["radii"]]
    assert found["radii"] == [0, 0.12, 0.25]
    assert found["certified"][0] > found["certified"][-1]
    row = re.search(r"\| `gaussian 0.12`, l2 \| 0.12 \| (\d+)% \| (\d+)% \|", capsys.readouterr().out)
    assert row
    assert int(row[2]) == round(100 * found["certified"][1])


def test_an_error_counts_with_radius_0():
    """A network that is sure of the wrong class keeps nothing, however far it keeps it."""
    images = np.zeros((3, 4), np.float32)
    found = generalisation.smoothed(
        lambda x: jax.numpy.stack([x[0] * 0, x[0] * 0 + 1]), images, np.array([1, 1, 0]), cj.smoothing.gaussian(0.1),
        (0.1, 0.2, 0.25), views=1000, alpha=0.001,
    )  # fmt: skip
    whole = float(cj.smoothing.gaussian(0.1).radius(np.array(0.001 ** (1 / 1000))))
    assert found["certified"] == pytest.approx([2 / 3, 2 / 3, 2 / 3])
    assert found["mean radius"] == pytest.approx(2 / 3 * whole, rel=1e-5)
