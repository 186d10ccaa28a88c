"""The table of rules: what each primitive does to sets.

One table serves every algorithm. A rule is found by the name of the primitive AND by which of its operands are
bounded; there is no default that lets an unknown primitive pass.

* An **affine** rule needs no backward code: coefficients are pulled back through the primitive itself with
  `jax.vjp`. It says how magnitudes propagate (`magnitude`), from which interval bounds and exact dual-norm bounds
  follow.
* A **nonlinear** rule gives `interval(equation, *intervals)` and `relax(equation, intervals, alpha)`: for each
  bounded operand a lower and an upper linear map with intercept, sound for every alpha in [0, 1]. One alpha serves
  both lines: an objective has one sign at each neuron, so it meets one line of the two. What it says may hold on a
  `domain` only; `register` sees to it that a rule says nothing elsewhere, whatever it is asked for.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from cure_jax.graph import Equation
from cure_jax.regions import Interval

__all__ = [
    "Affine",
    "Domain",
    "LinearMap",
    "Nonlinear",
    "Relaxation",
    "elementwise_map",
    "lookup",
    "refuse",
    "register",
    "supported",
]


class LinearMap(NamedTuple):
    """An affine function of the bounded operands: sum over operands of `map_i(x_i)`, plus `intercept`.

    Attributes:
      pull: the transposed maps: coefficients on the output -> coefficients on each bounded operand.
      intercept: `[*output]`.
      slopes: of an elementwise map (build it with `elementwise_map`), for each bounded operand `[*output]`:
        `map_i(x_i) = slopes_i * x_i`. None for any other map.
    """

    pull: Callable[[jax.Array], tuple[jax.Array, ...]]
    intercept: jax.Array
    slopes: tuple[jax.Array, ...] | None = None


def elementwise_map(slopes: Sequence[jax.Array], intercept: jax.Array) -> LinearMap:
    """The map `sum over operands of slopes_i * x_i + intercept`, all of them `[*output]`."""
    slopes = tuple(slopes)
    return LinearMap(lambda coefficients: tuple(coefficients * slope for slope in slopes), intercept, slopes)


class Relaxation(NamedTuple):
    """Two affine functions that enclose a nonlinear one on a box: `lower(x) <= f(x) <= upper(x)`."""

    lower: LinearMap
    upper: LinearMap

    @property
    def elementwise(self) -> bool:
        """Whether both are."""
        return self.lower.slopes is not None and self.upper.slopes is not None


class Affine(NamedTuple):
    """A primitive that is affine in its bounded operands together.

    Attributes:
      magnitude: `(equation, q, *radii) -> radius`: with W the matrix of the linear part and r the non-negative radii
        of the operands, the vector of q-norms of the rows of W diag(r); `q = 1` gives interval arithmetic, the dual
        exponent of p the exact image of an l_p ball.
      diagonal: each output depends on at most one input coordinate, each coordinate goes to at most one output: balls
        stay balls.
      offset: the primitive adds something constant (its value at zero is not zero).
    """

    magnitude: Callable[..., jax.Array]
    diagonal: bool = False
    offset: bool = False


class Domain(NamedTuple):
    """Where a rule of an elementwise function holds.

    Attributes:
      contains: `(equation, intervals) -> mask`, `[*output]`: where boxes and parameters lie in the domain.
      inside: a number of the domain, put in the place of ends of boxes that do not.
    """

    contains: Callable[[Equation, Sequence[Interval]], jax.Array]
    inside: float = 1.0


class Nonlinear(NamedTuple):
    """A primitive that is not affine in its bounded operands.

    Attributes:
      interval: `(equation, *intervals) -> Interval`: encloses the image of the box.
      relax: `(equation, intervals, alpha) -> Relaxation` on the box; `alpha` is None (the rule's own choice) or
        `[*output]` with values in [0, 1].
      lipschitz: `(equation) -> L`: |f(x) - f(y)|_2 <= L |x - y|_2, all bounded operands taken together; infinite if
        there is none. An array where it depends on parameters.
      start: `(equation, intervals) -> alpha`, `[*output]`: the alpha with which `relax` gives the rule's own choice,
        from which an optimiser starts. None if `relax` does not look at alpha.
      undecided: `(equation, intervals) -> for each bounded operand a mask of its shape`: where tighter intervals would
        make the relaxation tighter (False: it is exact already). None: everywhere.
      blends: whether the lines at alpha are (1 - alpha) times those at 0 plus alpha times those at 1, and elementwise.
      domain: where the first three hold. None: everywhere. Elsewhere a rule that is registered gives infinite ends,
        constant lines through them, and an infinite Lipschitz constant.
    """

    interval: Callable[..., Interval]
    relax: Callable[[Equation, Sequence[Interval], jax.Array | None], Relaxation]
    lipschitz: Callable[[Equation], float | jax.Array]
    start: Callable[[Equation, Sequence[Interval]], jax.Array] | None = None
    undecided: Callable[[Equation, Sequence[Interval]], tuple[jax.Array, ...]] | None = None
    blends: bool = False
    domain: Domain | None = None


Rule = Affine | Nonlinear
Condition = Callable[[Equation], bool]

_TABLE: dict[str, list[tuple[Condition, Rule]]] = {}
_REASONS: dict[str, list[str]] = {}


def register(
    names: str | Sequence[str],
    rule: Rule,
    *,
    when: Condition = lambda equation: True,
    otherwise: str = "",
) -> None:
    """Adds a rule for the named primitives.

    Args:
      names: of primitives.
      rule: what they do to sets.
      when: which of their equations the rule is valid for.
      otherwise: why the others are refused and what to use instead, for the error that no rule covers them.
    """
    if isinstance(rule, Nonlinear) and rule.domain is not None:
        rule = _confined(rule, rule.domain)
    for name in (names,) if isinstance(names, str) else names:
        _TABLE.setdefault(name, []).append((when, rule))
        if otherwise:
            refuse(name, otherwise)


def _confined(rule: Nonlinear, domain: Domain) -> Nonlinear:
    """The rule, which knows nothing outside of its domain."""

    def within(equation: Equation, intervals: Sequence[Interval]) -> tuple[jax.Array, list[Interval]]:
        known = domain.contains(equation, intervals)
        ends = lambda x: (jnp.where(known, end, domain.inside) for end in (x.lower, x.upper))  # noqa: E731
        return known, [Interval(*ends(x)) for x in intervals]

    def interval(equation: Equation, *intervals: Interval) -> Interval:
        known, inside = within(equation, intervals)
        image = rule.interval(equation, *inside)
        return Interval(jnp.where(known, image.lower, -math.inf), jnp.where(known, image.upper, math.inf))

    def relax(equation: Equation, intervals: Sequence[Interval], alpha: jax.Array | None) -> Relaxation:
        known, inside = within(equation, intervals)

        def confined(line: LinearMap, otherwise: float) -> LinearMap:
            assert line.slopes is not None, f"the rule of {equation.name} has a domain, but is not elementwise"
            slopes = [jnp.where(known, slope, 0) for slope in line.slopes]
            return elementwise_map(slopes, jnp.where(known, line.intercept, otherwise))

        lower, upper = rule.relax(equation, inside, alpha)
        return Relaxation(confined(lower, -math.inf), confined(upper, math.inf))

    def lipschitz(equation: Equation) -> jax.Array:
        everything = [Interval(node.zeros() - math.inf, node.zeros() + math.inf) for node in equation.bounded]
        known = jnp.all(domain.contains(equation, everything))
        return jnp.where(known, rule.lipschitz(equation), math.inf)

    return rule._replace(interval=interval, relax=relax, lipschitz=lipschitz)


def refuse(names: str | Sequence[str], why: str) -> None:
    """Says why the named primitives, or those of their equations that no rule covers, are refused."""
    for name in (names,) if isinstance(names, str) else names:
        _REASONS.setdefault(name, []).append(why)


def lookup(equation: Equation) -> Rule:
    """The rule of an equation.

    Raises:
      UnsupportedPrimitive: naming primitive, reason and source line, if there is none.
    """
    candidates = _TABLE.get(equation.name, [])
    for condition, rule in candidates:
        if condition(equation):
            return rule
    default = ["with these operands depending on the input"] if candidates else []
    raise equation.unsupported("; ".join(_REASONS.get(equation.name, default)))


def supported() -> tuple[str, ...]:
    """The names of all primitives that have a rule, sorted."""
    return tuple(sorted(_TABLE))
