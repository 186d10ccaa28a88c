"""The support of a ball is attained in it, exceeded nowhere, and has useful derivatives."""

import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

from cure_jax.regions import LpBall, l2_ball, lp_ball
from tests.regions.balls import (
    SHAPE,
    boxes,
    in_region,
    norms,
    offset_limits,
    project,
    random_points,
    random_region,
    support_and_maximiser,
    support_of,
)


@boxes
@norms
def test_support_is_attained_in_the_region_at_its_own_gradient(p, within):
    with jax.enable_x64(True):
        for seed in range(12):
            region = random_region(seed, p, within)
            coefficients = np.random.default_rng(seed + 100).normal(size=SHAPE)
            support, maximiser = support_and_maximiser(region, coefficients)
            np.testing.assert_allclose(np.sum(coefficients * maximiser), support, rtol=1e-10, atol=1e-10)
            # Pixels of radius 0 must be their centers to the bit.
            assert in_region(region, maximiser, 1e-9), seed


@boxes
@norms
def test_no_point_of_the_region_exceeds_the_support(p, within):
    with jax.enable_x64(True):
        for seed in range(6):
            region = random_region(seed, p, within)
            far = 5 * np.random.default_rng(seed).normal(size=SHAPE)
            points = np.concatenate([random_points(region, seed), [project(region, far)]])
            for coefficients in (far, points[0] - points[1]):
                support, _ = support_and_maximiser(region, coefficients)
                assert np.max(np.sum(points * coefficients, (1, 2))) <= support + 1e-9


def knapsack(value, cap):
    """The fractional knapsack by sorting."""
    total, room = 0.0, 1.0
    for i in np.argsort(-value):
        take = min(cap[i], room)
        total, room = total + take * value[i], room - take
    return total


@pytest.mark.parametrize("tied", [False, True])
def test_support_of_the_cut_l1_ball_is_the_fractional_knapsack(tied):
    with jax.enable_x64(True):
        for seed in range(20):
            region = random_region(seed, 1.0, (0.0, 1.0))
            a = np.random.default_rng(seed).normal(size=SHAPE)
            a = np.round(a) / np.where(region.radius > 0, region.radius, 1) if tied else a
            low, high = offset_limits(region)
            with np.errstate(invalid="ignore"):
                cap = np.nan_to_num(np.where(a > 0, high, -low) / region.radius)
            expected = knapsack(np.abs(a * region.radius).ravel(), cap.ravel()) + np.sum(a * region.center)
            support, maximiser = support_and_maximiser(region, a)
            np.testing.assert_allclose(support, expected, rtol=1e-11)
            assert in_region(region, maximiser, 1e-9), seed


@pytest.mark.parametrize("p", [1.5, 2.0, 3.0])
def test_support_of_the_cut_ball_agrees_with_a_convex_solver(p):
    with jax.enable_x64(True):
        for seed in range(5):
            r = np.random.default_rng(seed)
            x, radius, a = np.clip(r.uniform(-0.5, 1.5, 6), 0, 1), r.uniform(0.3, 2, 6), r.normal(size=6)
            region = lp_ball(x, radius, p, (0.0, 1.0))
            solved = scipy.optimize.minimize(
                lambda o, a=a: -np.sum(a * o),
                np.zeros(6),
                bounds=np.stack(offset_limits(region), axis=1),
                constraints={"type": "ineq", "fun": lambda o, s=radius: 1 - np.sum(np.abs(o / s) ** p)},
                method="SLSQP",
                options={"ftol": 1e-13, "maxiter": 500},
            )
            np.testing.assert_allclose(support_of(region, a), np.sum(a * x) - solved.fun, rtol=1e-6, atol=1e-6)


def test_support_of_a_quarter_of_a_disc_by_hand():
    region = l2_ball(jnp.array([0.0, 1.0]), 1.0, (0.0, 1.0))
    np.testing.assert_allclose(region.support(jnp.array([3.0, -4.0])), -4 + 5, rtol=1e-6)
    np.testing.assert_allclose(region.support(jnp.array([3.0, 4.0])), 4 + 3, rtol=1e-6)
    np.testing.assert_allclose(region.support(jnp.array([-3.0, 4.0])), 4, rtol=1e-6)


@norms
def test_box_only_lowers_the_support_and_radius_only_raises_it(p):
    for seed in range(6):
        r = np.random.default_rng(seed)
        x, a = r.uniform(size=SHAPE).astype("f"), r.normal(size=SHAPE).astype("f")
        previous = np.sum(a * x)
        for eps in (0.0, 0.1, 0.5, 1.0, 3.0, 30.0):
            cut = support_of(lp_ball(x, eps, p, (0.0, 1.0)), a)
            assert cut >= previous - 1e-5
            assert cut <= support_of(lp_ball(x, eps, p), a) + 1e-5
            previous = cut
        np.testing.assert_allclose(previous, np.sum(np.maximum(a, 0)), rtol=1e-5)


@boxes
@norms
def test_radius_zero_leaves_the_center_only(p, within):
    x = jnp.linspace(0.0, 1.0, 20).reshape(SHAPE)
    region = lp_ball(x, 0.0, p, within)
    a = jnp.asarray(np.random.default_rng(0).normal(size=SHAPE), jnp.float32)
    np.testing.assert_allclose(region.support(a), jnp.sum(a * x), rtol=1e-6)
    for point in (region.project(x + a), region.sample(jax.random.key(0)), x + region.steepest(x, a)):
        chex.assert_trees_all_equal(point, x)


