"""Regions: support functions are exact, projections are nearest points, arguments are checked."""

import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from jax.tree_util import Partial

import cure_jax as cj
from cure_jax.regions import Interval, LpBall, l1_ball, l2_ball, linf_ball, lp_ball
from tests import networks

NORMS = (1.0, 1.5, 2.0, 3.0, math.inf)
BOXES = (None, (0.0, 1.0))
SHAPE = (4, 5)

norms = pytest.mark.parametrize("p", NORMS)
boxes = pytest.mark.parametrize("within", BOXES)


def relative_norm(offset, radius, p):
    """|offset / radius|_p in numpy; infinite where a pixel of radius 0 moved."""
    offset, radius = np.asarray(offset, float).ravel(), np.asarray(radius, float).ravel()
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(offset == 0, 0, np.abs(offset) / radius)
    return np.linalg.norm(ratio, p)


def random_region(seed, p, within, shape=SHAPE):
    """Grey, black and white pixels, one radius for each pixel, a fifth of them 0, over two orders of magnitude."""
    r = np.random.default_rng(seed)
    x = np.clip(r.uniform(-0.5, 1.5, shape), 0, 1) if seed % 2 else r.uniform(0, 1, shape)
    radius = r.uniform(0.1, 1.0, shape) * r.choice([0.1, 1, 10], shape) * (r.uniform(size=shape) > 0.2)
    return lp_ball(x, radius if seed % 3 else 10.0 ** (seed % 2), p, within)


def in_region(region, x, tolerance):
    inside = relative_norm(np.asarray(x) - np.asarray(region.center), region.radius, region.p) <= 1 + tolerance
    if region.lower is None:
        return inside
    return inside and np.all(x >= region.lower - tolerance) and np.all(x <= region.upper + tolerance)


@jax.jit
def support_and_maximiser(region, coefficients):
    return jax.value_and_grad(region.support)(coefficients)


def random_points(region, seed, count=50):
    """Points of the region in numpy: on spheres of its norm, then clipped to the box, half of them on the boundary."""
    r = np.random.default_rng(seed)
    offsets = r.normal(size=(count, *SHAPE)) ** r.choice([1, 5], (count, 1, 1))
    sizes = np.linalg.norm(offsets.reshape(count, -1), region.p, axis=1) / np.minimum(r.uniform(0, 2, count), 1)
    center, radius, box = jax.tree.map(np.asarray, (region.center, region.radius, region.bounding_box()))
    return np.clip(center + offsets / sizes[:, None, None] * radius, box.lower, box.upper)


@jax.jit
def samples(region, key):
    return jax.vmap(region.sample)(jax.random.split(key, 50))


# Compiled once for all seeds of a test.
support_of = jax.jit(LpBall.support)
project = jax.jit(LpBall.project)


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


def offset_limits(region):
    low, high = region.bounding_box().lower, region.bounding_box().upper
    return np.asarray(low - region.center), np.asarray(high - region.center)


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


@boxes
@norms
def test_projection_is_inside_idempotent_and_nearest(p, within):
    with jax.enable_x64(True):
        for seed in range(8):
            region = random_region(seed, p, within)
            x = np.random.default_rng(seed).normal(size=SHAPE) * (3 if seed % 2 else 0.3)
            nearest = np.asarray(project(region, x))
            assert in_region(region, nearest, 1e-12), seed
            np.testing.assert_allclose(project(region, nearest), nearest, atol=1e-10)
            # A projection makes an obtuse angle with every point of the region; the support function knows the worst.
            worst, _ = support_and_maximiser(region, x - nearest)
            assert worst - np.sum((x - nearest) * nearest) <= 1e-8
            others = random_points(region, seed)
            assert np.max(np.sum((others - nearest) * (x - nearest), (1, 2))) <= 1e-8


@pytest.mark.parametrize("p", [1.5, 2.0, 3.0])
def test_projection_agrees_with_a_convex_solver(p):
    with jax.enable_x64(True):
        for seed in range(5):
            r = np.random.default_rng(seed)
            center, radius, x = np.clip(r.uniform(-0.5, 1.5, 5), 0, 1), r.uniform(0.3, 2, 5), 2 * r.normal(size=5)
            region = lp_ball(center, radius, p, (0.0, 1.0))
            solved = scipy.optimize.minimize(
                lambda o, t=x - center: np.sum((o - t) ** 2),
                np.zeros(5),
                bounds=np.stack(offset_limits(region), axis=1),
                constraints={"type": "ineq", "fun": lambda o, s=radius: 1 - np.sum(np.abs(o / s) ** p)},
                method="SLSQP",
                options={"ftol": 1e-14, "maxiter": 500},
            )
            np.testing.assert_allclose(project(region, x), center + solved.x, atol=1e-5)


