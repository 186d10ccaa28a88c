"""Every rule of the registry, against a dense grid of the function it stands for.

`CASES` builds one small function for each entry of the table; `test_every_rule_has_a_case` fails for a rule without
one.
"""

import functools
import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

import cure_jax as cj
from cure_jax import graph as graphs
from cure_jax import rules
from cure_jax.regions import Interval
from cure_jax.rules import registry, smooth

W = np.random.default_rng(1).normal(size=(4, 3)).astype(np.float32)
CONSTANT = jnp.array([0.3, -0.2, 0.0, 1.1])
IMAGE = jnp.asarray(np.random.default_rng(3).normal(size=(1, 3, 3, 4)).astype(np.float32))
GROUPED = np.random.default_rng(6).normal(size=(2, 2, 2, 6)).astype(np.float32)
KERNEL = np.random.default_rng(2).normal(size=(2, 2, 1, 2)).astype(np.float32)


class Case(NamedTuple):
    """A function whose first equation (of that primitive) uses the rule, and the sign that its domain asks for."""

    primitive: str
    function: Callable[[jax.Array], jax.Array]
    shape: tuple[int, ...] = (4,)
    domain: str = "reals"


def _grouped(x: jax.Array) -> jax.Array:
    options = {"dimension_numbers": ("NHWC", "HWIO", "NHWC"), "feature_group_count": 2}
    return lax.conv_general_dilated(x, GROUPED, (1, 1), "SAME", **options)


def _softplus_interval(x: Interval) -> Interval:
    return Interval(jax.nn.softplus(x.lower), jax.nn.softplus(x.upper))


def _softplus_lines(x: Interval) -> tuple[tuple[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]:
    """The tangent at the center; the line of slope 1 through the upper end, which is above all of a convex function."""
    tangent, values = jax.nn.sigmoid(x.center), _softplus_interval(x)
    narrow = x.lower == x.upper
    chord = jnp.where(narrow, tangent, (values.upper - values.lower) / jnp.where(narrow, 1, x.upper - x.lower))
    below = jax.nn.softplus(x.center) - tangent * x.center
    return (tangent, below), (chord, values.lower - chord * x.lower)


custom_softplus = cj.custom_bounds(jax.nn.softplus, interval=_softplus_interval, relax=_softplus_lines, lipschitz=1.0)


def _pool(x: jax.Array, strides: tuple[int, ...], padding: Any, **options: Any) -> jax.Array:
    return lax.reduce_window(x, -jnp.inf, lax.max, (2, 2), strides, padding, **options)


def _conv(x: jax.Array, stride: int = 1, padding: Any = "SAME", **options: Any) -> jax.Array:
    options["dimension_numbers"] = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x[None, ..., None], KERNEL, (stride, stride), padding, **options)


