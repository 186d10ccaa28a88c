"""What `arithmetic="outward"` does with each equation: bounds whose rounding errors are bounded too.

Nothing is computed twice. An equation evaluated in floating point is treated as one whose constant is only known to lie
in an interval:

* **Forward**, y = L x + b on a box around c: the radius becomes |L| (r + gamma |c|) + gamma |b|, one product as before.
* **Backward**, coefficients A on y count as exact numbers, whatever error they have. Pulling them through L errs by at
  most gamma |L|^T |A|, which moves the bound by at most <|A|, gamma |L| |x|>, |x| <= max(|lower|, |upper|): as if the
  constant of the equation were anywhere in b -/+ gamma |L| |x|. The lines of a nonlinear equation are moved apart in
  the same way, by their rounding and by what they violate at the vertices of the pieces on which the function is
  linear.

So the fold needs one inner product with `Intercepts` for each equation. Coefficients of several consumers of a node are
added in floating point; each addition errs by at most u times what the consumers contribute, which enters their gamma.

What is certified: the network in real arithmetic, on the region as an exact set. Its constants are those that JAX
computes operation by operation outside of `jax.jit`; each may be off by four units in the last place (`reproducible`
says how, and what is refused).

Source: Higham, "Accuracy and Stability of Numerical Algorithms", 2nd ed., SIAM 2002, Sections 3.1 and 3.5.
"""

import functools
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from cure_jax import rules
from cure_jax.bounds.folding.coefficients import Coefficients, Window
from cure_jax.bounds.rounding.arithmetic import allowance, around, gamma, kept, steps_of_total, total, unit, widened
from cure_jax.bounds.rounding.primitives import MOVES, SELECTIONS, TERMS, VERTICES
from cure_jax.graph import Equation, Graph, UnsupportedPrimitive
from cure_jax.regions import Interval

__all__ = [
    "LARGEST",
    "Intercepts",
    "affine_intercepts",
    "affine_interval",
    "check_graph",
    "constant_of",
    "error_of",
    "image",
    "inner",
    "intercepts",
    "nonlinear_interval",
    "of_interval",
    "relaxed_intercepts",
    "uses",
]

# Nothing is claimed beyond: reciprocals and products of such numbers may underflow or overflow.
LARGEST = 2.0**100
# In units: for the few roundings of a formula, and for constants that are off.
_FEW = 8


class Intercepts(NamedTuple):
    """The constant of an equation is anything between these, as far as the fold is concerned.

    Attributes:
      lower: `[*output]`.
      upper: `[*output]`.
      underflow: scalar, what the bound loses whatever the coefficients are.
    """

    lower: jax.Array
    upper: jax.Array
    underflow: jax.Array


def check_graph(graph: Graph) -> None:
    """Refuses a network whose rounding errors are not bounded here.

    Raises:
      UnsupportedPrimitive: naming primitive and source line.
    """
    for equation in graph.equations:
        affine = isinstance(rules.lookup(equation), rules.Affine)
        # Constants that are added to each other have roundings of their own.
        adds = equation.name in ("scatter-add", "scatter-sub") and 2 not in equation.positions
        if adds or equation.name not in (TERMS if affine else (*VERTICES, *SELECTIONS)):
            raise UnsupportedPrimitive(
                f"The rounding of primitive `{equation.name}` at {equation.source} is not bounded: arithmetic="
                f"'outward' covers {', '.join(sorted((*TERMS, *VERTICES, *SELECTIONS)))}, products only with "
                "constants. Rewrite this line with those, or use arithmetic='float32'."
            )


def uses(graph: Graph) -> Callable[[Equation], int]:
    """How many times any operand of an equation is used in the graph, at most: coefficients of so many are added."""
    counts = Counter(node.index for equation in graph.equations for node in equation.bounded)
    return lambda equation: max(counts[node.index] for node in equation.bounded)


def _dtype(equation: Equation) -> Any:
    """The coarsest format that an equation has to do with."""
    return max((equation.output, *equation.bounded), key=lambda node: unit(node.dtype)).dtype


def _largest(*arrays: jax.Array) -> jax.Array:
    return functools.reduce(jnp.maximum, [jnp.max(array, initial=0) for array in arrays])


