"""Every rule of the registry, against a dense grid of the function it stands for.

`CASES` builds one small function for each entry of the table; `test_every_rule_has_a_case` fails for a rule without
one.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from cure_jax import graph as graphs
from cure_jax import rules
from cure_jax.regions import Interval
from cure_jax.rules import registry

W = np.random.default_rng(1).normal(size=(4, 3)).astype(np.float32)
CONSTANT = jnp.array([0.3, -0.2, 0.0, 1.1])
KERNEL = np.random.default_rng(2).normal(size=(2, 2, 1, 2)).astype(np.float32)


class Case(NamedTuple):
    """A function whose first equation (of that primitive) uses the rule."""

    primitive: str
    function: Callable[[jax.Array], jax.Array]
    shape: tuple[int, ...] = (4,)


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


def _random_boxes(equation: graphs.Equation, seed: int) -> list[Interval]:
    generator = np.random.default_rng(seed)
    boxes = []
    for node in equation.bounded:
        center = generator.normal(size=node.shape).astype(np.float32)
        radius = generator.choice([0.0, 0.1, 0.6, 2.0], size=node.shape).astype(np.float32)
        boxes.append(Interval(jnp.asarray(center - radius), jnp.asarray(center + radius)))
    return boxes


def _points(boxes: list[Interval], seed: int, count: int = 3000) -> list[jax.Array]:
    """Random points, most of them with many coordinates at the ends of their interval."""
    generator = np.random.default_rng(seed)
    points = []
    for box in boxes:
        share = generator.uniform(size=(count, *box.shape)).astype(np.float32)
        ends = generator.integers(0, 2, size=share.shape).astype(np.float32)
        share = np.where(generator.uniform(size=share.shape) < 0.6, ends, share)
        lower, upper = np.asarray(box.lower)[None], np.asarray(box.upper)[None]
        points.append(jnp.asarray(lower + share * (upper - lower)))
    return points


def _nonlinear() -> list[str]:
    return [name for name, case in CASES.items() if isinstance(rules.lookup(_equation(case)), rules.Nonlinear)]


def test_every_rule_has_a_case():
    used = [rules.lookup(_equation(case)) for case in CASES.values()]
    names = {case.primitive for case in CASES.values()}
    # `copy` and `expand_dims` may be traced as other primitives; `add_any` only appears in derivatives.
    assert set(rules.supported()) - names <= {"add_any", "copy", "expand_dims", "convert_element_type"}
    nonlinear = [
        rule for entries in registry._TABLE.values() for _, rule in entries if isinstance(rule, rules.Nonlinear)
    ]
    assert all(any(rule is other for other in used) for rule in nonlinear)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", _nonlinear())
def test_intervals_hold_every_value_and_are_tight(name, seed):
    equation = _equation(CASES[name])
    boxes = _random_boxes(equation, seed)
    interval = rules.lookup(equation).interval(equation, *boxes)
    values = jax.vmap(equation.evaluate)(*_points(boxes, seed + 10))
    assert jnp.all(values >= interval.lower[None] - 1e-6)
    assert jnp.all(values <= interval.upper[None] + 1e-6)
    slack = 0.0 if len(boxes) == 1 else 0.6
    np.testing.assert_allclose(values.min(0), interval.lower, atol=0.25 + slack)
    np.testing.assert_allclose(values.max(0), interval.upper, atol=0.25 + slack)


@pytest.mark.parametrize("alpha", [None, 0.0, 0.3, 1.0])
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", _nonlinear())
def test_lines_sandwich_the_function(name, seed, alpha):
    equation = _equation(CASES[name])
    boxes = _random_boxes(equation, seed)
    slopes = None if alpha is None else jnp.full(equation.output.shape, alpha)
    relaxation = rules.lookup(equation).relax(equation, boxes, slopes)
    points = _points(boxes, seed + 20)
    values = jax.vmap(equation.evaluate)(*points)
    lower, upper = (_line_values(equation, line, points) for line in relaxation)
    assert jnp.all(lower <= values + 1e-5)
    assert jnp.all(values <= upper + 1e-5)


def _line_values(equation: graphs.Equation, line: rules.LinearMap, points: list[jax.Array]) -> jax.Array:
    """The values of an affine map that is given by its transpose."""
    size = math.prod(equation.output.shape)
    rows = jnp.eye(size).reshape(size, *equation.output.shape)
    pulled = jax.vmap(line.pull)(rows)
    flat = sum(p.reshape(len(p), -1) @ m.reshape(size, -1).T for p, m in zip(points, pulled, strict=True))
    return (flat + line.intercept.reshape(1, -1)).reshape(-1, *equation.output.shape)


@pytest.mark.parametrize("name", _nonlinear())
def test_relaxation_of_a_point_is_exact(name):
    equation = _equation(CASES[name])
    values = [jnp.asarray(np.random.default_rng(5).normal(size=n.shape).astype(np.float32)) for n in equation.bounded]
    relaxation = rules.lookup(equation).relax(equation, [Interval(v, v) for v in values], None)
    expected = equation.evaluate(*values)
    for line in relaxation:
        np.testing.assert_allclose(_line_values(equation, line, [v[None] for v in values])[0], expected, atol=1e-6)


@pytest.mark.parametrize("name", _nonlinear())
def test_lipschitz_constants_hold(name):
    equation = _equation(CASES[name])
    boxes = _random_boxes(equation, 3)
    first, second = _points(boxes, 1), _points(boxes, 2)
    moved = jax.vmap(equation.evaluate)(*first) - jax.vmap(equation.evaluate)(*second)
    distance = sum(jnp.sum((a - b).reshape(len(a), -1) ** 2, axis=1) for a, b in zip(first, second, strict=True))
    constant = rules.lookup(equation).lipschitz(equation)
    assert jnp.all(jnp.sum(moved.reshape(len(moved), -1) ** 2, axis=1) <= constant**2 * distance * (1 + 1e-5) + 1e-6)


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
    with pytest.raises(graphs.UnsupportedPrimitive, match=r"`sort`.*test_rules\.py:\d+"):
        _bounds_of(lambda x: jnp.sort(x))


def test_predicates_that_depend_on_the_input_are_refused():
    with pytest.raises(graphs.UnsupportedPrimitive, match=r"`(lt|select_n)`"):
        _bounds_of(lambda x: jnp.where(x < 0, -x, x))


def test_products_of_two_bounded_operands_are_refused():
    with pytest.raises(graphs.UnsupportedPrimitive, match="`mul`"):
        _bounds_of(lambda x: x * x[::-1])


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


def test_division_by_a_bounded_operand_is_refused():
    with pytest.raises(graphs.UnsupportedPrimitive, match="`div`"):
        _bounds_of(lambda x: 1.0 / x)


def _bounds_of(f: Callable[[jax.Array], jax.Array]) -> None:
    graph = graphs.trace(f, jnp.zeros(4))
    for equation in graph.equations:
        rules.lookup(equation)
