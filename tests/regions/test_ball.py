"""Balls: what is in them, how they batch, how radii reach a certificate, which arguments are refused."""

import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

import cure_jax as cj
from cure_jax.regions import Interval, LpBall, l1_ball, l2_ball, linf_ball, lp_ball
from tests import networks
from tests.regions.balls import SHAPE, boxes


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


@pytest.mark.parametrize("p", [1.0, 1.05, 1.5, 2.0, 3.0, math.inf])
@pytest.mark.parametrize("radius", [5e30, 8.7e37, 3.0e38])
def test_radii_near_the_largest_number_are_radii(p, radius):
    """The reciprocal of one radius for all pixels counts as 0 from 2^126 on."""
    size, within = 9, (-radius, radius)

    def examined(x, radius, point):
        for bounds in (None, within):
            region = lp_ball(x, radius, p, bounds)
            yield {
                "vertex": region.contains(0.99 * radius * jax.nn.one_hot(2, size), 1e-6),
                "corner": region.contains(point, 1e-6),
                "nearest": region.project(point),
                "room": region.room()[0],
                "support": region.support(jnp.full(size, 1e-2)),
            }

    function = jax.jit(jax.vmap(lambda *arguments: list(examined(*arguments))))
    for found in function(jnp.zeros((1, size)), jnp.array([radius], jnp.float32), jnp.full((1, size), 0.99 * radius)):
        found = jax.tree.map(lambda value: np.asarray(value[0], np.float64), found)
        assert found["vertex"]
        assert found["corner"] == (p == math.inf)
        assert np.linalg.norm(found["nearest"] / radius, p) == pytest.approx(0.99 if p == math.inf else 1, rel=1e-4)
        np.testing.assert_allclose(found["room"], 1, rtol=1e-6)
        assert found["support"] == pytest.approx(1e-2 * radius * size ** (1 - 1 / p), rel=1e-3)
