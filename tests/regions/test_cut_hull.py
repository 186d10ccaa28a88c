"""The hull of a whole l_1 and a whole l_inf ball, cut by a box: against linear programs, and for the l_p in between."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

import cure_jax as cj
from cure_jax import testing
from cure_jax.regions import CutHull

SIZE = 7


def random_cut_hull(seed):
    """Around grey, black and white pixels; radii over two orders of magnitude, some of them 0."""
    r = np.random.default_rng(seed)
    x = np.clip(r.uniform(-0.5, 1.5, SIZE), 0, 1)
    many, few = (eps * r.choice([0.1, 1.0], SIZE) * (r.uniform(size=SIZE) > 0.2) for eps in (0.3, 1.5))
    if seed % 2:
        many, few = 0.2, 0.9
    return cj.hull(cj.linf_ball(x, many), cj.l1_ball(x, few), within=(0.0, 1.0))


def constraints(region):
    """The region as `rows @ (x, u, v, w) <= limits`: x = center + u + v, u in the l_1 part and v in the other."""
    n, eye, zero = SIZE, np.eye(SIZE), np.zeros((SIZE, SIZE))
    few, many = np.asarray(region.few), np.asarray(region.many)
    column = lambda values: np.asarray(values, float)[:, None]  # noqa: E731
    inverse = np.where(few > 0, 1 / np.where(few > 0, few, 1), 0)
    rows = [
        np.block([zero, eye, -eye, zero, np.zeros((n, 1))]),  # |u| <= s
        np.block([zero, -eye, -eye, zero, np.zeros((n, 1))]),
        np.block([np.zeros((1, 2 * n)), inverse[None], np.zeros((1, n)), -np.ones((1, 1))])[:, : 4 * n + 1],
        np.block([zero, zero, np.diag((few == 0).astype(float)), zero, np.zeros((n, 1))]),  # s = 0 where fixed
        np.block([zero, zero, zero, eye, column(many)]),  # |v| <= (1 - w) many
        np.block([zero, zero, zero, -eye, column(many)]),
        np.block([np.zeros((1, 4 * n)), np.ones((1, 1))]),
        np.block([np.zeros((1, 4 * n)), -np.ones((1, 1))]),
    ]
    rows[2] = np.concatenate([np.zeros(2 * n), inverse, np.zeros(n), [-1.0]])[None]
    limits = [np.zeros(n), np.zeros(n), [0.0], np.zeros(n), many, many, [1.0], [0.0]]
    equal = np.block([eye, -eye, zero, -eye, np.zeros((n, 1))])
    return np.concatenate(rows), np.concatenate(limits), equal, np.asarray(region.center)


def best_by_linear_program(region, a):
    rows, limits, equal, center = constraints(region)
    cost = np.concatenate([-a, np.zeros(3 * SIZE + 1)])
    bounds = [(0.0, 1.0)] * SIZE + [(None, None)] * SIZE + [(0, None)] * SIZE + [(None, None)] * SIZE + [(0, 1)]
    found = scipy.optimize.linprog(cost, rows, limits, equal, center, bounds)
    assert found.status == 0
    return -found.fun


@pytest.mark.parametrize("seed", range(12))
def test_support_is_that_of_a_linear_program_and_attained(seed):
    with jax.enable_x64(True):
        region, r = random_cut_hull(seed), np.random.default_rng(seed + 50)
        support = jax.jit(jax.value_and_grad(region.support))
        for a in (r.normal(size=SIZE), r.normal(size=SIZE) ** 5, np.round(2 * r.normal(size=SIZE))):
            value, maximiser = support(jnp.asarray(a))
            np.testing.assert_allclose(value, best_by_linear_program(region, a), rtol=1e-8, atol=1e-8)
            np.testing.assert_allclose(np.sum(a * maximiser), value, rtol=1e-7, atol=1e-7)
            assert region.contains(maximiser, 1e-7)


@pytest.mark.parametrize("seed", range(4))
def test_every_method_is_about_the_same_set(seed):
    testing.assert_region_valid(random_cut_hull(seed), key=jax.random.key(seed))


def radius_between(many, few, p):
    """Of the largest l_p ball in the hull of whole balls: Croce & Hein (ICLR 2020), theorem 3.1."""
    ratio, q = few / many, p / (p - 1)
    alpha = ratio - math.floor(ratio)
    return few / (ratio - alpha + alpha**q) ** (1 / q)


# Pixels near an edge of the box, and directions out of the box for some of them and into it for others.
CENTER = np.array([0.4, 0.28, 0.0, 0.76, 0.18, 1.0])
MANY, FEW, LIMITS = 0.38, 1.38, (0.0, 1.0)


def test_the_hull_of_cut_balls_misses_a_point_of_the_cut_ball_in_between_and_the_cut_hull_does_not():
    with jax.enable_x64(True):
        direction = jnp.array([-0.954, -0.907, 0.962, 0.834, -0.788, 1.055])
        between = cj.l2_ball(CENTER, radius_between(MANY, FEW, 2.0), LIMITS)
        reach, point = jax.value_and_grad(between.support)(direction)
        assert between.contains(point, 1e-9)
        cut_before = cj.hull(cj.linf_ball(CENTER, MANY, LIMITS), cj.l1_ball(CENTER, FEW, LIMITS))
        assert reach - cut_before.support(direction) > 0.1
        assert not cut_before.contains(point, 1e-3)
        cut_after = cj.hull(cj.linf_ball(CENTER, MANY), cj.l1_ball(CENTER, FEW), within=LIMITS)
        assert cut_after.contains(point, 1e-9)
        # A certificate of the first that is none of the second.
        logits = lambda x: jnp.stack([reach - 0.05, jnp.sum(direction * x)])  # noqa: E731
        verdicts = [bool(cj.certify(logits, CENTER, 0, region).verified) for region in (cut_before, between, cut_after)]
        assert verdicts == [True, False, False]


@pytest.mark.parametrize("p", [1.2, 2.0, 8.0, *(pytest.param(p, marks=pytest.mark.slow) for p in (1.5, 3.0))])
def test_balls_of_every_norm_in_between_are_in_the_cut_hull(p):
    with jax.enable_x64(True):
        ball = cj.lp_ball(CENTER, radius_between(MANY, FEW, p), p, LIMITS)
        region = cj.hull(cj.linf_ball(CENTER, MANY), cj.l1_ball(CENTER, FEW), within=LIMITS)
        points = jax.vmap(ball.sample)(jax.random.split(jax.random.key(0), 200))
        assert np.all(jax.vmap(lambda x: region.contains(x, 1e-9))(points))
        for seed in range(20):
            a = jnp.asarray(np.random.default_rng(seed).normal(size=CENTER.size) ** 3)
            assert ball.support(a) <= region.support(a) + 1e-9
        # With smaller balls, some of these points are outside.
        inner = cj.hull(cj.linf_ball(CENTER, 0.8 * MANY), cj.l1_ball(CENTER, 0.8 * FEW), within=LIMITS)
        assert not np.all(jax.vmap(inner.contains)(points))


@pytest.mark.parametrize(
    "bound",
    [
        cj.ibp,
        cj.crown,
        *(pytest.param(slow, marks=pytest.mark.slow) for slow in (cj.box_ball, cj.lipschitz, cj.sdp_crown)),
    ],
)
def test_bounds_take_it_as_any_region(bound):
    f = lambda x: jnp.stack([jnp.sum(jax.nn.relu(x - 0.4)), jnp.max(x)])  # noqa: E731
    testing.assert_bounds_sound(bound, f, random_cut_hull(1), key=jax.random.key(0))


def test_huge_radii_leave_the_box():
    x = jnp.array([0.3, 0.6])
    region = cj.hull(cj.linf_ball(x, 3e38), cj.l1_ball(x, 3e38), within=(0.0, 1.0))
    value, gradient = jax.value_and_grad(region.support)(jnp.array([2.0, -3.0]))
    np.testing.assert_allclose(value, 2.0, rtol=1e-6)
    assert np.all(np.isfinite(gradient))


def test_what_cannot_be_cut_is_refused():
    x = jnp.full(3, 0.5)
    many, few = cj.linf_ball(x, 0.1), cj.l1_ball(x, 0.5)
    assert isinstance(cj.hull(few, many, within=(0.0, 1.0)), CutHull)
    for regions in ((many,), (many, few, few), (many, cj.l2_ball(x, 0.3)), (many, cj.l1_ball(x, 0.5, (0.0, 1.0)))):
        with pytest.raises(ValueError, match="one whole l_inf and one whole l_1 ball"):
            cj.hull(*regions, within=(0.0, 1.0))
    with pytest.raises(ValueError, match="different centers"):
        cj.hull(many, cj.l1_ball(x + 0.1, 0.5), within=(0.0, 1.0))
    with pytest.raises(TypeError, match="within"):
        cj.hull(many, few, within=1.0)


def test_nothing_is_proved_of_balls_around_different_centers_while_they_are_traced():
    """Certificates trace the functions that make regions."""

    @jax.jit
    def verified(x, by):
        region = cj.hull(cj.linf_ball(x + by, 0.05), cj.l1_ball(x, 0.02), within=(0.0, 1.0))
        return cj.certify(lambda z: jnp.stack([0.7 - z[0], 0.0]), x, 0, region).verified

    x = jnp.full(3, 0.5)
    assert bool(verified(x, 0.0))
    assert not bool(verified(x, 0.3))