@boxes
@norms
def test_a_point_inside_is_its_own_projection(p, within):
    region = random_region(3, p, within)
    for point in random_points(region, 1, 5).astype("f"):
        shrunk = region.center + 0.5 * (point - region.center)
        chex.assert_trees_all_equal(project(region, shrunk), shrunk)


@norms
def test_float32_projection_of_an_image_stays_in_ball_and_box(p):
    r = np.random.default_rng(0)
    image = (r.uniform(size=784) > 0.7).astype("f")
    region = lp_ball(image, 1.0, p, (0.0, 1.0))
    for scale in (0.1, 1.0, 1e3):
        nearest = project(region, image + scale * r.normal(size=784).astype("f"))
        assert in_region(region, nearest, 1e-5)
        assert scale < 1 or relative_norm(nearest - image, np.ones(784), p) > 0.999


@boxes
@norms
def test_samples_are_inside_and_spread(p, within):
    region = random_region(4, p, within)
    points = np.asarray(samples(region, jax.random.key(2)))
    assert all(in_region(region, x, 1e-5) for x in points)
    movable = np.asarray(region.bounding_box().radius) > 1e-3
    assert np.all(points.std(axis=0)[movable] > 0)


@norms
def test_samples_of_the_ball_alone_are_uniform(p):
    region = lp_ball(jnp.zeros(3), 2.0, p)
    sizes = [
        relative_norm(x, 2 * np.ones(3), p) for x in jax.vmap(region.sample)(jax.random.split(jax.random.key(0), 2000))
    ]
    # The norm of a uniform point of a ball in dimension n has the distribution function t^n.
    np.testing.assert_allclose(np.quantile(sizes, [0.1, 0.5, 0.9]), np.array([0.1, 0.5, 0.9]) ** (1 / 3), atol=0.03)


@norms
def test_steepest_step_has_unit_norm_and_climbs(p):
    region = random_region(2, p, None)
    gradient = jnp.asarray(np.random.default_rng(1).normal(size=SHAPE), jnp.float32)
    step = region.steepest(region.center, gradient)
    np.testing.assert_allclose(relative_norm(step, region.radius, p), 1, rtol=1e-5)
    assert jnp.all(step * gradient >= 0)
    best = support_of(region, gradient) - jnp.sum(gradient * region.center)
    if p in (1, 2, math.inf):
        np.testing.assert_allclose(jnp.sum(step * gradient), best, rtol=1e-4)
    np.testing.assert_allclose(region.steepest(region.center, 1e-30 * gradient), step, rtol=1e-4)
    chex.assert_trees_all_equal(region.steepest(region.center, jnp.zeros(SHAPE)), jnp.zeros(SHAPE))


@boxes
@norms
def test_climbing_a_linear_function_ends_at_its_support(p, within):
    r = np.random.default_rng(0)
    region = lp_ball(np.clip(r.uniform(-0.5, 1.5, 30), 0, 1).astype("f"), 2.0, p, within)
    gradient = jnp.asarray(r.normal(size=30), jnp.float32)

    def step(size, x):
        return region.project(x + size * region.steepest(x, gradient))

    @jax.jit
    def climbed(x):
        for size in (0.3, 0.03):
            x = jax.lax.fori_loop(0, 300, lambda _, x, size=size: step(size, x), x)
        return jnp.sum(gradient * x)

    np.testing.assert_allclose(climbed(region.center), support_of(region, gradient), rtol=2e-3)


def test_steepest_l1_step_spreads_over_the_largest_pixels_that_can_move():
    region = l1_ball(jnp.full((200,), 0.5), 2.0, (0.0, 1.0))
    gradient = jnp.zeros(200).at[:5].set(jnp.array([9.0, -8.0, 7.0, -6.0, 5.0]))
    x = region.center.at[0].set(1.0).at[1].set(0.0)
    expected = jnp.zeros(200).at[2].set(1.0).at[3].set(-1.0)
    np.testing.assert_allclose(region.steepest(x, gradient), expected)
    chex.assert_trees_all_equal(region.steepest(x, jnp.zeros(200)), jnp.zeros(200))
    only_one_left = jnp.zeros(200).at[2].set(3.0)
    np.testing.assert_allclose(region.steepest(x, only_one_left), jnp.zeros(200).at[2].set(2.0))