def _claimed(x: jax.Array) -> jax.Array:
    return jnp.where(x < LARGEST, x, jnp.inf)


def _magnitude(x: Interval) -> jax.Array:
    """The greatest |x| in a box; infinite where nothing is claimed."""
    return _claimed(jnp.maximum(jnp.abs(x.lower), jnp.abs(x.upper)))


def constant_of(equation: Equation) -> jax.Array:
    """The value of an affine equation at zero, which copies constants or changes their sign."""
    return equation.evaluate(*(node.zeros() for node in equation.bounded))


def error_of(equation: Equation) -> float:
    """|fl(L x + b) - L x - b| relative to |L| |x| + |b|."""
    return gamma(TERMS[equation.name](equation).forward, _dtype(equation))


def _spread(equation: Equation, rule: rules.Affine, radii: Sequence[jax.Array]) -> jax.Array:
    if len(radii) > 1 and equation.name in ("add", "add_any", "sub"):
        return functools.reduce(jnp.add, radii)
    return rule.magnitude(equation, 1.0, *radii)


def image(equation: Equation, rule: rules.Affine, *radii: jax.Array) -> jax.Array:
    """|L| r in real arithmetic or more, for r >= 0."""
    count, least = TERMS[equation.name](equation).forward, allowance(_dtype(equation))
    # Radii below the least normal number would count as 0; weights do, which the last term makes up for.
    moved = _spread(equation, rule, [_claimed(radius) + least for radius in radii])
    return kept(moved * (1 + 2 * error_of(equation))) + kept(8 * count * least * (1 + _largest(*radii)))


def affine_interval(equation: Equation, rule: rules.Affine, operands: Sequence[Interval]) -> Interval:
    """All values of an affine equation on a box.

    Soundness:
      Around the computed centers c, whatever their error, x = c + d with |d| at most the computed radius.
    """
    if equation.name in MOVES:
        lower, upper = (equation.evaluate(*ends) for ends in zip(*((x.lower, x.upper) for x in operands), strict=True))
        return Interval(lower, upper)
    error, more = error_of(equation), 1 + 8 * unit(_dtype(equation))
    centers = [x.center for x in operands]
    radii = [
        kept(more * jnp.maximum(x.upper - center, center - x.lower)) + kept(error * jnp.abs(center))
        for x, center in zip(operands, centers, strict=True)
    ]
    radius = image(equation, rule, *radii)
    if rule.offset:
        radius = radius + kept(error * jnp.abs(constant_of(equation)))
    return around(equation.evaluate(*centers), radius)


def nonlinear_interval(equation: Equation, rule: rules.Nonlinear, operands: Sequence[Interval]) -> Interval:
    """All values of a nonlinear equation on a box: they select ends or constants, and these may be off."""
    found, few = rule.interval(equation, *operands), _FEW * unit(_dtype(equation))
    if equation.name == "leaky_relu":
        return widened(found.lower, found.upper, kept(few * _magnitude(found)))
    if equation.name in VERTICES:
        for constant in equation.constants:
            # Not `kept`: 0 stays 0.
            room = 2 * few * _finite(constant, found.shape)
            found = Interval(found.lower - room, found.upper + room)
    return found


