"""Inputs that differ in few pixels: against all of their corners, and as a region of every bound."""

import dataclasses
import itertools
import math
import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

import cure_jax as cj
from cure_jax import testing
from tests.bounds.test_coefficients import NETWORKS
from tests.networks import random_mlp

KEY = jax.random.key(0)
# Of the input, what is counted, and how many.
CASES = [((2, 3), "pixel", 1), ((2, 2, 2), "pixel", 2), ((2, 2, 2), "channel", 3)]
cases = pytest.mark.parametrize(("shape", "per", "k"), CASES)


def random_ball(seed, shape, per, k, dtype=np.float32):
    """Around grey, black and white pixels, some of which cannot move."""
    r = np.random.default_rng(seed)
    x = np.clip(r.uniform(-0.5, 1.5, shape), 0, 1).astype(dtype)
    reach = (r.choice([0.2, 1.0], shape) * (r.uniform(size=shape) > 0.2)).astype(dtype)
    return cj.l0_ball(x, k, (np.maximum(x - reach, 0), np.minimum(x + reach, 1)), per)


def subsets(region):
    """For each choice of what may differ, which numbers may, `[*x]`."""
    shape = region.shape
    whole = region.per == "pixel" and len(shape) > 2
    places = shape[:-1] if whole else shape
    for chosen in itertools.combinations(range(math.prod(places)), region.k):
        free = np.isin(np.arange(math.prod(places)), chosen).reshape(places)
        yield np.broadcast_to(free[..., None], shape) if whole else free


def corners(region):
    """All of them, `[corners, *x]`."""
    center, lower, upper = map(np.asarray, (region.center, region.lower, region.upper))
    for free in subsets(region):
        for ends in itertools.product((False, True), repeat=int(free.sum())):
            at = np.zeros(region.shape, bool)
            at[free] = ends
            yield np.where(free, np.where(at, upper, lower), center)


@cases
def test_it_is_a_region(shape, per, k):
    testing.assert_region_valid(random_ball(0, shape, per, k), key=KEY, convex=False)


@cases
def test_support_is_attained_at_the_best_corner(shape, per, k):
    with jax.enable_x64(True):
        support_and_maximiser = jax.jit(lambda region, a: jax.value_and_grad(region.support)(a))
        for seed in range(4):
            region, r = random_ball(seed, shape, per, k, np.float64), np.random.default_rng(seed + 9)
            points = np.stack([*corners(region)])
            for a in (r.normal(size=shape), np.round(r.normal(size=shape))):
                support, maximiser = support_and_maximiser(region, jnp.asarray(a))
                np.testing.assert_allclose(support, np.max(np.sum(points * a, tuple(range(1, points.ndim)))))
                np.testing.assert_allclose(np.sum(a * maximiser), support)
                assert (
                    np.min(np.max(np.abs(points - np.asarray(maximiser)).reshape(len(points), -1), axis=1)) < 1e-12
                    or 0 in a
                )


@cases
def test_projection_is_the_nearest_point(shape, per, k):
    with jax.enable_x64(True):
        region = random_ball(1, shape, per, k, np.float64)
        for seed in range(5):
            x = 2 * np.random.default_rng(seed).normal(size=shape)
            clipped = np.clip(x, region.lower, region.upper)
            points = np.stack([np.where(free, clipped, region.center) for free in subsets(region)])
            distances = np.sum(np.square(points - x).reshape(len(points), -1), axis=1)
            projected = region.project(jnp.asarray(x))
            assert region.contains(projected)
            np.testing.assert_allclose(np.sum(np.square(projected - x)), np.min(distances), rtol=1e-12)


def test_the_hull_of_numbers_is_a_box_cut_by_a_scaled_l1_ball():
    with jax.enable_x64(True):
        region = random_ball(0, (6,), "pixel", 2, np.float64)
        down, up = np.asarray(region.center - region.lower), np.asarray(region.upper - region.center)
        for seed in range(10):
            a = np.random.default_rng(seed).normal(size=6)
            # How far up and down each pixel goes, relative to its room.
            worth = np.concatenate([a * up, -a * down])
            found = scipy.optimize.linprog(-worth, np.ones((1, 12)), [2.0], bounds=(0, 1))
            np.testing.assert_allclose(region.support(jnp.asarray(a)), np.sum(a * region.center) - found.fun)