@boxes
@pytest.mark.parametrize("p", [1.0, 1.5, 2.0, math.inf])
def test_jit_and_vmap_agree_with_the_plain_call(p, within):
    x = jnp.asarray(np.random.default_rng(0).uniform(size=(3, *SHAPE)), jnp.float32)
    a = jnp.asarray(np.random.default_rng(1).normal(size=(3, *SHAPE)), jnp.float32)
    keys = jax.random.split(jax.random.key(0), 3)

    def everything(x, a, key):
        region = lp_ball(x, 0.7, p, within)
        box = region.bounding_box()
        return (
            region.support(a), region.project(x + a), region.steepest(x, a), region.sample(key),
            box, box.center, region.contains(x + 0.1 * a),
        )  # fmt: skip

    batched = jax.jit(jax.vmap(everything))(x, a, keys)
    for i in range(3):
        chex.assert_trees_all_close(
            jax.tree.map(lambda v, i=i: v[i], batched), everything(x[i], a[i], keys[i]), atol=1e-5
        )


def test_eps_may_be_traced_and_regions_may_be_batched():
    x = jnp.full((2, 3), 0.5)
    values = jax.jit(lambda eps: l2_ball(x[0], eps, (0.0, 1.0)).support(jnp.ones(3)))(0.3)
    np.testing.assert_allclose(values, 1.5 + 0.3 * math.sqrt(3), rtol=1e-6)
    regions = jax.vmap(l2_ball)(x, jnp.array([0.1, 0.2]))
    np.testing.assert_allclose(
        jax.vmap(LpBall.support)(regions, jnp.ones((2, 3))), 1.5 + jnp.sqrt(3) * jnp.array([0.1, 0.2])
    )


def test_bounding_box_is_the_ball_s_cut_by_the_box():
    region = l2_ball(jnp.array([0.0, 0.5, 1.0]), jnp.array([0.2, 0.0, 0.3]), (0.0, jnp.array([1.0, 1.0, 1.1])))
    chex.assert_trees_all_close(region.bounding_box(), Interval(jnp.array([0, 0.5, 0.7]), jnp.array([0.2, 0.5, 1.1])))
    assert region.shape == (3,)
    assert region.dtype == jnp.float32


def test_contains_knows_ball_box_fixed_pixels_and_tolerance():
    region = l2_ball(jnp.array([0.0, 0.5, 0.5]), jnp.array([1.0, 1.0, 0.0]), (0.0, 1.0))
    assert region.contains(jnp.array([0.6, 1.0, 0.5]))
    assert not region.contains(jnp.array([0.95, 0.9, 0.5]))
    assert not region.contains(jnp.array([-0.1, 0.5, 0.5]))
    assert not region.contains(jnp.array([0.0, 0.5, 0.51]))
    assert region.contains(jnp.array([-0.01, 0.5, 0.51]), tolerance=0.02)
    assert not region.contains(jnp.array([jnp.nan, 0.5, 0.5]))


@pytest.mark.parametrize("p", [1.0, 2.0, math.inf])
@pytest.mark.parametrize("eps", [-0.1, math.nan])
def test_nothing_is_in_a_ball_whose_traced_radius_is_none(eps, p):
    assert not jax.jit(lambda eps: lp_ball(X, eps, p).contains(jnp.asarray(X)))(eps)


def test_interval_operations():
    one, two = (
        Interval(jnp.array([0.0, 1.0]), jnp.array([2.0, 3.0])),
        Interval(jnp.array([1.0, 0.0]), jnp.array([3.0, 2.0])),
    )
    chex.assert_trees_all_equal(one.intersect(two), Interval(jnp.array([1.0, 1.0]), jnp.array([2.0, 2.0])))
    chex.assert_trees_all_equal(one.union(two), Interval(jnp.array([0.0, 0.0]), jnp.array([3.0, 3.0])))
    chex.assert_trees_all_equal((one.center, one.radius), (jnp.array([1.0, 2.0]), jnp.array([1.0, 1.0])))
    assert one.contains(jnp.array([2.0, 1.0]))
    assert not one.contains(jnp.array([2.1, 1.0]))
    assert not one.contains(jnp.array([jnp.nan, 1.0]))
    assert one.contains(jnp.array([2.1, 1.0]), tolerance=0.2)
    assert (one.shape, one.dtype) == ((2,), jnp.float32)


def test_dtype_of_x_is_kept():
    with jax.enable_x64(True):
        for dtype in (jnp.float32, jnp.float64):
            x = jnp.full((3,), 0.5, dtype)
            for p in (1.0, 2.0, math.inf):
                region = lp_ball(x, np.float64(0.1), p, (0, 1))
                outputs = (region, region.support(x), region.project(2 * x), region.sample(jax.random.key(0)))
                assert {leaf.dtype for leaf in jax.tree.leaves(outputs)} == {jnp.dtype(dtype)}


