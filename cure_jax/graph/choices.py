"""Choices that depend on the input: what is recorded of `where`, `sort` and `top_k`.

`jnp.where(x > 0, a, b)` is one equation of its operands; where both cases are affine functions of what is compared, it
is a function of two straight pieces. A sorted array is one equation, and so are the places where its entries stood.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax import lax

from cure_jax.graph.equations import Equation, Node, Operand

__all__ = ["CHOICES", "Recording", "chosen", "in_shape"]

CHOICES = ("select_n", "sort", "top_k")
_COMPARISONS = ("gt", "ge", "lt", "le")
# Affine entry by entry, as quotients have constant divisors, and where products have one bounded factor.
_STRAIGHT = ("add", "sub", "neg", "mul", "div")


@runtime_checkable
class Recording(Protocol):
    """What records equations, as far as choices need it.

    Attributes:
      equations: what is recorded so far; the output of number i is the node with index i + 1.
      judged: nodes that are taken for numbers, where something would come out otherwise if they were none.
    """

    equations: list[Equation]
    judged: list[Node]

    def record(
        self,
        name: str,
        params: Mapping[str, Any],
        operands: Sequence[Operand],
        output: Any,
        source: str,
        bind: Callable[..., Any],
    ) -> Node:
        """One equation."""
        ...

    def recorded(self, function: Callable[..., list[Any]], operands: Sequence[Operand], source: str) -> list[Operand]:
        """The results of a function of arrays, by the equations that it consists of."""
        ...


def chosen(recording: Recording, equation: Any, operands: Sequence[Operand], source: str) -> list[Operand] | None:
    """The results of a choice that depends on the input; None for a choice that does not, or that has no rule."""
    outputs, name = [variable.aval for variable in equation.outvars], equation.primitive.name
    if name == "select_n":
        return _where(recording, operands, outputs[0], source)
    # Where the entries stand depends on the input; recorded, as it may not be needed.
    x, *others = operands
    bind = lambda *values: equation.primitive.bind(*values, **equation.params)  # noqa: E731
    places = [recording.record("argsort", {}, operands, output, source, bind) for output in outputs[1:]]
    if name == "top_k":
        axis, count = equation.params.get("axis", len(x.shape) - 1), equation.params["k"]
        last = lambda x: lax.slice_in_dim(lax.sort(x, dimension=axis), x.shape[axis] - count, None, axis=axis)  # noqa: E731
        return [*recording.recorded(lambda x: [lax.rev(last(x), (axis,))], [x], source), *places]
    if not others:
        params = {"dimension": equation.params["dimension"]}
        return [recording.record("sort", params, [x], outputs[0], source, functools.partial(lax.sort, **params))]
    if not isinstance(x, Node) or equation.params["num_keys"] > 1:
        return None
    return [*recording.recorded(lambda x: [lax.sort(x, dimension=equation.params["dimension"])], [x], source), *places]


def _where(recording: Recording, operands: Sequence[Operand], output: Any, source: str) -> list[Operand] | None:
    """A choice of two by a comparison that depends on the input (`rules.pieces`)."""
    predicate, *cases = operands
    shape, dtype = tuple(output.shape), jnp.dtype(output.dtype)
    comparison = _comparison(recording, predicate) if isinstance(predicate, Node) and len(cases) == 2 else None
    if comparison is None or not jnp.issubdtype(dtype, jnp.floating):
        return None
    name, compared = comparison
    compared = [in_shape(recording, operand, shape, source) for operand in compared]
    cases = [in_shape(recording, operand, shape, source) for operand in cases]
    order = getattr(lax, name)
    bind = lambda left, right, *cases: lax.select_n(order(left, right), *cases)  # noqa: E731
    nodes = [operand for operand in compared if isinstance(operand, Node)]
    pieces = (
        [_straight(recording.equations, nodes[0], case) for case in cases]
        if len(nodes) == 1 and nodes[0].dtype == dtype
        else [None]
    )
    straight = [piece for piece in pieces if piece is not None]
    if len(straight) < 2:
        recording.judged.extend(operand for operand in compared if isinstance(operand, Node))
        return [recording.record("where", {"comparison": name}, [*compared, *cases], output, source, bind)]
    # Right of the kink the node is greater.
    flipped = compared[0] is not nodes[0]
    params = {"pieces": tuple(straight if (name in ("gt", "ge")) != flipped else straight[::-1])}

    def chosen(*compared: jax.Array) -> jax.Array:
        return lax.select_n(order(*compared), *(piece(compared[flipped]) for piece in straight))

    recording.judged.append(nodes[0])
    return [recording.record("piecewise_linear", params, compared, output, source, chosen)]


def _comparison(recording: Recording, predicate: Node) -> tuple[str, Sequence[Operand]] | None:
    """What a predicate compares, before it was broadcast."""
    equation = recording.equations[predicate.index - 1]
    if equation.name == "broadcast_in_dim" and equation.positions == (0,):
        comparison = _comparison(recording, equation.bounded[0])
        if comparison is None:
            return None
        name, operands = comparison
        shaped = lambda x: equation.bind(jnp.broadcast_to(x, equation.bounded[0].shape))  # noqa: E731
        return name, [recording.recorded(lambda x: [shaped(x)], [x], equation.source)[0] for x in operands]
    return (equation.name, equation.operands) if equation.name in _COMPARISONS else None


def in_shape(recording: Recording, operand: Operand, shape: tuple[int, ...], source: str) -> Operand:
    """An operand in another shape, to which it broadcasts."""
    if operand.shape == shape:
        return operand
    return recording.recorded(lambda x: [jnp.broadcast_to(x, shape)], [operand], source)[0]


def _straight(equations: Sequence[Equation], x: Node, y: Operand) -> Callable[[jax.Array], jax.Array] | None:
    """The affine function of x, entry by entry, that y is; None if it is not known to be one."""
    if not isinstance(y, Node):
        return lambda value: jnp.broadcast_to(y, value.shape)
    wanted, path = {y.index}, []
    for equation in reversed(equations[x.index : y.index]):
        if equation.output.index not in wanted:
            continue
        if not _is_straight(equation):
            return None
        wanted = wanted - {equation.output.index} | {node.index for node in equation.bounded}
        path.append(equation)
    if wanted != {x.index}:
        return None

    def straight(value: jax.Array) -> jax.Array:
        values = {x.index: value}
        for equation in reversed(path):
            values[equation.output.index] = equation.evaluate(*(values[node.index] for node in equation.bounded))
        return values[y.index]

    return straight


def _is_straight(equation: Equation) -> bool:
    """Whether an equation is affine entry by entry."""
    if equation.name not in _STRAIGHT or (equation.name == "mul" and len(equation.bounded) > 1):
        return False
    return all(node.shape == equation.output.shape for node in equation.bounded)
