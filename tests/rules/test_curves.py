"""Smooth functions against themselves in float64: lines and intervals hold exactly, on boxes of every size."""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from scipy import special

from cure_jax import graph as graphs
from cure_jax import rules
from cure_jax.regions import Interval
from cure_jax.rules import smooth

COUNT = 400


class Smooth(NamedTuple):
    """A function, itself in float64, and the sign that its domain asks for."""

    function: Callable[[jax.Array], jax.Array]
    exact: Callable[[np.ndarray], np.ndarray]
    domain: str = "reals"


def _softplus(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))


def _elu(x: np.ndarray, alpha: float, rate: float = 1.0) -> np.ndarray:
    return np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0) / rate))


def _gelu_tanh(x: np.ndarray) -> np.ndarray:
    near = np.clip(x, -1e3, 1e3)
    return x * special.expit(2 * np.sqrt(2 / np.pi) * (near + 0.044715 * near**3))


FUNCTIONS = {
    "exp": Smooth(jnp.exp, np.exp),
    "exp2": Smooth(lax.exp2, np.exp2),
    "expm1": Smooth(jnp.expm1, np.expm1),
    "log": Smooth(jnp.log, np.log, "positive"),
    "log1p": Smooth(jnp.log1p, np.log1p, "above -1"),
    "sqrt": Smooth(jnp.sqrt, np.sqrt, "positive"),
    "rsqrt": Smooth(lax.rsqrt, lambda x: 1 / np.sqrt(x), "positive"),
    "square": Smooth(jnp.square, np.square),
    "mul": Smooth(lambda x: x * x, np.square),
    "pow": Smooth(lambda x: x**0.7, lambda x: x ** np.float64(np.float32(0.7)), "positive"),
    "pow convex": Smooth(lambda x: x**2.5, lambda x: x**2.5, "positive"),
    "pow negative": Smooth(lambda x: x**-1.5, lambda x: x**-1.5, "positive"),
    "pow flat": Smooth(lambda x: x**0.1, lambda x: x ** np.float64(np.float32(0.1)), "not negative"),
    "pow root": Smooth(lambda x: x**0.5, np.sqrt, "not negative"),
    "pow from 0": Smooth(lambda x: x**1.5, lambda x: x**1.5, "not negative"),
    "pow of even": Smooth(lambda x: x**2.0, np.square),
    "pow of odd": Smooth(lambda x: x**3.0, lambda x: x**3),
    "pow of one": Smooth(lambda x: x**1.0, lambda x: x),
    "pow of zero": Smooth(lambda x: x**0.0, np.ones_like),
    "pow of odd negative": Smooth(lambda x: x**-1.0, lambda x: 1 / x, "not 0"),
    "pow of even negative": Smooth(lambda x: x**-2.0, lambda x: 1 / x**2, "not 0"),
    "integer_pow": Smooth(lambda x: x**2, np.square),
    "integer_pow cube": Smooth(lambda x: x**3, lambda x: x**3),
    "integer_pow sixth": Smooth(lambda x: x**6, lambda x: x**6),
    "integer_pow reciprocal": Smooth(lambda x: x**-1, lambda x: 1 / x, "not 0"),
    "integer_pow of even negative": Smooth(lambda x: x**-2, lambda x: 1 / x**2, "not 0"),
    "logistic": Smooth(jax.nn.sigmoid, special.expit),
    "tanh": Smooth(jnp.tanh, np.tanh),
    "erf": Smooth(lax.erf, special.erf),
    "erfc": Smooth(lax.erfc, special.erfc),
    "atan": Smooth(jnp.atan, np.arctan),
    "soft_sign": Smooth(jax.nn.soft_sign, lambda x: x / (1 + np.abs(x))),
    "softplus": Smooth(jax.nn.softplus, _softplus),
    "sparse_plus": Smooth(
        jax.nn.sparse_plus, lambda x: np.where(x <= -1, 0, np.where(x >= 1, x, (np.clip(x, -1, 1) + 1) ** 2 / 4))
    ),
    "elu": Smooth(jax.nn.elu, lambda x: _elu(x, 1.0)),
    "elu flat": Smooth(lambda x: jax.nn.elu(x, 0.25), lambda x: _elu(x, 0.25)),
    "elu steep": Smooth(lambda x: jax.nn.elu(x, 3.0), lambda x: _elu(x, 3.0)),
    "celu": Smooth(lambda x: jax.nn.celu(x, 2.0), lambda x: _elu(x, 2.0, 2.0)),
    "selu": Smooth(
        jax.nn.selu, lambda x: np.float64(np.float32(1.0507009873554805)) * _elu(x, np.float32(1.6732632423543772))
    ),
    "silu": Smooth(jax.nn.silu, lambda x: x * special.expit(x)),
    "mish": Smooth(jax.nn.mish, lambda x: x * np.tanh(_softplus(x))),
    "hard_silu": Smooth(jax.nn.hard_silu, lambda x: x * np.clip((x + 3) / 6, 0, 1)),
    "gelu": Smooth(lambda x: jax.nn.gelu(x, approximate=False), lambda x: x * special.ndtr(x)),
    "gelu_tanh": Smooth(jax.nn.gelu, _gelu_tanh),
}