CASES = {
    "reshape": Case("reshape", lambda x: x.reshape(2, 2)),
    "transpose": Case("transpose", lambda x: x.T, (2, 2)),
    "squeeze": Case("squeeze", lambda x: lax.squeeze(x, (0,)), (1, 4)),
    "expand_dims": Case("broadcast_in_dim", lambda x: lax.expand_dims(x, (0,))),
    "rev": Case("rev", lambda x: x[::-1]),
    "slice": Case("slice", lambda x: lax.slice(x, (1,), (3,))),
    "broadcast": Case("broadcast_in_dim", lambda x: lax.broadcast(x, (2,))),
    "tile": Case("tile", lambda x: jnp.tile(x, 2)),
    "broadcast scalar": Case("broadcast_in_dim", lambda x: lax.squeeze(x, (0,)) * CONSTANT, (1,)),
    "broadcast row": Case("broadcast_in_dim", lambda x: x + jnp.ones((3, 4)), (1, 4)),
    "gather": Case("gather", lambda x: x[jnp.array([2, 0, 2])]),
    "gather out of bounds": Case("gather", lambda x: x[jnp.array([9, 0, 2])]),
    "gather filled": Case("gather", lambda x: x.at[jnp.array([9, 0, 2])].get(mode="fill", fill_value=-5.0)),
    "dynamic_slice": Case("dynamic_slice", lambda x: lax.dynamic_slice(x, (jnp.array(1),), (2,))),
    "select_n": Case("select_n", lambda x: jnp.where(jnp.array([True, False, True, False]), x, CONSTANT)),
    "select_n both": Case("select_n", lambda x: jnp.where(jnp.array([True, False, True, False]), x, 2 * x)),
    "concatenate": Case("concatenate", lambda x: jnp.concatenate([x, CONSTANT, 3 * x])),
    "stack": Case("stack", lambda x: jnp.stack([x, CONSTANT])),
    "pad": Case("pad", lambda x: lax.pad(x, jnp.float32(0.7), [(1, 2, 1)])),
    "pad negative": Case("pad", lambda x: lax.pad(x, jnp.float32(0.7), [(-1, 2, 1)])),
    "copy": Case("copy", lambda x: jnp.array(x, copy=True)),
    "add constant": Case("add", lambda x: x + CONSTANT),
    "add both": Case("add", lambda x: x + 2 * x),
    "sub constant": Case("sub", lambda x: x - CONSTANT),
    "constant sub": Case("sub", lambda x: CONSTANT - x),
    "sub both": Case("sub", lambda x: x[::-1] - x),
    "neg": Case("neg", lambda x: -x),
    "mul": Case("mul", lambda x: x * CONSTANT),
    "div": Case("div", lambda x: x / (CONSTANT + 2)),
    "reduce_sum": Case("reduce_sum", lambda x: jnp.sum(x, axis=1), (2, 2)),
    "reduce_window_sum": Case(
        "reduce_window_sum", lambda x: lax.reduce_window(x, 0.0, lax.add, (2, 2), (1, 1), "SAME"), (2, 2)
    ),
    "reduce_window_sum in the padding": Case(
        "reduce_window_sum", lambda x: lax.reduce_window(x, 0.0, lax.add, (1, 1), (1, 1), [(1, 0), (0, 2)]), (2, 2)
    ),
    "dot right": Case("dot_general", lambda x: x @ jnp.asarray(W)),
    "dot left": Case("dot_general", lambda x: jnp.asarray(W).T @ x),
    "conv": Case("conv_general_dilated", _conv, (2, 2)),
    "dot batched": Case("dot_general", lambda x: jnp.einsum("bij,bjk->bki", x, jnp.stack([W[:2], W[2:]])), (2, 4, 2)),
    "einsum": Case("dot_general", lambda x: jnp.einsum("ij,kj->ki", x, W.T), (2, 4)),
    "cumsum": Case("cumsum", jnp.cumsum),
    "cumsum reversed": Case("cumsum", lambda x: lax.cumsum(x, axis=1, reverse=True), (2, 3)),
    "split": Case("slice", lambda x: jnp.split(x, [1, 3])[1]),
    "dynamic_update_slice": Case("dynamic_update_slice", lambda x: lax.dynamic_update_slice(CONSTANT, x, (1,)), (2,)),
    "dynamic_update_slice into": Case(
        "dynamic_update_slice", lambda x: lax.dynamic_update_slice(x, CONSTANT[:2], (1,))
    ),
    "dynamic_update_slice both": Case("dynamic_update_slice", lambda x: lax.dynamic_update_slice(x, 2 * x[:2], (1,))),
    "conv grouped": Case("conv_general_dilated", _grouped, (1, 3, 3, 4)),
    "conv strided": Case("conv_general_dilated", functools.partial(_conv, stride=2, padding="VALID"), (2, 2)),
    "conv dilated": Case(
        "conv_general_dilated", functools.partial(_conv, padding=[(2, 0), (0, 3)], rhs_dilation=(2, 1)), (3, 3)
    ),
    "relu": Case("max", jax.nn.relu),
    "max constant": Case("max", lambda x: jnp.maximum(x, CONSTANT)),
    "max both": Case("max", lambda x: jnp.maximum(x, 0.5 * x[::-1] + 0.2)),
    "min constant": Case("min", lambda x: jnp.minimum(CONSTANT, x)),
    "min both": Case("min", lambda x: jnp.minimum(x, 0.5 * x[::-1] + 0.2)),
    "max constant broadcast": Case("max", lambda x: jnp.maximum(x, CONSTANT), (1,)),
    "max both broadcast": Case("max", lambda x: jnp.maximum(x, jnp.sum(x))),
    "min both broadcast": Case("min", lambda x: jnp.minimum(x[None], x[:2, None])),
    "abs": Case("abs", jnp.abs),
    "leaky_relu": Case("leaky_relu", jax.nn.leaky_relu),
    "leaky_relu steep": Case("leaky_relu", lambda x: jax.nn.leaky_relu(x, 1.5)),
    "leaky_relu of both signs": Case("leaky_relu", lambda x: jax.nn.leaky_relu(x, CONSTANT)),
    "prelu": Case("leaky_relu", functools.partial(nn.PReLU().apply, {"params": {"negative_slope": jnp.float32(0.2)}})),
    "relu6": Case("relu6", lambda x: jax.nn.relu6(4 * x)),
    "hard_tanh": Case("hard_tanh", jax.nn.hard_tanh),
    "clamp": Case("clamp", lambda x: lax.clamp(-CONSTANT[3], x, CONSTANT[0])),
    "clip": Case("clip", lambda x: jnp.clip(x, -1, CONSTANT)),
    "mul both": Case("mul", lambda x: x * x[::-1]),
    "div both": Case("mul", lambda x: x / (x[::-1] + 1), domain="positive"),
    "reciprocal": Case("integer_pow", lambda x: CONSTANT / x, domain="positive"),
    "dot both": Case("dot_general", lambda x: x @ x.T, (2, 3)),
    "dot both batched": Case("dot_general", lambda x: jnp.einsum("hqd,hkd->qhk", x, x[:, ::-1]), (2, 3, 2)),
    "custom_bounds": Case("custom_bounds", custom_softplus),
    "custom_bounds interval": Case("custom_bounds", cj.custom_bounds(jax.nn.softplus, interval=_softplus_interval)),
    "custom_bounds mapped": Case("custom_bounds", lambda x: jax.vmap(custom_softplus, 1)(x), (2, 3)),
    # All other smooth functions are in test_curves.py.
    "exp": Case("exp", jnp.exp),
    "tanh": Case("tanh", jnp.tanh),
    "gelu": Case("gelu", lambda x: nnx.gelu(x, approximate=False)),
    "square of a node": Case("mul", lambda x: x * x),
    "reduce_min": Case("reduce_min", lambda x: jnp.min(x, axis=0), (2, 2)),
    "min pool": Case(
        "reduce_window_min", lambda x: lax.reduce_window(x, jnp.inf, lax.min, (2, 2), (1, 1), "SAME"), (2, 2)
    ),
    "reduce_max": Case("reduce_max", lambda x: jnp.max(x, axis=0), (2, 2)),
    "max pool": Case("reduce_window_max", functools.partial(_pool, strides=(2, 2), padding="VALID"), (2, 2)),
    "max pool overlapping": Case("reduce_window_max", functools.partial(_pool, strides=(1, 1), padding="SAME"), (2, 2)),
    "max pool dilated": Case(
        "reduce_window_max",
        functools.partial(_pool, strides=(2, 1), padding=[(1, 1), (0, 1)], base_dilation=(2, 1)),
        (2, 2),
    ),
}


