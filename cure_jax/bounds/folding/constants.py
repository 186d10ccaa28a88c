"""What the affine equations of a network add, taken out of the backward fold.

Let the *base* of a node be its value where the input and the outputs of all nonlinear equations are 0. Between these a
network is linear but for the bases: <c, node> = <c, base> + what the linear parts make of the input and of nonlinear
outputs. So a fold has to add <c, base> where coefficients arrive at a node from an objective or from a relaxation, and
nothing at affine equations. An elementwise relaxation carries the bases of its operands in its intercepts,

    s x + t = s (x - base) + (t + s base),

which is computed once, not for each objective. Bias terms behind convolutions took a third of CROWN's time before.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from cure_jax import rules
from cure_jax.bounds.folding import coefficients as forms
from cure_jax.bounds.folding.coefficients import Coefficients
from cure_jax.graph import Equation, Graph, Node

__all__ = ["Bases"]


class Bases:
    """The bases of the nodes of a graph, each computed when it is first needed."""

    def __init__(self, graph: Graph) -> None:
        self._equations = iter(graph.equations)
        self._found: dict[int, jax.Array | None] = {}

    def of(self, node: Node) -> jax.Array | None:
        """`[*node]`, its base; None if that is 0."""
        # In the order of the graph: what a node is made of comes before it, however long the chain is.
        while node.index not in self._found and (equation := next(self._equations, None)) is not None:
            self._found[equation.output.index] = self._computed(equation)
        return self._found.get(node.index)

    def inner(self, coefficients: Coefficients, node: Node) -> jax.Array:
        """<coefficients, base>, a scalar."""
        base = self.of(node)
        return jnp.zeros((), node.dtype) if base is None else forms.inner(coefficients, base)

    def moved(self, equation: Equation, relaxation: rules.Relaxation) -> rules.Relaxation:
        """An elementwise relaxation, as a function of the operands without their bases."""
        bases = [self.of(node) for node in equation.bounded]
        return rules.Relaxation(_moved(relaxation.lower, bases), _moved(relaxation.upper, bases))

    def _computed(self, equation: Equation) -> jax.Array | None:
        rule = rules.lookup(equation)
        if not isinstance(rule, rules.Affine):
            return None
        bases = [self._found.get(operand.index) for operand in equation.bounded]
        if not rule.offset and all(base is None for base in bases):
            return None
        values = [
            operand.zeros() if base is None else base for operand, base in zip(equation.bounded, bases, strict=True)
        ]
        return equation.evaluate(*values)


def _moved(line: rules.LinearMap, bases: Sequence[jax.Array | None]) -> rules.LinearMap:
    assert line.slopes is not None
    # An infinite intercept of a rule says that there is no bound, whatever the coefficient: it becomes no number. An
    # infinite base is what a mask leaves out: with a slope of 0 it adds nothing.
    intercept = jnp.where(jnp.isinf(line.intercept), jnp.nan, line.intercept)
    for slope, base in zip(line.slopes, bases, strict=True):
        if base is not None:
            intercept = intercept + forms.masked_product(slope, base)
    return rules.elementwise_map(line.slopes, intercept)
