"""Splitting noise, by brute force: every image of a small grid, every noise."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cure_jax as cj
from tests import networks

LEVELS = 4
GRID = np.array(list(itertools.product(range(LEVELS + 1), repeat=3)), np.int32)
# Pieces narrower than the pixel range, of just its width, and wider.
NOISES = [cj.smoothing.splitting(half_width, levels=LEVELS, seed=3) for half_width in (0.375, 0.5, 1.25)]


def all_views(noise: cj.smoothing.SplittingNoise) -> np.ndarray:
    """`[images, noises, pixels]`."""
    one = lambda image, number: noise.numbered(image, jax.random.key(0), number)  # noqa: E731
    numbers = jnp.arange(noise.count, dtype=jnp.int32)
    return np.asarray(jax.vmap(jax.vmap(one, (None, 0)), (0, None))(jnp.asarray(GRID), numbers))


@pytest.mark.parametrize("noise", NOISES, ids=lambda noise: f"N={noise.count}")
def test_views_are_the_middles_of_pieces_as_published(noise):
    """Levine and Feizi's formula, in floating point: the pieces of pixel x between s + 2 lambda k."""
    views, width = all_views(noise), noise.count / LEVELS
    first = all_views(noise)[0]
    found = set()
    for offset in range(noise.count):
        split = (offset + 0.5) / LEVELS
        pixels = np.arange(LEVELS + 1) / LEVELS
        upper = width * np.ceil((pixels - split) / width) + split
        middles = (np.minimum(upper, 1) + np.maximum(upper - width, 0)) / 2
        # Pixel 0 of all images, in the noise whose offset this is.
        for number in range(noise.count):
            seen = np.array([views[GRID[:, 0] == level, number, 0][0] for level in range(LEVELS + 1)])
            if np.allclose(seen, middles, atol=1e-6):
                found.add((offset, number))
    assert {offset for offset, _ in found} == set(range(noise.count))
    assert first.shape == (noise.count, 3)


@pytest.mark.parametrize("noise", NOISES, ids=lambda noise: f"N={noise.count}")
def test_a_step_of_one_pixel_changes_at_most_one_view(noise):
    views = all_views(noise)
    index = {tuple(image): number for number, image in enumerate(GRID.tolist())}
    changes = []
    for image, pixel in itertools.product(GRID.tolist(), range(3)):
        if image[pixel] < LEVELS:
            moved = [*image]
            moved[pixel] += 1
            differ = np.any(views[index[tuple(image)]] != views[index[tuple(moved)]], axis=1)
            changes.append(int(differ.sum()))
    assert max(changes) == 1
    # Where a piece is cut by neither end of the range, it changes in every case.
    assert noise.count > LEVELS or min(changes) == 1


@pytest.mark.parametrize("noise", NOISES, ids=lambda noise: f"N={noise.count}")
@pytest.mark.parametrize("seed", range(3))
def test_certificates_hold_at_every_image_of_the_grid_and_votes_are_exact(noise, seed):
    f = networks.random_mlp(seed, (3, 8, 4))
    images = (GRID / LEVELS).astype(np.float32)
    done = cj.smoothing.certify_dataset(f, images, np.zeros(len(GRID), int), noise, batch_size=25).certificate
    said = np.argmax(np.asarray(jax.vmap(jax.vmap(f))(jnp.asarray(all_views(noise)))), axis=2)
    votes = np.array([np.bincount(row, minlength=4) for row in said])
    np.testing.assert_array_equal(done.prediction, np.argmax(votes, axis=1))
    np.testing.assert_allclose(done.probability, votes.max(axis=1) / noise.count)
    steps = np.abs(GRID[:, None] - GRID[None]).sum(axis=2)
    differs = done.prediction[:, None] != done.prediction[None]
    nearest = np.where(differs, steps, 10**6).min(axis=1)
    assert np.all(done.radius * LEVELS < nearest)
    assert 0 < done.radius.max() <= noise.scale
    assert (done.alpha, done.n) == (0.0, noise.count)


def test_the_radius_is_the_last_number_of_votes_that_cannot_turn_the_lead():
    noise = cj.smoothing.splitting(5.0, levels=1)
    votes = np.array([[6, 4, 0], [4, 6, 0], [7, 3, 0], [10, 0, 0], [5, 5, 0], [0, 5, 5], [4, 2, 2], [3, 3, 3]])
    # Two for one and back; the first of equal classes wins.
    np.testing.assert_array_equal(noise.radius(votes), [1, 0, 2, 5, 0, 0, 1, 0])


def test_training_draws_every_noise():
    noise, image = NOISES[1], jnp.array([0, 2, 4], jnp.int32)
    drawn = jax.vmap(lambda key: noise.sample(image, key))(jax.random.split(jax.random.key(0), 100))
    every = all_views(noise)[GRID.tolist().index([0, 2, 4])]
    assert {tuple(view) for view in np.asarray(drawn).tolist()} == {tuple(view) for view in every.tolist()}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: cj.smoothing.splitting(0.0), "so that .* is 0; expected a whole number"),
        (lambda: cj.smoothing.splitting(-0.5), "is -255; expected a whole number"),
        (lambda: cj.smoothing.splitting(0.301), r"is 153\.51; expected a whole number from 1"),
        (lambda: cj.smoothing.splitting(float("nan")), "is nan"),
        (lambda: cj.smoothing.splitting(0.5, levels=0), "splitting got levels=0"),
    ],
)
def test_mistakes_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