@boxes
@norms
def test_support_of_zero_coefficients_is_zero_with_a_finite_gradient_in_the_middle(p, within):
    region = random_region(1, p, within)
    support, gradient = support_and_maximiser(region, jnp.zeros(SHAPE))
    assert support == 0
    middle = region.bounding_box().center if p == math.inf and within else region.center
    np.testing.assert_allclose(gradient, middle, rtol=1e-6)
    chex.assert_tree_all_finite(jax.grad(lambda region: region.support(jnp.zeros(SHAPE)))(region))


@norms
def test_support_of_zero_coefficients_survives_the_folding_of_constants(p):
    region = random_region(1, p, (0.0, 1.0))
    support, gradient = jax.jit(lambda: jax.value_and_grad(region.support)(jnp.zeros(SHAPE)))()
    assert support == 0
    chex.assert_tree_all_finite(gradient)


@norms
def test_support_is_attained_in_the_region_with_coefficients_below_rounding(p):
    region = lp_ball(jnp.array([0.4, 0.6, 0.5]), 0.3, p, (0.0, 1.0))
    for a in ([3.9e-2, 4.6e-12, 0.0], [-123.0, 5e-7, 1e-20], [2.6e-8, 1e-30, 6.9]):
        support, maximiser = support_and_maximiser(region, jnp.array(a))
        assert region.contains(maximiser, 1e-5), a
        np.testing.assert_allclose(np.sum(np.array(a) * np.asarray(maximiser, float)), support, rtol=1e-6)


@boxes
@norms
@pytest.mark.parametrize("scale", [1e-6, 1e6, 1e15])
def test_support_scales_with_the_coefficients(p, within, scale):
    region = random_region(5, p, within)
    a = jnp.asarray(np.random.default_rng(3).normal(size=SHAPE), jnp.float32)
    np.testing.assert_allclose(support_of(region, a * scale), support_of(region, a) * scale, rtol=2e-5)


@norms
def test_support_differentiates_through_center_radius_and_box(p):
    with jax.enable_x64(True):
        r = np.random.default_rng(7)
        x, radius, a = r.uniform(0.1, 0.9, 6), r.uniform(0.2, 2, 6), r.normal(size=6)
        parts = (x, radius, np.zeros(6), np.ones(6))

        @jax.jit
        def support(center, radius, lower, upper):
            return LpBall(center, radius, lower, upper, p).support(jnp.asarray(a))

        gradients = jax.grad(support, argnums=(0, 1, 2, 3))(*map(jnp.asarray, parts))
        for i, gradient in enumerate(gradients):
            for j in range(6):
                step = 1e-6 * np.eye(6)[j]
                ends = [support(*(v + s * step * (k == i) for k, v in enumerate(parts))) for s in (1, -1)]
                np.testing.assert_allclose(gradient[j], (ends[0] - ends[1]) / 2e-6, rtol=1e-4, atol=1e-6)


def exact_reach(a, room, radius, p):
    """max <a, t> over |t|_p <= radius, 0 <= t <= room, for a >= 0, in extended precision, by the KKT conditions."""
    a, room, radius = (np.asarray(value, np.longdouble) for value in (a, room, radius))
    room = np.minimum(room, radius)
    if p == math.inf or np.sum((room / radius) ** p) <= 1:
        return np.sum(a * room)
    if p == 1:
        order = np.argsort(-a)
        before = np.concatenate([[0], np.cumsum(room[order])[:-1]])
        return np.sum(a[order] * np.clip(radius - before, 0, room[order]))

    def at(logarithm):
        with np.errstate(divide="ignore"):
            t = np.minimum(np.exp(np.minimum((np.log(a) - logarithm) / (p - 1), 11000)), room)
        return np.sum((t / radius) ** p), np.sum(a * t)

    low, high = np.longdouble(-12000), np.longdouble(12000)
    for _ in range(300):
        middle = (low + high) / 2
        low, high = (middle, high) if at(middle)[0] > 1 else (low, middle)
    (above, most), (below, least) = at(low), at(high)
    # Where t jumps, part of the jump fills the ball.
    return least + (most - least) * (0 if above == below else (1 - below) / (above - below))


@pytest.mark.parametrize("p", [1.0, 1.0005, 1.001, 1.01, 1.05, 1.2, 1.5, 1.8, 2.0, 2.5, 3.0, 20.0, math.inf])
def test_support_is_right_for_every_radius_and_p(p):
    reach = jax.jit(lambda region, a: region.support(a))
    for exponent in range(-30, 39, 4):
        r = np.random.default_rng(exponent + 30)
        for size in (5, 64):
            a = (r.normal(size=size) ** r.choice([1, 5])).astype(np.float32)
            x = r.uniform(size=size).astype(np.float32)
            # Around 0, where nothing but the reach is rounded; the box has gray and, every other time, black and white.
            x = np.round(x) if exponent % 8 else x
            radius = np.float32(10.0**exponent * r.uniform(1, 3))
            region = lp_ball(np.zeros(size, np.float32), radius, p, (-x, 1 - x))
            room = np.where(a > 0, 1 - x, x)
            np.testing.assert_allclose(
                reach(region, a), float(exact_reach(np.abs(a), room, radius, p)), rtol=3e-6, err_msg=f"{radius} {size}"
            )


@pytest.mark.parametrize("p", [1.0, 1.01, 1.5, 2.0, 3.0])
def test_a_pixel_that_can_move_has_room_at_every_radius(p):
    region = lp_ball(jnp.array([0.3, 0.0]), 3e38, p, (0.0, 1.0))
    below, above = region.room()
    assert np.all(np.asarray([below[0], *above]) > 0)
    assert below[1] == 0
    gradient = jax.grad(region.support)(jnp.array([2.0, -1.0]))
    np.testing.assert_allclose(gradient, [1.0, 0.0])
