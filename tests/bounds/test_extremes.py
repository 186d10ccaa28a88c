"""Numbers far apart, too small and too large: what underflows or overflows proves nothing."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import cure_jax as cj
from cure_jax import graph as graphs
from cure_jax import numerics, rules
from cure_jax.bounds.box_ball import Ball
from cure_jax.bounds.sdp_crown import Layer, layer_bound
from cure_jax.certification import METHODS
from cure_jax.regions import Interval
from cure_jax.rules.elementwise import relu_slopes
from tests.networks import random_mlp

# Of two pixels the second is scaled by this much before a nonlinearity, and scaled back after it.
SMALL_ROWS = {
    "product": lambda x, small: jnp.diag(jnp.array([1.0, small])) @ x,
    "sum": lambda x, small: jnp.sum(jnp.stack([x, 0 * x], axis=1) * jnp.array([[1.0], [small]]), axis=1),
    "convolution": lambda x, small: lax.conv(
        jnp.tile(x, 2)[None, None], jnp.diag(jnp.array([1.0, small]))[:, None], (2,), "VALID"
    )[0, :, 0],
}


SIZES = [(1.05, 1e-4, (0.3, 3e-5)), (1.2, 1e-9, (0.3, 0.3)), (1.5, 1e-14, (0.3, 0.3)), (2.0, 1e-20, (0.3, 0.3))]


@pytest.mark.parametrize(
    ("rows", "p", "small", "radii"),
    [
        # In the quick run each form at one or two powers.
        pytest.param(rows, *size, marks=[] if number % 3 == place else pytest.mark.slow)
        for place, rows in enumerate(SMALL_ROWS)
        for number, size in enumerate(SIZES)
    ],
)
def test_a_row_that_is_small_beside_others_keeps_its_radius(rows, p, small, radii):
    """Powers of what is small relative to the largest weight and radius of a layer are 0 in float32."""

    def f(x):
        return jax.nn.relu(SMALL_ROWS[rows](x, small)) * jnp.array([1.0, 1 / small])

    x, radii = jnp.full(2, 0.5), jnp.array(radii)
    for method in ("ibp", "crown", "box_ball", "sdp_crown"):
        bounds = jax.jit(lambda x, radii, method=method: METHODS[method](f)(cj.lp_ball(x, radii, p)))(x, radii)
        assert np.all(bounds.upper >= (x + radii) * (1 - 1e-5))
        assert np.all(bounds.upper <= (x + radii) * (1 + 1e-4))
        # The optimised bound of all at once takes the upper ends of another method.
        assert np.all(bounds.lower <= (x - radii) * (1 + 1e-5))


# On numbers that are positive and not huge each of these is its operand: the kink is far away, or left of it the
# function is steep.
FAR_AWAY = {
    "maximum": lambda x: jnp.maximum(x, -1e9),
    "maximum with the least number": lambda x: jnp.maximum(x, jnp.finfo(x.dtype).min),
    "minimum": lambda x: jnp.minimum(x, 1e9),
    "clip": lambda x: jnp.clip(x, -1e9, 1e9),
    "where": lambda x: jnp.where(x > -1e9, x, -1e9),
    "steep": lambda x: jax.nn.leaky_relu(x, 1e8),
    "steep where": lambda x: jnp.where(x > 0, x, 1e8 * x),
    "maximum of two": lambda x: jnp.maximum(x, x - 1e9),
}


# The pieces of a function are the same for every norm: each method has one norm of its own in the quick run.
FOR_NORM = {"crown": math.inf, "alpha_crown": 2.0, "box_ball": 2.0, "sdp_crown": 2.0, "vertex_crown": 1.0}


@pytest.mark.parametrize(
    ("method", "p"),
    [
        pytest.param(method, p, marks=[] if p == quick else pytest.mark.slow)
        for method, quick in FOR_NORM.items()
        for p in (1.0, 2.0, math.inf)
    ],
)
def test_a_kink_that_is_far_away_changes_nothing(method, p):
    weights, center, radius = jnp.array([[1.0, 2.0], [1.0, 0.5]]), jnp.array([1.0, 2.0]), 0.5

    def f(x):
        return jnp.stack([-jnp.sum(function(x @ weights)) for function in FAR_AWAY.values()])

    bounds = jax.jit(lambda x: METHODS[method](f)(cj.lp_ball(x, radius, p)))(center)
    # Of the affine function that it is there.
    reach = radius * np.linalg.norm([3.0, 1.5], {1: math.inf, 2: 2, math.inf: 1}[p])
    for name, lower, upper in zip(FAR_AWAY, bounds.lower, bounds.upper, strict=True):
        assert lower <= -6 - reach + 1e-3, name
        assert upper >= -6 + reach - 1e-3, name


def pooled(x):
    """The maximum of two pixels that overflow, and of padding."""
    images = (x * 1e38).reshape(1, 1, 2, 1)
    return lax.reduce_window(images, -jnp.inf, lax.max, (1, 1, 3, 1), (1, 1, 1, 1), ((0, 0), (0, 0), (1, 0), (0, 0)))


def curved(x):
    """About x + 87, by way of numbers of which the greater ones overflow."""
    return 100 * jnp.tanh(jnp.log(x[0] * 1e38) / 100)


# Two logits, an example of class 0, its limits, and a point within them that is of class 1.
OVERFLOWING = {
    "pooling": (lambda x: jnp.stack([pooled(x).ravel()[0], jnp.float32(-1e38)]), (-0.5, -0.5), (-5.0, 0.0), (-2, -2)),
    "affine": (lambda x: jnp.stack([curved(x), 70.0 + 10 * (x[0] - 3.0)]), (3.0,), (3.0, 6.0), (3.2,)),
}


@pytest.mark.parametrize("name", list(OVERFLOWING))
def test_what_overflows_proves_nothing(name):
    f, x, limits, other = OVERFLOWING[name]
    x, other = jnp.array(x), jnp.array(other, jnp.float32)
    region = cj.linf_ball(x, 4.5, within=limits)
    assert region.contains(other)
    assert np.argmax(f(x)) == 0
    assert np.argmax(f(other)) == 1
    # The tightest of all methods for each margin: what one of them proved would be proved.
    every = tuple(method for method in METHODS if method != "best")
    assert not jax.jit(lambda x: cj.certify(f, x, 0, region, every).verified)(x)


@pytest.mark.parametrize("within", [None, (0.0, 1.0)])
@pytest.mark.parametrize("p", [1.0, pytest.param(1.5, marks=pytest.mark.slow), 2.0])
def test_weights_whose_reciprocal_is_no_normal_number_keep_the_radius(p, within):
    """XLA divides by a scalar by way of its reciprocal, which is 0 from about 1e38 on."""

    def linear(x: jax.Array) -> jax.Array:
        return jnp.array([1e38, 0.0]) * (x[0] + x[1]) - jnp.array([0.9e38, 0.0])

    def network(x: jax.Array) -> jax.Array:
        hidden = jax.nn.relu(x)
        return jnp.array([2e38, 0.0]) * (hidden[0] - hidden[1]) + jnp.array([0.5e38, 0.0])

    x, other = jnp.array([0.5, 0.5]), jnp.array([0.0, 0.5])
    region = cj.lp_ball(x, 0.5, p, within)
    assert region.contains(other)
    methods = ("ibp", "crown", "lipschitz", "box_ball", "sdp_crown", "vertex_crown")
    for f in (linear, network):
        assert np.argmax(f(x)) == 0
        assert np.argmax(f(other)) == 1
        margins = jax.jit(lambda region, f=f: [METHODS[name](f)(region).lower[0] for name in methods])(region)
        for name, margin in zip(methods, margins, strict=True):
            assert not margin > f(other)[0] * (1 - 1e-6), name


@pytest.mark.parametrize("largest", [1e-30, 0.5, 8.0e37, 8.6e37, 3.3e38])
def test_units_to_divide_by(largest):
    values = jnp.array([largest, largest / 2, 0.0])
    unit = numerics.unit_of(jnp.max(values))
    found = jax.jit(lambda values, unit: (values / unit) * unit)(values, unit)
    np.testing.assert_allclose(found, values, rtol=1e-6)
    assert jnp.max(values / unit) <= 8
    for p in (1.5, 2.0, 3.0):
        norm = float(jax.jit(functools.partial(numerics.norm, p=p))(values))
        expected = largest * (1 + 0.5**p) ** (1 / p)
        assert norm == pytest.approx(expected, rel=1e-5) or norm == math.inf > np.finfo(np.float32).max > expected / 2


@pytest.mark.parametrize("p", [1.0, 1.5, 2.0, math.inf])
def test_a_weight_that_is_no_number_leaves_no_bound(p):
    weights = jnp.array([[1.0, jnp.nan], [0.0, 1.0]])

    def f(x: jax.Array) -> jax.Array:
        return jax.nn.relu(x @ weights)

    region = cj.lp_ball(jnp.full(2, 0.5), 0.1, p, (0.0, 1.0))
    bounds = jax.jit(lambda region: [METHODS[name](f)(region) for name in ("ibp", "crown", "box_ball")])(region)
    for found in bounds:
        assert not found.lower[1] > -jnp.inf
        assert not found.upper[1] < jnp.inf


def test_limits_that_overflowed_are_none():
    bounds = cj.Interval(jnp.array([jnp.inf, jnp.nan, -jnp.inf, 1.0]), jnp.array([jnp.inf, 1.0, -jnp.inf, jnp.nan]))
    safe = bounds.without_overflow()
    np.testing.assert_array_equal(safe.lower, [-math.inf, -math.inf, -math.inf, 1.0])
    np.testing.assert_array_equal(safe.upper, [math.inf, 1.0, math.inf, math.inf])


@pytest.mark.parametrize(("function", "neutral"), [(jnp.maximum, -math.inf), (jnp.minimum, math.inf)])
def test_a_neutral_constant_leaves_an_operand_as_it_is_even_an_infinite_one(function, neutral):
    graph = graphs.trace(lambda x: function(x, neutral), jnp.zeros(3))
    (equation,) = [equation for equation in graph.equations if equation.name in ("max", "min")]
    operand = cj.Interval(jnp.array([-jnp.inf, -1.0, -jnp.inf]), jnp.array([2.0, jnp.inf, jnp.inf]))
    for line in rules.lookup(equation).relax(equation, [operand], None):
        np.testing.assert_array_equal(line.slopes[0], np.ones(3))
        np.testing.assert_array_equal(line.intercept, np.zeros(3))


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("upper", [1e-20, 1e-19, 1e-17, 1e-15, 1e-13, 1e-9])
def test_lines_hold_for_the_root_of_numbers_whose_slope_is_not_represented(upper, alpha):
    graph = graphs.trace(jnp.sqrt, jnp.zeros(1))
    (equation,) = graph.equations
    box = cj.Interval(jnp.zeros(1), jnp.full(1, upper))
    lower, above = rules.lookup(equation).relax(equation, [box], jnp.full(1, alpha))
    points = float(np.float32(upper)) * np.concatenate([np.linspace(0, 1, 1001), np.geomspace(1e-12, 1, 200)])
    for line, sign in ((lower, 1), (above, -1)):
        values = float(line.slopes[0][0]) * points + float(line.intercept[0])
        assert np.all(sign * (np.sqrt(points) - values) >= 0)


@pytest.mark.parametrize("eps", [0.0, 1e-9, 1e-8, 1e-7])
def test_many_steps_find_no_gain_in_rounding(eps):
    """The region is narrower than the rounding of the layers, so slopes and multipliers are free."""
    f, x = random_mlp(3, (10, 30, 30, 30, 3)), jnp.asarray(np.random.default_rng(0).uniform(size=10), jnp.float32)
    bounds = jax.jit(lambda eps: cj.sdp_crown(f, 100)(cj.l2_ball(x, eps)))(eps)
    scale = np.max(np.abs(f(x)))
    assert np.all(bounds.lower <= f(x) + 1e-5 * scale)
    assert np.all(bounds.upper >= f(x) - 1e-5 * scale)
    assert np.all(bounds.upper - bounds.lower < 1e-3 * scale)


@pytest.mark.slow
def test_softmax_leaves_the_tightest_bounds_as_they_are():
    """Its maximum with -inf is a layer of two pieces whose kink is at infinity."""
    inner, x = random_mlp(5, (4, 8, 3)), jnp.full(4, 0.5)
    region, label = cj.l2_ball(x, 0.01), int(np.argmax(inner(x)))
    together = ("box_ball", "sdp_crown", "crown")
    compute = jax.jit(
        lambda x: {
            str(method): cj.certify(lambda x: jax.nn.softmax(inner(x)), x, label, region, method)
            for method in (*together, together)
        }
    )
    found = compute(x)
    assert all(np.isfinite(certificate.margin) for certificate in found.values())
    assert found["sdp_crown"].margin >= found["box_ball"].margin - 1e-5
    assert found[str(together)].margin >= found["crown"].margin - 1e-6
    assert found[str(together)].verified


@pytest.mark.parametrize("lower", [-2e38, -3.4e38, -1e30])
@pytest.mark.parametrize("upper", [1e-3, 1.0, 3.0])
def test_the_upper_line_of_relu_holds_where_its_slope_counts_as_0(lower, upper):
    for alpha in (None, jnp.float32(0.5)):
        below, above, intercept = relu_slopes(jnp.float32(lower), jnp.float32(upper), alpha)
        for x in (lower, upper):
            assert np.float64(above) * np.float32(x) + np.float64(intercept) >= max(np.float32(x), 0) - 1e-6 * upper
            assert np.float64(below) * np.float32(x) <= max(np.float32(x), 0)


def test_relu_of_a_wide_box_is_no_certificate():
    f = lambda x: jnp.stack([0.5 - jax.nn.relu(x[0]), jnp.float32(0.0)])  # noqa: E731
    region = cj.linf_ball(jnp.array([-1e38]), 1.1e38)
    for bound in (cj.crown, cj.sdp_crown, cj.alpha_crown, cj.box_ball):
        assert bound(f)(region).lower[0] <= -9.9e36


@pytest.mark.parametrize("multiplier", [0.0, 1e-45, 1e-40, 1e-38, 1e-30, 1.0, 1e30])
@pytest.mark.parametrize("size", [1.0, 1e20, 1e38, np.inf])
def test_the_relaxation_of_a_layer_takes_the_least_value_whatever_the_multiplier(multiplier, size):
    box = Interval(jnp.array([-size], jnp.float32), jnp.array([size / 2], jnp.float32))
    radius = jnp.float32(min(size, 1e38))
    layer = Layer(box, Ball(jnp.zeros(1), radius), jnp.zeros(1), (jnp.zeros(1), jnp.ones(1)))
    for c, g in ((1.0, 0.3), (-1.0, 1e-20), (-1.0, -0.3), (1e-10, 2e-10), (0.0, 0.0)):
        h = layer_bound(layer, jnp.array([c]), jnp.array([g]), jnp.float32(multiplier))
        for x in (0.0, -min(size, 1e38), min(size, 1e38) / 2):
            value, line = c * max(x, 0.0), g * x
            # Not a number, or infinitely low, proves nothing.
            assert not (float(h) > value - line + 1e-5 * (abs(value) + abs(line)))


@pytest.mark.parametrize("radius", [1.0, 1e8, 1e30])
@pytest.mark.parametrize("bound", [cj.ibp, functools.partial(cj.crown, intermediate="ibp"), cj.crown, cj.box_ball])
def test_a_small_end_is_not_lost_beside_a_large_one(bound, radius):
    """A hidden unit that falls steeply with seven others and rises a little with the last one."""
    weights = jnp.array([-1.0, -3.3, -0.7, -1.9, -2.3, -1.1, -0.3, 1e-8])
    f = lambda x: jax.nn.relu(weights @ jax.nn.relu(x))[None] * 1e8  # noqa: E731
    bounds = jax.jit(bound(f))(cj.linf_ball(jnp.zeros(8), radius))
    value = f(radius * jnp.eye(8)[7])
    np.testing.assert_allclose(value, radius, rtol=1e-5)
    assert np.all(value * (1 - 1e-5) <= bounds.upper)


def test_a_bias_is_not_lost_beside_a_large_box():
    f = lambda x: jax.nn.relu(-jax.nn.relu(x) @ jnp.ones((6, 2)) + 0.6)  # noqa: E731
    region = cj.linf_ball(jnp.zeros(6), 1e12)
    for bound in (cj.ibp, cj.crown, cj.box_ball):
        assert np.all(bound(f)(region).upper >= 0.6 * (1 - 1e-6))