def _equation(case: Case) -> graphs.Equation:
    graph = graphs.trace(case.function, jnp.zeros(case.shape))
    return next(equation for equation in graph.equations if equation.name == case.primitive)


def _random_boxes(name: str, equation: graphs.Equation, seed: int) -> list[Interval]:
    generator = np.random.default_rng(seed)
    boxes: dict[int, Interval] = {}
    for node in equation.bounded:
        center = generator.normal(size=node.shape).astype(np.float32)
        radius = generator.choice([0.0, 0.1, 0.6, 2.0], size=node.shape).astype(np.float32)
        lower, upper = center - radius, center + radius
        if CASES[name].domain == "positive":
            lower = np.abs(lower) + np.float32(0.3)
            upper = lower + 2 * radius
        boxes.setdefault(node.index, Interval(jnp.asarray(lower), jnp.asarray(upper)))
    # A node that is used twice has one box.
    return [boxes[node.index] for node in equation.bounded]


def _points(equation: graphs.Equation, boxes: list[Interval], seed: int, count: int = 1000) -> list[jax.Array]:
    """Random points, most of them with many coordinates at the ends of their interval."""
    generator = np.random.default_rng(seed)
    points: dict[int, jax.Array] = {}
    for node, box in zip(equation.bounded, boxes, strict=True):
        share = generator.uniform(size=(count, *box.shape)).astype(np.float32)
        ends = generator.integers(0, 2, size=share.shape).astype(np.float32)
        share = np.where(generator.uniform(size=share.shape) < 0.6, ends, share)
        lower, upper = np.asarray(box.lower)[None], np.asarray(box.upper)[None]
        points.setdefault(node.index, jnp.asarray(np.clip(lower + share * (upper - lower), lower, upper)))
    return [points[node.index] for node in equation.bounded]


