"""Domains in which every neuron is split, solved in float64.

There the network is one affine function, and so is the operand of every neuron: what is left is a convex problem. An
input of the region is a counterexample on the leaf if all rows are at most 0 and all neurons on their sides, i.e. if
the greatest of the affine functions

    rows_r(x) and -side_i (t_i(x) - kink_i)

is at most 0 there. By duality the least value of that maximum is the greatest value, over weights w >= 0 that sum to 1,
of the minimum over the region of their w-weighted sum; which the support of the region gives. So any weights prove what
they prove: no solver is trusted, its weights are evaluated here. That an empty leaf is empty is proved by the same
number, with no weight on the rows.

Boxes and l_1 balls are linear programs, for HiGHS. For other regions their boxes are tried, then L-BFGS on the dual.
"""

import functools
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize
from jax.tree_util import Partial

from cure_jax import graph as graphs
from cure_jax import rules
from cure_jax.bounds import in_float64
from cure_jax.regions import Box, LpBall, Region
from cure_jax.verification.problem import Specification
from cure_jax.verification.split_bound import joined

__all__ = ["Leaf", "solve_leaf"]

# Of the sum of magnitudes that a bound is made of; float64 rounds 1e4 times finer.
_ROUNDING = 1e-12
# Less weight than this on the rows proves that a leaf is empty.
_EMPTY = 1e-9
_ITERATIONS = 1000


class Leaf(NamedTuple):
    """What is known of a leaf.

    Attributes:
      bound: a lower bound of the greatest row on the leaf; infinite if the leaf is proved to be empty. Where it is not
        positive, nothing is proved.
      proved: whether there is no counterexample on the leaf.
      points: `[points, *x]`, inputs that may be one.
    """

    bound: float
    proved: bool
    points: np.ndarray


class _Affine(NamedTuple):
    """Functions `constants + coefficients @ (x - center)`, whose greatest is to be positive: rows, then constraints."""

    constants: np.ndarray
    coefficients: np.ndarray
    center: np.ndarray
    rows: int


def solve_leaf(f: Partial, region: Region, specification: Specification, sides: np.ndarray, split: np.ndarray) -> Leaf:
    """Decides a leaf, up to rounding in float64.

    Args:
      f: the network, with float32 parameters: they are converted exactly.
      region: the set of inputs.
      specification: one, `[rows, outputs]` and `[rows]`.
      sides: `[neurons]`, 1 or -1 for every neuron: the side of its kink on which it is.
      split: `[neurons]`, for which of them that is a constraint, and not known of the whole region.

    Returns:
      What was found.

    Soundness:
      `proved` and `bound` rest on a dual value in float64, less a multiple of the magnitudes that it is summed from.
      They hold for inputs at which the neurons that are not split are on their sides, too.
    """
    functions = in_float64(_functions)(f, region, sides)
    affine = _assembled(functions, specification, sides, split)
    if not all(np.all(np.isfinite(part)) for part in affine[:3]):
        # A network with weights that are no finite numbers has no dual value either.
        return Leaf(-math.inf, False, np.asarray(functions["center"])[None])
    evaluate = functools.partial(in_float64(_dual), region)
    points = []
    for weights, point in _solutions(affine, region, evaluate):
        points.append(point)
        if weights is None or not np.all(np.isfinite(weights)) or np.any(weights < 0):
            continue
        value, minimiser = _bound(affine, weights, evaluate)
        points.append(minimiser)
        if np.isfinite(value) and value > 0:
            on_rows = float(np.sum(weights[: affine.rows]))
            return Leaf(value / on_rows if on_rows > _EMPTY else math.inf, True, np.stack(points))
    return Leaf(-math.inf, False, np.stack(points))


