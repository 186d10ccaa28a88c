"""alpha-CROWN: linear bounds whose free slopes are optimised.

Every relaxation has a free parameter alpha in [0, 1] (for ReLU the slope of the lower line), and any value is sound;
CROWN takes the one of least area. Here gradient ascent chooses, for each bound its own: layer by layer for both sides
of every neuron whose relaxation can still become tighter, on the boxes that the layers before it have by then; at last
for the output. A neuron of a convolutional layer has slopes in the window that it sees, and none elsewhere.

The published method ascends on the bounds of the output alone, through the bounds of all layers at once. Tighter boxes
never make the best bound of a later layer looser, so what is best for every neuron by itself is best for the output
too; and each of these problems is small, needs no other one's slopes in memory, and ends when nothing moves any more.

Source: Xu et al., "Fast and Complete: Enabling Complete Verification with Rapid and Massively Parallel Incomplete
Verifiers", ICLR 2021, Lemma 2.1 and Section 3.2.
"""

import functools
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from cure_jax import graph as graphs
from cure_jax import rules
from cure_jax.bounds.crown import Intermediate, check_intermediate, relaxed
from cure_jax.bounds.folding import linear
from cure_jax.bounds.folding.coefficients import Coefficients
from cure_jax.bounds.folding.free_lines import FreeLines, free_lines
from cure_jax.bounds.folding.vertices import ActivatedBall, AtVertices
from cure_jax.bounds.transformation import transformation
from cure_jax.graph import Equation, Graph, Node
from cure_jax.regions import Interval, Region

__all__ = ["Ascent", "alpha_crown", "has_free_slopes", "optimized_layers", "optimized_output"]

_LEARNING_RATE, _DECAY = 0.3, 0.95
# So many steps in a row must gain little before an ascent ends.
_PATIENCE = 4


class Ascent(NamedTuple):
    """How long slopes are optimised.

    Attributes:
      steps: of Adam, at most.
      tolerance: as for `alpha_crown`.
    """

    steps: int
    tolerance: float = 0.005


# By index of the output node of each equation with free lines: of one objective, `[*output]` or its window.
Alphas = Mapping[int, jax.Array]


@transformation
def alpha_crown(
    f: Callable[[jax.Array], jax.Array],
    steps: int = 20,
    intermediate: Intermediate = "optimized",
    *,
    tolerance: float = 0.005,
    lower_only: bool = False,
    precision: jax.lax.PrecisionLike = jax.lax.Precision.HIGHEST,
) -> Callable[[Region], Interval]:
    """Transforms a function of one example into linear bounds with optimised slopes.

    Args:
      f: `[*x] -> [*output]`, traceable by JAX, built from `cure_jax.rules.supported()`.
      steps: of Adam for each bound, at most; with a learning rate of 0.3 that decays by 0.95 a step.
      intermediate: "optimized" (bounds of neurons inside the network are optimised too), "crown" or "ibp" (they are
        those of CROWN or of interval arithmetic, and only the slopes of each output are free), or bounds from
        `intermediate_bounds`.
      tolerance: the ascent of a bound ends early when four steps in a row gained less than this share of what was
        gained before; negative: never.
      lower_only: whether only lower bounds of the output are optimised; the upper ones are then CROWN's.
      precision: of matrix products and convolutions; keep the default for certificates.

    Returns:
      A function `Region -> Interval` with lower and upper `[*output]`; it can be jitted and vmapped. Its derivative is
      that at the slopes that were found.

    Raises:
      ValueError: for an unknown `intermediate`, or less than one step.
      UnsupportedPrimitive: naming primitive and source line.

    Soundness:
      `lower <= f(x) <= upper` for every x of the region, in real arithmetic, whatever the optimiser does: any slopes in
      [0, 1] are sound. Never looser than `crown`.

    Examples:
      >>> import jax, jax.numpy as jnp, cure_jax as cj
      >>> f = lambda x: jax.nn.relu(x[0] + x[1]) + jax.nn.relu(x[0] - x[1]) - x[0] + 1.0
      >>> region = cj.linf_ball(jnp.array([0.1, 0.0]), 0.5)
      >>> [round(float(jax.jit(bound(f))(region).lower), 1) for bound in (cj.crown, cj.alpha_crown)]
      [0.6, 1.0]
    """
    check_intermediate(intermediate, "optimized")
    if steps < 1:
        raise ValueError(f"alpha_crown got steps={steps}; expected at least 1. Use crown for none.")

    def bounds(region: Region) -> Interval:
        graph = graphs.trace(f, region.bounding_box().lower, precision=precision)
        start = relaxed(graph, region, "crown" if intermediate == "optimized" else intermediate)
        plain = linear.concretized_output(graph, region, start.relaxations, start.intervals)
        if not has_free_slopes(graph):
            return plain
        intervals, ascent = start.intervals, Ascent(steps, tolerance)
        if intermediate == "optimized":
            intervals = optimized_layers(graph, region, intervals, ascent)
        return plain.intersect(optimized_output(graph, region, intervals, ascent, lower_only=lower_only))

    return bounds