@functools.cache
def _nonlinear() -> list[str]:
    return [name for name, case in CASES.items() if isinstance(rules.lookup(_equation(case)), rules.Nonlinear)]


def test_every_rule_has_a_case():
    used = [rules.lookup(_equation(case)) for case in CASES.values()]
    # The smooth functions, among them powers, have one implementation in common and cases in test_curves.py.
    smooth_ones = set(smooth.CURVES) | {"integer_pow"}
    names = {case.primitive for case in CASES.values()} | smooth_ones
    # `copy` and `expand_dims` may be traced as other primitives; `add_any` only appears in derivatives.
    assert set(rules.supported()) - names <= {"add_any", "copy", "expand_dims", "convert_element_type"}
    nonlinear = [
        rule
        for name, entries in registry._TABLE.items()
        for _, rule in entries
        if isinstance(rule, rules.Nonlinear) and name not in smooth_ones
    ]
    assert all(any(rule is other for other in used) for rule in nonlinear)


def test_lines_that_are_called_blends_are_blends():
    blending = [name for name in _nonlinear() if rules.lookup(_equation(CASES[name])).blends]
    assert {"max", "clamp"} <= {CASES[name].primitive for name in blending}
    for name in blending:
        equation = _equation(CASES[name])
        boxes = _random_boxes(name, equation, 5)
        shares = jnp.asarray(np.random.default_rng(6).uniform(size=equation.output.shape).astype(np.float32))

        @jax.jit
        def relaxations(alpha: jax.Array, equation=equation, boxes=boxes) -> list:
            lines = rules.lookup(equation).relax(equation, boxes, alpha)
            return [(line.slopes, line.intercept) for line in lines]

        zero, one, between = (relaxations(alpha) for alpha in (jnp.zeros_like(shares), jnp.ones_like(shares), shares))
        blended = jax.tree.map(lambda a, b, share=shares: (1 - share) * a + share * b, zero, one)
        chex.assert_trees_all_close(between, blended, atol=1e-5)


@functools.cache
def _enclosure(name: str) -> Callable[..., Any]:
    """Compiled: the interval, and the values of the function and of both lines at points."""
    equation = _equation(CASES[name])

    def enclose(boxes: list[Interval], points: list[jax.Array], alpha: jax.Array):
        rule = rules.lookup(equation)
        assert isinstance(rule, rules.Nonlinear)
        lines = [_line_values(equation, line, points) for line in rule.relax(equation, boxes, alpha)]
        return rule.interval(equation, *boxes), jax.vmap(equation.evaluate)(*points), *lines

    return jax.jit(enclose)


