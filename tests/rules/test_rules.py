"""Every rule of the registry, against a dense grid of the function it stands for.

`tests.rules.cases` has one small function for each entry of the table; `test_every_rule_has_a_case` fails for a rule
without one.
"""

import functools
import itertools
import math
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import cure_jax as cj
from cure_jax import graph as graphs
from cure_jax import rules
from cure_jax.regions import Interval
from cure_jax.rules import registry, smooth
from tests.rules.cases import CASES, CONSTANT, Case, pool


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


_PIECES = ("max", "min", "abs", "leaky_relu")


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.primitive in _PIECES])
def test_two_pieces_are_the_function(name):
    """Of one operand, two lines that meet at the kink; whatever its slope is written as."""
    equation = _equation(CASES[name])
    pieces = rules.two_pieces(equation)
    assert (pieces is None) == (len(equation.bounded) == 2)
    if pieces is not None:
        kink, (left, right) = pieces
        (node,) = equation.bounded
        for x in jax.random.normal(jax.random.key(7), (20, *node.shape)):
            expected = rules.piece(kink, jnp.where(x < kink, left, right), x)
            np.testing.assert_allclose(equation.evaluate(x), expected, atol=1e-6)


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
    # The two sides of a comparison may be the cases too, which their boxes do not know.
    slack = 3.0 if name.startswith(("dot", "conv", "where of")) else 0.0 if len(equation.bounded) == 1 else 0.6
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
    with pytest.raises(graphs.UnsupportedPrimitive, match=r"`lgamma`.*test_rules\.py:\d+"):
        _bounds_of(lambda x: lax.lgamma(x))


REFUSED = {
    "equality": (
        lambda x: jnp.where(x == 0, 1.0, x),
        r"`(eq|select_n)` \(it.*input; use jnp.maximum.*custom_bounds",
    ),
    "several comparisons": (lambda x: jnp.where((x > 0) & (x < 1), -x, x), r"`(gt|lt|and|select_n)`"),
    "argmax": (lambda x: x[jnp.argmax(x)], "`argmax` .which entry"),
    "argsort": (lambda x: x[jnp.argsort(x)], "`argsort` .which entry"),
    "places": (lambda x: x[lax.top_k(x, 2)[1]], "`argsort` .which entry"),
    "limits": (lambda x: lax.clamp(x, jnp.ones(4), x + 1), "`clamp` .a limit depends on the input"),
    "written twice": (lambda x: x.at[jnp.array([1, 1])].set(2 * x[:2]), "`scatter` .where it writes"),
    "applied": (lambda x: x.at[jnp.array([0, 1])].apply(jnp.tanh), "`scatter` .where it writes"),
    "segment_max": (lambda x: jax.ops.segment_max(x, jnp.array([0, 1, 1, 0]), 2), "`scatter-max` .use"),
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
        _bounds_of(lambda x: pool(x.reshape(2, 2), (1, 1), [(2, 0), (0, 0)]))
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
