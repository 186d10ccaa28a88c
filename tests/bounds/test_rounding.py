"""Bounds that allow for rounding, against networks in exact arithmetic; bounds in float64."""

import functools
import math
from collections.abc import Callable, Mapping
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.tree_util import Partial

import cure_jax as cj
from cure_jax import graph as graphs
from cure_jax.bounds.folding import linear
from cure_jax.bounds.rounding import arithmetic as rounding
from cure_jax.bounds.rounding import outward, outward_region
from cure_jax.bounds.rounding.arithmetic import in_float64
from tests import exact, networks

METHODS = {"ibp": cj.ibp, "crown_ibp": functools.partial(cj.crown, intermediate="ibp"), "crown": cj.crown}
UNIT_BOX = (0.0, 1.0)


def all_bounds(f: Callable, region: cj.LpBall) -> dict[tuple[str, str], cj.Interval]:
    """By method and arithmetic."""
    return {
        (name, arithmetic): method(f, arithmetic=arithmetic)(region)
        for name, method in METHODS.items()
        for arithmetic in rounding.ARITHMETICS
    }


def holds(bounds: cj.Interval, value: np.ndarray) -> bool:
    """Whether a vector of fractions lies within float bounds."""
    lower, upper = (np.where(np.isfinite(end), end, 0) for end in (bounds.lower, bounds.upper))
    below = np.isneginf(bounds.lower) | (exact.fractions(lower) <= value)
    above = np.isposinf(bounds.upper) | (value <= exact.fractions(upper))
    return bool(np.all(below & above))


def violated(bounds: Mapping, f: Callable, region: cj.LpBall, count: int, seed: int = 0) -> set[str]:
    """The arithmetics whose bounds some point of the region violates."""
    graph, found = graphs.trace(f, region.center), set()
    for x in exact.points(region, np.random.default_rng(seed), count):
        value = exact.evaluate(graph, x)
        found |= {arithmetic for (_, arithmetic), interval in bounds.items() if not holds(interval, value)}
    return found


def convnet(params, x: jax.Array) -> jax.Array:
    """Convolution, BatchNorm, residual convolution, clipping, both poolings, dense."""
    kernel, scale, bias, mean, variance, inner, dense = params
    convolve = functools.partial(lax.conv_general_dilated, window_strides=(1, 1), padding="SAME")
    convolve = functools.partial(convolve, dimension_numbers=("NHWC", "HWIO", "NHWC"))
    h = (convolve(x.reshape(1, 4, 4, 1), kernel) - mean) * (scale * lax.rsqrt(variance + 1e-5)) + bias
    h = jax.nn.relu(h)
    h = jnp.clip(convolve(h, inner) + h, -3.0, 50.0)
    h = lax.reduce_window(h, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 1, 1, 1), "VALID")
    h = lax.reduce_window(h, 0.0, lax.add, (1, 2, 2, 1), (1, 1, 1, 1), "VALID") / 4.0
    return jnp.dot(dense, h.reshape(-1), precision="highest")


def convnet_params(seed: int):
    generator = np.random.default_rng(seed)
    shapes = [(3, 3, 1, 2), *[(1, 1, 1, 2)] * 4, (3, 3, 2, 2), (3, 8)]
    params = [generator.normal(size=shape).astype(np.float32) for shape in shapes]
    params[4] = np.abs(params[4])
    return [jnp.asarray(array) for array in params]


NETWORKS = {
    "mlp": (networks.mlp, functools.partial(networks.mlp_params, sizes=(4, 8, 8, 3)), 4),
    "residual": (networks.residual, networks.residual_params, 2),
    "convnet": (convnet, convnet_params, 16),
}


def badly_scaled(params, generator: np.random.Generator, decades: float):
    """Every weight multiplied by a power of ten of its own."""

    def scale(array: jax.Array) -> jax.Array:
        powers = 10.0 ** generator.uniform(-decades, decades, array.shape)
        return jnp.asarray((np.asarray(array) * powers).astype(np.float32))

    return jax.tree.map(scale, params)