@pytest.mark.parametrize("name", _nonlinear())
def test_intervals_and_lines_hold_every_value(name):
    equation = _equation(CASES[name])
    slack = 3.0 if name.startswith("dot") else 0.0 if len(equation.bounded) == 1 else 0.6
    for seed, alpha in itertools.product(range(4), (0.0, 0.3, 1.0)):
        boxes = _random_boxes(name, equation, seed)
        points = _points(equation, boxes, seed + 10)
        interval, values, lower, upper = _enclosure(name)(boxes, points, jnp.full(equation.output.shape, alpha))
        rounding = 1e-5 * (1 + jnp.max(jnp.abs(values), axis=0))
        assert jnp.all(values >= interval.lower[None] - rounding[None])
        assert jnp.all(values <= interval.upper[None] + rounding[None])
        assert jnp.all(lower <= values + rounding[None])
        assert jnp.all(values <= upper + rounding[None])
        tolerance = 0.25 * (1 + jnp.max(jnp.abs(values), axis=0)) + slack
        assert jnp.all(values.min(0) - interval.lower <= tolerance)
        assert jnp.all(interval.upper - values.max(0) <= tolerance)


def _line_values(equation: graphs.Equation, line: rules.LinearMap, points: list[jax.Array]) -> jax.Array:
    """The values of an affine map that is given by its transpose."""
    size = math.prod(equation.output.shape)
    rows = jnp.eye(size).reshape(size, *equation.output.shape)
    pulled = jax.vmap(line.pull)(rows)
    flat = sum(
        jnp.dot(p.reshape(len(p), -1), m.reshape(size, -1).T, precision="highest")
        for p, m in zip(points, pulled, strict=True)
    )
    return (flat + line.intercept.reshape(1, -1)).reshape(-1, *equation.output.shape)


