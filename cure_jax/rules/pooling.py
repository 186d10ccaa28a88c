"""Maxima and minima over windows and axes.

On a box, y = max_i x_i lies above every x_j, so above the x_j with the greatest lower bound; and it lies below the
greatest upper bound, or IS x_j where the lower bound of x_j exceeds the upper bounds of all others.
A minimum is minus the maximum of what is negated.
Source: Singh et al., "An Abstract Domain for Certifying Neural Networks" (DeepPoly), POPL 2019, Section 4.4.
"""

import itertools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from cure_jax.graph import Equation
from cure_jax.regions import Interval
from cure_jax.rules.registry import LinearMap, Nonlinear, Relaxation, register

__all__: list[str] = []

_REDUCTIONS = ("reduce_max", "reduce_min")


def _candidates(equation: Equation, x: jax.Array) -> jax.Array:
    """The values among which each output takes its maximum: `[window, *output]`; padding counts as -inf."""
    params = equation.params
    if equation.name in _REDUCTIONS:
        axes = tuple(params["axes"])
        return jnp.moveaxis(x, axes, range(len(axes))).reshape(-1, *equation.output.shape)
    window, strides, dilation = (params[n] for n in ("window_dimensions", "window_strides", "window_dilation"))
    spacing = [
        (low, high, base - 1) for (low, high), base in zip(params["padding"], params["base_dilation"], strict=True)
    ]
    padded = lax.pad(x, jnp.asarray(-jnp.inf, x.dtype), spacing)
    slices = []
    for offset in itertools.product(*(range(size) for size in window)):
        start = [o * d for o, d in zip(offset, dilation, strict=True)]
        limit = [s + (n - 1) * t + 1 for s, n, t in zip(start, equation.output.shape, strides, strict=True)]
        slices.append(lax.slice(padded, start, limit, strides))
    return jnp.stack(slices)


def _interval(equation: Equation, x: Interval) -> Interval:
    return Interval(equation.evaluate(x.lower), equation.evaluate(x.upper))


def _relax(equation: Equation, intervals: Sequence[Interval], alpha: jax.Array | None) -> Relaxation:
    """Of a maximum."""
    del alpha
    (x,) = intervals
    lowers, uppers = _candidates(equation, x.lower), _candidates(equation, x.upper)
    _, pull = jax.vjp(lambda value: _candidates(equation, value), x.lower)
    chosen, decided = _greatest(equation, lowers, uppers)

    def select(mask: jax.Array):
        return lambda coefficients: pull(chosen * jnp.where(mask, coefficients, 0)[None])

    always = jnp.ones_like(decided)
    return Relaxation(
        LinearMap(select(always), jnp.zeros(equation.output.shape, x.lower.dtype)),
        LinearMap(select(decided), jnp.where(decided, 0, jnp.max(uppers, axis=0))),
    )


def _greatest(equation: Equation, lowers: jax.Array, uppers: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Which candidate has the greatest lower bound, as one-hot `[window, *output]`, and whether it is the maximum.

    Padding is none: where all lower bounds are -inf, an element is chosen all the same.
    """
    (node,) = equation.bounded
    is_element = _candidates(equation, node.zeros()) == 0
    order = jnp.where(is_element, jnp.maximum(lowers, jnp.finfo(lowers.dtype).min), -jnp.inf)
    chosen = jax.nn.one_hot(jnp.argmax(order, axis=0), lowers.shape[0], axis=0, dtype=lowers.dtype)
    others = jnp.max(jnp.where(chosen > 0, -jnp.inf, uppers), axis=0)
    return chosen, jnp.max(lowers, axis=0) >= others


def _undecided(equation: Equation, intervals: Sequence[Interval]) -> tuple[jax.Array, ...]:
    """The elements of windows of which no element is known to be the maximum, but those that are known not to be it."""
    (x,) = intervals
    lowers, uppers = _candidates(equation, x.lower), _candidates(equation, x.upper)
    _, decided = _greatest(equation, lowers, uppers)
    possible = ~decided[None] & (uppers >= jnp.max(lowers, axis=0, keepdims=True))
    _, pull = jax.vjp(lambda value: _candidates(equation, value), x.lower)
    return (pull(possible.astype(x.dtype))[0] > 0,)


def _negated(intervals: Sequence[Interval]) -> tuple[Interval, ...]:
    return tuple(Interval(-x.upper, -x.lower) for x in intervals)


def _relax_minimum(equation: Equation, intervals: Sequence[Interval], alpha: jax.Array | None) -> Relaxation:
    """Each line of -max(-x) has the slopes of the other line of the maximum."""
    lower, upper = _relax(equation, _negated(intervals), alpha)
    return Relaxation(upper._replace(intercept=-upper.intercept), lower._replace(intercept=-lower.intercept))


def _undecided_minimum(equation: Equation, intervals: Sequence[Interval]) -> tuple[jax.Array, ...]:
    return _undecided(equation, _negated(intervals))


def _lipschitz(equation: Equation) -> float:
    """The root of the number of windows that an element can be in."""
    if equation.name in _REDUCTIONS:
        return 1.0
    names = ("window_dimensions", "window_strides", "window_dilation")
    windows = zip(*(equation.params[name] for name in names), strict=True)
    return math.sqrt(math.prod(-(-((size - 1) * dilation + 1) // stride) for size, stride, dilation in windows))


def _no_window_is_empty(equation: Equation) -> bool:
    """Every window holds an element; one that lies in the padding has the maximum -inf, and no line below that."""
    names = ("window_dimensions", "window_strides", "window_dilation", "base_dilation", "padding")
    shapes = (equation.bounded[0].shape, equation.output.shape)
    axes = zip(*shapes, *(equation.params[name] for name in names), strict=True)
    for size, windows, window, stride, dilation, base, (low, _) in axes:
        place = np.arange(windows)[:, None] * stride + np.arange(window)[None, :] * dilation - low
        element = (place >= 0) & (place <= (size - 1) * base) & (place % base == 0)
        if not element.any(axis=1).all():
            return False
    return True


_MAXIMUM = Nonlinear(_interval, _relax, _lipschitz, undecided=_undecided)
_MINIMUM = Nonlinear(_interval, _relax_minimum, _lipschitz, undecided=_undecided_minimum)
_EMPTY = "a window holds no element"

register("reduce_max", _MAXIMUM)
register("reduce_min", _MINIMUM)
register("reduce_window_max", _MAXIMUM, when=_no_window_is_empty, otherwise=_EMPTY)
register("reduce_window_min", _MINIMUM, when=_no_window_is_empty, otherwise=_EMPTY)
