"""Hulls: as every region, and the l_p balls between their members are inside."""

import functools
import inspect
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

import cure_jax as cj
from cure_jax.regions import Hull, Interval, hull, l1_ball, l2_ball, linf_ball, lp_ball
from tests import networks

SHAPE = (3, 4)
# Norms and radii of the members: none of them holds another in 12 dimensions.
MEMBERS = {
    "linf l1": ((math.inf, 0.2), (1.0, 1.2)),
    "linf l2 l1": ((math.inf, 0.2), (2.0, 0.5), (1.0, 1.0)),
}

members = pytest.mark.parametrize("name", list(MEMBERS))
boxes = pytest.mark.parametrize("within", [None, (0.0, 1.0)])


def random_hull(seed, name, within=None):
    """Around grey, black and white pixels, every fifth fixed for one of the members."""
    r = np.random.default_rng(seed)
    x = np.clip(r.uniform(-0.5, 1.5, SHAPE), 0, 1)
    balls = [lp_ball(x, eps * r.uniform(0.5, 1.5, SHAPE), p, within) for p, eps in MEMBERS[name]]
    balls[0] = lp_ball(x, np.where(r.uniform(size=SHAPE) > 0.2, balls[0].radius, 0), balls[0].p, within)
    return hull(*balls)


def random_points(region, seed, count=40):
    """Points of the hull by its definition: convex combinations of points of its members."""
    r = np.random.default_rng(seed)
    keys = jax.random.split(jax.random.key(seed), (len(region.members), count))
    samples = [np.asarray(jax.vmap(m.sample)(k)) for m, k in zip(region.members, keys, strict=True)]
    return np.einsum("nm,mn...->n...", r.dirichlet(np.full(len(samples), 0.3), count), np.stack(samples))


support_and_maximiser = jax.jit(lambda region, a: jax.value_and_grad(region.support)(a))
project = jax.jit(Hull.project)


@boxes
@members
def test_no_point_of_the_hull_exceeds_its_support_and_one_attains_it(name, within):
    with jax.enable_x64(True):
        for seed in range(5):
            region = random_hull(seed, name, within)
            r = np.random.default_rng(seed)
            for a in (r.normal(size=SHAPE), r.normal(size=SHAPE) ** 5):
                support, maximiser = support_and_maximiser(region, a)
                assert np.max(np.sum(random_points(region, seed) * a, (1, 2))) <= support + 1e-9
                np.testing.assert_allclose(np.sum(a * maximiser), support, rtol=1e-9)
                assert any(member.contains(maximiser, 1e-9) for member in region.members)
                np.testing.assert_allclose(support_and_maximiser(region, 7 * a)[0], 7 * support, rtol=1e-9)


@boxes
@members
def test_projection_is_the_nearest_point_of_the_hull(name, within):
    with jax.enable_x64(True):
        for seed in range(6):
            region = random_hull(seed, name, within)
            x = np.random.default_rng(seed).normal(size=SHAPE) * (0.3 + seed)
            nearest = project(region, x)
            # The direction to x is a certificate of both: no point of the hull reaches further along it.
            reach, _ = support_and_maximiser(region, x - nearest)
            assert reach - np.sum((x - nearest) * nearest) <= 1e-8
            others = random_points(region, seed)
            assert np.max(np.sum((others - np.asarray(nearest)) * np.asarray(x - nearest), (1, 2))) <= 1e-8
            np.testing.assert_allclose(project(region, nearest), nearest, atol=3e-3)


