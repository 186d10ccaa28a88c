"""alpha-CROWN: linear bounds whose free slopes are optimised.

Every relaxation has a free parameter alpha in [0, 1] (for ReLU the slope of the lower line), and any value is sound;
CROWN takes the one of least area. Here gradient ascent chooses: alpha is free for each objective, i.e. for every margin
and for the lower and the upper bound of every neuron inside, whose bounds the relaxations of later layers depend on.
All of them are optimised together for the sum of the final bounds; then the slopes of the output once more, on the best
bounds that each neuron had. Where that would take too much memory, the neurons of a layer share their slopes, and only
those whose relaxation can become tighter are bounded anew.

Each step gives valid bounds, so the best of all steps is kept for every entry, outside of the objective. Neither the
bounds of the forward pass nor CROWN's are intersected inside of it: where they win, the gradient would be cut.

Source: Xu et al., "Fast and Complete: Enabling Complete Verification with Rapid and Massively Parallel Incomplete
Verifiers", ICLR 2021, Lemma 2.1 and Section 3.2.
"""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from cure_jax import graph as graphs
from cure_jax import rules
from cure_jax.bounds.crown import Intermediate, check_intermediate, relaxed
from cure_jax.bounds.folding import linear
from cure_jax.bounds.folding.vertices import ActivatedBall, AtVertices
from cure_jax.graph import Equation, Graph, Node
from cure_jax.regions import Interval, Region

__all__ = ["alpha_crown", "has_free_slopes", "optimized_layers", "optimized_output"]

_log = logging.getLogger(__name__)

# Free slopes of neurons inside the network, for one example; each takes about six numbers of memory while it is
# optimised. The neurons of the layers that do not fit in share them.
_MAX_INNER_SLOPES = 2**22
_LEARNING_RATE, _DECAY = 0.2, 0.98

# By objective node and relaxed equation (indices of nodes): [lower and upper, neurons, *output], values in [0, 1]; one
# neuron in the place of all where they share theirs.
Slopes = dict[int, dict[int, jax.Array]]
# By objective node: [lower and upper, neurons].
Values = dict[int, jax.Array]