def test_what_is_counted_by_hand():
    x = jnp.full((2, 1, 3), 0.5)
    point = x.at[0, 0].set(jnp.array([0.0, 1.0, 0.2]))
    assert cj.l0_ball(x, 1).contains(point)
    assert not cj.l0_ball(x, 2, per="channel").contains(point)
    assert cj.l0_ball(x, 3, per="channel").contains(point)
    assert not cj.l0_ball(x, 1).contains(point.at[1, 0, 0].set(0.6))
    assert cj.l0_ball(x, 1).contains(point.at[1, 0, 0].set(0.6), 0.11)
    assert not cj.l0_ball(x, 1).contains(x.at[0, 0, 0].set(1.2))
    assert not cj.l0_ball(x, 6, per="channel").contains(x.at[0, 0, 0].set(jnp.nan))


def test_none_leaves_the_center_and_all_of_them_the_box():
    x, a = jnp.array([0.2, 0.9, 0.5]), jnp.array([1.0, -2.0, 3.0])
    nothing, everything = cj.l0_ball(x, 0), cj.l0_ball(x, 3)
    np.testing.assert_allclose(nothing.support(a), jnp.sum(a * x), rtol=1e-6)
    chex.assert_trees_all_equal(nothing.bounding_box().upper, x)
    chex.assert_trees_all_equal(nothing.project(x + 1), x)
    np.testing.assert_allclose(everything.support(a), cj.box(jnp.zeros(3), jnp.ones(3)).support(a), rtol=1e-6)
    assert bool(jax.jit(lambda x: cj.certify(lambda x: x, x, 1, cj.l0_ball(x, 0)).verified)(x))


def test_huge_limits_and_huge_points_are_projected():
    x = jnp.array([0.3, -1e30, 0.0])
    region = cj.l0_ball(x, 1, (-3e38, 3e38))
    for point in (jnp.array([1e-30, -1e30, 0.0]), jnp.array([3e38, -3e38, 1.0])):
        projected = region.project(point)
        assert region.contains(projected)
        assert jnp.sum(projected != x) == 1


@pytest.mark.parametrize(
    ("error", "message", "arguments"),
    [
        (ValueError, "k is 5 for x of shape .*4 pixels.*correct k", {"k": 5}),
        (ValueError, "k is -1 for x of shape", {"k": -1}),
        (ValueError, "k is 9 for x of shape .*8 channels", {"k": 9, "per": "channel"}),
        (TypeError, "k", {"k": 1.5}),
        (ValueError, "per is 'row'; expected 'pixel' or 'channel'", {"per": "row"}),
        (TypeError, "within", {"within": None}),
        (TypeError, "within", {"within": 1.0}),
        (ValueError, r"within\[1\] is inf .*finite", {"within": (0.0, math.inf)}),
        (ValueError, "the center must lie in", {"within": (0.6, 1.0)}),
        (TypeError, "floating-point", {"x": np.zeros((2, 2, 2), int)}),
    ],
)
def test_mistakes_are_named_in_one_sentence(error, message, arguments):
    with pytest.raises(error, match=message):
        cj.l0_ball(**{"x": jnp.full((2, 2, 2), 0.5), "k": 1, **arguments})


def test_a_support_that_counts_too_few_or_forgets_channels_is_refuted():
    region = random_ball(2, (2, 2, 2), "pixel", 2)
    for wrong in (dataclasses.replace(region, k=1), dataclasses.replace(region, per="channel")):

        @jax.tree_util.register_dataclass
        @dataclasses.dataclass(frozen=True)
        class Wrong(cj.L0Ball):
            def support(self, coefficients, wrong=wrong):
                return wrong.support(coefficients)

        fields = {field.name: getattr(region, field.name) for field in dataclasses.fields(region)}
        with pytest.raises(AssertionError, match="`support` is less than at a sample"):
            testing.assert_region_valid(Wrong(**fields), key=KEY, convex=False)


@jax.jit
def all_bounds(f, region):
    network = lambda x: f(x.ravel())  # noqa: E731
    bounds = (cj.ibp, lambda f: cj.crown(f, "ibp"), cj.crown, lambda f: cj.vertex_crown(f, 2), cj.lipschitz)
    points = jax.vmap(region.sample)(jax.random.split(KEY, 500))
    return [bound(network)(region) for bound in bounds], jax.vmap(network)(points)


