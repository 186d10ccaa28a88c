"""Radii of many examples enclose the true ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cure_jax as cj
from cure_jax.certification.dataset_radii import DatasetRadii
from tests.networks import random_mlp

WEIGHTS = np.array([[1.0, -0.5, 0.25], [0.5, 1.0, -2.0], [-1.0, 0.25, 0.5]], np.float32)
REGIONS = {"linf": cj.linf_ball, "l2": cj.l2_ball}
KEY = jax.random.key(0)


def linear(x):
    return x @ jnp.asarray(WEIGHTS)


def examples(count=12):
    x = np.random.default_rng(0).uniform(size=(count, 3)).astype(np.float32)
    return x, np.argmax(x @ WEIGHTS, axis=1)


def test_of_linear_classifiers_they_enclose_the_distance_to_the_boundary():
    x, labels = examples()
    high = {"linf": 0.5, "l2": 0.4}
    radii = cj.certified_radii(linear, x, labels, REGIONS, high=high, key=KEY, tolerance=0.01, batch_size=5)
    for norm, q in (("linf", 1), ("l2", 2)):
        for point, label, proved, broken in zip(x, labels, radii.proved[norm], radii.broken[norm], strict=True):
            differences = np.delete(WEIGHTS[:, [label]] - WEIGHTS, label, axis=1)
            exact = np.min(point @ differences / np.linalg.norm(differences, q, axis=0))
            assert min(exact, high[norm]) - 0.01 * high[norm] - 1e-5 <= proved <= exact + 1e-5
            assert exact - 1e-5 <= broken
            assert broken == np.inf if exact > high[norm] else broken <= exact + 0.02 * high[norm]
    assert np.any(np.isinf(radii.broken["l2"]))
    assert not np.all(np.isinf(radii.broken["l2"]))


def test_what_is_misclassified_has_the_radius_0_in_both():
    x, labels = examples(4)
    wrong = np.where(np.arange(4) < 2, (labels + 1) % 3, labels)
    radii = cj.certified_radii(linear, x, wrong, {"linf": cj.linf_ball}, high={"linf": 0.5}, key=KEY, tolerance=0.1)
    assert np.array_equal(radii.proved["linf"] == 0, [True, True, False, False])
    assert np.array_equal(radii.broken["linf"] == 0, [True, True, False, False])


def test_each_proved_radius_is_proved_and_each_broken_one_broken():
    f = random_mlp(0)
    x = np.random.default_rng(1).uniform(size=(6, 2)).astype(np.float32)
    labels = np.argmax(np.asarray(jax.vmap(f)(x)), axis=1)
    radii = cj.certified_radii(f, x, labels, {"linf": cj.linf_ball}, high={"linf": 2.0}, key=KEY, tolerance=0.05)
    proved, broken = radii.proved["linf"], radii.broken["linf"]
    certificate = cj.certify_dataset(f, x, labels, {"linf": cj.linf_ball}, radii={"linf": proved})
    assert np.all(certificate.verified["linf"] | (proved == 0))
    assert np.all(proved < broken)
    finite = np.where(np.isfinite(broken), broken, 0)
    attacked = cj.attack_dataset(f, x, labels, {"linf": cj.linf_ball}, radii={"linf": finite}, key=KEY)
    assert not np.any(attacked.survived["linf"] & (finite > 0))


def test_curves_count_examples():
    radii = DatasetRadii({"l2": np.array([0.0, 0.0, 0.5, 1.0])}, {"l2": np.array([0.0, 0.25, 1.0, np.inf])})
    at, certified, standing = radii.curves(points=5)["l2"]
    assert at.tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert certified.tolist() == [0.75, 0.5, 0.5, 0.25, 0.25]
    assert standing.tolist() == [0.75, 0.5, 0.5, 0.5, 0.25]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"high": {"l2": 1.0}}, "high has {.linf.: None}"),
        ({"high": {"linf": 0.0}}, "positive, finite"),
        ({"high": {"linf": np.inf}}, "positive, finite"),
        ({"high": {"linf": 1.0}, "tolerance": 0.0}, "tolerance is 0.0"),
    ],
)
def test_says_what_is_wrong(options, message):
    x, labels = examples(2)
    with pytest.raises(ValueError, match=message):
        cj.certified_radii(linear, x, labels, {"linf": cj.linf_ball}, key=KEY, **options)
