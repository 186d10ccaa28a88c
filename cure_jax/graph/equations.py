"""A function as data: nodes, which depend on its input, and the equations between them."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

__all__ = ["Equation", "Graph", "Node", "Operand", "UnsupportedPrimitive", "needed", "unsupported"]


class UnsupportedPrimitive(NotImplementedError):
    """A primitive that depends on the input has no bound rule."""


@dataclasses.dataclass(frozen=True)
class Node:
    """A value of the network that depends on its input."""

    index: int
    shape: tuple[int, ...]
    dtype: Any

    def zeros(self) -> jax.Array:
        """An array of zeros of the node's shape and dtype."""
        return jnp.zeros(self.shape, self.dtype)


Operand = Node | jax.Array


@dataclasses.dataclass(frozen=True)
class Equation:
    """One primitive application: `output = primitive(*operands, **params)`."""

    name: str
    params: Mapping[str, Any]
    operands: tuple[Operand, ...]
    output: Node
    source: str
    bind: Callable[..., jax.Array] = dataclasses.field(repr=False)

    @property
    def bounded(self) -> tuple[Node, ...]:
        """The operands that depend on the input, in order (a node used twice appears twice)."""
        return tuple(operand for operand in self.operands if isinstance(operand, Node))

    @property
    def positions(self) -> tuple[int, ...]:
        """The positions of the bounded operands."""
        return tuple(i for i, operand in enumerate(self.operands) if isinstance(operand, Node))

    @property
    def constants(self) -> tuple[jax.Array, ...]:
        """The operands that do not depend on the input, in order."""
        return tuple(operand for operand in self.operands if not isinstance(operand, Node))

    def evaluate(self, *values: jax.Array) -> jax.Array:
        """Applies the primitive to one value for each bounded operand; the others are as traced."""
        remaining = iter(values)
        return self.bind(*[next(remaining) if isinstance(operand, Node) else operand for operand in self.operands])

    def replace_constants(self, function: Callable[[jax.Array], jax.Array]) -> "Equation":
        """The same equation with `function` applied to every operand that is not bounded."""
        operands = tuple(operand if isinstance(operand, Node) else function(operand) for operand in self.operands)
        return dataclasses.replace(self, operands=operands)

    def unsupported(self, reason: str = "") -> UnsupportedPrimitive:
        """The error for an equation that no rule covers, naming primitive and source line."""
        return unsupported(self.name, self.source, reason)


def unsupported(name: str, source: str, reason: str) -> UnsupportedPrimitive:
    """The error for a primitive without a rule, at a line of the source."""
    detail = f" ({reason})" if reason else ""
    return UnsupportedPrimitive(
        f"No bound rule for primitive `{name}`{detail} at {source}. Expected only primitives listed by "
        "cure_jax.rules.supported(); rewrite this line with those, or give it bounds with cure_jax.custom_bounds."
    )


@dataclasses.dataclass(frozen=True)
class Graph:
    """A function of one array as a list of equations in order of execution.

    `output` is a `Node`, or an array when the function does not depend on its input.
    """

    input: Node
    output: Operand
    equations: tuple[Equation, ...]

    def evaluate(self, x: jax.Array) -> jax.Array:
        """The function itself, through the equations (with the precision the graph was traced with)."""
        values = {self.input.index: x}
        for equation in self.equations:
            values[equation.output.index] = equation.evaluate(*(values[node.index] for node in equation.bounded))
        return values[self.output.index] if isinstance(self.output, Node) else self.output


def needed(equations: Sequence[Equation], output: Operand) -> tuple[Equation, ...]:
    """The equations that `output` depends on, in order."""
    wanted = {output.index} if isinstance(output, Node) else set()
    kept = []
    for equation in reversed(equations):
        if equation.output.index in wanted:
            wanted.update(node.index for node in equation.bounded)
            kept.append(equation)
    return tuple(reversed(kept))
