"""Exact margins of small ReLU networks by other means: mixed-integer programs, and all activation patterns one by one.

Independent of the library: NumPy and SciPy in float64 only.
"""

import itertools
import math
from collections.abc import Iterator, Sequence

import numpy as np
import scipy.optimize

Layers = Sequence[tuple[np.ndarray, np.ndarray]]


def as_float64(params) -> list[tuple[np.ndarray, np.ndarray]]:
    return [(np.asarray(w, np.float64), np.asarray(b, np.float64)) for w, b in params]


def least_margin(params, x, label: int, eps: float, p: float, within=None) -> float:
    """The least of f_label - f_j over the ball and all j, exactly (within the tolerance of the solver)."""
    layers = as_float64(params)
    x, eps = np.asarray(x, np.float64), float(np.float32(eps))
    rows = [
        np.eye(layers[-1][0].shape[1])[label] - row
        for j, row in enumerate(np.eye(layers[-1][0].shape[1]))
        if j != label
    ]
    low, high = x - eps, x + eps
    if within is not None:
        low, high = np.maximum(low, within[0]), np.minimum(high, within[1])
    if eps == 0:
        return min(float(_value(layers, x) @ row) for row in rows)
    if p == 2:
        return _by_patterns(layers, x, rows, eps, low, high)
    return min(_by_program(layers, x, row, eps, p, low, high) for row in rows)


def _value(layers: Layers, x) -> np.ndarray:
    for weights, bias in layers[:-1]:
        x = np.maximum(x @ weights + bias, 0)
    weights, bias = layers[-1]
    return x @ weights + bias


def _by_program(layers: Layers, x, row, eps, p, low, high) -> float:
    """A mixed-integer program: for each neuron its operand, its value, and whether it is on."""
    count = len(x)
    sizes = [b.size for _, b in layers[:-1]]
    total = count + 2 * sum(sizes) + (count if p == 1 else 0)
    lower, upper, whole = np.full(total, -np.inf), np.full(total, np.inf), np.zeros(total)
    lower[:count], upper[:count] = low, high
    matrix, least, most = [], [], []

    def constraint(entries, bottom, top):
        line = np.zeros(total)
        for columns, values in entries:
            line[columns] += values
        matrix.append(line)
        least.append(bottom)
        most.append(top)

    before, box, at = np.arange(count), (low, high), count
    for (weights, bias), size in zip(layers[:-1], sizes, strict=True):
        middle, radius = (box[0] + box[1]) / 2 @ weights + bias, (box[1] - box[0]) / 2 @ np.abs(weights)
        bottom, top = middle - radius - 1e-6, middle + radius + 1e-6
        value, on = np.arange(at, at + size), np.arange(at + size, at + 2 * size)
        at += 2 * size
        lower[value], upper[value] = 0, np.maximum(top, 0)
        lower[on], upper[on], whole[on] = 0, 1, 1
        for i in range(size):
            pre = (before, -weights[:, i])
            constraint([(value[i], 1.0), pre], bias[i], np.inf)
            # value <= pre - bottom (1 - on); value <= top on.
            constraint([(value[i], 1.0), pre, (on[i], -min(bottom[i], 0))], -np.inf, bias[i] - min(bottom[i], 0))
            constraint([(value[i], 1.0), (on[i], -max(top[i], 0))], -np.inf, 0)
        before, box = value, (np.maximum(bottom, 0), np.maximum(top, 0))
    if p == 1:
        distance = np.arange(at, at + count)
        lower[distance], upper[distance] = 0, eps
        for i in range(count):
            constraint([(i, 1.0), (distance[i], -1.0)], -np.inf, x[i])
            constraint([(i, -1.0), (distance[i], -1.0)], -np.inf, -x[i])
        constraint([(distance, 1.0)], -np.inf, eps)
    weights, bias = layers[-1]
    cost = np.zeros(total)
    cost[before] = weights @ row

    def solve(presolve):
        return scipy.optimize.milp(
            cost,
            integrality=whole,
            bounds=scipy.optimize.Bounds(lower, upper),
            constraints=scipy.optimize.LinearConstraint(np.stack(matrix), least, most),
            options={"mip_rel_gap": 0.0, "presolve": presolve},
        )

    # HiGHS now and then fails with its presolve on tiny boxes, and not without, or fails both ways.
    found = solve(True)
    found = found if found.success else solve(False)
    return float(found.fun + bias @ row) if found.success else _by_cells(layers, x, row, eps, p, low, high)


