"""CROWN and CROWN-IBP: linear bounds by backward substitution.

Source: Zhang et al., "Efficient Neural Network Robustness Certification with General Activation Functions", NeurIPS
2018 (CROWN); Zhang et al., "Towards Stable and Efficient Training of Verifiably Robust Neural Networks", ICLR 2020
(CROWN-IBP).
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import jax

from cure_jax import graph as graphs
from cure_jax import rules
from cure_jax.bounds.folding import linear
from cure_jax.bounds.folding.vertices import ActivatedBall
from cure_jax.bounds.ibp import propagate, steps_of
from cure_jax.bounds.rounding import outward
from cure_jax.bounds.rounding.arithmetic import check_arithmetic
from cure_jax.bounds.rounding.reproducible import traced
from cure_jax.bounds.transformation import transformation
from cure_jax.regions import Interval, Region

__all__ = ["Intermediate", "Relaxed", "check_intermediate", "crown", "intermediate_bounds", "relaxed"]

_METHODS = ("crown", "ibp")
# How the operands of nonlinear equations are bounded: a method, or bounds from `intermediate_bounds`.
Intermediate = str | Sequence[Interval]


@transformation
def crown(
    f: Callable[[jax.Array], jax.Array],
    intermediate: Intermediate = "crown",
    *,
    precision: jax.lax.PrecisionLike = jax.lax.Precision.HIGHEST,
    arithmetic: str = "float32",
) -> Callable[[Region], Interval]:
    """Transforms a function of one example into linear-relaxation bounds over a region.

    Args:
      f: `[*x] -> [*output]`, traceable by JAX, built from `cure_jax.rules.supported()`.
      intermediate: how pre-activations are bounded: "crown" (back-substitution from each of them whose sign is not
        known, tight), "ibp" (one forward pass: CROWN-IBP, cheap), or bounds that `intermediate_bounds` returned for the
        same region and a function with the same nonlinear layers, such as the logits whose margins `f` takes.
      precision: of matrix products and convolutions; keep the default for certificates.
      arithmetic: "float32", or "outward" to allow for all rounding errors, as for `ibp`.

    Returns:
      A function `Region -> Interval` with lower and upper `[*output]`; it can be jitted and vmapped, and differentiated
      unless it rounds outward.

    Raises:
      ValueError: for an unknown `intermediate`, bounds that do not fit the layers of `f`, an unknown arithmetic, or
        where outward rounding is not covered.
      UnsupportedPrimitive: naming primitive and source line.

    Soundness:
      `lower <= f(x) <= upper` for every x of the region, for f in real arithmetic: up to the rounding of the bounds
      themselves, or, with "outward", as computed. The region enters through its support function, so a ball cut by the
      pixel box is used exactly as such. Bounds that are passed in are taken on trust.

    Examples:
      >>> import jax.numpy as jnp, cure_jax as cj
      >>> f = lambda x: jnp.maximum(x + 1.0, 0.0) - jnp.maximum(x, 0.0)
      >>> region = cj.linf_ball(jnp.array([0.5]), 0.2)
      >>> [round(float(bound(f)(region).upper[0]), 3) for bound in (cj.crown, cj.ibp)]
      [1.0, 1.4]
    """
    check_intermediate(intermediate)
    check_arithmetic(arithmetic, precision)

    def bounds(region: Region) -> Interval:
        graph = traced(f, region, precision, arithmetic)
        inside = relaxed(graph, region, intermediate, arithmetic)
        return linear.concretized_output(graph, region, inside.relaxations, inside.intervals, inside.intercepts)

    return bounds


@transformation
def intermediate_bounds(
    f: Callable[[jax.Array], jax.Array],
    method: str = "crown",
    *,
    precision: jax.lax.PrecisionLike = jax.lax.Precision.HIGHEST,
    arithmetic: str = "float32",
) -> Callable[[Region], tuple[Interval, ...]]:
    """Transforms a function of one example into bounds of its layers.

    Args:
      f: `[*x] -> [*output]`, as for `crown`.
      method: "crown" or "ibp".
      precision: as for `crown`.
      arithmetic: as for `crown`.

    Returns:
      A function from a region to the bounds of every operand of every nonlinear equation, in order of execution: for
      a network of dense layers and ReLUs the pre-activations, layer by layer. They can be saved and passed back as
      `crown(..., intermediate=...)`.

    Raises:
      ValueError: for an unknown method or arithmetic, or where outward rounding is not covered.
      UnsupportedPrimitive: naming primitive and source line.

    Soundness:
      Each holds all values that its operand takes on the region, in real arithmetic; rounding as for `crown`.

    Examples:
      >>> import jax, jax.numpy as jnp, cure_jax as cj
      >>> f = lambda x: jax.nn.relu(x @ jnp.array([[1.0, -1.0], [2.0, 1.0]])) @ jnp.ones((2, 2))
      >>> region = cj.linf_ball(jnp.array([0.5, 0.5]), 0.1)
      >>> layers = cj.intermediate_bounds(f)(region)
      >>> [layer.lower.shape for layer in layers]
      [(2,)]
      >>> bool(jnp.all(cj.crown(f, layers)(region).lower == cj.crown(f)(region).lower))
      True
    """
    check_intermediate(method)
    check_arithmetic(arithmetic, precision)

    def bounds(region: Region) -> tuple[Interval, ...]:
        graph = traced(f, region, precision, arithmetic)
        return relaxed(graph, region, method, arithmetic).operands

    return bounds


@runtime_checkable
class Kept(Protocol):
    """What relaxes some layers in its own way, so that coefficients on them are kept.

    Attributes:
      ball: the set of inputs, with what these layers make of it.
    """

    ball: ActivatedBall

    def refine(self, equation: graphs.Equation, operands: Sequence[Interval]) -> Sequence[Interval] | None:
        """Tighter intervals of the operands, or None for the usual ones; called before `relax`."""
        ...

    def relax(
        self, equation: graphs.Equation, operands: Sequence[Interval], relaxation: rules.Relaxation
    ) -> rules.Relaxation:
        """The relaxation to be used in place of the usual one; called for every nonlinear equation, in their order."""
        ...


class Relaxed(NamedTuple):
    """A network whose nonlinear equations are enclosed by affine functions on a region.

    Attributes:
      intervals: of every node, by index.
      relaxations: of every nonlinear equation, by index of its output node.
      operands: the intervals on which the relaxations hold, in order of execution.
      intercepts: for outward rounding, of every equation, by index of its output node.
    """

    intervals: dict[int, Interval]
    relaxations: dict[int, rules.Relaxation]
    operands: tuple[Interval, ...]
    intercepts: dict[int, outward.Intercepts | None] | None = None


class Within(NamedTuple):
    """Bounds of a network that are known before.

    Attributes:
      intervals: of every operand of a nonlinear equation, in order of execution. Operands that no nonlinear equation
        comes before keep them.
      wanted: of the same, `[*operand]`, which entries are bounded by back-substitution if they are undecided.
    """

    intervals: Sequence[Interval]
    wanted: Sequence[jax.Array]


def relaxed(
    graph: graphs.Graph,
    region: Region,
    intermediate: Intermediate,
    arithmetic: str = "float32",
    kept: Kept | None = None,
    within: Within | None = None,
) -> Relaxed:
    """Bounds and relaxes all nonlinear equations of a graph, in one forward pass.

    Args:
      graph: the network.
      region: the set of inputs.
      intermediate: as for `crown`.
      arithmetic: as for `crown`.
      kept: what relaxes some layers in its own way, if anything does.
      within: bounds that are known, and what of them is to become tighter. Only inputs count whose operands lie there;
        where there are none, or by rounding, `operands` have an upper end below the lower one.

    Raises:
      ValueError: if bounds that are passed in do not fit the graph, or rounding is not covered.
    """
    steps, intercepts = steps_of(graph, region, arithmetic)
    inside, found, uses = Relaxed({}, {}, (), intercepts), [], outward.uses(graph)

    def visit(equation: graphs.Equation, operands: Sequence[Interval]) -> Sequence[Interval]:
        rule = rules.lookup(equation)
        assert isinstance(rule, rules.Nonlinear)
        if within is not None:
            given = _given(within.intervals, len(found), equation)
            operands = [interval.intersect(other) for interval, other in zip(operands, given, strict=True)]
        if intermediate == "crown" and (within is None or inside.relaxations):
            refined = None if kept is None else kept.refine(equation, operands)
            if refined is None:
                asked = None if within is None else within.wanted[len(found) : len(found) + len(operands)]
                refined = _refined(graph, region if kept is None else kept.ball, inside, equation, operands, asked)
            operands = refined
        elif not isinstance(intermediate, str):
            operands = _given(intermediate, len(found), equation)
        found.extend(operands)
        if within is not None:
            operands = [interval.ordered() for interval in operands]
        output, relaxation = equation.output.index, rule.relax(equation, operands, None)
        if kept is not None:
            relaxation = kept.relax(equation, operands, relaxation)
        inside.relaxations[output], inside.intervals[output] = relaxation, steps.nonlinear(equation, rule, operands)
        if intercepts is not None:
            intercepts[output] = outward.relaxed_intercepts(equation, operands, relaxation, uses(equation))
        return operands

    intervals = propagate(graph, region, visit, steps)
    if not isinstance(intermediate, str) and len(found) != len(intermediate):
        raise ValueError(
            f"Got intermediate bounds of {len(intermediate)} layers; f has {len(found)}. Compute them with "
            "intermediate_bounds for this network."
        )
    return inside._replace(intervals=intervals, operands=tuple(found))


def _refined(
    graph: graphs.Graph,
    region: Region | ActivatedBall,
    inside: Relaxed,
    equation: graphs.Equation,
    operands: Sequence[Interval],
    wanted: Sequence[jax.Array] | None,
) -> list[Interval]:
    """Tighter intervals, by back-substitution through what is relaxed so far, where they make a tighter relaxation.

    First the ends nearer to 0, which is where most functions bend: they decide most of the neurons, and the other ends
    of those are not needed.
    """
    rule = rules.lookup(equation)
    assert isinstance(rule, rules.Nonlinear)
    relaxations, intervals, intercepts = inside.relaxations, inside.intervals, inside.intercepts
    undecided = rule.undecided
    if undecided is None:
        return [
            interval.intersect(linear.bound_node(graph, node, region, relaxations, intervals, intercepts))
            for node, interval in zip(equation.bounded, operands, strict=True)
        ]
    nearer = [interval.lower + interval.upper < 0 for interval in operands]

    def once(number: jax.Array, operands: list[Interval]) -> list[Interval]:
        selected = undecided(equation, operands)
        if wanted is not None:
            selected = [some & entries for some, entries in zip(selected, wanted, strict=True)]
        return [
            interval.intersect(
                linear.bound_sides(
                    graph, node, region, relaxations, intervals, below ^ (number > 0), entries, intercepts
                )
            )
            for node, interval, below, entries in zip(equation.bounded, operands, nearer, selected, strict=True)
        ]

    # A loop, not two copies of what takes most of the time to compile.
    return jax.lax.fori_loop(0, 2, once, list(operands))


def _given(intermediate: Sequence[Interval], first: int, equation: graphs.Equation) -> Sequence[Interval]:
    operands = intermediate[first : first + len(equation.bounded)]
    shapes, expected = [operand.shape for operand in operands], [node.shape for node in equation.bounded]
    if shapes != expected:
        raise ValueError(
            f"Intermediate bounds number {first} have shapes {shapes}; `{equation.name}` at {equation.source} needs "
            f"{expected}. Compute them with intermediate_bounds for this network."
        )
    return operands


def check_intermediate(intermediate: Intermediate, *others: str) -> None:
    """Refuses a string that is neither "crown" nor "ibp" nor among `others`."""
    expected = (*others, *_METHODS)
    if isinstance(intermediate, str) and intermediate not in expected:
        raise ValueError(
            f"intermediate must be one of {expected}, or bounds of the layers; got {intermediate!r}. Choose one."
        )
