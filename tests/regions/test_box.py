"""A box has the ends it was given, to the bit, and does what an l_inf ball does."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cure_jax as cj
from cure_jax import testing
from tests.networks import mlp, mlp_params


def random_box(seed: int, shape: tuple[int, ...] = (2, 3)) -> cj.Box:
    """A third of the pixels is fixed."""
    r = np.random.default_rng(seed)
    lower = r.normal(size=shape).astype(np.float32)
    width = r.uniform(0, 2, shape).astype(np.float32) * (r.uniform(size=shape) > 0.3).astype(np.float32)
    return cj.box(lower, lower + width)


@pytest.mark.parametrize("seed", range(3))
def test_it_is_a_region(seed):
    testing.assert_region_valid(random_box(seed), key=jax.random.key(seed))


def test_its_ends_are_exact_where_those_of_a_ball_are_rounded():
    lower, upper = jnp.array([-0.3035311, 1.0]), jnp.array([0.7, 1.0000001])
    region = cj.box(lower, upper)
    for end in (lower, upper):
        assert bool(region.contains(end))
        np.testing.assert_array_equal(region.project(end + jnp.sign(end - region.center)), end)
    np.testing.assert_array_equal(region.bounding_box().lower, lower)
    np.testing.assert_array_equal(region.bounding_box().upper, upper)
    assert not bool(region.contains(jnp.nextafter(upper, jnp.array([9.0, 9.0]))))
    ball = cj.linf_ball((lower + upper) / 2, (upper - lower) / 2).bounding_box()
    assert np.any(np.asarray(ball.lower) != lower) or np.any(np.asarray(ball.upper) != upper)
    gradient = jax.grad(region.support)(jnp.array([2.0, -3.0]))
    np.testing.assert_array_equal(gradient, jnp.array([upper[0], lower[1]]))


def test_samples_stay_inside_of_huge_and_of_tiny_boxes():
    for lower, upper in (([-3e38, 0.1], [3e38, 0.1]), ([1.0, 0.3], [1.0000001, 0.3])):
        region = cj.box(jnp.array(lower, jnp.float32), jnp.array(upper, jnp.float32))
        samples = jax.vmap(region.sample)(jax.random.split(jax.random.key(0), 100))
        assert bool(jnp.all(jax.vmap(region.contains)(samples)))


@pytest.mark.parametrize("method", ["ibp", "crown", "alpha_crown", "sdp_crown"])
def test_bounds_are_those_of_the_same_linf_ball(method):
    f, x = lambda x: mlp(mlp_params(0), x), jnp.array([0.5, 0.25])
    bound = jax.jit(getattr(cj, method)(f))
    # Numbers whose sums are exact.
    of_box = bound(cj.box(x - jnp.float32(0.125), x + jnp.float32(0.125)))
    of_ball = bound(cj.linf_ball(x, 0.125))
    np.testing.assert_allclose(of_box.lower, of_ball.lower, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(of_box.upper, of_ball.upper, rtol=1e-5, atol=1e-5)


def test_convolutions_see_it_through_their_windows():
    kernel = jnp.asarray(np.random.default_rng(0).normal(size=(3, 3, 1, 2)).astype(np.float32))

    def f(x):
        dims = ("NHWC", "HWIO", "NHWC")
        hidden = jax.nn.relu(jax.lax.conv_general_dilated(x[None], kernel, (1, 1), "SAME", dimension_numbers=dims))
        hidden = jax.lax.conv_general_dilated(
            jax.nn.relu(hidden - 1.0), kernel.transpose(0, 1, 3, 2), (1, 1), "SAME", dimension_numbers=dims
        )
        return jnp.sum(jax.nn.relu(hidden))[None]

    x = jnp.asarray(np.random.default_rng(1).integers(0, 8, (5, 5, 1)) / 8).astype(jnp.float32)
    of_box = jax.jit(cj.crown(f))(cj.box(x - jnp.float32(0.125), x + jnp.float32(0.125)))
    of_ball = jax.jit(cj.crown(f))(cj.linf_ball(x, 0.125))
    np.testing.assert_allclose(of_box.lower, of_ball.lower, rtol=1e-5)
    np.testing.assert_allclose(of_box.upper, of_ball.upper, rtol=1e-5)


def test_boxes_are_mapped_and_attacked():
    f = lambda x: jnp.stack([jnp.sum(x), jnp.float32(1.0)])  # noqa: E731
    boxes = jax.tree.map(lambda *ends: jnp.stack(ends), random_box(0), random_box(1))
    lower = jax.vmap(cj.crown(f))(boxes).lower
    np.testing.assert_allclose(lower[1, 0], np.sum(np.asarray(random_box(1).lower)), rtol=1e-5)
    region = random_box(2)
    found = cj.pgd(f, region.center, 1, region, key=jax.random.key(0))
    np.testing.assert_allclose(found, region.upper, atol=1e-6)


@pytest.mark.parametrize(
    ("lower", "upper", "error", "message"),
    [
        (np.array([0.5]), np.array([0.4]), ValueError, "must not exceed"),
        (np.array([0.5]), np.array([np.inf]), ValueError, "finite"),
        (np.array([np.nan]), np.array([1.0]), ValueError, "finite"),
        (np.array([0.5]), np.array([0.5, 0.6]), ValueError, "one shape"),
        (np.zeros(0), np.zeros(0), ValueError, "one pixel"),
        (np.array([0]), np.array([1]), TypeError, "floating-point"),
    ],
)
def test_what_is_no_box_is_refused(lower, upper, error, message):
    with pytest.raises(error, match=message):
        cj.box(lower, upper)
