"""Relaxations with a parameter that every objective chooses for itself."""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from cure_jax import rules
from cure_jax.bounds.folding.coefficients import Coefficients, Lines, Window
from cure_jax.graph import Equation
from cure_jax.regions import Interval

__all__ = ["FreeLines", "blended", "free_lines"]


@dataclasses.dataclass(frozen=True)
class FreeLines:
    """The relaxations of one equation on a box, one for each alpha in [0, 1].

    An objective that sees a window of the equation has alphas for that window alone, if the lines are blends of two.

    Attributes:
      start: `[*output]`, the rule's own choice of alpha.
      at: alpha `[*output]` -> the relaxation.
      ends: the relaxations at 0 and at 1, of lines that are blends of them; else None.
    """

    start: jax.Array
    at: Callable[[jax.Array], rules.Relaxation]
    ends: tuple[rules.Relaxation, rules.Relaxation] | None

    def start_for(self, coefficients: Coefficients) -> jax.Array:
        """Alphas to start from, of the shape that these coefficients need."""
        if isinstance(coefficients, Window) and self.ends is not None:
            return coefficients.cut(self.start)
        return self.start


def blended(
    zero: tuple[Lines, Lines], one: tuple[Lines, Lines], window: Window, alpha: jax.Array
) -> tuple[Lines, Lines]:
    """The lower and the upper lines in a window, between those at alpha 0 and at 1.

    Args:
      zero: lower and upper lines at 0, of the whole output.
      one: those at 1.
      window: of which `[*sizes]` are the alphas.
      alpha: `[*sizes]`.
    """

    def blend(first: Lines, last: Lines) -> Lines:
        pairs = zip((*first[0], first[1]), (*last[0], last[1]), strict=True)
        *slopes, intercept = (_between(window.cut(start), window.cut(end), alpha) for start, end in pairs)
        return slopes, intercept

    return blend(zero[0], one[0]), blend(zero[1], one[1])


def _between(zero: jax.Array, one: jax.Array, alpha: jax.Array) -> jax.Array:
    # Exactly the first where both are the same: what is decided, or infinite, with the derivative 0.
    same = zero == one
    first, last = (jnp.where(same, 0, end) for end in (zero, one))
    return jnp.where(same, zero, (1 - alpha) * first + alpha * last)


def free_lines(
    equation: Equation,
    operands: Sequence[Interval],
    replaced: Callable[[rules.Relaxation], rules.Relaxation] | None = None,
) -> FreeLines | None:
    """The relaxations of a nonlinear equation; None if it has no parameter.

    Args:
      equation: with a nonlinear rule.
      operands: the box.
      replaced: what is made of each relaxation, if anything.
    """
    rule = rules.lookup(equation)
    assert isinstance(rule, rules.Nonlinear)
    if rule.start is None:
        return None

    def at(alpha: jax.Array) -> rules.Relaxation:
        relaxation = rule.relax(equation, operands, alpha)
        return relaxation if replaced is None else replaced(relaxation)

    start = rule.start(equation, operands)
    ends = None
    if rule.blends and replaced is None:
        ends = at(jnp.zeros_like(start)), at(jnp.ones_like(start))
    return FreeLines(start, at, ends)
