"""Projections are nearest points, samples lie inside, and steps climb as far as their norm allows."""

import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

from cure_jax.regions import l1_ball, lp_ball
from tests.regions.balls import (
    SHAPE,
    boxes,
    in_region,
    norms,
    offset_limits,
    project,
    random_points,
    random_region,
    relative_norm,
    samples,
    support_and_maximiser,
    support_of,
)


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
