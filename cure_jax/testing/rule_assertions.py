"""Do the rules of single primitives hold? Random boxes, and points with many coordinates at an end."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Key

from cure_jax import graph as graphs
from cure_jax import rules
from cure_jax.regions import Interval
from cure_jax.testing.enclosure import assert_enclosed, require, short

__all__ = ["assert_rule_sound"]

_ALPHAS = (None, 0.0, 0.3, 1.0, "random")


def assert_rule_sound(
    f: Callable[[jax.Array], jax.Array],
    shape: Sequence[int],
    *,
    key: Key[Array, ""],
    rule: rules.Affine | rules.Nonlinear | None = None,
    num_boxes: int = 8,
    num_samples: int = 300,
) -> None:
    """Asserts that the rules of all primitives in a function hold on random boxes, for random slope parameters.

    The interval of a nonlinear rule must hold all values of the primitive on the box, and its two lines enclose it, for
    alpha = None (the rule's own choice), 0, 0.3, 1 and at random. Boxes are around 0, each interval has width 0, 0.2,
    1.2 or 4. Of an affine rule, the magnitudes for q = 1, 2 and infinity must be these norms of the rows of
    the Jacobian.

    Args:
      f: a function of one array that contains the primitive, best alone: `lambda x: jnp.maximum(x, 0)`.
      shape: of its argument.
      key: the randomness.
      rule: tested in place of the registered ones, in a function of one primitive.
      num_boxes: how many.
      num_samples: points in each box, most coordinates at an end of their interval.

    Raises:
      AssertionError: naming primitive, alpha, entry and excess.
      UnsupportedPrimitive: if a primitive has no rule.

    Examples:
      >>> assert_rule_sound(lambda x: jnp.maximum(x, 0.0), (3,), key=jax.random.key(0))
    """
    traced = graphs.trace(f, jax.ShapeDtypeStruct(tuple(shape), jnp.float32))
    for equation in traced.equations:
        used = rule or rules.lookup(equation)
        if isinstance(used, rules.Affine):
            _assert_affine_rule(equation, used, key)
            continue
        for index in range(num_boxes):
            for alpha in _ALPHAS:
                _assert_nonlinear_rule(equation, used, alpha, jax.random.fold_in(key, index), num_samples)


def _random_boxes(equation: graphs.Equation, key: Array) -> list[Interval]:
    intervals = []
    for index, node in enumerate(equation.bounded):
        center_key, radius_key = jax.random.split(jax.random.fold_in(key, index))
        center = jax.random.normal(center_key, node.shape, node.dtype)
        radius = jax.random.choice(radius_key, jnp.array([0.0, 0.1, 0.6, 2.0], node.dtype), node.shape)
        intervals.append(Interval(center - radius, center + radius))
    return intervals


def _in_box(box: Interval, key: Array, count: int) -> Array:
    """Points of a box with three of five coordinates at an end."""
    share_key, end_key, which_key = jax.random.split(key, 3)
    shape = (count, *box.shape)
    share = jax.random.uniform(share_key, shape, box.dtype)
    ends = jax.random.bernoulli(end_key, 0.5, shape).astype(box.dtype)
    share = jnp.where(jax.random.bernoulli(which_key, 0.6, shape), ends, share)
    return box.lower[None] + share * (box.upper - box.lower)[None]


def _assert_nonlinear_rule(
    equation: graphs.Equation, rule: rules.Nonlinear, alpha: Any, key: Array, count: int
) -> None:
    box_key, point_key, alpha_key = jax.random.split(key, 3)
    intervals = _random_boxes(equation, box_key)
    points = [_in_box(box, jax.random.fold_in(point_key, i), count) for i, box in enumerate(intervals)]
    values = jax.device_get(jax.vmap(equation.evaluate)(*points))
    shape, dtype = equation.output.shape, equation.output.dtype
    slopes = jax.random.uniform(alpha_key, shape, dtype) if alpha == "random" else alpha
    slopes = jnp.full(shape, slopes, dtype) if isinstance(slopes, float) else slopes
    relaxation = rule.relax(equation, intervals, slopes)

    def where(kind: str) -> Callable[[int], str]:
        return lambda i: f"{kind} of `{equation.name}`, alpha {alpha}, at {[short(point[i]) for point in points]}"

    assert_enclosed(values, rule.interval(equation, *intervals), 1e-6, where("by the interval"), "value")
    # Lines depend on the point: what is enclosed is the distance from them.
    nothing, infinite = jnp.zeros(shape, dtype), jnp.full(shape, jnp.inf, dtype)
    for line, sign, kind in ((relaxation.lower, 1, "by the lower line"), (relaxation.upper, -1, "by the upper line")):
        distance = sign * (values - _line_values(equation, line, points))
        assert_enclosed(distance, Interval(nothing, infinite), 1e-5, where(kind), "distance from the line at")


def _line_values(equation: graphs.Equation, line: rules.LinearMap, points: Sequence[Array]) -> np.ndarray:
    """The values of an affine map that is given by its transpose."""
    size = math.prod(equation.output.shape)
    rows = jnp.eye(size, dtype=equation.output.dtype).reshape(size, *equation.output.shape)
    flat: Any = line.intercept.reshape(1, -1)
    for point, matrix in zip(points, jax.vmap(line.pull)(rows), strict=True):
        product = jnp.dot(point.reshape(len(point), -1), matrix.reshape(size, -1).T, precision=lax.Precision.HIGHEST)
        flat = flat + product
    return np.asarray(flat).reshape(-1, *equation.output.shape)


def _assert_affine_rule(equation: graphs.Equation, rule: rules.Affine, key: Array) -> None:
    keys = jax.random.split(key, len(equation.bounded))
    radii = [
        jax.random.uniform(k, node.shape, node.dtype, 0, 2) for k, node in zip(keys, equation.bounded, strict=True)
    ]
    zeros = [node.zeros() for node in equation.bounded]
    size = math.prod(equation.output.shape)
    columns = jax.jacobian(equation.evaluate, argnums=tuple(range(len(zeros))))(*zeros)
    flat = [
        np.reshape(column, (size, -1)) * np.reshape(radius, (1, -1))
        for column, radius in zip(columns, radii, strict=True)
    ]
    matrix = np.concatenate(flat, axis=1)
    for q in (1.0, 2.0, math.inf):
        magnitude = np.ravel(rule.magnitude(equation, q, *radii))
        norms = np.linalg.norm(matrix, q, axis=1)
        excess = np.max(np.abs(magnitude - norms), initial=0.0)
        allowed = 1e-5 * max(1.0, np.max(norms, initial=0.0))
        message = f"The magnitude of `{equation.name}` for q = {q} is off the norms of its rows by {excess:.3g}."
        require(bool(excess <= allowed), message)
