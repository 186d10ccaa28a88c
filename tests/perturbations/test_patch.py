"""Windows of any content anywhere: their cells, certificates against attacks, and both against brute force."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

import cure_jax as cj
from cure_jax.perturbations import Perturbation, certify_perturbation, patch, patch_attack, pixel_attack
from tests.networks import mlp, mlp_params

KEY = jax.random.key(0)
SHAPE = (5, 4, 1)


def flat_network(params, x):
    return mlp(params, x.ravel())


def network(seed, size=20):
    """Weights so small that some patches are harmless."""
    params = [(0.7 * weights, bias) for weights, bias in mlp_params(seed, (size, 12, 3))]
    return Partial(flat_network, params)


def examples(f, count, seed=0):
    images = np.random.default_rng(seed).uniform(size=(count, *SHAPE)).astype(np.float32)
    return images, np.asarray(jnp.argmax(jax.vmap(f)(images), axis=-1))


def places(cell):
    row, column, rows, columns = map(int, cell)
    return {*itertools.product(range(row, row + rows), range(column, column + columns))}


def all_images(x, height, width):
    """Every position, every combination of ends, `[images, *x]`."""
    ends = np.array([*itertools.product((0.0, 1.0), repeat=height * width)], np.float32)
    images = []
    for row, column in itertools.product(range(x.shape[0] - height + 1), range(x.shape[1] - width + 1)):
        image = np.broadcast_to(x, (len(ends), *x.shape)).copy()
        image[:, row : row + height, column : column + width, 0] = ends.reshape(-1, height, width)
        images.append(image)
    return np.concatenate(images)


@pytest.mark.parametrize(("size", "stride"), [(2, 1), (2, 3), ((1, 3), 2), ((5, 4), 2)])
def test_cells_cover_each_position_once_down_to_single_ones(size, stride):
    perturbation = patch(size, stride=stride)
    assert isinstance(perturbation, Perturbation)
    rows, columns = perturbation.positions(SHAPE)
    cells = list(perturbation.cells(SHAPE))
    leaves = 0
    while cells:
        assert sum(len(places(cell)) for cell in cells) + leaves == rows * columns
        cell = cells.pop()
        parts = perturbation.split(cell, SHAPE)
        assert {*places(cell)} == {p for part in parts for p in places(part)} or len(places(cell)) == 1
        leaves += len(parts) == 0
        cells.extend(parts)
    assert leaves == rows * columns


def test_a_cell_holds_the_patches_of_its_positions_and_leaves_all_other_pixels():
    x = jnp.asarray(np.random.default_rng(0).uniform(size=(6, 7, 3)), jnp.float32)
    perturbation = patch((2, 3))
    for cell in perturbation.cells(x.shape):
        region, transform, point = perturbation.inputs(x, jnp.asarray(cell))
        touched = np.zeros((6, 7, 1), bool)
        for row, column in places(cell):
            touched[row : row + 2, column : column + 3] = True
        np.testing.assert_array_equal(region.lower, np.where(touched, 0, x))
        np.testing.assert_array_equal(region.upper, np.where(touched, 1, x))
        assert np.sum(np.any(np.asarray(transform(point) != x), axis=-1)) == 6
        assert region.contains(point)


def test_samples_are_of_one_window():
    x, perturbation = jnp.full(SHAPE, 0.5), patch((2, 3))
    drawn = np.asarray(jax.jit(jax.vmap(lambda key: perturbation.sample(x, key)))(jax.random.split(KEY, 200)))
    corners = set()
    for image in drawn:
        rows, columns, _ = np.nonzero(image != 0.5)
        assert np.ptp(rows) < 2
        assert np.ptp(columns) < 3
        corners.add((rows.min(), columns.min()))
    assert corners == {*itertools.product(range(4), range(2))}


@functools.cache
def certified(seed, stride, method="ibp", last_resort=("crown",)):
    f = network(seed)
    images, labels = examples(f, 12)
    return certify_perturbation(
        f, images, labels, patch(2, stride=stride), method=method, last_resort=last_resort, batch_size=16
    )


def test_verdicts_are_those_of_single_positions_and_agree_with_all_images():
    f, found = network(2), certified(2, 2)
    images, labels = examples(f, 12)
    alone = certified(2, 1)
    np.testing.assert_array_equal(found.verified, alone.verified)
    for image, label, verified, margin in zip(images, labels, found.verified, found.margin, strict=True):
        logits = jax.vmap(f)(jnp.asarray(all_images(image, 2, 2)))
        others = jnp.where(jnp.arange(3) == label, -jnp.inf, logits).max(axis=-1)
        worst = float(jnp.min(logits[:, label] - others))
        assert not verified or worst >= margin - 1e-5
    assert 0 < np.sum(found.verified) < 12


def test_last_resorts_prove_what_cheap_bounds_leave_and_nothing_else_is_given_to_them():
    cheap, both = certified(2, 2, last_resort=()), certified(2, 2)
    assert np.all(both.verified >= cheap.verified)
    assert np.sum(both.verified) > np.sum(cheap.verified)
    np.testing.assert_array_equal(both.cells[cheap.verified], cheap.cells[cheap.verified])
    assert both.method == "ibp,crown"


@pytest.fixture(scope="module")
def attacked():
    f = network(2)
    images, labels = examples(f, 12)
    attack = jax.jit(lambda x, label: patch_attack(f, x, label, patch(2), key=KEY, restarts=4))
    return images, labels, np.stack([attack(x, label) for x, label in zip(images, labels, strict=True)])


def test_the_attack_breaks_nothing_that_is_certified_and_something_that_is_not(attacked):
    f, (images, labels, points) = network(2), attacked
    right = np.asarray(jnp.argmax(jax.vmap(f)(jnp.asarray(points)), axis=-1)) == labels
    assert np.all(right >= certified(2, 2).verified)
    assert not np.all(right)
    for image, point in zip(images, points, strict=True):
        rows, columns, _ = np.nonzero(image != point)
        assert np.ptp(rows) < 2
        assert np.ptp(columns) < 2


def test_the_attack_is_nearly_as_bad_as_the_worst_of_all_images(attacked):
    f, (images, labels, points) = network(2), attacked

    def margin(x, label):
        logits = f(x)
        return logits[label] - jnp.max(jnp.where(jnp.arange(3) == label, -jnp.inf, logits))

    margins = jax.jit(jax.vmap(margin, (0, None)))
    for image, label, point in zip(images[:4], labels[:4], points[:4], strict=True):
        worst = float(margins(jnp.asarray(all_images(image, 2, 2)), label).min())
        assert float(margins(point[None], label)[0]) <= worst + 0.15


def test_a_patch_that_forgets_a_column_of_its_window_is_caught_by_the_attack(attacked):
    @jax.tree_util.register_dataclass
    @dataclasses.dataclass(frozen=True)
    class Narrow(type(patch(2))):
        def inputs(self, x, cell):
            return super().inputs(x, cell - jnp.array([0.0, 0.0, 0.0, 1.0]))._replace(point=x)

    f, (images, labels, points) = network(2), attacked
    found = certify_perturbation(f, images, labels, Narrow(0.0, 1.0, 2, 2, 1), method="crown", batch_size=16)
    right = np.asarray(jnp.argmax(jax.vmap(f)(jnp.asarray(points)), axis=-1)) == labels
    assert np.any(found.verified & ~right)


@pytest.mark.parametrize(("per", "k"), [("pixel", 1), ("channel", 2)])
def test_greedy_pixels_stay_in_the_region_and_the_first_is_the_best_of_all(per, k):
    f, x = network(1), jnp.asarray(np.random.default_rng(3).uniform(size=(2, 5, 2)), jnp.float32)
    region, label = cj.l0_ball(x, k, per=per), int(jnp.argmax(f(x)))
    found = jax.jit(functools.partial(pixel_attack, f))(x, label, region)
    assert region.contains(found)

    def margin(x):
        logits = f(x)
        return logits[label] - jnp.max(jnp.where(jnp.arange(3) == label, -jnp.inf, logits))

    assert margin(found) < margin(x)
    assert margin(found) >= jax.jit(cj.crown(cj.margins(f, label)))(region).lower.min() - 1e-5
    if k == 1:
        ends = np.array([*itertools.product((0.0, 1.0), repeat=2)], np.float32)
        points = [x.at[i, j].set(end) for i in range(2) for j in range(5) for end in ends]
        np.testing.assert_allclose(margin(found), jnp.min(jax.vmap(margin)(jnp.stack(points))), rtol=1e-6)


def test_mistakes_are_named_in_one_sentence():
    f = network(2)
    images, labels = examples(f, 1)
    for size in (6, (1, 5)):
        with pytest.raises(ValueError, match="at least as large as the patch: give a smaller patch"):
            certify_perturbation(f, images, labels, patch(size))
    for size in (0, -2, (3, -1), (1, 2, 3)):
        with pytest.raises(ValueError, match="number of pixels of at least 1"):
            patch(size)
    with pytest.raises(ValueError, match="two finite limits in order"):
        patch(2, (1.0, 0.0))
    with pytest.raises(ValueError, match="Unknown method"):
        certify_perturbation(f, images, labels, patch(2), last_resort=("magic",))
    x = jnp.zeros((1, 1, 7))
    with pytest.raises(ValueError, match="7 channels; expected at most 6"):
        pixel_attack(f, x, 0, cj.l0_ball(x, 1))
