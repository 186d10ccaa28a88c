"""Lipschitz constants of a network in the 2-norm, estimated by power iteration: for training.

A network is a chain (or graph) of affine blocks between 1-Lipschitz nonlinearities. With K the constant of
what lies before the last block and w_j the rows of the last block, the margin f_y - f_j moves by at most K |w_y -
w_j|_2 eps inside an l_2 ball of radius eps. A block is the whole affine map from one nonlinearity to the next
(convolution and normalisation together), as an operator on its image size; where branches meet, their constants add.

Sources: Tsuzuku et al., "Lipschitz-Margin Training", NeurIPS 2018, Proposition 1; Leino et al., "Globally-Robust
Neural Networks" (GloRo), ICML 2021, Section 3; power iteration with the vectors kept between steps: Miyato et al.,
ICLR 2018.

Soundness:
  NONE. Power iteration approaches a spectral norm from below, so nothing here may enter a certificate.
"""

from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp

from cure_jax import numerics, rules
from cure_jax.bounds.linear import backsubstitute
from cure_jax.graph import Graph, Node

__all__ = ["initial_vectors", "pairwise_lipschitz"]


def initial_vectors(graph: Graph, key: jax.Array) -> tuple[jax.Array, ...]:
    """Random start vectors of the power iterations, one for each affine block and each of its sources."""
    sources = [source for target in _hidden_targets(graph) for source in _sources(graph, target)]
    keys = jax.random.split(key, len(sources) + 1)
    return tuple(jax.random.normal(k, source.shape, source.dtype) for k, source in zip(keys[1:], sources, strict=True))


def pairwise_lipschitz(graph: Graph, vectors: Sequence[jax.Array]) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    """Estimates the Lipschitz constant of every difference of two logits.

    Args:
      graph: the classifier, `[*x] -> [classes]`.
      vectors: from `initial_vectors`, or from the last call; one more power iteration is done on each.

    Returns:
      `[classes, classes]`: entry (y, j) estimates the Lipschitz constant of f_y - f_j in the 2-norm; differentiable
      with respect to the parameters (by u^T W v, the vectors held fixed). And the new vectors.

    Soundness:
      An estimate from below; for training only.
    """
    constants, vectors = _constants(graph, vectors)
    if not isinstance(graph.output, Node):
        raise ValueError("The classifier does not depend on its input; expected one that does. Check its parameters.")
    classes, output = graph.output.shape[0], graph.output

    def row(index: jax.Array) -> dict[int, jax.Array]:
        return backsubstitute(graph, output, jax.nn.one_hot(index, classes, dtype=output.dtype), {}).coefficients

    total = jnp.zeros((classes, classes), output.dtype)
    for index, rows in jax.vmap(row)(jnp.arange(classes)).items():
        total = total + constants[index] * _distances(rows.reshape(classes, -1))
    return total, vectors


def _distances(rows: jax.Array) -> jax.Array:
    """2-norms of all differences of rows; 0 on the diagonal, with gradient 0 there."""
    products = jnp.dot(rows, rows.T, precision=jax.lax.Precision.HIGHEST)
    squares = jnp.diagonal(products)
    squared = jnp.maximum(squares[:, None] + squares[None, :] - 2 * products, 0)
    positive = (squared > 0) & ~jnp.eye(rows.shape[0], dtype=bool)
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, squared, 1)), 0)


def _constants(graph: Graph, vectors: Sequence[jax.Array]) -> tuple[dict[int, jax.Array], tuple[jax.Array, ...]]:
    """Lipschitz constants, from the input, of the input itself (1) and of every nonlinear node."""
    constants = {graph.input.index: jnp.ones((), graph.input.dtype)}
    targets: dict[int, jax.Array] = {}
    remaining, renewed = iter(vectors), []
    for equation in graph.equations:
        rule = rules.lookup(equation)
        if not isinstance(rule, rules.Nonlinear):
            continue
        for target in equation.bounded:
            if target.index not in targets:
                targets[target.index] = _target_constant(graph, target, constants, remaining, renewed)
        operands = jnp.stack([targets[target.index] for target in equation.bounded])
        constants[equation.output.index] = rule.lipschitz(equation) * numerics.norm(operands, 2)
    return constants, tuple(renewed)


def _target_constant(
    graph: Graph,
    target: Node,
    constants: dict[int, jax.Array],
    vectors: Iterator[jax.Array],
    renewed: list[jax.Array],
) -> jax.Array:
    total = jnp.zeros((), target.dtype)
    for source in _sources(graph, target):
        norm, vector = _power_iteration(graph, source, target, next(vectors))
        renewed.append(vector)
        total = total + norm * constants[source.index]
    return total


def _power_iteration(graph: Graph, source: Node, target: Node, vector: jax.Array) -> tuple[jax.Array, jax.Array]:
    """One step of power iteration for the linear map from source to target: its norm, and the new right vector."""

    def pull(coefficients: jax.Array) -> jax.Array:
        return backsubstitute(graph, target, coefficients, {}).coefficients[source.index]

    def push(v: jax.Array) -> jax.Array:
        return jax.vjp(pull, target.zeros())[1](v)[0]

    left = jax.lax.stop_gradient(_unit(push(_unit(vector))))
    right = jax.lax.stop_gradient(_unit(pull(left)))
    return jnp.sum(pull(left) * right), right


def _unit(x: jax.Array) -> jax.Array:
    return x / jnp.maximum(jnp.sqrt(jnp.sum(x**2)), jnp.finfo(x.dtype).tiny)


def _hidden_targets(graph: Graph) -> tuple[Node, ...]:
    """The operands of nonlinear equations, each once, in order."""
    targets: dict[int, Node] = {}
    for equation in graph.equations:
        if isinstance(rules.lookup(equation), rules.Nonlinear):
            targets.update({node.index: node for node in equation.bounded})
    return tuple(targets.values())


def _sources(graph: Graph, target: Node) -> tuple[Node, ...]:
    """The input and nonlinear nodes that `target` is an affine function of, in order of execution."""
    found, wanted = {}, {target.index: target}
    for equation in reversed(graph.equations):
        if equation.output.index not in wanted:
            continue
        node = wanted.pop(equation.output.index)
        if isinstance(rules.lookup(equation), rules.Nonlinear):
            found[node.index] = node
        else:
            wanted.update({operand.index: operand for operand in equation.bounded})
    found.update(wanted)
    return tuple(found[index] for index in sorted(found))