def in_hull_of_linf_and_l1(offset, eps_inf, eps_1):
    """By definition, as a linear program: w y + (1 - w) z with |y|_inf <= eps_inf and |z|_1 <= eps_1."""
    n = len(offset)
    eye, zero, one = np.eye(n), np.zeros((n, n)), np.ones((n, 1))
    # Variables: w y, (1 - w) z, its magnitude, w.
    rows = [
        np.hstack([eye, zero, zero, -eps_inf * one]),
        np.hstack([-eye, zero, zero, -eps_inf * one]),
        np.hstack([zero, eye, -eye, 0 * one]),
        np.hstack([zero, -eye, -eye, 0 * one]),
        np.hstack([np.zeros((1, 2 * n)), np.ones((1, n)), [[eps_1]]]),
    ]
    limits = np.concatenate([np.zeros(4 * n), [eps_1]])
    equal = np.hstack([eye, eye, zero, 0 * one])
    bounds = [(None, None)] * (2 * n) + [(0, None)] * n + [(0, 1)]
    return scipy.optimize.linprog(np.zeros(3 * n + 1), np.vstack(rows), limits, equal, offset, bounds).success


def test_membership_is_that_of_a_linear_program():
    x, generator = jnp.full(8, 0.5), np.random.default_rng(0)
    region = hull(linf_ball(x, 0.2), l1_ball(x, 0.9))
    offsets = generator.normal(size=(60, 8)) ** generator.choice([1, 3], (60, 1))
    offsets *= generator.uniform(0.2, 0.8, (60, 1)) / np.linalg.norm(offsets, axis=1, keepdims=True)
    contains = jax.jit(jax.vmap(lambda offset: region.contains(x + offset, 1e-3)))
    inside = np.asarray(contains(offsets.astype(np.float32)))
    alone = np.minimum(np.max(np.abs(offsets), axis=1) / 0.2, np.sum(np.abs(offsets), axis=1) / 0.9) <= 1
    for offset, found in zip(offsets, inside, strict=True):
        # The tolerance is less than 2 % of the radii.
        assert not found or in_hull_of_linf_and_l1(0.98 * offset, 0.2, 0.9)
        assert found or not in_hull_of_linf_and_l1(1.05 * offset, 0.2, 0.9)
    assert np.any(alone)
    assert np.any(inside & ~alone)
    assert not np.all(inside)


def test_contains_says_yes_for_points_of_members_and_never_for_points_outside():
    x = jnp.full(4, 0.5)
    region = hull(linf_ball(x, 0.1), l1_ball(x, 0.2))
    contains = jax.jit(region.contains, static_argnums=1)
    assert region.contains(x)
    assert region.contains(x + 0.099)
    assert region.contains(x.at[0].add(0.199))
    between = x + jnp.array([0.14, 0.05, 0.05, 0.05])
    assert not region.contains(between)
    assert contains(between, 1e-4)
    assert not contains(x + 0.15, 0.01)
    assert not contains(x.at[0].set(jnp.nan), 0.01)


@pytest.mark.parametrize("eps", [-0.1, math.nan])
def test_nothing_is_in_a_hull_with_an_empty_member(eps):
    x = jnp.full(2, 0.5)
    contains = jax.jit(lambda eps: hull(l2_ball(x, 0.1), linf_ball(x, eps)).contains(x, 0.01))
    assert contains(0.1)
    assert not contains(eps)


def test_samples_are_convex_combinations_and_reach_the_boundary():
    with jax.enable_x64(True):
        region = random_hull(1, "linf l1", (0.0, 1.0))
        points = jax.jit(jax.vmap(region.sample))(jax.random.split(jax.random.key(0), 60))
        distance = jnp.max(jnp.abs(points - jax.vmap(region.project)(points)))
        assert distance < 3e-3
        # A point of the boundary is extreme in the direction in which it was found; the middle of the hull is not.
        center = region.members[0].center[None]
        outward = points - center
        reach = jax.vmap(region.support)(outward) - jnp.sum(outward * center, (1, 2))
        share = jnp.sum(outward**2, (1, 2)) / reach
        assert jnp.sum(share > 0.95) > 3
        assert jnp.sum(share < 0.8) > 3