X = np.array([0.2, 0.8], np.float32)


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: linf_ball(np.array([0, 255]), 0.1), TypeError, "x has dtype int.*convert it"),
        (lambda: linf_ball(np.zeros((0, 3)), 0.1), ValueError, r"x has shape \(0, 3\), no pixels.*check"),
        (lambda: lp_ball(X, 0.1, 0.5), ValueError, "p is 0.5; a norm needs.*give 1, 2"),
        (lambda: lp_ball(X, 0.1, math.nan), ValueError, "p is nan"),
        (lambda: l2_ball(X, -0.1), ValueError, "eps is -0.1.*at least 0.*correct"),
        (lambda: l2_ball(X, math.nan), ValueError, "eps is nan"),
        (lambda: l2_ball(X, np.array([0.1, math.inf])), ValueError, r"eps is inf at \(1,\)"),
        (lambda: l1_ball(X, np.ones(3)), ValueError, r"eps has shape \(3,\).*x of shape \(2,\).*give a scalar"),
        (lambda: l1_ball(X, 0.1, (0.0, np.ones(3))), ValueError, r"within\[1\] has shape \(3,\)"),
        (lambda: l1_ball(X, 0.1, (1.0, 0.0)), ValueError, r"within\[0\] is 1.0.*must not exceed"),
        (lambda: l1_ball(X, 0.1, (0.0, 0.5)), ValueError, r"x is 0.8.* at \(1,\).*must lie in"),
        (lambda: l1_ball(X * np.float32(np.nan), 0.1, (0.0, 1.0)), ValueError, "x is nan"),
        (lambda: l1_ball(X, 0.1, (0.0, 0.5, 1.0)), TypeError, r"within is \(0.0, 0.5, 1.0\); expected a pair.*give"),
        (lambda: jax.jit(lambda x: l2_ball(x, -0.1).radius)(X), ValueError, "eps is -0.1"),
    ],
)
def test_wrong_arguments_are_named(build, error, message):
    with pytest.raises(error, match=message):
        build()


@pytest.mark.parametrize(("method", "p"), [("crown", 1.0), ("crown", 2.0), ("crown", math.inf), ("ibp", 1.5)])
def test_radii_of_pixels_and_examples_reach_the_certificate(p, method):
    """Half of the pixels fixed, a radius for each example: less is proved of larger regions, in every way to ask."""
    f = Partial(networks.mlp, networks.mlp_params(5, (4, 6, 3)))
    x = np.random.default_rng(0).uniform(size=(3, 4)).astype("f")
    labels = np.asarray(jax.vmap(f)(x)).argmax(axis=1)
    radii = np.array([0.01, 0.05, 0.2], np.float32)[:, None] * np.array([[1, 0, 1, 0]], np.float32)

    @jax.jit
    @jax.vmap
    def margins(x, label, eps):
        return cj.certify(f, x, label, lp_ball(x, eps, p, (0.0, 1.0)), method).margin

    partly = margins(x, labels, radii)
    assert np.all(margins(x, labels, 2 * radii) < partly)
    everywhere = margins(x, labels, radii + radii[:, ::-1])
    assert np.all(everywhere <= partly + 1e-6)
    assert p == 1 or np.all(everywhere < partly)
    # What is fixed may as well be a part of the network.
    others = lambda y: f(jnp.stack([y[0], x[1, 1], y[1], x[1, 3]]))  # noqa: E731
    alone = jax.jit(lambda y: cj.certify(others, y, labels[1], lp_ball(y, 0.05, p, (0.0, 1.0)), method).margin)
    # (`stack` mixes coordinates: after it `ibp` knows the box of the first layer's input only.)
    assert method == "ibp" or abs(alone(x[1, ::2]) - partly[1]) < 1e-4
    regions = {"part": Partial(lambda eps, x: lp_ball(x, eps, p, (0.0, 1.0)), radii[2])}
    found = cj.certify_dataset(f, x, labels, regions, method=method, batch_size=3)
    np.testing.assert_allclose(found.margin["part"][2], partly[2], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", ["ibp", "crown"])
def test_radii_are_in_pixels_whatever_the_normalisation_in_the_network(method):
    mean, std = jnp.array([0.4, 0.5]), jnp.array([0.2, 0.5])
    weights, x = jnp.array([[1.0, -0.5], [0.3, 2.0]]), jnp.array([0.6, 0.3])
    f = lambda x: ((x - mean) / std) @ weights  # noqa: E731
    # The nearest adversarial point of this linear network is at the distance margin / |difference|, in pixels.
    difference = jnp.linalg.norm((weights[:, 0] - weights[:, 1]) / std)
    margin = f(x)[0] - f(x)[1]
    prove = jax.jit(lambda eps: cj.certify(f, x, 0, l2_ball(x, eps), method))
    np.testing.assert_allclose(prove(0.1).margin, margin - 0.1 * difference, rtol=1e-5)
    assert prove(0.99 * margin / difference).verified
    assert not prove(1.01 * margin / difference).verified
