"""Interval bound propagation (IBP), with the exact dual-norm first layer and the last layer elided.

Intervals are pushed forward, one equation at a time. Two things make it tighter than the textbook version:

* **First layer.** As long as the values are a ball {c + r * d : |d|_p <= 1} (pixels, normalisation, reshapes), the
  first map that mixes coordinates is bounded exactly by the dual norm, row by row: W c +- |W diag(r)|_q. For p = inf
  this is interval arithmetic. It is intersected with what the bounding box gives, which knows the pixel box.
* **Last layer.** Everything affine after the last nonlinearity (last dense layer, margins) is one affine map,
  concretised once (`ibp(margins(f, label))` is the "elision of the last layer").

Sources: Gowal et al., "On the Effectiveness of Interval Bound Propagation", arXiv 1810.12715, Eqs. 6-9; dual norms:
Wong & Kolter, ICML 2018, Section 3; Zhang et al., NeurIPS 2018, Eq. 7.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from cure_jax import graph as graphs
from cure_jax import numerics, rules
from cure_jax.bounds.folding import linear
from cure_jax.bounds.folding.margins import least_margins
from cure_jax.bounds.rounding import outward, outward_region
from cure_jax.bounds.rounding.arithmetic import check_arithmetic
from cure_jax.bounds.rounding.primitives import MOVES
from cure_jax.bounds.rounding.reproducible import traced
from cure_jax.bounds.transformation import transformation
from cure_jax.regions import Interval, L0Ball, LpBall, Region

__all__ = ["IN_TRAINING", "Layers", "Refine", "Steps", "ibp", "ibp_margins_in_training", "propagate", "steps_of"]

# The dual exponent is 5. Of greater ones the powers underflow sooner, and what is added for that grows.
_LEAST_ROUND_P = 1.25

# Called at every nonlinear equation with the intervals of its operands; returns the intervals to go on with.
Refine = Callable[[graphs.Equation, Sequence[Interval]], Sequence[Interval]]


@transformation
def ibp(
    f: Callable[[jax.Array], jax.Array],
    *,
    precision: jax.lax.PrecisionLike = jax.lax.Precision.HIGHEST,
    arithmetic: str = "float32",
) -> Callable[[Region], Interval]:
    """Transforms a function of one example into interval bounds over a region.

    Args:
      f: `[*x] -> [*output]`, traceable by JAX, built from `cure_jax.rules.supported()`.
      precision: of matrix products and convolutions; keep the default for certificates.
      arithmetic: "float32", or "outward" to allow for all rounding errors, on CPU, for l_1, l_2 and l_inf balls and
        networks of affine and piecewise-linear functions. (Either computes in the dtype of the region.)

    Returns:
      A function `Region -> Interval` with lower and upper `[*output]`; it can be jitted and vmapped, and differentiated
      unless it rounds outward.

    Raises:
      UnsupportedPrimitive: naming primitive and source line.
      ValueError: for an unknown arithmetic, or where outward rounding is not covered.

    Soundness:
      `lower <= f(x) <= upper` for every x of the region, for f in real arithmetic: up to the rounding of the bounds
      themselves, or, with "outward", as computed (`cure_jax.bounds.rounding.outward` says of which f exactly).

    Examples:
      >>> import jax.numpy as jnp, cure_jax as cj
      >>> bounds = cj.ibp(lambda x: jnp.maximum(x[0] - x[1], 0.0))(cj.linf_ball(jnp.array([1.0, 0.5]), 0.1))
      >>> round(float(bounds.lower), 3), round(float(bounds.upper), 3)
      (0.3, 0.7)
    """
    check_arithmetic(arithmetic, precision)

    def bounds(region: Region) -> Interval:
        graph = traced(f, region, precision, arithmetic)
        steps, intercepts = steps_of(graph, region, arithmetic)
        return linear.concretized_output(graph, region, {}, propagate(graph, region, steps=steps), intercepts)

    return bounds


class Layers(NamedTuple):
    """Interval bounds inside a network.

    Attributes:
      first: of the input of the first map that mixes coordinates (the normalised image).
      pre_activations: of the operand of every elementwise nonlinearity, in order of execution.
    """

    first: Interval
    pre_activations: tuple[Interval, ...]


def ibp_margins_in_training(
    f: Callable[[jax.Array], jax.Array],
    label: jax.Array,
    *,
    precision: jax.lax.PrecisionLike = jax.lax.Precision.HIGHEST,
    shrinking: float = 0.0,
) -> Callable[[Region], tuple[jax.Array, Layers]]:
    """The lower ends of `ibp(margins(f, label))`, and the intervals inside the network; for training.

    Unlike those of `ibp` they have no room for rounding: around a point they have no width, as the warm-up expects.

    Args:
      f: of one example to logits `[classes]`, otherwise as for `ibp`.
      label: the class.
      precision: of matrix products and convolutions.
      shrinking: before every ReLU whose sign is not known, the upper end is multiplied by 1 - shrinking / 2. The result
        is no bound any more: for training only.

    Returns:
      A function from a region to the margins against every class, `[classes]`, 0 for the label, and the layers.

    References:
      Mueller et al., "Certified Training: Small Boxes are All You Need" (SABR), ICLR 2023, Section 4 (ReLU shrinking).
    """

    def bounds(region: Region) -> tuple[jax.Array, Layers]:
        graph = graphs.trace(f, region.bounding_box().lower, precision=precision)
        before: list[Interval] = []

        def refine(equation: graphs.Equation, operands: Sequence[Interval]) -> Sequence[Interval]:
            # What is shrunk is what the ReLU sees, not what is said of the layer before it.
            if equation.output.shape == equation.bounded[0].shape:
                before.append(operands[0])
            return _shrunk(equation, operands, shrinking) if shrinking else operands

        intervals = propagate(graph, region, refine, IN_TRAINING)
        least = least_margins(graph, label, region, intervals)
        return least, Layers(intervals[_first_mixed(graph).index], tuple(before))

    return bounds


def _shrunk(equation: graphs.Equation, operands: Sequence[Interval], shrinking: float) -> Sequence[Interval]:
    if equation.name != "max" or len(operands) > 1:
        return operands
    (x,) = operands
    return [Interval(x.lower, jnp.where((x.lower < 0) & (x.upper > 0), (1 - shrinking / 2) * x.upper, x.upper))]


def _first_mixed(graph: graphs.Graph) -> graphs.Node:
    for equation in graph.equations:
        rule = rules.lookup(equation)
        if not (isinstance(rule, rules.Affine) and rule.diagonal):
            return equation.bounded[0]
    return graph.input


class Steps(NamedTuple):
    """What `propagate` does with each kind of thing, in some arithmetic.

    Attributes:
      box: of a region.
      ball: of a graph and a region, or None. It has `through(equation, rule)`, which gives None where it has no
        image, and `box()`.
      affine: `(equation, rule, operands) -> Interval`.
      nonlinear: `(equation, rule, operands) -> Interval`.
    """

    box: Callable[[Region], Interval]
    ball: Callable[[graphs.Graph, Region], Any]
    affine: Callable[[graphs.Equation, rules.Affine, Sequence[Interval]], Interval]
    nonlinear: Callable[[graphs.Equation, rules.Nonlinear, Sequence[Interval]], Interval]


def propagate(
    graph: graphs.Graph, region: Region, refine: Refine | None = None, steps: Steps | None = None
) -> dict[int, Interval]:
    """Pushes intervals through all equations of a graph.

    Args:
      graph: from `cure_jax.graph.trace`.
      region: the set of inputs.
      refine: may replace the operands' intervals at each nonlinear equation by tighter ones (CROWN does).
      steps: from `steps_of`; None for those without allowance for rounding.

    Returns:
      The interval of every node, by index.

    Soundness:
      Each contains all values that its node takes on the region, if `refine` is sound.
    """
    steps = steps or _PLAIN
    values, ball = {graph.input.index: steps.box(region)}, steps.ball(graph, region)
    balls = {} if ball is None else {graph.input.index: ball}
    for equation in graph.equations:
        rule = rules.lookup(equation)
        operands: Sequence[Interval] = [values[node.index] for node in equation.bounded]
        if isinstance(rule, rules.Nonlinear):
            if refine is not None:
                operands = refine(equation, operands)
                values.update({node.index: interval for node, interval in zip(equation.bounded, operands, strict=True)})
            values[equation.output.index] = steps.nonlinear(equation, rule, operands)
            continue
        interval = steps.affine(equation, rule, operands)
        if len(operands) == 1 and equation.bounded[0].index in balls:
            image = balls[equation.bounded[0].index].through(equation, rule)
            if image is not None and rule.diagonal:
                balls[equation.output.index] = image
            elif image is not None:
                interval = interval.intersect(image.box())
        values[equation.output.index] = interval
    return values


class _Ball(NamedTuple):
    """{center + radius * d : |d|_p <= 1}, before the pixel box cuts it."""

    center: jax.Array
    radius: jax.Array
    p: float

    def through(self, equation: graphs.Equation, rule: rules.Affine) -> "_Ball":
        """The image under a diagonal map; under any other, the tightest box around the image."""
        radius = rule.magnitude(equation, numerics.dual(self.p), self.radius)
        return _Ball(equation.evaluate(self.center), radius, self.p)

    def box(self) -> Interval:
        return Interval.around(self.center, self.radius)


# What an end may lose to center and radius, in units of the last place: half a unit to each of them, and half a unit to
# their sum. Like everywhere in this arithmetic, the rounding of the products that they are summed from is not in it.
_ROUNDING = 2
# Monotone in each operand, and falling in the one at this position: the image of a box has the images of its ends. An
# infinite one, such as the constant of a mask, is lost in centers and radii.
_BY_ENDS = {**dict.fromkeys((*MOVES, "add", "add_any"), None), "sub": 1, "neg": 0}


class _Rows(NamedTuple):
    """A region that has no image of its own kind: the rows of an affine map are bounded by its support."""

    graph: graphs.Graph
    region: Region
    image: Interval | None = None

    def through(self, equation: graphs.Equation, rule: rules.Affine) -> "_Rows":
        """The same while the map does not mix coordinates; then the tightest box around the image."""
        if rule.diagonal:
            return self
        return self._replace(image=linear.bound_node(self.graph, equation.output, self.region, {}, {}))

    def box(self) -> Interval:
        assert self.image is not None, "asked for before coordinates are mixed"
        return self.image


def _input_ball(graph: graphs.Graph, region: Region) -> "_Ball | _Rows | None":
    """A box gains nothing from being a ball: intervals are exact for it."""
    if isinstance(region, L0Ball):
        return _Rows(graph, region)
    if not isinstance(region, LpBall) or region.p == math.inf:
        return None
    # A ball lies in those of greater p; near p = 1 the powers of the dual norm would underflow to a radius of 0.
    p = max(region.p, _LEAST_ROUND_P) if region.p > 1 else region.p
    return _Ball(region.center, region.radius, p)


def _affine_interval(equation: graphs.Equation, rule: rules.Affine, operands: Sequence[Interval]) -> Interval:
    if equation.name in _BY_ENDS:
        lower, upper = _image_of_ends(equation, operands)
        # What overflows, and a mask of -inf, is beyond the largest number.
        largest = jnp.finfo(lower.dtype).max
        return Interval(jnp.minimum(lower, largest), jnp.maximum(upper, -largest)).without_overflow()
    center = equation.evaluate(*(operand.center for operand in operands))
    radius = rule.magnitude(equation, 1.0, *(operand.radius for operand in operands))
    # Of the box [0, r] an end of the image may be small, and center and radius so large that nothing is left of it.
    rounding = _ROUNDING * jnp.finfo(center.dtype).eps * (jnp.abs(center) + radius)
    return Interval.around(center, radius + lax.stop_gradient(rounding))


def _affine_interval_in_training(
    equation: graphs.Equation, rule: rules.Affine, operands: Sequence[Interval]
) -> Interval:
    """Without a thought for rounding and overflow: a loss that is not finite stops a training."""
    if equation.name in _BY_ENDS:
        return Interval(*_image_of_ends(equation, operands))
    center = equation.evaluate(*((x.lower + x.upper) / 2 for x in operands))
    radius = rule.magnitude(equation, 1.0, *((x.upper - x.lower) / 2 for x in operands))
    return Interval(center - radius, center + radius)


def _image_of_ends(equation: graphs.Equation, operands: Sequence[Interval]) -> tuple[jax.Array, jax.Array]:
    falls = (position == _BY_ENDS[equation.name] for position in equation.positions)
    ends = [(x.upper, x.lower) if fall else (x.lower, x.upper) for x, fall in zip(operands, falls, strict=True)]
    lower, upper = (equation.evaluate(*end) for end in zip(*ends, strict=True))
    return lower, upper


def _nonlinear_interval(equation: graphs.Equation, rule: rules.Nonlinear, operands: Sequence[Interval]) -> Interval:
    return rule.interval(equation, *operands)


_PLAIN = Steps(lambda region: region.bounding_box(), _input_ball, _affine_interval, _nonlinear_interval)
# For losses, which are no proofs.
IN_TRAINING = _PLAIN._replace(affine=_affine_interval_in_training)


def steps_of(
    graph: graphs.Graph, region: Region, arithmetic: str
) -> tuple[Steps, dict[int, outward.Intercepts | None] | None]:
    """How `propagate` computes in an arithmetic.

    Args:
      graph: from `cure_jax.graph.trace`.
      region: the set of inputs.
      arithmetic: one of `cure_jax.bounds.rounding.arithmetic.ARITHMETICS`.

    Returns:
      The steps. And, if they round outward, the intercepts of affine equations by the index of their output, which the
      steps fill in as they are taken; those of nonlinear equations are for whoever relaxes them. Else None.

    Raises:
      UnsupportedPrimitive, ValueError: if a primitive or the region has no outward rounding.
    """
    if arithmetic == "float32":
        return _PLAIN, None
    ball = outward_region.check_region(region)
    outward.check_graph(graph)
    uses, intercepts = outward.uses(graph), {}

    def affine(equation: graphs.Equation, rule: rules.Affine, operands: Sequence[Interval]) -> Interval:
        intercepts[equation.output.index] = outward.affine_intercepts(equation, rule, operands, uses(equation))
        return outward.affine_interval(equation, rule, operands)

    steps = Steps(
        lambda region: outward_region.box_of(ball),
        lambda graph, region: outward_region.ball_of(ball),
        affine,
        outward.nonlinear_interval,
    )
    return steps, intercepts
