"""From a JAX function to a flat list of equations: the only room that reads jaxprs.

`trace(f, example)` follows `f` once with abstract values and returns a `Graph`: the equations that
depend on the input, in order of execution, with every call (`jit`, `custom_jvp_call`, `remat`, ...)
inlined and everything that does not depend on the input already computed. What remains of a
network such as `Dense -> relu -> Dense` is

    dot_general, add, max, dot_general, add

Activation functions of `jax.nn` that cannot be bounded part by part stay one equation (`activations`). Others become
equations that have rules: a result of `split` is a slice, a quotient a product with a reciprocal, a product of entries
one of pairs (`rewriting`), loops and branches are written out (`control_flow`), and choices that depend on the input
are functions of what they compare (`choices`).

An operand of an equation is either a `Node` (a value that depends on the input, to be bounded) or a plain
array. Nodes are broadcast by equations of their own, so that elementwise ones have nodes of one shape. Later rooms
never see a jaxpr: `rules` says what each kind of equation does to sets, `bounds` folds over the list.
"""

from cure_jax.graph.equations import Equation, Graph, Node, UnsupportedPrimitive
from cure_jax.graph.recording import trace

__all__ = ["Equation", "Graph", "Node", "UnsupportedPrimitive", "trace"]
