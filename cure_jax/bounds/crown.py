"""CROWN and CROWN-IBP: linear bounds by backward substitution.

Source: Zhang et al., "Efficient Neural Network Robustness Certification with General Activation Functions", NeurIPS
2018 (CROWN); Zhang et al., "Towards Stable and Efficient Training of Verifiably Robust Neural Networks", ICLR 2020
(CROWN-IBP).
"""

from collections.abc import Callable, Mapping, Sequence

import jax

from cure_jax import graph as graphs
from cure_jax import rules
from cure_jax.bounds import linear
from cure_jax.bounds.ibp import propagate
from cure_jax.regions import Interval, Region

__all__ = ["crown"]

_INTERMEDIATE = ("crown", "ibp")


def crown(
    f: Callable[[jax.Array], jax.Array],
    intermediate: str = "crown",
    *,
    precision: jax.lax.PrecisionLike = jax.lax.Precision.HIGHEST,
) -> Callable[[Region], Interval]:
    """Transforms a function of one example into linear-relaxation bounds over a region.

    Args:
      f: `[*x] -> [*output]`, traceable by JAX, built from `cure_jax.rules.supported()`.
      intermediate: how pre-activations are bounded: "crown" (back-substitution from each of them, tight) or "ibp"
        (one forward pass: CROWN-IBP, cheap).
      precision: of matrix products and convolutions; keep the default for certificates.

    Returns:
      A function `Region -> Interval` with lower and upper `[*output]`; it can be jitted, vmapped and differentiated.

    Raises:
      ValueError: for an unknown `intermediate`.
      UnsupportedPrimitive: naming primitive and source line.

    Soundness:
      `lower <= f(x) <= upper` for every x of the region, in real arithmetic. The region enters through its support
      function, so a ball cut by the pixel box is used exactly as such.

    Examples:
      >>> import jax.numpy as jnp, cure_jax as cj
      >>> f = lambda x: jnp.maximum(x + 1.0, 0.0) - jnp.maximum(x, 0.0)
      >>> region = cj.linf_ball(jnp.array([0.5]), 0.2)
      >>> [round(float(bound(f)(region).upper[0]), 3) for bound in (cj.crown, cj.ibp)]
      [1.0, 1.4]
    """
    if intermediate not in _INTERMEDIATE:
        raise ValueError(f"intermediate must be one of {_INTERMEDIATE}; got {intermediate!r}. Choose one of these.")

    def bounds(region: Region) -> Interval:
        graph = graphs.trace(f, region.bounding_box().lower, precision=precision)
        intervals, relaxations = _relaxed(graph, region, refine=intermediate == "crown")
        return linear.concretized_output(graph, region, relaxations, intervals)

    return bounds


def _relaxed(
    graph: graphs.Graph, region: Region, *, refine: bool
) -> tuple[Mapping[int, Interval], Mapping[int, rules.Relaxation]]:
    """Intervals of all nodes and relaxations of all nonlinear equations, in one forward pass."""
    relaxations: dict[int, rules.Relaxation] = {}

    def visit(equation: graphs.Equation, operands: Sequence[Interval]) -> Sequence[Interval]:
        rule = rules.lookup(equation)
        assert isinstance(rule, rules.Nonlinear)
        if refine:
            selected = rule.undecided(equation, operands) if rule.undecided else (None,) * len(operands)
            operands = [
                interval.intersect(linear.bound_node(graph, node, region, relaxations, {}, wanted))
                for node, interval, wanted in zip(equation.bounded, operands, selected, strict=True)
            ]
        relaxations[equation.output.index] = rule.relax(equation, operands, None)
        return operands

    return propagate(graph, region, visit), relaxations
