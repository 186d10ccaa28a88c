"""Networks in exact arithmetic: every number a fraction, every equation as it is meant."""

import itertools
from collections.abc import Iterator
from fractions import Fraction

import jax
import numpy as np

import cure_jax as cj
from cure_jax import graph as graphs
from cure_jax import rules


def fractions(array) -> np.ndarray:
    """The numbers themselves, also those too small for arithmetic in their own format."""
    array = np.asarray(array)
    return np.array([Fraction(float(value)) for value in array.ravel()], object).reshape(array.shape)


def evaluate(graph: graphs.Graph, x: np.ndarray) -> np.ndarray:
    """The value of a network at a point of fractions. Its weights must be normal numbers."""
    values = {graph.input.index: x}
    for equation in graph.equations:
        operands = [values[node.index] for node in equation.bounded]
        values[equation.output.index] = _apply(equation, operands)
    return values[graph.output.index]


def _apply(equation: graphs.Equation, operands: list[np.ndarray]) -> np.ndarray:
    constants = [fractions(c) for c in equation.operands if not isinstance(c, graphs.Node)]
    if equation.name == "div":
        return operands[0] / constants[0]
    if isinstance(rules.lookup(equation), rules.Affine):
        return _affine(equation, operands)
    match equation.name:
        case "max":
            return np.maximum(*operands, *constants)
        case "min":
            return np.minimum(*operands, *constants)
        case "abs":
            return np.abs(operands[0])
        case "clamp" | "clip":
            # `clamp` has its lower limit first, `jnp.clip` its operand.
            low, high = constants
            return np.minimum(np.maximum(operands[0], low), high)
        case "reduce_max":
            return np.max(operands[0], axis=equation.params["axes"])
        case "reduce_window_max":
            return _window_maxima(equation, operands[0])
    raise NotImplementedError(equation.name)


def _affine(equation: graphs.Equation, operands: list[np.ndarray]) -> np.ndarray:
    constant, matrices = _matrices(equation)
    total = constant.ravel()
    for matrix, operand in zip(matrices, operands, strict=True):
        total = total + operand.ravel() @ matrix
    return total.reshape(equation.output.shape)


_MATRICES: dict[int, tuple[graphs.Equation, np.ndarray, list[np.ndarray]]] = {}


def _matrices(equation: graphs.Equation) -> tuple[np.ndarray, list[np.ndarray]]:
    """The constant and the matrix of each operand, whose entries are exact: each is one product with 1."""
    if id(equation) not in _MATRICES:
        zeros, matrices = [node.zeros() for node in equation.bounded], []
        for i, node in enumerate(equation.bounded):

            def column(unit, i=i):
                tangents = [unit if j == i else zero for j, zero in enumerate(zeros)]
                return jax.jvp(equation.evaluate, tuple(zeros), tuple(tangents))[1]

            size = max(1, int(np.prod(node.shape)))
            columns = jax.vmap(column)(np.eye(size, dtype=node.dtype).reshape(size, *node.shape))
            matrices.append(fractions(columns).reshape(size, -1))
        # The equation is kept, so that no other one gets its id.
        _MATRICES[id(equation)] = equation, fractions(equation.evaluate(*zeros)), matrices
    return _MATRICES[id(equation)][1:]


def _window_maxima(equation: graphs.Equation, x: np.ndarray) -> np.ndarray:
    window, strides = equation.params["window_dimensions"], equation.params["window_strides"]
    assert all(pair == (0, 0) for pair in equation.params["padding"])
    result = np.empty(equation.output.shape, object)
    for place in np.ndindex(*result.shape):
        cut = tuple(slice(i * s, i * s + w) for i, s, w in zip(place, strides, window, strict=True))
        result[place] = np.max(x[cut])
    return result


def points(region: cj.LpBall, generator: np.random.Generator, count: int) -> Iterator[np.ndarray]:
    """Points of a region: corners of the ball and others on its surface, all cut by the box."""
    center, radius, n = fractions(region.center), fractions(region.radius), region.center.size
    for directions in itertools.islice(_directions(region.p, n, generator), count):
        x = center + radius * directions.reshape(center.shape)
        if region.lower is not None:
            x = np.minimum(np.maximum(x, fractions(region.lower)), fractions(region.upper))
        yield x


def _directions(p: float, n: int, generator: np.random.Generator) -> Iterator[np.ndarray]:
    """Of norm 1 or slightly less."""
    yield np.array([Fraction(0)] * n, object)
    while True:
        signs = np.array([Fraction(int(s)) for s in generator.choice([-1, 1], n)], object)
        if p == 1:
            weights = generator.multinomial(1000, generator.dirichlet(np.full(n, 0.3)))
            yield signs * np.array([Fraction(int(w), 1000) for w in weights], object)
        elif p == 2:
            weights = generator.normal(size=n) * (generator.uniform(size=n) < 0.7) + 1e-9
            whole = np.array([Fraction(int(w)) for w in np.round(1e4 * weights)], object)
            square = sum(whole * whole)
            # The integer above the root.
            root = int(np.ceil(np.sqrt(float(square)))) + 1
            yield whole / Fraction(root)
        else:
            yield signs