def _by_cells(layers: Layers, x, row, eps, p, low, high) -> float:
    """A linear program for each activation pattern."""
    (weights, bias), size, best = layers[-1], len(x), math.inf
    for matrix, constant, normals, offsets in _cells(layers, low, high):
        left, right = -np.stack(normals), np.asarray(offsets)
        slope, bounds = matrix @ weights @ row, [*zip(low, high, strict=True)]
        if p == 1:
            # With the distance from x in each coordinate.
            eye, nothing = np.eye(size), np.zeros(size)
            left = np.block([[left, 0 * left], [eye, -eye], [-eye, -eye], [nothing, np.ones(size)]])
            right, slope = np.concatenate([right, x, -x, [eps]]), np.concatenate([slope, nothing])
            bounds += [(0, eps)] * size
        found = scipy.optimize.linprog(slope, left, right, bounds=bounds)
        if found.status == 0:
            best = min(best, float(found.fun + (constant @ weights + bias) @ row))
    assert best < math.inf
    return best


def _cells(layers: Layers, low, high) -> Iterator[tuple[np.ndarray, np.ndarray, list, list]]:
    """The affine functions of the last hidden layer, and the constraints, on each pattern that a box may have."""

    def feasible(normals, offsets):
        size = len(low)
        bounds = [*zip(low, high, strict=True)]
        return scipy.optimize.linprog(np.zeros(size), -np.stack(normals), offsets, bounds=bounds).status == 0

    def deeper(depth, matrix, constant, normals, offsets):
        if depth == len(layers) - 1:
            yield matrix, constant, normals, offsets
            return
        weights, bias = layers[depth]
        before, shift = matrix @ weights, constant @ weights + bias
        yield from neuron(depth, 0, before, shift, np.zeros(bias.size), normals, offsets)

    def neuron(depth, i, matrix, constant, on, normals, offsets):
        if i == len(on):
            yield from deeper(depth + 1, matrix * on, constant * on, normals, offsets)
            return
        for side in (0.0, 1.0):
            sign = 2 * side - 1
            more = [*normals, sign * matrix[:, i]], [*offsets, sign * constant[i]]
            if feasible(*more):
                yield from neuron(depth, i + 1, matrix, constant, np.where(np.arange(len(on)) == i, side, on), *more)

    yield from deeper(0, np.eye(len(low)), np.zeros(len(low)), [], [])


def _by_patterns(layers: Layers, x, rows, eps, low, high) -> float:
    """A convex problem for each activation pattern and row."""
    weights, bias = layers[-1]
    best = math.inf
    for (matrix, constant, normals, offsets), row in itertools.product(_cells(layers, low, high), rows):
        slope, offset = matrix @ weights @ row, (constant @ weights + bias) @ row
        normals, offsets = np.stack(normals), np.asarray(offsets)
        constraints = [
            {"type": "ineq", "fun": lambda y, n=normals, o=offsets: n @ y + o, "jac": lambda y, n=normals: n},
            {
                "type": "ineq",
                "fun": lambda y: (eps**2 - np.sum((y - x) ** 2)) / eps,
                "jac": lambda y: -2 * (y - x)[None] / eps,
            },
        ]
        found = scipy.optimize.minimize(
            lambda y, s=slope: s @ y,
            np.clip(x, low, high),
            jac=lambda y, s=slope: s,
            bounds=[*zip(low, high, strict=True)],
            constraints=constraints,
            method="SLSQP",
            options={"ftol": 1e-12, "maxiter": 500},
        )
        inside = np.min(normals @ found.x + offsets) > -1e-7 and np.sum((found.x - x) ** 2) <= eps**2 * (1 + 1e-7)
        if inside:
            best = min(best, float(slope @ found.x + offset))
    return best
