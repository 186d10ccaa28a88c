"""One norm's ball around the balls of others."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

import cure_jax as cj

RADII = {1.0: 0.9, 2.0: 0.4, 3.0: 0.3, math.inf: 0.1}


@pytest.mark.parametrize("p", [1.0, 1.7, 2.0, math.inf])
def test_the_ball_holds_the_others_and_none_that_is_smaller_does(p):
    size, generator = 12, np.random.default_rng(0)
    radius = cj.covering_radius(RADII, p, size)
    offsets = [np.eye(size)[:1], np.ones((1, size)), generator.normal(size=(500, size)) ** 3]
    points = np.concatenate(
        [r * each / np.linalg.norm(each, q, axis=1)[:, None] for q, r in RADII.items() for each in offsets]
    )
    norms = np.linalg.norm(points, p, axis=1)
    assert norms.max() <= radius
    assert norms.max() >= radius * (1 - 3e-6)
    # As a region holds it, in float32.
    region = cj.lp_ball(jnp.zeros(size), radius, p)
    assert all(bool(region.contains(jnp.asarray(point, jnp.float32))) for point in points[norms.argsort()[-20:]])


@pytest.mark.parametrize(
    ("radii", "p", "size", "message"),
    [
        ({}, 2.0, 4, "got 0 radii"),
        ({2.0: 0.1}, 2.0, 0, "size=0"),
        ({0.5: 0.1}, 2.0, 4, "exponents of at least 1"),
        ({2.0: 0.1}, 0.5, 4, "exponents of at least 1"),
        ({2.0: -0.1}, 2.0, 4, "finite radii"),
        ({2.0: math.inf}, 2.0, 4, "finite radii"),
    ],
)
def test_mistakes_are_named(radii, p, size, message):
    with pytest.raises(ValueError, match=message):
        cj.covering_radius(radii, p, size)


FEW, MANY, SIZE = 0.9, 0.1, 12


def directions(size):
    """Random ones, and those of the faces: some entries are 1, one is in between, the others are 0."""
    generator = np.random.default_rng(1)
    faces = [
        np.concatenate([np.ones(ones), [between], np.zeros(size - ones - 1)])
        for ones in range(size)
        for between in np.linspace(0, 1, 201)[1:]
    ]
    return np.concatenate([faces, generator.normal(size=(500, size)) ** 3])


@pytest.mark.parametrize("ratio", [1.2, 3.0, 4.7, 11.9])
@pytest.mark.parametrize("p", [1.0, 1.3, 2.0, 5.0, math.inf])
def test_the_covered_ball_of_a_hull_is_the_largest_that_its_support_allows(p, ratio):
    radius = cj.covered_radius({1.0: ratio * MANY, math.inf: MANY}, p, SIZE, hull=True)
    a, q = directions(SIZE), math.inf if p == 1 else 1.0 if p == math.inf else p / (p - 1)
    support = MANY * np.maximum(ratio * np.abs(a).max(axis=1), np.abs(a).sum(axis=1))
    largest = np.min(support / np.linalg.norm(a, q, axis=1))
    assert radius < largest
    assert radius > largest * (1 - 1e-3)


@pytest.mark.parametrize("ratio", [1.2, 3.0, 11.9])
@pytest.mark.parametrize("p", [1.0, 1.3, 2.0, 5.0, math.inf])
def test_the_covered_ball_of_a_union_ends_at_the_nearest_point_outside(p, ratio):
    few = ratio * MANY
    radius = cj.covered_radius({1.0: few, math.inf: MANY}, p, SIZE)
    generator = np.random.default_rng(0)
    # One entry at the end of the box, and the others anyhow.
    rest = np.abs(np.concatenate([np.ones((1, SIZE - 1)), generator.normal(size=(500, SIZE - 1))]))
    rest = (few - MANY) * rest / rest.sum(axis=1, keepdims=True)
    outside = np.concatenate([np.full((len(rest), 1), MANY), rest], axis=1)
    nearest = np.linalg.norm(outside, p, axis=1).min()
    assert radius < nearest
    assert radius > nearest * (1 - 1e-5)


@pytest.mark.parametrize(("q", "p"), [(2.0, 1.0), (2.0, 4.0), (1.0, 2.0), (math.inf, 3.0), (3.0, 3.0)])
def test_of_one_norm_covered_and_covering_are_inverse(q, p):
    covered = cj.covered_radius({q: 0.7}, p, SIZE)
    np.testing.assert_allclose(cj.covering_radius({p: covered}, q, SIZE), 0.7, rtol=3e-6)


def test_one_ball_that_holds_the_other_is_all_there_is():
    for radii in ({1.0: 0.05, math.inf: MANY}, {1.0: 5.0, math.inf: MANY}):
        for hull in (False, True):
            larger = max(cj.covered_radius({q: radius}, 2.0, SIZE) for q, radius in radii.items())
            assert cj.covered_radius(radii, 2.0, SIZE, hull=hull) == larger


@pytest.mark.parametrize("p", [1.5, 2.0, 6.0])
def test_a_certificate_of_the_cut_hull_is_one_of_every_norm_in_between(p):
    generator = np.random.default_rng(3)
    for _ in range(5):
        x = jnp.asarray(np.clip(generator.uniform(-0.3, 1.3, SIZE), 0, 1), jnp.float32)
        a = jnp.asarray(generator.normal(size=SIZE), jnp.float32)
        region = cj.hull(cj.l1_ball(x, FEW), cj.linf_ball(x, MANY), within=(0.0, 1.0))
        radius = cj.covered_radius({1.0: FEW, math.inf: MANY}, p, SIZE, hull=True)
        # Of a linear function supports are the certificates: largest at the edge of what is proved.
        assert cj.lp_ball(x, radius, p, (0.0, 1.0)).support(a) <= region.support(a) + 1e-6
        assert cj.lp_ball(x, radius, p, (0.0, 1.0)).support(a) >= jnp.sum(a * x)


def test_balls_alone_prove_less_than_their_hull():
    union, hull = (cj.covered_radius({1.0: FEW, math.inf: MANY}, 2.0, SIZE, hull=hull) for hull in (False, True))
    assert union < 0.9 * hull
    with pytest.raises(ValueError, match="expected 1 and inf among them"):
        cj.covered_radius({2.0: 0.5, math.inf: MANY}, 2.0, SIZE, hull=True)
    with pytest.raises(ValueError, match="covered_radius got 0 radii"):
        cj.covered_radius({}, 2.0, SIZE)