def _boxes(domain: str, seed: int, count: int = COUNT) -> Interval:
    """Boxes of widths from 0 and the smallest numbers to the largest, near 0 and far away."""
    generator = np.random.default_rng(seed)
    scales = [0.0, 1e-40, 1e-30, 1e-6, 1e-3, 0.3, 1.0, 1.0, 3.0, 3.0, 10.0, 30.0, 1e3, 1e30]
    center = generator.normal(size=count) * generator.choice(scales, size=count)
    width = np.abs(generator.normal(size=count)) * generator.choice(scales, size=count)
    lower, upper = center - width, center + width * generator.choice([0.0, 0.1, 1.0], size=count)
    if domain == "above -1":
        lower, upper = np.abs(lower) - 1 + 1e-6, np.abs(lower) - 1 + 1e-6 + 2 * width
    elif domain == "not negative":
        lower = np.abs(center) * generator.choice([0.0, 1e-30, 1.0], size=count)
        upper = lower + width
    elif domain != "reals":
        lower = np.abs(lower) + generator.choice([1e-12, 1e-3, 1.0], size=count)
        upper = lower * (1 + generator.choice([0.0, 1e-7, 0.1, 1.0, 1e3], size=count)) + width
        if domain == "not 0":
            flip = generator.integers(0, 2, size=count) == 1
            lower, upper = np.where(flip, -upper, lower), np.where(flip, -lower, upper)
    ends = [np.clip(end, -1e30, 1e30).astype(np.float32) for end in (lower, upper)]
    return Interval(jnp.asarray(ends[0]), jnp.asarray(np.maximum(*ends)))


def _points(box: Interval) -> np.ndarray:
    """[points, boxes], ends included, and close to 0 where the box holds it."""
    lower, upper = np.asarray(box.lower, np.float64), np.asarray(box.upper, np.float64)
    shares = np.concatenate([np.linspace(0, 1, 201), np.logspace(-12, -3, 20), 1 - np.logspace(-12, -3, 20)])[:, None]
    inner = np.clip(np.linspace(-8, 8, 201)[:, None], lower, upper)
    return np.concatenate([np.clip(lower + shares * (upper - lower), lower, upper), inner])


def _equation(name: str, count: int) -> tuple[graphs.Equation, rules.Nonlinear]:
    graph = graphs.trace(FUNCTIONS[name].function, jax.ShapeDtypeStruct((count,), jnp.float32))
    (equation,) = graph.equations
    assert equation.name == name.split()[0]
    rule = rules.lookup(equation)
    assert isinstance(rule, rules.Nonlinear)
    return equation, rule


def test_every_smooth_function_is_here():
    assert set(smooth.CURVES) | {"integer_pow", "mul"} == {name.split()[0] for name in FUNCTIONS}


@functools.cache
def _compiled(name: str) -> Callable[..., tuple[Interval, list[jax.Array]]]:
    equation, rule = _equation(name, COUNT)

    def enclose(box: Interval, alpha: jax.Array) -> tuple[Interval, list[jax.Array]]:
        boxes = (box,) * len(equation.bounded)
        lower, upper = rule.relax(equation, boxes, alpha)
        return rule.interval(equation, *boxes), [sum(lower.slopes), lower.intercept, sum(upper.slopes), upper.intercept]

    return jax.jit(enclose)