def optimized_layers(
    graph: Graph, region: Region, intervals: Mapping[int, Interval], ascent: Ascent
) -> dict[int, Interval]:
    """Bounds of neurons inside, each by slopes of its own.

    Args:
      graph: the network.
      region: the set of inputs.
      intervals: of every node, CROWN's.
      ascent: how long.

    Returns:
      The intervals of every node, those of operands of nonlinear equations intersected with what was found.
    """
    problem = _Problem(graph, region, dict(intervals), {}, ascent)
    done: set[int] = set()
    for equation in graph.equations:
        if not isinstance(rules.lookup(equation), rules.Nonlinear):
            continue
        for node in equation.bounded:
            if node.index not in done and _free(graph, node):
                problem.intervals[node.index] = _tightened(problem, node)
            done.add(node.index)
    return problem.intervals


def optimized_output(
    graph: Graph,
    region: Region | ActivatedBall,
    intervals: Mapping[int, Interval],
    ascent: Ascent,
    *,
    lower_only: bool,
    kept: Mapping[int, AtVertices] | None = None,
) -> Interval:
    """Bounds of the output by slopes that are free for each of its entries.

    Args:
      graph: the network; its output is a node, and some equation before it has free slopes.
      region: the set of inputs.
      intervals: of the operands of nonlinear equations, by node.
      ascent: how long.
      lower_only: whether the upper bounds are infinite.
      kept: relaxations of which only the lower line is free, by index of the output node.
    """
    target = graph.output
    assert isinstance(target, Node)
    one = jnp.ones(target.shape, target.dtype)
    signs = one[None] if lower_only else jnp.stack([one, -one])
    problem = _Problem(graph, region, dict(intervals), kept or {}, ascent)
    lower, *upper = _least(problem, target, signs, None)
    return Interval(lower, -upper[0] if upper else jnp.full_like(lower, jnp.inf)).without_overflow()


class _Problem(NamedTuple):
    """What slopes are chosen for.

    Attributes:
      intervals: of the operands of nonlinear equations, by node; those of later layers may still be wide.
      kept: relaxations of which only the lower line is free, by index of the output node.
      ascent: how long.
    """

    graph: Graph
    region: Region | ActivatedBall
    intervals: dict[int, Interval]
    kept: Mapping[int, AtVertices]
    ascent: Ascent

    def relaxations(self, target: Node) -> dict[int, rules.Relaxation | FreeLines]:
        """Of the nonlinear equations before a node, by index of the output node."""
        found: dict[int, rules.Relaxation | FreeLines] = {}
        for equation in _relaxed_before(self.graph, target):
            index, operands = equation.output.index, [self.intervals[node.index] for node in equation.bounded]
            kept = self.kept.get(index)
            replaced = None if kept is None else lambda lines, kept=kept: kept.with_lower(lines.lower)
            lines = free_lines(equation, operands, replaced)
            if lines is None:
                relaxation = _rule(equation).relax(equation, operands, None)
                found[index] = relaxation if replaced is None else replaced(relaxation)
            else:
                found[index] = lines
        return found


def _tightened(problem: _Problem, node: Node) -> Interval:
    """Tighter bounds of the entries for which they make a relaxation tighter.

    First the ends nearer to 0: they decide most of the neurons, and the other ends of those are not needed.
    """
    known = problem.intervals[node.index]
    nearer = known.lower + known.upper < 0

    def tightened(interval: Interval, other: jax.Array) -> tuple[Interval, None]:
        above = nearer ^ other
        selected = _undecided(problem.graph, node, problem.intervals | {node.index: interval})
        least = _least(problem, node, jnp.where(above, -1, 1).astype(node.dtype), selected)
        found = Interval(jnp.where(above, -jnp.inf, least), jnp.where(above, -least, jnp.inf))
        return interval.intersect(found.without_overflow()), None

    # A loop, so that both are one program.
    return jax.lax.scan(tightened, known, jnp.array([False, True]))[0]