@pytest.mark.parametrize(("shape", "k"), [((6,), 2), ((2, 1, 3), 1)])
def test_bounds_hold_at_all_corners_and_samples(shape, k):
    f, region = random_mlp(3, (6, 8, 8, 3)), random_ball(4, shape, "pixel", k)
    found, samples = all_bounds(f, region)
    values = jnp.concatenate([samples, jax.vmap(lambda x: f(x.ravel()))(jnp.stack([*corners(region)]))])
    for bounds in found:
        assert jnp.all(values >= bounds.lower[None] - 1e-5)
        assert jnp.all(values <= bounds.upper[None] + 1e-5)


def test_intervals_are_exact_in_the_first_layer():
    with jax.enable_x64(True):
        weights = np.random.default_rng(0).normal(size=(8, 5))
        region = random_ball(3, (2, 2, 2), "pixel", 2, np.float64)
        values = np.stack([2 * (x - 0.5).ravel() @ weights for x in corners(region)])
        bounds = jax.jit(cj.ibp(lambda x: jax.nn.relu((2 * (x - 0.5)).ravel() @ weights + 100.0) - 100.0))(region)
        np.testing.assert_allclose(bounds.lower, values.min(axis=0), rtol=1e-9)
        np.testing.assert_allclose(bounds.upper, values.max(axis=0), rtol=1e-9)


def test_concave_functions_of_one_pixel_are_bounded_exactly_at_its_ends():
    r = np.random.default_rng(1)
    weights, out = r.normal(size=(6, 20)).astype(np.float32), -np.abs(r.normal(size=(20, 3))).astype(np.float32)
    f = lambda x: jax.nn.relu(x @ weights) @ out  # noqa: E731
    region = cj.l0_ball(jnp.asarray(r.uniform(size=6), jnp.float32), 1)
    exact = jnp.min(jax.vmap(f)(jnp.stack([*corners(region)])), axis=0)
    np.testing.assert_allclose(jax.jit(cj.vertex_crown(f, 0))(region).lower, exact, rtol=1e-5)
    assert jnp.all(jax.jit(cj.crown(f))(region).lower < exact - 0.1)


def concave(x):
    return 1.0 - jnp.sum(jax.nn.relu(x - 0.2))[None]


def mixed(channels, seed=0):
    """A concave function whose neurons see several channels and pixels with different signs."""
    r, size = np.random.default_rng(seed), 9 * channels
    weights, out = r.normal(size=(size, 20)).astype(np.float32), -np.abs(r.normal(size=(20, 3))).astype(np.float32)
    return lambda x: jax.nn.relu(x.ravel() @ weights) @ out + x.ravel() @ weights[:, :3]


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_concave_functions_of_one_pixel_are_bounded_exactly_at_the_corners_of_its_box(channels):
    x = jnp.asarray(np.random.default_rng(1).uniform(size=(3, 3, channels)), jnp.float32)
    region, f = cj.l0_ball(x, 1, (x - 0.1, x + 0.3)), mixed(channels)
    exact = jnp.min(jax.vmap(f)(jnp.stack([*corners(region)])), axis=0)
    found = jax.jit(cj.vertex_crown(f, 0))(region).lower
    np.testing.assert_allclose(found, exact, rtol=1e-5, atol=1e-5)
    if channels > 1:
        of_numbers = jax.jit(cj.vertex_crown(f, 0))(cj.l0_ball(x, channels, (x - 0.1, x + 0.3), per="channel")).lower
        assert jnp.all(found > of_numbers + 0.01)


def test_at_vertices_a_pixel_of_many_channels_is_as_many_numbers():
    pixel, numbers = (cj.l0_ball(jnp.full((3, 3, 5), 0.2), k, per=per) for k, per in ((1, "pixel"), (5, "channel")))
    found, of_numbers, by_crown = (
        jax.jit(bound(concave))(region)
        for bound, region in ((cj.vertex_crown, pixel), (cj.vertex_crown, numbers), (cj.crown, pixel))
    )
    chex.assert_trees_all_close(found, of_numbers)
    np.testing.assert_allclose(found.lower[0], 1 - 5 * 0.8, rtol=1e-5)
    assert by_crown.lower[0] < found.lower[0] - 0.1