def test_climbing_a_linear_function_ends_at_its_support():
    region = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), random_hull(3, "linf l1", (0.0, 1.0)))
    gradient = jnp.asarray(np.random.default_rng(4).normal(size=SHAPE), jnp.float32)

    @jax.jit
    def climb(x):
        step = lambda size: lambda _, x: region.project(x + size * region.steepest(x, gradient))  # noqa: E731
        return jax.lax.fori_loop(0, 60, step(0.02), jax.lax.fori_loop(0, 20, step(0.5), x))

    support, _ = support_and_maximiser(region, gradient)
    np.testing.assert_allclose(jnp.sum(gradient * climb(region.members[0].center)), support, rtol=1e-3)
    assert not jnp.any(region.steepest(region.members[0].center, jnp.zeros(SHAPE)) != 0)


def test_the_largest_balls_in_the_hull_of_l1_and_linf_are_those_of_croce_and_hein():
    """Theorem 3.1 of ICLR 2020: eps1 / (eps1 / epsinf - alpha + alpha^q)^(1/q) alpha = frac(eps1 / epsinf)."""
    with jax.enable_x64(True):
        x, eps_1, eps_inf = jnp.zeros(12), 1.3, 0.3
        region = hull(l1_ball(x, eps_1), linf_ball(x, eps_inf))
        whole, alpha = divmod(eps_1 / eps_inf, 1)
        generator = np.random.default_rng(0)
        directions = generator.normal(size=(300, 12)) ** generator.choice([1, 3, 5], (300, 1))
        supports = jax.vmap(region.support)(jnp.asarray(directions))
        contains = jax.jit(region.contains, static_argnums=1)
        for p in (1.25, 2.0, 4.0):
            q = p / (p - 1)
            eps = eps_1 / (eps_1 / eps_inf - alpha + alpha**q) ** (1 / q)
            # The ball is inside: its support is nowhere larger. It is the largest: somewhere they are equal.
            assert np.all(eps * np.linalg.norm(directions, q, axis=1) <= supports + 1e-12)
            tangent = np.zeros(12)
            tangent[: int(whole)], tangent[int(whole)] = 1, alpha
            np.testing.assert_allclose(eps * np.linalg.norm(tangent, q), region.support(jnp.asarray(tangent)))
            touching = jax.grad(lp_ball(x, eps, p).support)(jnp.asarray(tangent))
            assert contains(0.99 * touching, 1e-4)
            assert not contains(1.01 * touching, 1e-4)
        # For p = 2 about the geometric mean of the two radii.
        assert abs(eps_1 / math.sqrt(eps_1 / eps_inf - alpha + alpha**2) / math.sqrt(eps_1 * eps_inf) - 1) < 0.1


def test_jit_and_vmap_agree_with_the_plain_call():
    x = jnp.asarray(np.random.default_rng(0).uniform(size=(2, *SHAPE)), jnp.float32)
    a = jnp.asarray(np.random.default_rng(1).normal(size=(2, *SHAPE)), jnp.float32)

    def everything(x, a):
        region = hull(l1_ball(x, 0.7, (0.0, 1.0)), l2_ball(x, 0.5))
        return region.support(a), region.bounding_box(), region.project(x + a), region.steepest(x, a)

    batched = jax.jit(jax.vmap(everything))(x, a)
    one = jax.tree.map(lambda leaf: leaf[1], batched)
    chex.assert_trees_all_close(one, jax.jit(everything)(x[1], a[1]), atol=1e-4)


def test_gradients_are_finite_at_zero_and_pass_through_radii():
    x = jnp.full(4, 0.5)

    def support(eps, a):
        return hull(linf_ball(x, eps), l1_ball(x, 0.2, (0.0, 1.0))).support(a)

    chex.assert_tree_all_finite(jax.grad(support, (0, 1))(0.1, jnp.zeros(4)))
    a = jnp.array([1.0, -2.0, 0.5, 0.0])
    np.testing.assert_allclose(jax.grad(support)(0.2, a), 3.5, rtol=1e-6)
    np.testing.assert_allclose(jax.grad(support)(0.01, a), 0)