@pytest.mark.parametrize(
    ("network", "p", "within"),
    [
        ("mlp", 2.0, UNIT_BOX),
        pytest.param("residual", math.inf, UNIT_BOX, marks=pytest.mark.slow),
        pytest.param("mlp", 1.0, None, marks=pytest.mark.slow),
        pytest.param("residual", 1.0, UNIT_BOX, marks=pytest.mark.slow),
        pytest.param("convnet", 2.0, None, marks=pytest.mark.slow),
        pytest.param("convnet", math.inf, UNIT_BOX, marks=pytest.mark.slow),
    ],
)
def test_no_point_violates_outward_bounds(network, p, within):
    """In exact arithmetic; of those without allowance for rounding, some are violated."""
    apply, make_params, size = NETWORKS[network]

    @jax.jit
    def compute(params, x, eps):
        return all_bounds(functools.partial(apply, params), cj.lp_ball(x, eps, p, within))

    found = set()
    for seed, (decades, eps) in enumerate([(0.0, 0.0), (0.0, 0.1), (2.0, 0.3), (8.0, 0.0), (8.0, 0.1)]):
        generator = np.random.default_rng(seed)
        params = badly_scaled(make_params(seed), generator, decades)
        x = jnp.asarray(generator.uniform(size=size).astype(np.float32))
        region = cj.lp_ball(x, jnp.float32(eps), p, within)
        bounds = compute(params, x, jnp.float32(eps))
        assert all(np.all(np.isfinite(bounds[key].lower)) for key in bounds)
        found |= violated(bounds, functools.partial(apply, params), region, 8, seed)
    assert found == {"float32"}


OMEGA = 2.0**24
ONES = np.ones(512)


def weighted(*weights) -> Callable[[jax.Array], jax.Array]:
    """The sum of these weights, as that of neurons that are 1 whatever x is."""
    vector = jnp.asarray(np.concatenate([np.ravel(w) for w in weights]), jnp.float32)

    def f(x: jax.Array) -> jax.Array:
        h = jax.nn.relu(0 * jnp.broadcast_to(x, vector.shape) + 1.0)
        return jnp.dot(vector, h, precision="highest")[None]

    return f


def one_by_one(x: jax.Array) -> jax.Array:
    """8 + x, but for rounding."""
    h = jax.nn.relu(x - OMEGA + 2 * OMEGA)
    for _ in range(8):
        h = jax.nn.relu(h + 1.0)
    return h - OMEGA


# Networks whose value is positive, and 0 or far off in float32, after Szasz et al., "No Soundness in the Real World",
# ICML 2025, Section 4: the precision backdoor, term by term, and three sums, of which each processor's order of
# summation (its vectors are 4 to 16 numbers wide) gets some right and others wrong.
IN_ANY_ORDER = {"one after omega": lambda x: jax.nn.relu((x + OMEGA) + 1.0) - OMEGA, "one by one": one_by_one}
SUMS = {
    "ones between": weighted(OMEGA, ONES, -OMEGA),
    "ones first": weighted(ONES, OMEGA, -OMEGA),
    "shares of two": weighted(ONES[:256] / 256, OMEGA, ONES[:256] / 256, -OMEGA),
}
BACKDOORS = IN_ANY_ORDER | SUMS


def deceived(name: str) -> set[str]:
    """The arithmetics whose bounds the network's values violate."""
    f = BACKDOORS[name]
    bounds = jax.jit(lambda x: all_bounds(f, cj.linf_ball(x, 1e-3)))(jnp.zeros(1))
    return violated(bounds, f, cj.linf_ball(jnp.zeros(1), 1e-3), 3)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name == "one by one" else name for name in IN_ANY_ORDER]
)
def test_outward_bounds_hold_for_numerical_backdoors(name):
    """Those without allowance for rounding do not."""
    assert deceived(name) == {"float32"}