@pytest.mark.parametrize("name", list(FUNCTIONS))
def test_lines_and_intervals_hold_in_exact_arithmetic(name):
    box = _boxes(FUNCTIONS[name].domain, 3)
    points = _points(box)
    with np.errstate(over="ignore"):
        values = FUNCTIONS[name].exact(points)
    for alpha in (0.0, 0.3, 0.5, 1.0):
        image, found = _compiled(name)(box, jnp.full(box.shape, alpha))
        assert np.all(np.asarray(image.lower, np.float64) <= values)
        assert np.all(values <= np.asarray(image.upper, np.float64))
        assert not any(np.any(np.isnan(array)) for array in found)
        # Values that overflow have no finite bound.
        representable = np.isfinite(np.asarray(image.lower)) & np.isfinite(np.asarray(image.upper))
        assert all(np.all(np.isfinite(np.asarray(array)[representable])) for array in found)
        slope, intercept, above, top = (np.asarray(array, np.float64) for array in found)
        below = slope * points + intercept <= values
        assert np.all(below), _worst(box, points, below, alpha)
        over = values <= above * points + top
        assert np.all(over), _worst(box, points, over, alpha)


@pytest.mark.parametrize("name", list(FUNCTIONS))
def test_bounds_are_tight(name):
    """Points are exact; on narrow boxes lines leave a gap of second order, on all boxes they stay near the interval."""
    function = FUNCTIONS[name]
    center = np.linspace(0.5, 3, COUNT) if function.domain != "reals" else np.linspace(-4, 4, COUNT)
    for radius in (0.0, 0.01, 0.4):
        ends = [jnp.asarray(center - radius, jnp.float32), jnp.asarray(center + radius, jnp.float32)]
        box = Interval(*ends)
        points = _points(box)
        values = function.exact(points)
        image, found = _compiled(name)(box, jnp.full(box.shape, 0.5))
        slope, intercept, above, top = (np.asarray(array, np.float64) for array in found)
        size = 1 + np.max(np.abs(values), axis=0)
        np.testing.assert_allclose(values.min(0), image.lower, atol=1e-5 * size.max())
        np.testing.assert_allclose(values.max(0), image.upper, atol=1e-5 * size.max())
        if radius == 0:
            np.testing.assert_allclose(slope * points + intercept, values, atol=2e-5 * size.max())
            np.testing.assert_allclose(above * points + top, values, atol=2e-5 * size.max())
        # The least gap between any two lines around the function: that of its hull on the box, at least.
        room = np.max((above - slope) * points + top - intercept, axis=0)
        spread = values.max(0) - values.min(0)
        assert np.all(room <= 2 * spread * (1 + 1e-3) + 3e-5 * size)


def _derivatives(name: str) -> Callable[..., list[jax.Array]]:
    def total(lower: jax.Array, upper: jax.Array, alpha: jax.Array) -> jax.Array:
        image, lines = _compiled(name)(Interval(lower, upper), alpha)
        return sum(jnp.sum(jnp.where(jnp.isfinite(a), a, 0)) for a in (image.lower, image.upper, *lines))

    return jax.jit(jax.grad(total, argnums=(0, 1, 2)))


@pytest.mark.parametrize("name", ["sqrt", "integer_pow", "elu steep", "silu"])
def test_derivatives_are_finite(name):
    # Where derivatives are beyond the largest number themselves there is nothing to ask for.
    box = _boxes(FUNCTIONS[name].domain, 4)
    ends = jnp.clip(box.lower, -1e12, 1e12), jnp.clip(box.upper, -1e12, 1e12)
    ends = [jnp.concatenate([end[: COUNT - 3], jnp.array([0.0, 0.0, 1.0])]) for end in ends]
    for alpha in (0.0, 0.5, 0.8):
        assert all(jnp.all(jnp.isfinite(d)) for d in _derivatives(name)(*ends, jnp.full(box.shape, alpha)))