def depthwise(x):
    for seed, features in enumerate((4, 8)):
        kernel = np.random.default_rng(seed).normal(size=(3, 3, 1, features)).astype(np.float32)
        numbers, groups = ("NHWC", "HWIO", "NHWC"), x.shape[-1]
        x = jax.lax.conv_general_dilated(
            x[None], kernel, (1, 1), "SAME", dimension_numbers=numbers, feature_group_count=groups
        )[0]
        x = jax.nn.relu(x)
    return x


_QUICK = {("strides", 2), ("residual", 1), ("depthwise", 1), ("one of two", 2)}


@pytest.mark.parametrize(
    ("name", "k"),
    [
        pytest.param(name, k, marks=[] if (name, k) in _QUICK else pytest.mark.slow)
        for name in ("strides", "residual", "depthwise", "one of two")
        for k in (1, 2)
    ],
)
def test_windows_of_pixels_are_dense_coefficients(name, k, monkeypatch):
    networks = NETWORKS | {"depthwise": depthwise, "one of two": lambda x: NETWORKS["two"](x * jnp.array([[[1.0, 0]]]))}
    x = jnp.asarray(np.random.default_rng(0).uniform(size=(7, 6, 2)), jnp.float32)
    region, f = cj.l0_ball(x, k), networks[name]
    bounds = jax.jit(cj.vertex_crown(f, 0))(region)
    for module in ("vertex_crown", "folding.linear"):
        monkeypatch.setattr(sys.modules[f"cure_jax.bounds.{module}"], "moving_axes", lambda graph, node: ())
    chex.assert_trees_all_close(bounds, jax.jit(cj.vertex_crown(f, 0))(region), atol=1e-3, rtol=1e-4)
    samples = jax.vmap(f)(jax.vmap(region.sample)(jax.random.split(KEY, 300)))
    assert jnp.all((samples >= bounds.lower[None] - 1e-4) & (samples <= bounds.upper[None] + 1e-4))


def test_convolutions_see_it_through_their_windows(monkeypatch):
    r, numbers = np.random.default_rng(0), ("NHWC", "HWIO", "NHWC")
    kernels = [jnp.asarray(r.normal(size=(3, 3, *c)).astype(np.float32)) for c in ((2, 3), (3, 2))]

    def f(x):
        x = x[None] - 0.25
        for kernel in kernels:
            x = jax.nn.relu(jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=numbers))
        return jnp.sum(x, (0, 1, 2))

    region = cj.l0_ball(jnp.asarray(r.uniform(size=(5, 5, 2)), jnp.float32), 2)
    bounds = jax.jit(cj.crown(f))(region)
    monkeypatch.setattr(sys.modules["cure_jax.bounds.folding.linear"], "moving_axes", lambda graph, node: ())
    chex.assert_trees_all_close(bounds, jax.jit(cj.crown(f))(region), rtol=1e-5, atol=1e-5)
    samples = jax.vmap(f)(jax.vmap(region.sample)(jax.random.split(KEY, 200)))
    assert jnp.all((samples >= bounds.lower[None] - 1e-4) & (samples <= bounds.upper[None] + 1e-4))


@pytest.mark.parametrize("attack", [cj.pgd, cj.apgd])
def test_attacks_stay_inside_and_find_the_worst_of_a_linear_function(attack):
    region = random_ball(5, (2, 2, 2), "pixel", 2)
    weights = np.random.default_rng(0).normal(size=(8, 2)).astype(np.float32)
    f = lambda x: x.ravel() @ weights  # noqa: E731
    found = jax.jit(lambda region: attack(f, region.center, 0, region, key=KEY, steps=6, loss="margin"))(region)
    assert region.contains(found)
    gains = [f(point)[1] - f(point)[0] for point in corners(region)]
    np.testing.assert_allclose(f(found)[1] - f(found)[0], max(gains), rtol=1e-5)


def test_a_search_for_proofs_finds_counterexamples_in_the_region_only():
    # Both pixels have to move; the hull of what one can do holds a point half way for each.
    f = lambda x: jnp.stack([1.4 - jnp.maximum(x[0] + x[1], 0.0), 0.0 * x[0]])  # noqa: E731
    x = jnp.zeros(2)
    verdict = cj.verify(f, x, 0, cj.l0_ball(x, 2), timeout=20.0)
    assert verdict.status.name == "FALSIFIED"
    assert cj.l0_ball(x, 2).contains(jnp.asarray(verdict.witness))
    assert cj.verify(f, x, 0, cj.l0_ball(x, 1), timeout=20.0).status.name == "VERIFIED"