@pytest.mark.slow
def test_outward_bounds_hold_for_sums_in_any_order():
    """Some of those without allowance for rounding do not."""
    assert set.union(*map(deceived, SUMS)) == {"float32"}


def test_a_backdoor_is_no_certificate():
    """The true class is the second one, everywhere; in float32 neither the network nor its bounds know."""

    def f(x: jax.Array) -> jax.Array:
        return jnp.concatenate([jnp.full(1, 4.0), BACKDOORS["one by one"](x)])

    x = jnp.zeros(1)
    region = cj.linf_ball(x, 1e-3)
    assert np.all(exact.evaluate(graphs.trace(cj.margins(f, 0), x), exact.fractions(x)) < 0)
    compute = jax.jit(functools.partial(cj.certify, f), static_argnames=("method", "arithmetic"))
    for method in METHODS:
        assert compute(x, 0, region, method=method).verified
    # The tightest of all of them.
    assert not compute(x, 0, region, method="best", arithmetic="outward").verified
    with jax.numpy_dtype_promotion("standard"):
        assert not in_float64(compute)(x, 0, region, method="crown_ibp").verified


# A network of one input, that input, and the value: numbers below the least normal one count as 0 in float32.
DENORMAL = {
    "weight": (lambda x: x * 1e-39 * jnp.float32(1e36), 0.5, lambda x: x * Fraction(float(np.float32(1e-39)))),
    "product": (
        lambda x: jnp.dot(jnp.dot(x, jnp.full((1, 3), 1e-42)), jnp.full((3, 1), 1e36), precision="highest"),
        1.0,
        lambda x: 3 * x * Fraction(float(np.float32(1e-42))),
    ),
    "input": (lambda x: jax.nn.relu(x) * jnp.float32(1e36), 1e-42, lambda x: x),
}


@pytest.mark.parametrize("name", list(DENORMAL))
def test_numbers_that_count_as_zero_are_allowed_for(name):
    f, x, value = DENORMAL[name]
    x = jnp.asarray(np.array([x], np.float32))
    bounds = jax.jit(lambda x: all_bounds(f, cj.linf_ball(x, 0.0)))(x)
    value = np.array([value(exact.fractions(x)[0]) * Fraction(float(np.float32(1e36)))])
    for method in METHODS:
        assert holds(bounds[method, "outward"], value)
        assert not holds(bounds[method, "float32"], value)


def sums(x: jax.Array) -> jax.Array:
    """64 ones between omega and -omega, as coefficients of one input."""
    column = np.concatenate([[OMEGA], ONES[:64], [-OMEGA]])[None]
    return jnp.sum(jnp.dot(x, jnp.asarray(column, jnp.float32), precision="highest"))[None]


def clipped(x: jax.Array) -> jax.Array:
    """512, but for rounding of what a bound multiplies from the input to the output."""
    return jax.nn.relu(BACKDOORS["ones between"](x))


# What is left out, and a network and an input at which that is a false bound.
PLANTED = {
    "products forward": (outward, "error_of", lambda equation: 0.0, clipped, [0.0]),
    "coefficients": (outward, "_rounded", lambda count, uses, dtype: 0.0, sums, [1.0]),
    "underflow": (rounding, "allowance", lambda dtype: 0.0, DENORMAL["weight"][0], [0.5]),
}


@pytest.mark.parametrize("name", list(PLANTED))
def test_nothing_may_be_left_out(name, monkeypatch):
    module, attribute, replacement, f, x = PLANTED[name]
    region = cj.linf_ball(jnp.asarray(np.asarray(x, np.float32)), 0.0)
    if name == "underflow":
        value = DENORMAL["weight"][2](exact.fractions(region.center)) * Fraction(float(np.float32(1e36)))
    else:
        value = exact.evaluate(graphs.trace(f, region.center), exact.fractions(region.center))

    def outward_bounds() -> cj.Interval:
        return jax.jit(lambda region: cj.ibp(f, arithmetic="outward")(region))(region)

    assert holds(outward_bounds(), value)
    for file in (rounding, outward, outward_region, linear):
        if getattr(file, attribute, None) is getattr(module, attribute):
            monkeypatch.setattr(file, attribute, replacement) if file is not module else None
    monkeypatch.setattr(module, attribute, replacement)
    assert not holds(outward_bounds(), value)


