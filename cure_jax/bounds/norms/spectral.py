"""Upper bounds on the 2-norm of an affine block of a network: what a proof may multiply a radius by.

A block is the linear map A from one node of a graph to another, with everything affine in between (a convolution, the
normalisation behind it, average pooling, residual sums), as an operator on its image size. Power iteration approaches
|A|_2 from below and proves nothing; here every number is an upper bound, also as computed in floating point:

* **Small blocks**: Gram iteration on A^T A or A A^T, A formed row by row through the equations themselves. Nothing
  about A is assumed. At most 1.002 times the norm on the convolutions and dense layers measured.
* **Large blocks**: norms of the equations, multiplied along a chain and summed over branches: a convolution together
  with the scale of each channel behind it by its Fourier transform (1.01 to 1.05 times the norm on 28 and 14 pixels),
  everything else by |A|_2^2 <= |A|_1 |A|_inf (Schur).

The row norms of a block, and the norms themselves, depend on the weights alone.

Sources: Delattre et al., "Efficient Bound of Lipschitz Constant for Convolutional Layers by Gram Iteration", ICML 2023,
Theorem 1; Tsuzuku et al., "Lipschitz-Margin Training", NeurIPS 2018, Section 4, for operators on an image.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import lax

from cure_jax import graph as graphs
from cure_jax import numerics, pytrees, rules
from cure_jax.bounds.norms.matrix_norms import convolution_norm, gamma, norm_of_rows, slack
from cure_jax.graph import Equation, Graph, Node

__all__ = [
    "BlockNorms",
    "as_block_norms",
    "block_norms",
    "blocks",
    "norms_by_block",
    "operator_norm",
    "row_norms",
    "sources",
]

# The matrix of a block is formed as such up to this many rows (a squaring takes 2 * 2048^3 operations) and entries.
_MOST_ROWS, _MOST_ENTRIES = 2048, 2**27
# Its rows are formed in chunks of at most this many entries of the widest node.
_CHUNK_ENTRIES = 2**24


@pytrees.register
@dataclasses.dataclass(frozen=True)
class BlockNorms:
    """Upper bounds on the 2-norms of the affine blocks of a network, for all but the last block.

    Attributes:
      values: one scalar for each block and each of its sources, in order of execution.
      shapes: of source and target of each; compared before use, so that those of another network are mostly refused.
    """

    values: tuple[jax.Array, ...]
    shapes: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...] = dataclasses.field(metadata={"static": True})


def block_norms(
    f: Callable[[jax.Array], jax.Array],
    example: jax.Array | jax.ShapeDtypeStruct,
    *,
    precision: jax.lax.PrecisionLike = jax.lax.Precision.HIGHEST,
) -> BlockNorms:
    """The norms of the blocks of a network, to be handed to `lipschitz`, `box_ball` and `sdp_crown`.

    The last block has no part in them, so those of `f` serve `margins(f, label)` too, for every label. Pass the
    parameters of `f` as arguments of `jax.jit`: as constants, XLA would do the work at compile time, slowly.

    Args:
      f: `[*x] -> [*output]`, one example.
      example: anything with the shape and dtype of the input.
      precision: of matrix products and convolutions; keep the default for certificates.

    Returns:
      The norms, a pytree of scalars.

    Soundness:
      Each is at least the largest singular value of its block, rounding included (see the head of this file).
      They hold for the parameters of `f` and no others.
    """
    graph = graphs.trace(f, example, precision=precision)
    return as_block_norms(graph, [operator_norm(graph, *block) for block in blocks(graph)])


def norms_by_block(graph: Graph, norms: BlockNorms | None) -> dict[tuple[int, int], jax.Array]:
    """The norm of each block by the indices of (source, target); computed if they are not given.

    Raises:
      ValueError: if the norms given are those of another network.
    """
    if norms is None:
        norms = as_block_norms(graph, [operator_norm(graph, *block) for block in blocks(graph)])
    if norms.shapes != _shapes(graph):
        raise ValueError(
            f"The block norms are those of another network: they have blocks {norms.shapes}, this network "
            f"{_shapes(graph)}. Compute them with block_norms(f, example) for the same f and parameters."
        )
    pairs = [(source.index, target.index) for source, target in blocks(graph)]
    return dict(zip(pairs, norms.values, strict=True))


def as_block_norms(graph: Graph, values: Sequence[jax.Array]) -> BlockNorms:
    """Norms of the blocks of a network, in the order of `blocks`."""
    return BlockNorms(tuple(values), _shapes(graph))


def blocks(graph: Graph) -> tuple[tuple[Node, Node], ...]:
    """Source and target of each affine block but the last, in order of execution."""
    return tuple((source, target) for target in _hidden_targets(graph) for source in sources(graph, target))


def _shapes(graph: Graph) -> tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]:
    return tuple((source.shape, target.shape) for source, target in blocks(graph))


def operator_norm(graph: Graph, source: Node, target: Node) -> jax.Array:
    """An upper bound on the 2-norm of the linear map from one node to another.

    Args:
      graph: the network.
      source: the input, or the output of a nonlinear equation.
      target: a node that depends on it through affine equations; other sources of it are held.

    Returns:
      A scalar that depends on the weights alone, so that `jax.vmap` over inputs computes it once.

    Soundness:
      At least the largest singular value, rounding included (see the file).
    """
    if source.index == target.index:
        return jnp.ones((), target.dtype)
    path = _path(graph, source, target)
    sizes = math.prod(source.shape), math.prod(target.shape)
    if min(sizes) <= _MOST_ROWS and math.prod(sizes) <= _MOST_ENTRIES:
        return _explicit_norm(path, source, target)
    return jnp.minimum(_schur(path, source, target), _chain_norm(path, source, target))


def row_norms(graph: Graph, source: Node, target: Node) -> jax.Array:
    """Upper bounds on the 2-norms of the rows of the linear map from one node to another: `[*target]`.

    Exact up to rounding if one equation of the block mixes coordinates (a convolution with its normalisation); where
    there are more, or branches, by the triangle inequality: a row of W B is a sum of rows of B.
    """
    norms, unmixed = {source.index: jnp.ones(source.shape, source.dtype)}, {source.index}
    for equation in _path(graph, source, target):
        rule = _affine(equation)
        operands = [norms.get(node.index, node.zeros()) for node in equation.bounded]
        alone = len(operands) == 1 and equation.bounded[0].index in unmixed
        norms[equation.output.index] = rule.magnitude(equation, 2.0 if alone else 1.0, *operands)
        if alone and rule.diagonal:
            unmixed.add(equation.output.index)
    return norms[target.index]


def _explicit_norm(path: Sequence[Equation], source: Node, target: Node) -> jax.Array:
    """By the Gram matrix of its rows or columns, whichever are fewer."""
    push = functools.partial(_push, path, source, target)
    pull = jax.linear_transpose(push, source.zeros())
    upright = math.prod(target.shape) < math.prod(source.shape)
    side = target if upright else source
    size = math.prod(side.shape)
    # In units of a bound of the norm, so that no product of small weights underflows.
    largest = _schur(path, source, target)
    unit = numerics.unit_of(largest)

    def row(index: jax.Array) -> jax.Array:
        one = jax.nn.one_hot(index, size, dtype=side.dtype).reshape(side.shape)
        return (pull(one)[0] if upright else push(one)).ravel() / unit

    widest = max(math.prod(node.shape) for equation in path for node in (equation.output, *equation.bounded))
    rows = lax.map(row, jnp.arange(size), batch_size=max(1, _CHUNK_ENTRIES // widest))
    terms = 2 + sum(_terms(equation)[upright] for equation in path)
    norm = jnp.where(largest == 0, 0, unit * norm_of_rows(rows, terms))
    # Beyond the largest unit the error of rounding is not known.
    return jnp.where(largest > unit, jnp.inf, norm)


def _chain_norm(path: Sequence[Equation], source: Node, target: Node) -> jax.Array:
    """Norms multiplied along a chain, summed over branches: `pending` bounds what is left by sum |scale * node|_2."""
    pending = {target.index: jnp.ones(target.shape, target.dtype)}
    for equation in reversed(path):
        scale = pending.pop(equation.output.index)
        for node, part in zip(equation.bounded, _pulled_scales(equation, scale), strict=True):
            known = pending.get(node.index)
            pending[node.index] = part if known is None else _full(node, jnp.max(known) + jnp.max(part))
    inflation = 1 + (len(path) + 1) * slack(target.dtype)
    return jnp.max(pending[source.index]) * inflation


def _pulled_scales(equation: Equation, scale: jax.Array) -> Sequence[jax.Array]:
    """For each operand x_i non-negative t_i with |scale * W x|_2 <= sum_i |t_i * x_i|_2."""
    rule = _affine(equation)
    back = _transposed_magnitude(equation)
    if rule.diagonal:
        return back(scale)
    if _is_convolution(equation):
        return [_full(equation.bounded[0], convolution_norm(equation, scale))]
    sums = [jnp.max(part) for part in back(scale)]
    zeros = [node.zeros() for node in equation.bounded]
    parts = []
    for i, node in enumerate(equation.bounded):
        ones = [jnp.ones_like(zero) if i == j else zero for j, zero in enumerate(zeros)]
        rows = jnp.max(scale * rule.magnitude(equation, 1.0, *ones))
        terms = gamma(sum(_terms(equation)), scale.dtype)
        parts.append(_full(node, numerics.root(sums[i]) * numerics.root(rows) * (1 + terms)))
    return parts


def _schur(path: Sequence[Equation], source: Node, target: Node) -> jax.Array:
    """sqrt(|M|_1 |M|_inf) with M the product of the |W| along the path: bounds |A|_2, and the norm of |A| too."""

    def magnitudes(radius: jax.Array) -> jax.Array:
        values = {source.index: radius}
        for equation in path:
            operands = [values.get(node.index, node.zeros()) for node in equation.bounded]
            values[equation.output.index] = _affine(equation).magnitude(equation, 1.0, *operands)
        return values[target.index]

    rows, transposed = jax.vjp(magnitudes, jnp.ones(source.shape, source.dtype))
    columns = transposed(jnp.ones(target.shape, target.dtype))[0]
    inflation = 1 + gamma(sum(sum(_terms(equation)) for equation in path), target.dtype) + slack(target.dtype)
    return numerics.root(jnp.max(rows)) * numerics.root(jnp.max(columns)) * inflation


def _transposed_magnitude(equation: Equation) -> Callable[[jax.Array], Sequence[jax.Array]]:
    """|W_i|^T for each operand; `magnitude` is linear in the radii for q = 1."""
    ones = [jnp.ones(node.shape, node.dtype) for node in equation.bounded]
    return jax.vjp(functools.partial(_affine(equation).magnitude, equation, 1.0), *ones)[1]


def _push(path: Sequence[Equation], source: Node, target: Node, value: jax.Array) -> jax.Array:
    """The linear map itself."""
    values = {source.index: value}
    for equation in path:
        zeros = tuple(node.zeros() for node in equation.bounded)
        tangents = tuple(values.get(node.index, zero) for node, zero in zip(equation.bounded, zeros, strict=True))
        values[equation.output.index] = jax.jvp(equation.evaluate, zeros, tangents)[1]
    return values[target.index]


def _path(graph: Graph, source: Node, target: Node) -> tuple[Equation, ...]:
    """The affine equations that lead from source to target, in order."""
    wanted, leading = {target.index}, []
    for equation in reversed(graph.equations):
        index = equation.output.index
        if index in wanted and index != source.index and isinstance(rules.lookup(equation), rules.Affine):
            wanted.update(node.index for node in equation.bounded)
            leading.append(equation)
    reached, path = {source.index}, []
    for equation in reversed(leading):
        if any(node.index in reached for node in equation.bounded):
            reached.add(equation.output.index)
            path.append(equation)
    return tuple(path)


def _affine(equation: Equation) -> rules.Affine:
    rule = rules.lookup(equation)
    assert isinstance(rule, rules.Affine), equation.name
    return rule


def _is_convolution(equation: Equation) -> bool:
    return (
        equation.name == "conv_general_dilated"
        and equation.positions == (0,)
        and equation.params["batch_group_count"] == 1
    )


def _terms(equation: Equation) -> tuple[int, int]:
    """At least the number of non-zero entries of a row of W, and of a column."""
    sizes = sum(math.prod(node.shape) for node in equation.bounded), math.prod(equation.output.shape)
    if _affine(equation).diagonal:
        return len(equation.bounded), 1
    if _is_convolution(equation):
        numbers, shape = equation.params["dimension_numbers"].rhs_spec, equation.operands[1].shape
        outputs, inputs, taps = shape[numbers[0]], shape[numbers[1]], math.prod(shape[axis] for axis in numbers[2:])
        return taps * inputs, taps * outputs // equation.params["feature_group_count"]
    if equation.name == "dot_general":
        position = equation.positions[0]
        contracted, batch = (pair[1 - position] for pair in equation.params["dimension_numbers"])
        shape = equation.operands[1 - position].shape
        terms = math.prod(shape[axis] for axis in contracted)
        return terms, math.prod(shape) // max(1, terms * math.prod(shape[axis] for axis in batch))
    return sizes


def _full(node: Node, value: jax.Array) -> jax.Array:
    return jnp.broadcast_to(value, node.shape)


def _hidden_targets(graph: Graph) -> tuple[Node, ...]:
    """The operands of nonlinear equations, each once, in order."""
    targets: dict[int, Node] = {}
    for equation in graph.equations:
        if isinstance(rules.lookup(equation), rules.Nonlinear):
            targets.update({node.index: node for node in equation.bounded})
    return tuple(targets.values())


def sources(graph: Graph, target: Node) -> tuple[Node, ...]:
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
