"""Certificates of smoothed classifiers: where the truth is known, how often they are wrong; and what they refuse."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh
from jax.tree_util import Partial
from scipy import stats

import cure_jax as cj
from cure_jax.smoothing import ABSTAIN
from tests import networks

LEVELS = 16
NOISES = {
    "gaussian": cj.smoothing.gaussian(0.3, levels=LEVELS),
    "uniform": cj.smoothing.uniform(0.5, levels=LEVELS),
    "laplace": cj.smoothing.laplace(0.3, levels=LEVELS),
}


def threshold(at: jax.Array, x: jax.Array) -> jax.Array:
    """Class 0 above it in the first pixel."""
    return jnp.stack([x[0] - at, at - x[0]])


# Between two levels: what rounds to a level above it lies above it. So this is a linear classifier, rounding included,
# and the radius of the smoothed one is the distance to the threshold.
F = Partial(threshold, jnp.float32(7.5 / LEVELS))
IMAGES = np.random.default_rng(0).integers(0, LEVELS + 1, size=(21, 3)) / LEVELS
LABELS = (IMAGES[:, 0] < 7.5 / LEVELS).astype(int)


@pytest.mark.parametrize("kind", NOISES)
def test_certificates_are_wrong_as_seldom_as_they_say(kind):
    """800 experiments on one image whose radius is known, 0.15625: the exact limits miss it as often as they may."""
    runs, alpha, distance = 800, 0.2, 2.5 / LEVELS
    images = np.tile(np.array([10, 3, 16]) / LEVELS, (runs, 1))
    done = cj.smoothing.certify_dataset(
        F, images, np.zeros(runs, int), NOISES[kind], jax.random.key(5), n0=20, n=200, alpha=alpha, batch_size=200
    )
    wrong = (done.certificate.radius > distance) | (done.certificate.prediction == 1)
    assert stats.binom.ppf(1e-3, runs, 0.5 * alpha) <= wrong.sum() <= stats.binom.ppf(0.999, runs, alpha)
    assert np.median(done.certificate.radius) > 0.5 * distance


def test_what_chose_the_class_does_not_estimate_it_too():
    """Each class has one half: with the views that chose it, one of the two would always look as if it had more."""
    runs, alpha = 400, 0.3
    # Rounded to -1, 0 or 1, a quarter, a half and a quarter of the times.
    noise = cj.smoothing.uniform(1.0, levels=1)
    f = lambda x: jnp.stack([0.5 - jnp.abs(x[0]), jnp.abs(x[0]) - 0.5])  # noqa: E731
    images, labels = np.zeros((runs, 1)), np.zeros(runs, int)
    done = cj.smoothing.certify_dataset(
        f, images, labels, noise, jax.random.key(2), n0=301, n=301, alpha=alpha, batch_size=50
    )
    certified = ~done.certificate.abstained
    assert 0 < certified.sum() <= stats.binom.ppf(0.999, runs, alpha)
    assert {*done.certificate.prediction.tolist()} == {ABSTAIN, 0, 1}


def test_predictions_are_those_of_certificates_or_abstain(key):
    noise = NOISES["gaussian"]
    assert cj.smoothing.predict(F, np.array([1.0, 0.0]), noise, key) == 0
    assert cj.smoothing.predict(F, np.array([0.25, 0.0]), noise, key) == 1
    # Of all noises, however few are asked for: 9 of 16 say class 0, the first does not.
    assert cj.smoothing.predict(F, np.array([0.5, 0.0]), cj.smoothing.splitting(0.5, levels=LEVELS), n=1) == 0
    wide = cj.smoothing.gaussian(20.0, levels=LEVELS)
    assert cj.smoothing.predict(F, np.array([0.5, 0.0]), wide, key) == ABSTAIN
    certificate = cj.smoothing.certify(F, np.array([0.5, 0.0]), wide, key)
    assert (int(certificate.prediction), float(certificate.radius)) == (ABSTAIN, 0.0)
    assert bool(certificate.abstained)


def test_one_example_is_the_first_of_many_and_a_byte_is_a_pixel(key):
    noise = cj.smoothing.laplace(0.3)
    image = np.array([200, 3, 90], np.uint8)
    one = cj.smoothing.certify(F, image, noise, key, n=500)
    many = cj.smoothing.certify_dataset(F, np.stack([image, image]), np.array([0, 0]), noise, key, n=500).certificate
    assert float(one.radius) == many.radius[0] > 0
    assert many.radius[0] != many.radius[1]
    assert (one.size, one.n0, one.n, one.alpha) == (3, 100, 500, 0.001)


def test_views_are_the_same_whatever_the_batches_the_steps_and_the_devices():
    f = lambda x: x - jnp.array([0.5, 0.4, 0.6])  # noqa: E731
    options = {"n0": 30, "n": 250}
    noise, key = NOISES["gaussian"], jax.random.key(7)
    mesh = Mesh(np.array(jax.devices()), ("data",), axis_types=(AxisType.Auto,))
    expected = cj.smoothing.certify_dataset(f, IMAGES, LABELS, noise, key, **options)
    assert len({*expected.certificate.prediction.tolist()} - {ABSTAIN}) > 1
    others = ({"batch_size": 4}, {"samples_at_once": 7}, {"batch_size": 8, "samples_at_once": 64, "mesh": mesh})
    for other in others:
        found = cj.smoothing.certify_dataset(f, IMAGES, LABELS, noise, key, **options, **other)
        for field in ("prediction", "radius", "probability"):
            np.testing.assert_array_equal(getattr(found.certificate, field), getattr(expected.certificate, field))


def test_votes_are_counted_one_by_one(key):
    f, noise, image = networks.random_mlp(1, (3, 8, 4)), NOISES["laplace"], jnp.array([3, 8, 16], jnp.int32)
    views = jax.vmap(lambda number: noise.numbered(image, key, number))(jnp.arange(57, dtype=jnp.int32))
    expected = np.bincount(np.argmax(np.asarray(jax.vmap(f)(views)), axis=1), minlength=4)
    count = jax.jit(lambda count: cj.smoothing.class_counts(f, image, noise, key, count, samples_at_once=10))
    np.testing.assert_array_equal(count(jnp.int32(57)), expected)
    assert int(count(jnp.int32(3)).sum()) == 3


def test_views_with_infinite_logits_have_no_vote(key):
    noise = NOISES["uniform"]
    broken = lambda x: jnp.where(x[0] > 7.5 / LEVELS, jnp.nan, 1.0) * jnp.array([2.0, 1.0])  # noqa: E731
    votes = cj.smoothing.class_counts(broken, jnp.array([8, 0], jnp.int32), noise, key, 400)
    assert 100 < int(votes[0]) < 300
    assert int(votes[1]) == 0
    for image in ([1.0, 0.0], [0.5, 0.0]):
        certificate = cj.smoothing.certify(broken, np.array(image), noise, key, n=400)
        assert int(certificate.prediction) == ABSTAIN
        assert cj.smoothing.predict(broken, np.array(image), noise, key) == ABSTAIN
    nothing = lambda x: jnp.full(2, jnp.nan) + x[0]  # noqa: E731
    exact = cj.smoothing.certify(nothing, np.array([1.0, 0.0]), cj.smoothing.splitting(0.5, levels=LEVELS))
    assert int(exact.prediction) == ABSTAIN


def test_the_error_of_the_table_is_subtracted(key, monkeypatch):
    noise = NOISES["gaussian"]
    before = cj.smoothing.certify(F, np.array([1.0, 0.0]), noise, key, n=500)
    monkeypatch.setattr(type(noise), "error", lambda self, size: 0.1 * size)
    after = cj.smoothing.certify(F, np.array([1.0, 0.0]), noise, key, n=500)
    assert float(after.probability) == pytest.approx(float(before.probability) - 0.2, abs=1e-6)


def test_simultaneous_certificates_share_the_error(key):
    noise, options = NOISES["gaussian"], {"n": 300, "alpha": 0.05}
    each = cj.smoothing.certify_dataset(F, IMAGES, LABELS, noise, key, **options)
    at_once = cj.smoothing.certify_dataset(F, IMAGES, LABELS, noise, key, **options, simultaneous=True)
    assert at_once.certificate.alpha == pytest.approx(0.05 / len(IMAGES))
    assert each.confidence == at_once.confidence == 0.95
    assert np.all(at_once.certificate.radius <= each.certificate.radius)
    one = cj.smoothing.certify(F, IMAGES[0], noise, key, n=300, alpha=0.05 / len(IMAGES))
    assert float(one.radius) == at_once.certificate.radius[0] < each.certificate.radius[0]


@pytest.fixture(scope="module")
def done() -> cj.smoothing.DatasetSmoothing:
    return cj.smoothing.certify_dataset(F, IMAGES, LABELS, NOISES["gaussian"], jax.random.key(0), n=400)


def test_radii_in_other_norms_are_those_of_the_largest_balls_inside(done):
    certificate = done.certificate
    np.testing.assert_array_equal(certificate.radius_in("l2"), certificate.radius)
    np.testing.assert_allclose(certificate.radius_in("l1"), certificate.radius, rtol=1e-5)
    np.testing.assert_allclose(certificate.radius_in("linf"), certificate.radius / np.sqrt(3), rtol=1e-5)
    assert np.all(certificate.radius_in("linf") * np.sqrt(3) <= certificate.radius)
    in_l1 = dataclasses.replace(certificate, noise=NOISES["laplace"])
    np.testing.assert_allclose(in_l1.radius_in("linf"), certificate.radius / 3, rtol=1e-5)
    np.testing.assert_allclose(in_l1.radius_in("l2"), certificate.radius / np.sqrt(3), rtol=1e-5)
    with pytest.raises(ValueError, match="Got the norm 'l3'; smoothing certifies in l1, l2, linf"):
        certificate.radius_in("l3")


def test_the_union_holds_in_every_norm_and_abstention_is_an_error(done):
    radii = {"l2": 0.2, "linf": 0.15, "l1": 0.3}
    certified = done.certified(radii)
    np.testing.assert_array_equal(certified["l2"], done.correct & (done.certificate.radius >= 0.2))
    np.testing.assert_array_equal(done.union(radii), certified["l2"] & certified["linf"] & certified["l1"])
    assert 0 < done.union(radii).sum() < done.correct.sum() < len(IMAGES)
    abstained = done.certificate.abstained
    assert abstained.any()
    assert not np.any(done.correct & abstained)
    assert not np.any(done.certified({"l2": 0.0})["l2"] & abstained)
    curve = done.curve("l2", [0.0, 0.2])
    assert curve == {"radii": [0.0, 0.2], "certified": [done.correct.mean(), certified["l2"].mean()]}
    with pytest.raises(ValueError, match=r"The radius of l2 is -0\.1"):
        done.certified({"l2": -0.1})
    with pytest.raises(ValueError, match="Got no radii"):
        done.union({})


def test_what_is_smoothed_is_never_taken_for_a_certificate_of_bounds(done):
    assert not {"verified", "margin"} & {*dir(done), *dir(done.certificate)}
    assert not isinstance(done.certificate, cj.Certificate)
    summary = done.summary({"l2": 0.2})
    assert not {"certified", "union"} & {*summary}
    assert summary["guarantee"] == "of the smoothed classifier, with confidence 0.999 for each image"


@pytest.mark.parametrize("noise", [NOISES["laplace"], cj.smoothing.splitting(0.5, levels=LEVELS, seed=4)], ids=str)
def test_what_is_saved_is_loaded(done, noise, tmp_path):
    done = dataclasses.replace(done, certificate=dataclasses.replace(done.certificate, noise=noise), simultaneous=True)
    done.save(tmp_path / "smoothed.npz")
    loaded = cj.smoothing.load(tmp_path / "smoothed.npz")
    assert loaded.certificate.noise == noise
    assert loaded.summary({"l1": 0.2}) == done.summary({"l1": 0.2})
    np.testing.assert_array_equal(loaded.certificate.radius, done.certificate.radius)
    np.savez(tmp_path / "other.npz", verified=np.zeros(3))
    with pytest.raises(ValueError, match=r"other\.npz holds \['verified'\]; expected what DatasetSmoothing\.save"):
        cj.smoothing.load(tmp_path / "other.npz")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"alpha": 0.0}, r"alpha is 0\.0; expected a probability of error in \(0, 1\)"),
        ({"alpha": 1.0}, r"alpha is 1\.0"),
        ({"alpha": float("nan")}, "alpha is nan"),
        ({"n0": 0}, "n0 is 0; expected a number from 1"),
        ({"n": -1}, "n is -1; expected a number from 1"),
        ({"samples_at_once": 0}, "samples_at_once is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"key": None}, "Got no key for gaussian noise"),
        ({"labels": np.full(len(IMAGES), 2)}, r"labels\[0\] is 2; expected 0\.\.1"),
        ({"labels": np.zeros(3, int)}, "Got 21 images and 3 labels"),
        ({"images": IMAGES + 0.01}, r"images\[\d+, \d\] is .* expected finite pixels in \[0, 1\]"),
        ({"images": 0.9 * IMAGES}, r"images\[0, \d\] is .*, no multiple of 1/16"),
        ({"images": IMAGES * np.nan}, r"images\[0, 0\] is nan"),
        ({"f": lambda x: x[0]}, r"returns an array of shape \(\); expected logits of at least two classes"),
        ({"mesh": Mesh(np.array(jax.devices()), ("data",))}, "batch_size 21 does not divide over the 8 devices"),
    ],
)
def test_mistakes_are_named(changed, message):
    given = {"f": F, "images": IMAGES, "labels": LABELS, "noise": NOISES["gaussian"], "key": jax.random.key(0)}
    given |= {"n": 10, "batch_size": 21}
    with pytest.raises(ValueError, match=message):
        cj.smoothing.certify_dataset(**given | changed)