@pytest.mark.parametrize("name", ["one after omega", "ones between", "ones first", "one by one"])
def test_float64_sees_what_float32_does_not(name):
    """With weights that are float32, as those of a closure are."""
    f, x = BACKDOORS[name], jnp.zeros(1)
    value = float(exact.evaluate(graphs.trace(f, x), exact.fractions(x))[0])
    with jax.numpy_dtype_promotion("standard"):
        bounds = in_float64(jax.jit(lambda x: cj.crown(f, intermediate="ibp")(cj.linf_ball(x, 0.0))))(x)
    assert bounds.lower.dtype == np.float64
    np.testing.assert_allclose([bounds.lower[0], bounds.upper[0]], value, rtol=1e-7)


def test_float64_is_a_mode_of_the_whole_trace():
    with pytest.raises(TypeError, match=r"in_float64\(jax.jit\(...\)\)"):
        jax.jit(in_float64(lambda x: x))(jnp.zeros(1))
    assert jnp.zeros(1).dtype == np.float32


@pytest.mark.parametrize("method", ["crown", "sdp_crown"])
def test_data_sets_in_float64(method):
    """The same margins, but for the rounding of float32, and the region around images in float64."""
    generator = np.random.default_rng(0)
    images, labels = generator.uniform(size=(5, 2)), np.arange(5) % 2
    f = Partial(networks.mlp, networks.mlp_params(0))
    certify = functools.partial(
        cj.certify_dataset, f, images, labels, {"l2": lambda x: cj.l2_ball(x, 0.1)}, method=method
    )
    with jax.numpy_dtype_promotion("standard"):
        narrow, wide = certify(), certify(arithmetic="float64")
    np.testing.assert_allclose(narrow.margin["l2"], wide.margin["l2"], rtol=1e-4, atol=1e-5)
    assert wide.margin["l2"].dtype == np.float64
    assert not np.array_equal(narrow.margin["l2"], wide.margin["l2"])
    np.testing.assert_array_equal(narrow.correct, wide.correct)


@pytest.mark.parametrize(
    ("method", "arithmetic", "match"),
    [("sdp_crown", "outward", "one of ibp, crown_ibp, crown, best"), ("crown", "float16", "must be one of")],
)
def test_arithmetics_that_there_are_not(method, arithmetic, match):
    x = jnp.zeros(2)
    with pytest.raises(ValueError, match=match):
        cj.certify(lambda x: x, x, 0, cj.linf_ball(x, 0.1), method, arithmetic=arithmetic)


@pytest.mark.parametrize("bound", [cj.ibp, cj.crown])
def test_programs_for_other_platforms_are_refused(bound):
    f = lambda x: jax.nn.relu(jnp.asarray([[1.0, -2.0], [0.5, 1.0]]) @ x)  # noqa: E731
    region = cj.l2_ball(jnp.ones(2), 0.1)
    outward = jax.jit(bound(f, arithmetic="outward"))
    assert jnp.all(outward(region).lower <= f(jnp.ones(2)))
    with pytest.raises(ValueError, match="holds on CPU only; this program is compiled for cuda"):
        outward.trace(region).lower(lowering_platforms=("cuda",))
    jax.jit(bound(f)).trace(region).lower(lowering_platforms=("cuda",))


def test_a_primitive_whose_rounding_is_not_bounded():
    with pytest.raises(graphs.UnsupportedPrimitive, match="primitive `tanh`"):
        cj.ibp(jnp.tanh, arithmetic="outward")(cj.linf_ball(jnp.zeros(2), 0.1))
