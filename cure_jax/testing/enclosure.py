"""What the assertions share: the point that leaves an interval furthest, and how it is told."""

from collections.abc import Callable

import numpy as np
from jax.typing import ArrayLike

from cure_jax.regions import Interval

__all__ = ["assert_enclosed", "require", "short"]


def assert_enclosed(
    values: np.ndarray, interval: Interval, tolerance: float, where: Callable[[int], str], name: str = "output"
) -> None:
    """Raises for the value, `[points, *output]`, that leaves its interval furthest."""
    lower, upper = np.asarray(interval.lower), np.asarray(interval.upper)
    require(lower.shape == values.shape[1:], f"The bounds have shape {lower.shape}; expected {values.shape[1:]}.")
    require(not np.any(np.isnan(lower) | np.isnan(upper)), "A bound is not a number.")
    with np.errstate(invalid="ignore"):
        excess = np.maximum(lower[None] - values, values - upper[None])
    # Infinity less itself: a value that is infinite as its bound is. A value that is no number is within no bounds but
    # infinite ones.
    excess = np.where(np.isnan(excess), -np.inf, excess)
    unbounded = np.isneginf(lower) & np.isposinf(upper)
    excess = np.where(np.isnan(values) & ~unbounded[None], np.inf, excess)
    place = np.unravel_index(np.argmax(excess), excess.shape)
    allowed = tolerance * float(np.max(np.abs(values), where=np.isfinite(values), initial=1.0))
    if not excess[place] > allowed:
        return
    index = tuple(int(i) for i in place[1:])
    below = not values[place] > upper[index]
    side, limit = ("below its lower", lower[index]) if below else ("above its upper", upper[index])
    raise AssertionError(
        f"{name} {index} is {values[place]:.6g}, {side} bound {limit:.6g} by {excess[place]:.3g} "
        f"(allowed: {allowed:.3g}), {where(int(place[0]))}."
    )


def require(holds: bool, message: str) -> None:
    """Raises an assertion error, also where Python leaves out `assert`."""
    if not holds:
        raise AssertionError(message)


def short(x: ArrayLike) -> str:
    """An array in one line, without its middle if it is long."""
    return np.array2string(np.asarray(x), precision=4, threshold=12, separator=", ").replace("\n", "")
