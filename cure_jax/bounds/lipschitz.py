"""Lipschitz constants of a network in the 2-norm: certificates, and estimates to train with.

A network is a chain (or graph) of affine blocks between nonlinearities with Lipschitz constants of their own. With K
the constant of what lies before the last block and w_j the rows of the last block, output j moves by at most
K |w_j|_2 rho inside an l_2 ball of radius rho; of `margins(f, y)` the rows are w_y - w_j. A block is the whole affine
map from one nonlinearity to the next (convolution and normalisation together), as an operator on its image size; where
branches meet, their constants add.

* `lipschitz(f)(region)` proves: the norms of the blocks are the upper bounds of `norms.spectral`. They depend on the
  parameters alone; `spectral.block_norms` computes them once, for all images and all methods that take `norms`.
* `estimated_norms` trains: one power iteration a step, which approaches each norm from BELOW. Nothing it returns
  may enter a certificate.

Sources: Tsuzuku et al., "Lipschitz-Margin Training", NeurIPS 2018, Proposition 1; Leino et al., "Globally-Robust
Neural Networks" (GloRo), ICML 2021, Section 3; power iteration with the vectors kept between steps: Miyato et al.,
ICLR 2018.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp

from cure_jax import graph as graphs
from cure_jax import numerics, rules
from cure_jax.bounds.folding.linear import backsubstitute
from cure_jax.bounds.norms.spectral import BlockNorms, as_block_norms, blocks, norms_by_block, sources
from cure_jax.bounds.transformation import transformation
from cure_jax.graph import Graph, Node
from cure_jax.regions import CutHull, Hull, Interval, LpBall, Region

__all__ = [
    "block_rows",
    "certified",
    "enclosing_ball",
    "estimated_norms",
    "initial_vectors",
    "lipschitz",
    "pairwise_lipschitz",
    "reach",
]

# Rows of the last block that are formed at once.
_ROWS_AT_ONCE = 256


def enclosing_ball(region: Region) -> tuple[jax.Array, jax.Array]:
    """A center and a radius: an l_2 ball that holds the region.

    {c + r d : |d|_p <= 1} lies in the ball of radius max r for p <= 2 and |r|_s, s = 2p / (p - 2), for p > 2 (Hoelder's
    inequality); a box in that of half its diagonal. Other regions are enclosed by way of their bounding box.
    """
    box = region.bounding_box()
    if isinstance(region, Hull | CutHull):
        balls = [enclosing_ball(member) for member in region.members]
        center = balls[0][0]
        radius = jnp.max(jnp.stack([numerics.norm(other - center, 2) + rho for other, rho in balls]))
        return center, jnp.minimum(radius, reach(box, center))
    if not isinstance(region, LpBall) or region.p == math.inf:
        return box.center, reach(box, box.center)
    p = region.p
    radius = jnp.max(region.radius) if p <= 2 else numerics.norm(region.radius, 2 * p / (p - 2))
    return region.center, jnp.minimum(radius, reach(box, region.center))


def reach(box: Interval, center: jax.Array) -> jax.Array:
    """How far the points of a box can be from a center."""
    return numerics.norm(jnp.maximum(jnp.maximum(box.upper - center, center - box.lower), 0), 2)


@transformation
def lipschitz(
    f: Callable[[jax.Array], jax.Array],
    *,
    norms: BlockNorms | None = None,
    precision: jax.lax.PrecisionLike = jax.lax.Precision.HIGHEST,
) -> Callable[[Region], Interval]:
    """Transforms a function of one example into bounds f(c) -/+ L rho over an l_2 ball around the region.

    Args:
      f: `[*x] -> [*output]`, traceable by JAX, built from `cure_jax.rules.supported()`.
      norms: from `block_norms` of the same network; computed here if None, once for all images under `jax.vmap`.
      precision: of matrix products and convolutions; keep the default for certificates.

    Returns:
      A function `Region -> Interval` with lower and upper `[*output]`; it can be jitted, vmapped and differentiated.

    Raises:
      ValueError: if `norms` are those of another network.
      UnsupportedPrimitive: naming primitive and source line.

    Soundness:
      `lower <= f(x) <= upper` for every x of the region, in real arithmetic.

    Examples:
      >>> import jax.numpy as jnp, cure_jax as cj
      >>> from cure_jax.bounds.lipschitz import lipschitz
      >>> f = lambda x: jnp.maximum(jnp.array([[3.0, 0.0], [0.0, 4.0]]) @ x, 0.0)[0]
      >>> bounds = lipschitz(f)(cj.l2_ball(jnp.array([1.0, 0.5]), 0.1))
      >>> round(float(bounds.lower), 2), round(float(bounds.upper), 2)
      (2.6, 3.4)
    """

    def bounds(region: Region) -> Interval:
        graph = graphs.trace(f, region.bounding_box().lower, precision=precision)
        return certified(graph, region, norms_by_block(graph, norms))

    return bounds


def certified(graph: Graph, region: Region, norms: Mapping[tuple[int, int], jax.Array]) -> Interval:
    """Bounds of the output of a graph, with the norms of its blocks from `spectral.norms_by_block`; as `lipschitz`."""
    center, rho = enclosing_ball(region)
    value = graph.evaluate(center)
    if not isinstance(graph.output, Node):
        return Interval(value, value)
    constants = _constants(graph, norms)
    moved = jnp.zeros_like(value)
    for index, rows in block_rows(graph, graph.output, _row_norm).items():
        moved = moved + _times(constants[index], rows)
    return Interval.around(value, rho * moved)


def block_rows(graph: Graph, target: Node, function: Callable[[dict[int, jax.Array], jax.Array], Any]) -> Any:
    """Applies a function to every row of the block of a node.

    Args:
      graph: the network.
      target: the node.
      function: `(row by index of each source, constant) -> pytree of scalars`.

    Returns:
      The pytree, each leaf `[*target]`.
    """
    size = math.prod(target.shape)

    def one(index: jax.Array) -> Any:
        bound = backsubstitute(graph, target, jax.nn.one_hot(index, size, dtype=target.dtype).reshape(target.shape), {})
        rows = cast(dict[int, jax.Array], bound.coefficients)
        return function({source.index: rows[source.index] for source in sources(graph, target)}, bound.offset)

    results = jax.lax.map(one, jnp.arange(size), batch_size=_ROWS_AT_ONCE)
    return jax.tree.map(lambda leaf: leaf.reshape(target.shape), results)


def _row_norm(rows: dict[int, jax.Array], offset: jax.Array) -> dict[int, jax.Array]:
    del offset
    return {index: numerics.norm(row, 2) for index, row in rows.items()}


def _pulled(graph: Graph, target: Node, coefficients: jax.Array) -> dict[int, jax.Array]:
    """Coefficients on a node moved to the sources of its block."""
    return cast(dict[int, jax.Array], backsubstitute(graph, target, coefficients, {}).coefficients)


def _times(constant: jax.Array, rows: jax.Array) -> jax.Array:
    """Their product; 0 where a factor is 0, also if the other one is infinite (there is no Lipschitz constant)."""
    return jnp.where((constant == 0) | (rows == 0), 0, constant * rows)


def _constants(graph: Graph, norms: Mapping[tuple[int, int], jax.Array]) -> dict[int, jax.Array]:
    """Lipschitz constants of the input itself (1) and of every nonlinear node, upper bounds if the norms are."""
    constants = {graph.input.index: jnp.ones((), graph.input.dtype)}
    for equation in graph.equations:
        rule = rules.lookup(equation)
        if not isinstance(rule, rules.Nonlinear):
            continue
        operands = []
        for target in equation.bounded:
            parts = [
                _times(norms[source.index, target.index], constants[source.index]) for source in sources(graph, target)
            ]
            operands.append(jnp.sum(jnp.stack(parts)))
        constant = jnp.asarray(rule.lipschitz(equation), equation.output.dtype)
        constants[equation.output.index] = _times(constant, numerics.norm(jnp.stack(operands), 2))
    return constants


def initial_vectors(graph: Graph, key: jax.Array) -> tuple[jax.Array, ...]:
    """Random start vectors of the power iterations, one for each affine block and each of its sources."""
    starts = [source for source, _ in blocks(graph)]
    keys = jax.random.split(key, len(starts) + 1)
    return tuple(jax.random.normal(k, start.shape, start.dtype) for k, start in zip(keys[1:], starts, strict=True))


def estimated_norms(graph: Graph, vectors: Sequence[jax.Array]) -> tuple[BlockNorms, tuple[jax.Array, ...]]:
    """Estimates the 2-norms of the affine blocks: cheap, and differentiable with respect to the parameters.

    Args:
      graph: the network.
      vectors: from `initial_vectors`, or from the last call; one more power iteration is done on each.

    Returns:
      What `box_ball` and others take as `norms`, with gradients by u^T W v, the vectors held fixed. And the new
      vectors.

    Soundness:
      Estimates from below; for training only. `spectral.block_norms` bounds them from above.
    """
    pairs = [_power_iteration(graph, *block, vector) for block, vector in zip(blocks(graph), vectors, strict=True)]
    return as_block_norms(graph, [norm for norm, _ in pairs]), tuple(vector for _, vector in pairs)


def pairwise_lipschitz(graph: Graph, norms: BlockNorms) -> jax.Array:
    """The Lipschitz constant of every difference of two logits, by the norms of the blocks.

    Args:
      graph: the classifier, `[*x] -> [classes]`.
      norms: of its blocks: from `estimated_norms`, for training, or from `spectral.block_norms`.

    Returns:
      `[classes, classes]`: entry (y, j) is the Lipschitz constant of f_y - f_j in the 2-norm, or above it;
      differentiable with respect to the parameters and the norms.

    Raises:
      ValueError: if the classifier does not depend on its input.

    Soundness:
      Upper bounds if the norms are, but for the rounding of float32; with estimated norms for training only.
    """
    if not isinstance(graph.output, Node):
        raise ValueError("The classifier does not depend on its input; expected one that does. Check its parameters.")
    constants = _constants(graph, norms_by_block(graph, norms))
    classes, output = graph.output.shape[0], graph.output

    def row(index: jax.Array) -> dict[int, jax.Array]:
        return _pulled(graph, output, jax.nn.one_hot(index, classes, dtype=output.dtype))

    total = jnp.zeros((classes, classes), output.dtype)
    for index, rows in jax.vmap(row)(jnp.arange(classes)).items():
        total = total + constants[index] * _distances(rows.reshape(classes, -1))
    return total


def _distances(rows: jax.Array) -> jax.Array:
    """2-norms of all differences of rows; 0 on the diagonal, with gradient 0 there."""
    products = jnp.dot(rows, rows.T, precision=jax.lax.Precision.HIGHEST)
    squares = jnp.diagonal(products)
    squared = jnp.maximum(squares[:, None] + squares[None, :] - 2 * products, 0)
    positive = (squared > 0) & ~jnp.eye(rows.shape[0], dtype=bool)
    return numerics.root(jnp.where(positive, squared, 0))


def _power_iteration(graph: Graph, source: Node, target: Node, vector: jax.Array) -> tuple[jax.Array, jax.Array]:
    """One step of power iteration for the linear map from source to target: its norm, and the new right vector."""

    def pull(coefficients: jax.Array) -> jax.Array:
        return _pulled(graph, target, coefficients)[source.index]

    def push(v: jax.Array) -> jax.Array:
        return jax.vjp(pull, target.zeros())[1](v)[0]

    left = jax.lax.stop_gradient(_unit(push(_unit(vector))))
    right = jax.lax.stop_gradient(_unit(pull(left)))
    # A layer that is all zero now may not stay so: the vector must not either.
    return jnp.sum(pull(left) * right), jnp.where(jnp.any(right != 0), right, vector)


def _unit(x: jax.Array) -> jax.Array:
    return x / jnp.maximum(jnp.sqrt(jnp.sum(x**2)), jnp.finfo(x.dtype).tiny)