@pytest.mark.parametrize("name", ["tanh", "silu", "elu steep"])
def test_derivatives_are_those_of_the_bounds(name):
    """Central differences, where the contact moves with the ends of the box too."""
    generator = np.random.default_rng(8)
    lower = jnp.asarray(generator.uniform(-4, 1, COUNT).astype(np.float32))
    upper, alpha = lower + jnp.asarray(generator.uniform(1, 4, COUNT).astype(np.float32)), jnp.full(COUNT, 0.4)
    found = _derivatives(name)(lower, upper, alpha)

    def total(*ends: jax.Array) -> np.ndarray:
        image, lines = _compiled(name)(Interval(*ends), alpha)
        return sum(np.asarray(a, np.float64) for a in (image.lower, image.upper, *lines))

    step = jnp.float32(2e-3)
    for i, shift in enumerate([(step, 0 * step), (0 * step, step)]):
        after, before = ([end + sign * s for end, s in zip((lower, upper), shift, strict=True)] for sign in (1, -1))
        difference = (total(*after) - total(*before)) / (2 * float(step))
        # At a few boxes the line changes its kind within the step.
        assert np.mean(np.abs(difference - np.asarray(found[i])) < 0.02 * (1 + np.abs(difference))) > 0.97


@pytest.mark.parametrize("name", list(FUNCTIONS))
def test_lipschitz_constants_are_the_largest_slopes(name):
    equation, rule = _equation(name, COUNT)
    constant = float(rule.lipschitz(equation))
    points = np.linspace(-9, 9, 100001)
    if constant < math.inf:
        slopes = np.abs(np.diff(FUNCTIONS[name].exact(points)) / np.diff(points))
        assert constant * 0.995 <= slopes.max() <= constant * (1 + 1e-6)


@pytest.mark.parametrize("name", ["log", "sqrt", "rsqrt", "log1p", "pow", "integer_pow reciprocal"])
def test_boxes_outside_of_the_domain_have_infinite_bounds(name):
    lower, upper = jnp.full(COUNT, -2.0), jnp.full(COUNT, 0.5)
    image, (slope, intercept, above, top) = _compiled(name)(Interval(lower, upper), jnp.full(COUNT, 0.5))
    assert jnp.all(image.lower == -jnp.inf)
    assert jnp.all(image.upper == jnp.inf)
    assert jnp.all((slope == 0) & (above == 0) & (intercept == -jnp.inf) & (top == jnp.inf))


def test_lines_hold_in_float64():
    """Tails that are 0 in float32 are not yet in float64, where a slope of 1e-42 counts across a box of 1e30."""
    with jax.enable_x64(True):
        graph = graphs.trace(jax.nn.silu, jax.ShapeDtypeStruct((COUNT,), jnp.float64))
        rule, box = rules.lookup(graph.equations[0]), _boxes("reals", 3)
        box = Interval(box.lower.astype(jnp.float64), box.upper.astype(jnp.float64))
        points = _points(box)
        values = FUNCTIONS["silu"].exact(points)
        lower, upper = rule.relax(graph.equations[0], [box], jnp.full(COUNT, 0.3, jnp.float64))
        assert np.all(np.asarray(lower.slopes[0]) * points + np.asarray(lower.intercept) <= values)
        assert np.all(values <= np.asarray(upper.slopes[0]) * points + np.asarray(upper.intercept))


def test_infinite_boxes_have_the_limits_as_bounds():
    box = Interval(jnp.full(COUNT, -jnp.inf), jnp.full(COUNT, jnp.inf))
    image, (slope, intercept, above, top) = _compiled("tanh")(box, jnp.full(COUNT, 0.5))
    assert jnp.all((image.lower == -1) & (image.upper == 1))
    assert jnp.all((slope == 0) & (above == 0) & (intercept == -1) & (top == 1))


def test_elu_with_a_negative_parameter_has_no_bounds():
    graph = graphs.trace(lambda x: jax.nn.elu(x, -0.5), jnp.zeros(2))
    (equation,) = graph.equations
    image = rules.lookup(equation).interval(equation, Interval(-jnp.ones(2), jnp.ones(2)))
    assert jnp.all(image.upper == jnp.inf)


def _worst(box: Interval, points: np.ndarray, holds: np.ndarray, alpha: float) -> str:
    row, column = np.argwhere(~holds)[0]
    return f"alpha {alpha}, box {box.lower[column]} {box.upper[column]}, at {points[row, column]}"
