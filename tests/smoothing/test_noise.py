"""Noise on the grid: whole levels, the distributions that they should have, and the radii of closed forms."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import cure_jax as cj
from cure_jax.smoothing import noise as noises

SCALE, LEVELS = 0.3, 20
NOISES = {
    "gaussian": (cj.smoothing.gaussian(SCALE, levels=LEVELS), stats.norm(scale=SCALE)),
    "uniform": (cj.smoothing.uniform(SCALE, levels=LEVELS), stats.uniform(-SCALE, 2 * SCALE)),
    "laplace": (cj.smoothing.laplace(SCALE, levels=LEVELS), stats.laplace(scale=SCALE)),
}


@pytest.mark.parametrize("kind", NOISES)
def test_the_table_is_the_distribution_rounded_to_the_grid(kind):
    noise, true = NOISES[kind]
    table = noises._table(noise)
    values = (table.first + np.arange(len(table.weights))) / LEVELS
    expected = true.cdf(values + 0.5 / LEVELS) - true.cdf(values - 0.5 / LEVELS)
    distance = (np.abs(table.probabilities - expected).sum() + (1 - expected.sum())) / 2
    assert distance <= noise.error(1) < 1e-9
    assert noise.error(784) == pytest.approx(784 * noise.error(1))
    np.testing.assert_allclose(table.probabilities, table.probabilities[::-1], rtol=1e-6)


@pytest.mark.parametrize("kind", NOISES)
def test_views_are_whole_levels_whose_noise_knows_nothing_of_the_image(kind, key):
    noise, true = NOISES[kind]
    black, other = jnp.zeros((300, 200), jnp.int32), jnp.full((300, 200), 13, jnp.int32)
    views = [np.asarray(noise.sample(image, key), float) * LEVELS for image in (black, other)]
    np.testing.assert_allclose(views[0], np.rint(views[0]), atol=1e-4)
    np.testing.assert_array_equal(np.rint(views[1]) - np.rint(views[0]), 13)
    below = np.mean(views[0] < 3.5)
    assert below == pytest.approx(true.cdf(3.5 / LEVELS), abs=4 * 0.5 / np.sqrt(black.size))
    assert stats.binomtest(int(np.sum(views[0] < -3.5)), black.size, true.cdf(-3.5 / LEVELS)).pvalue > 0.01


def test_views_of_other_numbers_are_others(key):
    noise, image = NOISES["gaussian"][0], jnp.zeros(500, jnp.int32)
    first, again, second = (np.asarray(noise.numbered(image, key, jnp.int32(number))) for number in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert np.mean(first == second) < 0.3


@pytest.mark.parametrize("kind", NOISES)
@pytest.mark.parametrize("distance", [0.01, 0.12, 0.27])
def test_a_threshold_in_one_pixel_has_its_distance_for_a_radius(kind, distance):
    """P(e < D) certifies D and, to a part in 10^6, no less: the theorems are tight for half spaces."""
    noise, true = NOISES[kind]
    radius = noise.radius(np.array(true.cdf(distance)))
    assert radius <= distance
    assert radius == pytest.approx(distance, rel=1e-6)


@pytest.mark.parametrize("kind", NOISES)
def test_nothing_is_certified_at_one_half_and_nothing_is_infinite(kind):
    radii = NOISES[kind][0].radius(np.array([0.0, 0.3, 0.5, 0.5 + 1e-9, 1.0, 2.0]))
    np.testing.assert_array_equal(radii[:3], 0.0)
    assert 0 < radii[3] < 1e-8
    assert np.all(np.isfinite(radii))


def test_laplace_radii_are_those_of_the_worst_case():
    """By Neyman and Pearson, in one pixel: the region of probability p that loses most when it is moved."""
    noise, true = NOISES["laplace"]
    x = np.linspace(-8, 8, 400_001)
    for p in (0.6, 0.9, 0.99):
        radius = float(noise.radius(np.array(p)))
        densities = [true.pdf(x), true.pdf(x - 1.001 * radius)]
        worst = np.argsort(densities[1] / densities[0])
        taken = np.cumsum(densities[0][worst]) * (x[1] - x[0]) <= p
        assert np.sum(densities[1][worst][taken]) * (x[1] - x[0]) < 0.5


def test_images_are_brought_to_the_grid_or_refused():
    grey = (np.arange(256, dtype=np.uint8).astype(np.float32) / np.float32(255)).reshape(2, 128)
    np.testing.assert_array_equal(cj.smoothing.on_grid(grey, 255), np.arange(256).reshape(2, 128))
    with pytest.raises(ValueError, match=r"images\[0, 1\] is 0\.00392157, no multiple of 1/16"):
        cj.smoothing.on_grid(grey, 16)
    off = grey.copy()
    off[1, 3] += 1e-5
    with pytest.raises(ValueError, match=r"images\[1, 3\] is"):
        cj.smoothing.on_grid(off, 255)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: cj.smoothing.gaussian(0.0), r"gaussian got sigma=0\.0; expected a finite number above 0"),
        (lambda: cj.smoothing.gaussian(-1.0), r"gaussian got sigma=-1\.0"),
        (lambda: cj.smoothing.gaussian(float("nan")), "gaussian got sigma=nan"),
        (lambda: cj.smoothing.laplace(float("inf")), "laplace got scale=inf"),
        (lambda: cj.smoothing.uniform(0), "uniform got half_width=0;"),
        (
            lambda: cj.smoothing.gaussian(0.5, levels=0),
            "gaussian got levels=0; expected a whole number from 1",
        ),
        (lambda: cj.smoothing.gaussian(0.5, levels=70_000), "gaussian got levels=70000"),
        (lambda: cj.smoothing.laplace(100.0), "noise of 1378671 values; expected at most 1048576. Lower scale"),
    ],
)
def test_mistakes_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
