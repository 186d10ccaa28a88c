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
    excess = np.maximum(lower[None] - values, values - upper[None])
    place = np.unravel_index(np.argmax(np.nan_to_num(excess, nan=-np.inf)), excess.shape)
    allowed = tolerance * max(1.0, float(np.nanmax(np.abs(values), initial=0.0)))
    if not np.nan_to_num(excess, nan=-np.inf)[place] > allowed:
        return
    index = tuple(int(i) for i in place[1:])
    below = values[place] < lower[index]
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
