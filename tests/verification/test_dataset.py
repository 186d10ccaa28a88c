"""Many examples: the verdicts of each alone, found with less work."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cure_jax as cj
from cure_jax.verification import Status, dataset
from tests import networks

F = networks.random_mlp(3)
IMAGES = np.random.default_rng(3).uniform(size=(12, 2)).astype(np.float32)
LABELS = np.array(jnp.argmax(jax.vmap(F)(IMAGES), axis=1))
LABELS[0] = (LABELS[0] + 1) % 3
REGIONS = {"linf": lambda x: cj.linf_ball(x, 0.1, within=(0.0, 1.0))}


@pytest.fixture
def alone(monkeypatch):
    """The numbers of domains of all examples that were verified on their own."""
    found, verify = [], dataset.verify

    def spy(*args, **options):
        verdict = verify(*args, **options)
        found.append(verdict)
        return verdict

    monkeypatch.setattr(dataset, "verify", spy)
    return found


def test_images_of_bytes_are_the_pixels_that_they_mean():
    images = np.round(255 * IMAGES[:4]).astype(np.uint8)
    found = [
        cj.verify_dataset(F, each, LABELS[:4], REGIONS, timeout=100, method="ibp").status["linf"]
        for each in (images, images.astype(np.float32) / 255)
    ]
    np.testing.assert_array_equal(*found)
    assert set(found[0]) == {"verified", "falsified"}


def test_verdicts_are_those_of_single_examples(alone):
    told = {}
    found = cj.verify_dataset(
        F, IMAGES, LABELS, REGIONS, timeout=100, method="ibp", tell=lambda norm, number, v: told.update({number: v})
    )
    status = found.status["linf"]
    assert set(status) == {"verified", "falsified"}
    certified = cj.certify_dataset(F, IMAGES, LABELS, REGIONS, method="ibp").verified["linf"]
    assert 0 < certified.sum() < (status == "verified").sum()
    # What bounds of all examples decide is not verified again; the rest is told.
    assert len(alone) == len(told) == len(IMAGES) - certified.sum()
    assert np.all(found.domains["linf"][certified] == 0)
    for number, verdict in told.items():
        assert verdict.status.value == status[number]
    np.testing.assert_array_equal(found.union, status == "verified")
    assert not found.undecided.any()
    for image, label, kind, witness in zip(IMAGES, LABELS, status, found.witness["linf"], strict=True):
        if kind == "verified":
            assert np.all(np.isnan(witness))
            continue
        assert bool(REGIONS["linf"](jnp.asarray(image)).contains(jnp.asarray(witness, jnp.float32)))
        assert int(jnp.argmax(F(jnp.asarray(witness, jnp.float32)))) != label
    np.testing.assert_allclose(found.witness["linf"][0], IMAGES[0])


def test_what_is_known_is_not_verified_again(alone):
    known = cj.verification.Verdict(Status.TIMEOUT, None, -0.5, 7, 1.0, "the time was over")
    found = cj.verify_dataset(F, IMAGES, LABELS, REGIONS, method="ibp", known=lambda norm, number: known)
    assert alone == []
    assert set(found.status["linf"]) == {"timeout"}
    assert found.undecided.all()
    np.testing.assert_array_equal(found.domains["linf"], 7)


def test_no_time_is_refused():
    with pytest.raises(ValueError, match="timeout is 0; expected seconds above 0"):
        cj.verify_dataset(F, IMAGES, LABELS, REGIONS, timeout=0)