def alpha_crown(
    f: Callable[[jax.Array], jax.Array],
    steps: int = 40,
    intermediate: Intermediate = "optimized",
    *,
    share: bool = True,
    lower_only: bool = False,
    precision: jax.lax.PrecisionLike = jax.lax.Precision.HIGHEST,
) -> Callable[[Region], Interval]:
    """Transforms a function of one example into linear bounds with optimised slopes.

    Args:
      f: `[*x] -> [*output]`, traceable by JAX, built from `cure_jax.rules.supported()`.
      steps: of Adam, with a learning rate of 0.2 that decays by 0.98 a step.
      intermediate: "optimized" (bounds of neurons inside the network are optimised too), "crown" or "ibp" (they are
        those of CROWN or of interval arithmetic, and only the slopes of each output are free), or bounds from
        `intermediate_bounds`.
      share: what becomes of "optimized" where neurons inside would have more than 4 million slopes for one example.
        True: the neurons of a layer beyond that share one set of slopes for their lower and one for their upper bounds.
        False: all intermediate bounds are CROWN's, in a small part of the time (on a network for MNIST with 4804 ReLUs
        0.1 instead of 2 seconds an image; the mean margin in l_2 0.75 was 0.1 instead of 3.0). The log says which.
      lower_only: whether only lower bounds are optimised, in half of the time; the upper ones are then CROWN's.
      precision: of matrix products and convolutions; keep the default for certificates.

    Returns:
      A function `Region -> Interval` with lower and upper `[*output]`; it can be jitted and vmapped.

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
        if not isinstance(graph.output, Node) or not has_free_slopes(graph):
            return plain
        sides = 1 if lower_only else 2
        intervals = start.intervals
        if intermediate == "optimized":
            intervals, found = optimized_layers(graph, region, intervals, steps, sides=sides, share=share)
            plain = plain if found is None else plain.intersect(found)
        return plain.intersect(optimized_output(graph, region, intervals, steps, lower_only=lower_only))

    return bounds


def optimized_layers(
    graph: Graph, region: Region, intervals: Mapping[int, Interval], steps: int, *, sides: int, share: bool
) -> tuple[dict[int, Interval], Interval | None]:
    """Bounds of neurons inside by slopes of their own, optimised for the sum of the bounds of the output.

    Args:
      graph: the network; its output is a node.
      region: the set of inputs.
      intervals: of every node, CROWN's.
      steps: of Adam.
      sides: of the output: 1, its lower bounds count, or 2, upper ones too.
      share: as for `alpha_crown`.

    Returns:
      The intervals, intersected with what was found; and bounds of the output, if anything was optimised.
    """
    assert isinstance(graph.output, Node)
    inner, intervals = _inner_objectives(graph), dict(intervals)
    over = _over_budget(graph, inner, share)
    if not inner or (over and not share):
        return intervals, None
    shared = {node.index: _undecided(graph, node, intervals) for node in over}
    best = _optimize(_Problem(graph, region, intervals, (*inner, graph.output), sides, shared), steps)
    for node in inner:
        intervals[node.index] = intervals[node.index].intersect(_interval(best[node.index], node))
    return intervals, _interval(best[graph.output.index], graph.output)


def optimized_output(
    graph: Graph,
    region: Region | ActivatedBall,
    intervals: Mapping[int, Interval],
    steps: int,
    *,
    lower_only: bool,
    kept: Mapping[int, AtVertices] | None = None,
) -> Interval:
    """Bounds of the output by slopes that are free for each of its entries.

    Args:
      graph: the network; its output is a node, and some equation before it has free slopes.
      region: the set of inputs.
      intervals: of the operands of nonlinear equations, by node.
      steps: of Adam.
      lower_only: whether the upper bounds are infinite.
      kept: relaxations of which only the lower line is free, by index of the output node.
    """
    assert isinstance(graph.output, Node)
    problem = _Problem(graph, region, intervals, (graph.output,), 1 if lower_only else 2, {}, kept or {})
    return _interval(_optimize(problem, steps)[graph.output.index], graph.output)


class _Problem(NamedTuple):
    """What does not change while slopes do.

    Attributes:
      intervals: of the operands of nonlinear equations, by node; those of objectives are replaced by what slopes give.
      objectives: nodes whose bounds have slopes of their own, in order of execution; the output last.
      sides: of the output that are wanted: 1, lower bounds, or 2, upper ones too.
      shared: of the objectives whose entries share their slopes, by node, `[*node]`: which entries are bounded at all.
      kept: relaxations of which only the lower line is free, by index of the output node.
    """

    graph: Graph
    region: Region | ActivatedBall
    intervals: Mapping[int, Interval]
    objectives: tuple[Node, ...]
    sides: int
    shared: Mapping[int, jax.Array]
    kept: Mapping[int, AtVertices] = {}

    def rows(self, objective: Node) -> tuple[int, int]:
        """How many objectives a node is: its sides times its entries."""
        return (self.sides if objective is self.objectives[-1] else 2, math.prod(objective.shape))


def _interval(values: jax.Array, node: Node) -> Interval:
    """From lower bounds of the entries and, if there are any, of minus the entries."""
    upper = -values[1] if len(values) == 2 else jnp.full_like(values[0], jnp.inf)
    return Interval(values[0].reshape(node.shape), upper.reshape(node.shape))


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


def _inner_objectives(graph: Graph) -> tuple[Node, ...]:
    """The operands of nonlinear equations that have free slopes before them, in order of execution."""
    nodes: dict[int, Node] = {}
    for equation in graph.equations:
        if isinstance(rules.lookup(equation), rules.Nonlinear):
            nodes.update({node.index: node for node in equation.bounded if _free(graph, node)})
    return tuple(nodes.values())


def _over_budget(graph: Graph, nodes: Sequence[Node], share: bool) -> list[Node]:
    """Those of the nodes whose entries cannot all have slopes of their own: the ones with the most slopes."""
    count = {
        node.index: 2 * math.prod(node.shape) * sum(math.prod(e.output.shape) for e in _free(graph, node))
        for node in nodes
    }
    over, total = [], 0
    for node in sorted(nodes, key=lambda node: count[node.index]):
        total += count[node.index]
        if total > _MAX_INNER_SLOPES:
            over.append(node)
    if over:
        done = f"those of {len(over)} layers share theirs" if share else "inner bounds are CROWN's"
        _log.info("alpha_crown: %d slopes of inner neurons are more than %d; %s", total, _MAX_INNER_SLOPES, done)
    return over


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


def _start(problem: _Problem) -> Slopes:
    """The slopes of CROWN, for every objective."""
    slopes: Slopes = {}
    for objective in problem.objectives:
        slopes[objective.index] = {}
        for equation in _free(problem.graph, objective):
            choose = _rule(equation).start
            assert choose is not None
            alpha = choose(equation, [problem.intervals[node.index] for node in equation.bounded])
            sides, size = problem.rows(objective)
            shape = (sides, 1 if objective.index in problem.shared else size, *alpha.shape)
            slopes[objective.index][equation.output.index] = jnp.broadcast_to(alpha, shape)
    return slopes


def _evaluate(problem: _Problem, slopes: Slopes) -> Values:
    """Lower bounds of `sign * entry` of every objective."""
    intervals, values = dict(problem.intervals), {}
    for node in problem.objectives:
        least = _least_shared if node.index in problem.shared else _least
        values[node.index] = least(problem, node, slopes[node.index], intervals)
        intervals[node.index] = _interval(values[node.index], node)
    return values


def _least(
    problem: _Problem, target: Node, slopes: dict[int, jax.Array], intervals: Mapping[int, Interval]
) -> jax.Array:
    """Lower bounds of `sign * entry` of a node, `[sides, entries]`, each with slopes of its own."""
    equations = _relaxed_before(problem.graph, target)
    # Without free slopes one relaxation serves all objectives.
    common = _relax(problem, [e for e in equations if e.output.index not in slopes], intervals, {})
    free = [e for e in equations if e.output.index in slopes]
    sides, size = problem.rows(target)

    @jax.checkpoint
    def least(sign: jax.Array, index: jax.Array, alphas: dict[int, jax.Array]) -> jax.Array:
        row = sign * jax.nn.one_hot(index, size, dtype=target.dtype).reshape(target.shape)
        bound = linear.backsubstitute(problem.graph, target, row, common | _relax(problem, free, intervals, alphas))
        return linear.concretize(bound, problem.graph, problem.region, {})

    rows = jax.vmap(least, in_axes=(None, 0, 0))
    signs = jnp.array([1.0, -1.0], target.dtype)[:sides]
    return jax.vmap(rows, in_axes=(0, None, 0))(signs, jnp.arange(size), slopes)


def _least_shared(
    problem: _Problem, target: Node, slopes: dict[int, jax.Array], intervals: Mapping[int, Interval]
) -> jax.Array:
    """The same with common slopes, `[sides, 1, *output]`; entries that are not bounded anew keep what is known."""
    equations, selected = _relaxed_before(problem.graph, target), problem.shared[target.index]
    known, least = problem.intervals[target.index], []
    for side, start in enumerate((known.lower, -known.upper)):
        alphas = {index: alphas[side, 0] for index, alphas in slopes.items()}
        relaxations = _relax(problem, equations, intervals, alphas)
        above = jnp.full(target.shape, side == 1)
        found = linear.bound_sides(problem.graph, target, problem.region, relaxations, {}, above, selected)
        least.append(jnp.where(selected, -found.upper if side else found.lower, start).ravel())
    return jnp.stack(least)


def _relax(
    problem: _Problem,
    equations: Sequence[Equation],
    intervals: Mapping[int, Interval],
    alphas: Mapping[int, jax.Array],
) -> dict[int, rules.Relaxation]:
    """Relaxations by index of the output node, at given slopes or at those of CROWN."""
    relaxations = {}
    for equation in equations:
        index, operands = equation.output.index, [intervals[node.index] for node in equation.bounded]
        relaxation = _rule(equation).relax(equation, operands, alphas.get(index))
        if index in problem.kept:
            relaxation = problem.kept[index].with_lower(relaxation.lower)
        relaxations[index] = relaxation
    return relaxations


def _optimize(problem: _Problem, steps: int) -> Values:
    """The best value of every entry that projected gradient ascent on the sum of the output's meets."""
    adam, output = optax.scale_by_adam(), problem.objectives[-1].index

    def total(slopes: Slopes) -> tuple[jax.Array, Values]:
        values = _evaluate(problem, slopes)
        return jnp.sum(values[output]), values

    def step(carry: tuple, index: jax.Array) -> tuple[tuple, None]:
        slopes, state, best = carry
        gradients, values = jax.grad(total, has_aux=True)(slopes)
        updates, state = adam.update(gradients, state)
        rate = _LEARNING_RATE * _DECAY ** index.astype(best[output].dtype)
        slopes = jax.tree.map(lambda alpha, update: jnp.clip(alpha + rate * update, 0, 1), slopes, updates)
        return (slopes, state, _better(best, values)), None

    slopes = _start(problem)
    worst = jax.tree.map(lambda leaf: jnp.full(leaf.shape, -jnp.inf, leaf.dtype), jax.eval_shape(total, slopes)[1])
    (slopes, _, best), _ = jax.lax.scan(step, (slopes, adam.init(slopes), worst), jnp.arange(steps))
    return _better(best, _evaluate(problem, slopes))


def _better(best: Values, values: Values) -> Values:
    """The greater of each; what is not a number is no bound."""
    return jax.tree.map(lambda old, new: jnp.where(new > old, new, old), best, values)