def _least(problem: _Problem, target: Node, signs: jax.Array, selected: jax.Array | None) -> jax.Array:
    """Lower bounds of `signs * target`, `[..., *target]`; -inf where not selected."""
    relaxations = problem.relaxations(target)

    def bound(objective: Coefficients, alphas: Alphas | None) -> tuple[jax.Array, linear.LinearBound]:
        found = linear.backsubstitute(problem.graph, target, objective, relaxations, alphas=alphas)
        return linear.concretize(found, problem.graph, problem.region, {}), found

    def least(objective: Coefficients) -> tuple[jax.Array, int]:
        value, start = bound(objective, None)
        # While they are optimised: alphas, their gradients, and four times as many numbers of the optimiser.
        widest = max(linear.breadth(start, problem.region), 6 * sum(alpha.size for alpha in start.alphas.values()))
        lowest = jnp.full_like(value, -jnp.inf)
        alphas = _ascended(lambda alphas: bound(objective, alphas)[0], start.alphas, lowest, problem.ascent)
        return bound(objective, alphas)[0], widest

    return linear.least_of_each(problem.graph, target, least, signs, selected)


class _Stage(NamedTuple):
    """Where the ascent of one objective stands: the best alphas so far, and how many steps since it gained much."""

    step: jax.Array
    alphas: Alphas
    adam: optax.OptState
    best: Alphas
    first: jax.Array
    value: jax.Array
    idle: jax.Array


def _ascended(value: Callable[[Alphas], jax.Array], start: Alphas, lowest: jax.Array, ascent: Ascent) -> Alphas:
    """The best alphas that projected gradient ascent meets; they are constants to derivatives. `lowest` is -inf."""

    def ascend(start: Alphas) -> Alphas:
        adam = optax.scale_by_adam()

        def step(at: _Stage) -> _Stage:
            now, gradients = jax.value_and_grad(value)(at.alphas)
            updates, state = adam.update(gradients, at.adam)
            rate = _LEARNING_RATE * _DECAY ** at.step.astype(now.dtype)
            moved = jax.tree.map(lambda alpha, update: jnp.clip(alpha + rate * update, 0, 1), at.alphas, updates)
            better = now > at.value
            best = jax.tree.map(lambda new, old: jnp.where(better, new, old), at.alphas, at.best)
            # At the first step the value is that of the start.
            first = jnp.where(at.step == 0, now, at.first)
            much = (now - at.value > ascent.tolerance * (at.value - first)) | (at.step == 0)
            return _Stage(
                at.step + 1,
                moved,
                state,
                best,
                first,
                jnp.where(better, now, at.value),
                jnp.where(much, 0, at.idle + 1),
            )

        zero = jnp.zeros((), jnp.int32)
        initial = _Stage(zero, start, adam.init(start), start, lowest, lowest, zero)
        # One step more than moves: the last one looks at where they led.
        return jax.lax.while_loop(lambda at: (at.step <= ascent.steps) & (at.idle < _PATIENCE), step, initial).best

    pure, constants = jax.closure_convert(ascend, start)
    return _constant(pure, start, constants)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _constant(pure: Callable[..., Alphas], start: Alphas, constants: list[jax.Array]) -> Alphas:
    return pure(start, *constants)


@_constant.defjvp
def _constant_jvp(pure: Callable[..., Alphas], primals: tuple, tangents: tuple) -> tuple[Alphas, Alphas]:
    del tangents
    found = _constant(pure, *primals)
    return found, jax.tree.map(jnp.zeros_like, found)


def _relaxed_before(graph: Graph, target: Node) -> tuple[Equation, ...]:
    """The nonlinear equations that a node depends on, in order of execution."""
    wanted, found = {target.index}, []
    for equation in reversed(graph.equations):
        if equation.output.index in wanted:
            wanted.update(node.index for node in equation.bounded)
            if isinstance(rules.lookup(equation), rules.Nonlinear):
                found.append(equation)
    return tuple(reversed(found))


def has_free_slopes(graph: Graph) -> bool:
    """Whether there is anything to optimise before the output."""
    return isinstance(graph.output, Node) and bool(_free(graph, graph.output))


def _free(graph: Graph, target: Node) -> tuple[Equation, ...]:
    """Those of them whose relaxations look at alpha."""
    return tuple(equation for equation in _relaxed_before(graph, target) if _rule(equation).start is not None)


def _rule(equation: Equation) -> rules.Nonlinear:
    rule = rules.lookup(equation)
    assert isinstance(rule, rules.Nonlinear)
    return rule


def _undecided(graph: Graph, node: Node, intervals: Mapping[int, Interval]) -> jax.Array:
    """The entries of a node for which tighter bounds would make a relaxation tighter, `[*node]`."""
    selected = jnp.zeros(node.shape, bool)
    for equation in graph.equations:
        rule = rules.lookup(equation)
        if isinstance(rule, rules.Nonlinear):
            operands = [intervals[operand.index] for operand in equation.bounded]
            masks = rule.undecided(equation, operands) if rule.undecided else (True,) * len(operands)
            for operand, mask in zip(equation.bounded, masks, strict=True):
                selected = selected | mask if operand.index == node.index else selected
    return selected