@pytest.mark.parametrize("name", [name for name in _nonlinear() if name != "custom_bounds interval"])
def test_relaxation_of_a_point_is_exact(name):
    equation = _equation(CASES[name])
    values = [box.lower for box in _random_boxes(name, equation, 5)]
    boxes, points = [Interval(v, v) for v in values], [v[None] for v in values]
    for alpha in (0.0, 0.5, 1.0):
        interval, expected, *lines = _enclosure(name)(boxes, points, jnp.full(equation.output.shape, alpha))
        for bound in (interval.lower, interval.upper, *(line[0] for line in lines)):
            np.testing.assert_allclose(bound, expected[0], rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("name", _nonlinear())
def test_the_start_is_the_rules_own_choice(name):
    equation = _equation(CASES[name])
    rule, boxes = rules.lookup(equation), _random_boxes(name, equation, 2)
    if rule.start is None:
        other = jnp.full(equation.output.shape, 0.1)
    else:
        other = rule.start(equation, boxes)
        assert other.shape == equation.output.shape
        assert jnp.all((other >= 0) & (other <= 1))
    points = _points(equation, boxes, 3)
    *_, lower, upper = _enclosure(name)(boxes, points, other)
    own = jax.jit(lambda boxes: [_line_values(equation, line, points) for line in rule.relax(equation, boxes, None)])
    for line, started in zip(own(boxes), (lower, upper), strict=True):
        np.testing.assert_allclose(line, started, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", [name for name in _nonlinear() if rules.lookup(_equation(CASES[name])).undecided])
def test_where_nothing_is_undecided_the_lines_meet(name):
    equation = _equation(CASES[name])
    rule = rules.lookup(equation)
    for seed in range(3):
        boxes = _random_boxes(name, equation, seed)
        masks = rule.undecided(equation, boxes)
        assert [mask.shape for mask in masks] == [node.shape for node in equation.bounded]
        # Boxes where nothing is to be gained keep their width; the others become points.
        boxes = [
            Interval(box.lower, jnp.where(mask, box.lower, box.upper)) for mask, box in zip(masks, boxes, strict=True)
        ]
        points = _points(equation, boxes, seed)
        _, values, *lines = _enclosure(name)(boxes, points, jnp.full(equation.output.shape, 0.5))
        if all(not jnp.any(mask) for mask in rule.undecided(equation, boxes)):
            for line in lines:
                np.testing.assert_allclose(line, values, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", _nonlinear())
def test_lipschitz_constants_hold(name):
    equation = _equation(CASES[name])
    boxes = _random_boxes(name, equation, 3)
    first, second = _points(equation, boxes, 1), _points(equation, boxes, 2)
    moved = jax.vmap(equation.evaluate)(*first) - jax.vmap(equation.evaluate)(*second)
    distance = sum(jnp.sum((a - b).reshape(len(a), -1) ** 2, axis=1) for a, b in zip(first, second, strict=True))
    constant = rules.lookup(equation).lipschitz(equation)
    if constant == math.inf:
        return
    assert jnp.all(jnp.sum(moved.reshape(len(moved), -1) ** 2, axis=1) <= constant**2 * distance * (1 + 1e-5) + 1e-6)


@pytest.mark.parametrize("name", ["relu", "abs", "leaky_relu", "relu6", "clamp"])
def test_lines_hold_on_boxes_too_wide_or_too_narrow_to_measure(name):
    equation = _equation(CASES[name])
    for size in (3e38, 1e30, 1e-17, 1e-25):
        ends = jnp.array([size, size, size / 3, size / 2]) * jnp.array([-1.0, -0.5, -1.0, -0.1]), jnp.full(4, size)
        points = [ends[0], ends[1], jnp.zeros(4)]
        for alpha in (0.0, 1.0):
            relaxation = rules.lookup(equation).relax(equation, [Interval(*ends)], jnp.full(4, alpha))
            for point in points:
                value = np.asarray(equation.evaluate(point), np.float64)
                lower, upper = (
                    np.float64(line.slopes[0]) * np.float64(point) + np.float64(line.intercept) for line in relaxation
                )
                assert np.all(lower <= value + 1e-6 * size)
                assert np.all(value <= upper + 1e-6 * size)


def _matrix(equation: graphs.Equation) -> np.ndarray:
    """The matrix of the linear part, all bounded operands side by side."""
    columns = jax.jacobian(equation.evaluate, argnums=tuple(range(len(equation.bounded))))(
        *(node.zeros() for node in equation.bounded)
    )
    size = math.prod(equation.output.shape)
    return np.concatenate([np.asarray(column).reshape(size, -1) for column in columns], axis=1)


@pytest.mark.parametrize("q", [1.0, 1.5, 2.0, math.inf])
@pytest.mark.parametrize("name", [name for name in CASES if name not in _nonlinear()])
def test_magnitudes_are_row_norms(name, q):
    equation = _equation(CASES[name])
    rule = rules.lookup(equation)
    generator = np.random.default_rng(4)
    radii = [jnp.asarray(generator.uniform(0, 2, size=node.shape).astype(np.float32)) for node in equation.bounded]
    flat = np.concatenate([np.asarray(radius).ravel() for radius in radii])
    expected = np.linalg.norm(_matrix(equation) * flat[None], ord=q, axis=1)
    np.testing.assert_allclose(np.ravel(rule.magnitude(equation, q, *radii)), expected, rtol=1e-5, atol=1e-6)
    if rule.diagonal and len(radii) == 1:
        assert np.all((np.abs(_matrix(equation)) > 0).sum(0) <= 1)
        assert np.all((np.abs(_matrix(equation)) > 0).sum(1) <= 1)
    if not rule.offset:
        assert np.all(np.asarray(equation.evaluate(*(node.zeros() for node in equation.bounded))) == 0)


def test_unknown_primitives_are_refused_with_their_source_line():
    with pytest.raises(graphs.UnsupportedPrimitive, match=r"`cumprod`.*test_rules\.py:\d+"):
        _bounds_of(lambda x: jnp.cumprod(x))


REFUSED = {
    "predicate": (
        lambda x: jnp.where(x > 0, x, 0.1 * x),
        r"`(gt|select_n)` \(it.*input; use jnp.maximum.*custom_bounds",
    ),
    "choice": (lambda x: jnp.where(x < 0, -x, x), r"`(lt|select_n)`"),
    "argmax": (lambda x: x[jnp.argmax(x)], "`argmax` .which entry"),
    "limits": (lambda x: lax.clamp(x, jnp.ones(4), x + 1), "`clamp` .a limit depends on the input"),
    "exponent": (lambda x: 2.0**x, "`pow` .only its first operand"),
    "parameter": (lambda x: jax.nn.elu(jnp.abs(x), jnp.abs(x)), "`(gt|select_n)`"),
    "kernel": (
        lambda x: lax.conv_general_dilated(IMAGE, x[None, None, :, None] * jnp.ones((1, 3, 4, 1)), (1, 1), "SAME"),
        "only the images",
    ),
    "closure": (lambda x: cj.custom_bounds(lambda y: x + y, interval=lambda y: y)(x), "closes over a value"),
}


@pytest.mark.parametrize("name", list(REFUSED))
def test_what_has_no_rule_is_refused_with_a_reason(name):
    function, message = REFUSED[name]
    with pytest.raises(graphs.UnsupportedPrimitive, match=message):
        _bounds_of(function)


def test_narrowing_conversions_are_refused():
    with pytest.raises(graphs.UnsupportedPrimitive, match="convert_element_type"):
        _bounds_of(lambda x: x.astype(jnp.bfloat16))


def test_widening_conversions_keep_values():
    with jax.enable_x64(True):
        graph = graphs.trace(lambda x: x.astype(jnp.float64) * 3, jax.ShapeDtypeStruct((2,), jnp.float32))
        assert graph.equations[0].name == "convert_element_type"
        assert isinstance(rules.lookup(graph.equations[0]), rules.Affine)


def test_products_rounded_to_a_narrower_type_are_refused():
    with pytest.raises(graphs.UnsupportedPrimitive, match="`dot_general`"):
        _bounds_of(lambda x: jnp.dot(x, CONSTANT, preferred_element_type=jnp.bfloat16))


def test_maxima_of_padding_alone_are_refused():
    with pytest.raises(graphs.UnsupportedPrimitive, match="`reduce_window_max`"):
        _bounds_of(lambda x: _pool(x.reshape(2, 2), (1, 1), [(2, 0), (0, 0)]))
    with pytest.raises(graphs.UnsupportedPrimitive, match="`reduce_window_max`"):
        _bounds_of(lambda x: lax.reduce_window(x, -jnp.inf, lax.max, (1,), (1,), "VALID", base_dilation=(2,)))


@pytest.mark.parametrize("q", [1.5, 2.0, 5.0])
def test_small_magnitudes_do_not_vanish_in_their_powers(q):
    for name in ("dot right", "conv", "mul"):
        equation = _equation(CASES[name])
        small = equation.replace_constants(lambda weight: weight * 1e-9)
        radius = jnp.full(equation.bounded[0].shape, 1e-3)
        rule = rules.lookup(equation)
        expected = rule.magnitude(equation, q, jnp.ones_like(radius))
        np.testing.assert_allclose(rule.magnitude(small, q, radius) * 1e12, expected, rtol=1e-5)


def _bounds_of(f: Callable[[jax.Array], jax.Array]) -> None:
    graph = graphs.trace(f, jnp.zeros(4))
    for equation in graph.equations:
        rules.lookup(equation)