def _solutions(affine: _Affine, region: Region, evaluate: Any) -> Iterator[tuple[np.ndarray | None, np.ndarray]]:
    """Weights and points, one after the other until they suffice."""
    yield _linear_program(affine, region)
    if isinstance(region, Box) or (isinstance(region, LpBall) and region.p in (1, math.inf)):
        return
    # The program was on the bounding box. Where its corners are inside of the region, they are what is looked for, and
    # the dual has a kink there; elsewhere it is smooth.
    yield _linear_program(affine, region, elastic=False)
    yield _ascent(affine, evaluate, len(affine.constants))
    yield _ascent(affine, evaluate, affine.rows)


@jax.jit
def _functions(f: Partial, region: Region, sides: jax.Array) -> dict[str, Any]:
    """Values and Jacobians, at the middle of the region, of the network with every neuron on its side."""
    center = region.project(region.bounding_box().center)
    graph = graphs.trace(f, center)

    def forward(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        values, operands, start = {graph.input.index: x}, [], 0
        for equation in graph.equations:
            inputs = [values[node.index] for node in equation.bounded]
            pieces = rules.two_pieces(equation)
            if pieces is None:
                values[equation.output.index] = equation.evaluate(*inputs)
                continue
            kink, (left, right) = pieces
            side = sides[start : start + inputs[0].size].reshape(inputs[0].shape)
            start += inputs[0].size
            values[equation.output.index] = rules.piece(kink, jnp.where(side > 0, right, left), inputs[0])
            operands.append((inputs[0] - kink).ravel())
        output = values[graph.output.index] if isinstance(graph.output, graphs.Node) else graph.output
        return joined(operands, x.dtype), output.ravel()

    operands, output = forward(center)
    of_operands, of_output = (jacobian.reshape(-1, center.size) for jacobian in jax.jacfwd(forward)(center))
    return {"t": operands, "dt": of_operands, "y": output, "dy": of_output, "center": center}


def _assembled(
    functions: dict[str, np.ndarray], specification: Specification, sides: np.ndarray, split: np.ndarray
) -> _Affine:
    """The functions whose greatest is to be positive, the constraints in units of their own size."""
    weights, offsets = (np.asarray(part, np.float64) for part in specification)
    rows, of_rows = weights @ functions["y"] + offsets, weights @ functions["dy"]
    side = sides[split].astype(np.float64)
    constraints, of_constraints = -side * functions["t"][split], -side[:, None] * functions["dt"][split]
    size = lambda coefficients: np.linalg.norm(coefficients, axis=1, keepdims=True)  # noqa: E731
    unit = max(float(np.max(size(of_rows))), 1e-30) / np.maximum(size(of_constraints), 1e-30)
    return _Affine(
        np.concatenate([rows, constraints * unit[:, 0]]),
        np.concatenate([of_rows, of_constraints * unit]),
        functions["center"].ravel(),
        len(rows),
    )


@jax.jit
def _dual(region: Region, coefficients: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The least value of a linear function on the region, and where it is attained."""
    shape = region.bounding_box().shape
    most, point = jax.value_and_grad(region.support)(-coefficients.reshape(shape))
    return -most, point


def _bound(affine: _Affine, weights: np.ndarray, evaluate: Any) -> tuple[float, np.ndarray]:
    """What some weights prove, with room for rounding; and where the minimum is attained."""
    with np.errstate(all="ignore"):
        coefficients = weights @ affine.coefficients
        least, point = evaluate(coefficients)
        value = weights @ affine.constants - coefficients @ affine.center + float(least)
        largest = np.maximum(np.abs(affine.center), np.abs(point.ravel()))
        terms = weights @ (np.abs(affine.constants) + np.abs(affine.coefficients) @ largest)
        return float(value - _ROUNDING * terms), point


def _linear_program(affine: _Affine, region: Region, elastic: bool = True) -> tuple[np.ndarray | None, np.ndarray]:
    """Weights and a minimiser by HiGHS: of the least s that all functions are at most, on the region or its box.

    If it is not elastic, constraints are at most 0 instead.
    """
    box = in_float64(lambda region: region.bounding_box())(region)
    lower, upper = (np.asarray(end).ravel() - affine.center for end in (box.lower, box.upper))
    count, size = affine.coefficients.shape
    slack = -(elastic | (np.arange(count) < affine.rows)).astype(np.float64)
    matrix = np.concatenate([affine.coefficients, slack[:, None]], axis=1)
    bounds = [*zip(lower, upper, strict=True), (None, None)]
    cost, constants = np.append(np.zeros(size), 1.0), -affine.constants
    if isinstance(region, LpBall) and region.p == 1:
        matrix, constants, bounds, cost = _with_distances(matrix, constants, bounds, cost, region, affine.center)
    found = scipy.optimize.linprog(cost, matrix, constants, bounds=bounds, method="highs")
    if found.x is None or found.ineqlin is None:
        return None, affine.center.reshape(box.lower.shape)
    weights = np.maximum(-np.asarray(found.ineqlin.marginals)[:count], 0)
    point = (affine.center + found.x[:size]).reshape(box.lower.shape)
    total = np.sum(weights)
    return (weights / total if total > 0 else None), point


def _with_distances(matrix: Any, constants: Any, bounds: Any, cost: Any, region: LpBall, center: Any) -> Any:
    """The linear program with a distance from the center of the ball for each pixel, in units of its radius."""
    size = len(center)
    radius = np.asarray(region.radius, np.float64).ravel()
    offset = center - np.asarray(region.center, np.float64).ravel()
    moves = np.flatnonzero(radius > 0)
    count = len(moves)
    pixels = np.zeros((count, size + 1))
    pixels[np.arange(count), moves] = 1
    reach = -np.diag(radius[moves])
    above = np.concatenate([pixels, reach], axis=1)
    below = np.concatenate([-pixels, reach], axis=1)
    budget = np.append(np.zeros(size + 1), np.ones(count))[None]
    matrix = np.concatenate([np.concatenate([matrix, np.zeros((len(matrix), count))], axis=1), above, below, budget])
    constants = np.concatenate([constants, -offset[moves], offset[moves], [1.0]])
    return matrix, constants, [*bounds, *[(0, 1)] * count], np.append(cost, np.zeros(count))


def _ascent(affine: _Affine, evaluate: Any, shared: int) -> tuple[np.ndarray | None, np.ndarray]:
    """Weights and a minimiser by L-BFGS on the dual.

    Args:
      affine: the functions.
      evaluate: the least value of a linear function on the region.
      shared: so many weights sum to 1, by their logarithms: all of them, or those of the rows.
    """
    count, best = len(affine.constants), {"value": -math.inf, "weights": None, "point": affine.center}

    def unpacked(parameters: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        shifted = np.exp(parameters[:shared] - np.max(parameters[:shared]))
        shares = shifted / np.sum(shifted)
        return np.concatenate([shares, parameters[shared:]]), shares

    def negative(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        weights, shares = unpacked(parameters)
        coefficients = weights @ affine.coefficients
        least, point = evaluate(coefficients)
        values = affine.constants + affine.coefficients @ (point.ravel() - affine.center)
        value = float(weights @ affine.constants - coefficients @ affine.center + least)
        if value > best["value"]:
            best.update(value=value, weights=weights, point=point)
        of_shared = shares * (values[:shared] - shares @ values[:shared])
        return -value, -np.concatenate([of_shared, values[shared:]])

    def stop(parameters: np.ndarray) -> None:
        weights, _ = unpacked(parameters)
        if _bound(affine, weights, evaluate)[0] > 0:
            raise StopIteration

    shape, start = evaluate(np.zeros_like(affine.center))[1].shape, np.zeros(count)
    bounds = [(-30, 30)] * shared + [(0, None)] * (count - shared)
    options = {"maxiter": _ITERATIONS, "maxfun": 4 * _ITERATIONS, "maxcor": 30, "ftol": 1e-15, "gtol": 1e-12}
    with np.errstate(all="ignore"):
        scipy.optimize.minimize(
            negative, start, jac=True, bounds=bounds, method="L-BFGS-B", callback=stop, options=options
        )
    weights, point = best["weights"], np.asarray(best["point"])
    return (None if weights is None else weights / np.sum(weights)), point.reshape(shape)