def test_bounding_box_holds_all_members_and_dtype_is_kept():
    x = jnp.array([0.1, 0.5])
    region = hull(linf_ball(x, jnp.array([0.3, 0.1])), l1_ball(x, 0.2, (0.0, 1.0)))
    chex.assert_trees_all_close(region.bounding_box(), Interval(jnp.array([-0.2, 0.3]), jnp.array([0.4, 0.7])))
    assert region.shape == (2,)
    points = jax.jit(lambda x, key: (region.project(2 * x), region.sample(key), region.support(x)))
    for leaf in jax.tree.leaves((region, points(x, jax.random.key(0)))):
        assert leaf.dtype == region.dtype == jnp.float32
    nested = hull(region, l2_ball(x, 0.35))
    assert nested.support(x) >= region.support(x)
    chex.assert_trees_all_equal(nested.bounding_box().lower, jnp.array([-0.25, 0.15]))


@jax.jit
@functools.partial(jax.vmap, in_axes=(0, 0, None))
def certified_and_attacked(params, x, eps):
    f = functools.partial(networks.mlp, params)
    label = jnp.argmax(f(x))
    balls = [cj.lp_ball(x, scale * eps, p, (0.0, 1.0)) for p, scale in ((math.inf, 1.0), (1.0, 1.5))]
    region = hull(*balls)
    certificate = cj.certify(f, x, label, region)
    point = cj.pgd(f, x, label, region, key=jax.random.key(0), steps=10, loss="margin")
    alone = jnp.stack([cj.certify(f, x, label, ball).margin for ball in balls])
    # By theorem 3.1 with eps1 / epsinf = 1.5 this ball lies in the hull.
    between = cj.l2_ball(x, 1.5 / math.sqrt(1.25) * eps, (0.0, 1.0))
    points = networks.grid(region.bounding_box())
    robust = jnp.all((jnp.argmax(jax.vmap(f)(points), axis=1) == label) | ~jax.vmap(between.contains)(points))
    return certificate, alone, jnp.argmax(f(point)) == label, region.contains(point, 1e-3), robust


def test_certificates_of_a_hull_hold_for_attacks_and_for_the_norms_between():
    r = np.random.default_rng(0)
    x = jnp.asarray(r.uniform(size=(8, 2)), jnp.float32)
    params = [networks.mlp_params(seed) for seed in range(8)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *params)
    proved, broken = 0, 0
    for eps in (0.02, 0.1, 0.3):
        results = certified_and_attacked(stacked, x, jnp.float32(eps))
        certificate, alone, survived, inside, robust = jax.device_get(results)
        assert np.all(inside)
        assert np.all(survived[certificate.verified])
        assert np.all(robust[certificate.verified])
        assert np.all(certificate.margin[:, None] <= alone + 1e-5)
        proved, broken = proved + certificate.verified.sum(), broken + (~survived).sum()
    assert proved > 6
    assert broken > 1


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((), ValueError, "no regions; expected at least one"),
        ((1.0,), TypeError, "got 'float'; expected regions"),
        ((Interval(jnp.zeros(2), jnp.ones(2)),), TypeError, "got 'Interval'; expected regions"),
        (
            (l2_ball(jnp.zeros(2), 1.0), l2_ball(jnp.zeros(3), 1.0)),
            ValueError,
            r"shapes \[\(2,\), \(3,\)\]; expected one",
        ),
    ],
)
def test_wrong_arguments_are_named(arguments, error, message):
    with pytest.raises(error, match=message):
        inspect.unwrap(hull)(*arguments)


def test_different_dtypes_are_named():
    with jax.enable_x64(True), pytest.raises(TypeError, match=r"dtypes \['float32', 'float64'\]"):
        hull(l2_ball(np.zeros(2, np.float32), 1.0), l2_ball(np.zeros(2), 1.0))