def _finite(constant: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """The magnitude of a constant, 0 for the infinite ones that are never selected."""
    return jnp.broadcast_to(jnp.where(jnp.isfinite(constant), jnp.abs(constant), 0), shape)


def intercepts(lower: jax.Array, upper: jax.Array, by: jax.Array | float, underflow: jax.Array | float) -> Intercepts:
    """[lower - by, upper + by], and the rounding of its inner product with any coefficients (`inner`).

    Args:
      lower: `[*output]`.
      upper: `[*output]`.
      by: `[*output]`, at least 0.
      underflow: what underflows, in units of `allowance`.
    """
    dtype, largest = lower.dtype, jnp.maximum(jnp.abs(lower), jnp.abs(upper))
    ends = widened(lower, upper, by + kept(gamma(1 + steps_of_total(lower.size), dtype) * (largest + by)))
    return Intercepts(ends.lower, ends.upper, 8 * allowance(dtype) * (underflow + jnp.sum(largest + by) + lower.size))


def of_interval(x: Interval) -> Intercepts:
    """Of a node that is known by its interval."""
    return intercepts(x.lower, x.upper, 0.0, 0.0)


def inner(coefficients: Coefficients, constant: Intercepts) -> jax.Array:
    """The least inner product with a constant between its ends, but for underflow."""
    if isinstance(coefficients, Window):
        value, lower, upper = coefficients.value, *map(coefficients.cut, constant[:2])
    else:
        value, lower, upper = coefficients, constant.lower, constant.upper
    positive = jnp.maximum(value, 0)
    return total(positive * lower + (value - positive) * upper)


def _rounded(count: int, uses: int, dtype: Any) -> float:
    """The relative error of coefficients that are pulled back, and added to those of other uses of an operand.

    Coefficients that are only copied are exact: of several computations of the same ones, that which is copied counts.
    """
    return gamma(count + uses - 1, dtype) if count + uses > 1 else 0.0


def affine_intercepts(
    equation: Equation, rule: rules.Affine, operands: Sequence[Interval], uses: int
) -> Intercepts | None:
    """Of an affine equation on a box.

    Args:
      equation: the equation.
      rule: its rule.
      operands: a box that holds all values that the bounded operands have on the region.
      uses: how many times any of them is used in the graph, at most.

    Returns:
      The intercepts, or None for an equation that copies coefficients and has no constant.
    """
    terms, dtype = TERMS[equation.name](equation), _dtype(equation)
    error, has_constant = _rounded(terms.backward, uses, dtype), rule.offset and len(equation.constants) > 0
    if error == 0 and not has_constant:
        return None
    sizes = [_magnitude(x) for x in operands]
    moved, largest = image(equation, rule, *sizes), _largest(*sizes)
    # Weights below the least normal number count as 0.
    by = kept(error * moved) + kept(8 * terms.forward * allowance(dtype) * (1 + largest))
    underflow = (terms.backward + uses) * sum(size.size for size in sizes) * largest + jnp.sum(moved)
    constant = constant_of(equation) if has_constant else equation.output.zeros()
    return intercepts(constant, constant, by, underflow)


def relaxed_intercepts(
    equation: Equation, operands: Sequence[Interval], relaxation: rules.Relaxation, uses: int
) -> Intercepts:
    """Of the lines of a nonlinear equation, moved apart by what rounding did to them and will do to coefficients."""
    dtype, (lower, upper) = _dtype(equation), relaxation
    sizes = [_magnitude(x) for x in operands]
    largest = _largest(*sizes)
    underflow = uses * sum(size.size for size in sizes) * largest
    if equation.name in SELECTIONS:
        count = SELECTIONS[equation.name](equation).backward
        # Of a maximum or a minimum over entries of either sign.
        selected = jnp.maximum(equation.evaluate(sizes[0]), -equation.evaluate(-sizes[0]))
        by = kept(_rounded(count, uses, dtype) * selected) + kept(allowance(dtype) * (1 + largest))
        return intercepts(lower.intercept, upper.intercept, by, (count + 1) * underflow)
    points = VERTICES[equation.name](equation, operands)
    values = [equation.evaluate(*point) for point in points]
    height = functools.reduce(jnp.maximum, map(jnp.abs, values))
    for constant in equation.constants:
        height = height + _finite(constant, height.shape)

    def room(line: rules.LinearMap, sign: int) -> jax.Array:
        assert line.slopes is not None
        pulled = sum(jnp.abs(slope) * size for slope, size in zip(line.slopes, sizes, strict=True))
        above = [
            sign * (sum(s * x for s, x in zip(line.slopes, point, strict=True)) + line.intercept - value)
            for point, value in zip(points, values, strict=True)
        ]
        violated = jnp.maximum(functools.reduce(jnp.maximum, above), 0)
        few = _FEW * (2 * height + jnp.abs(line.intercept)) + (_FEW + uses) * pulled
        return violated + kept(unit(dtype) * few) + kept(allowance(dtype) * (1 + largest))

    below = around(lower.intercept, room(lower, 1)).lower
    above = around(upper.intercept, room(upper, -1)).upper
    return intercepts(below, above, 0.0, 2 * underflow)
