"""The methods that prove, by name, and which of them `best` uses on which regions."""

import functools
import math
from collections.abc import Callable, Mapping

import jax

from cure_jax.bounds import alpha_crown, box_ball, crown, ibp, lipschitz, sdp_crown
from cure_jax.regions import Interval, LpBall, Region

__all__ = ["METHODS", "Bound", "bound_method", "cheap_to_tight"]

Bound = Callable[[Callable[[jax.Array], jax.Array]], Callable[[Region], Interval]]


def cheap_to_tight(region: Region) -> tuple[str, ...]:
    """The methods that `best` combines on a region of this kind, in the order in which they are worth trying.

    Those that prove with l_2 balls hold on every region, but only for the balls of small p are they worth their time.
    """
    if isinstance(region, LpBall) and region.p < math.inf:
        return ("ibp", "lipschitz", "box_ball", "crown_ibp", "sdp_crown", "crown", "alpha_crown")
    return ("ibp", "crown_ibp", "crown", "alpha_crown")


def _best(f: Callable[[jax.Array], jax.Array]) -> Callable[[Region], Interval]:
    """For each output the tightest of all methods that are worth trying."""

    def bounds(region: Region) -> Interval:
        return functools.reduce(Interval.intersect, [METHODS[name](f)(region) for name in cheap_to_tight(region)])

    return bounds


METHODS: Mapping[str, Bound] = {
    "ibp": ibp,
    "crown_ibp": functools.partial(crown, intermediate="ibp"),
    "crown": crown,
    "alpha_crown": functools.partial(alpha_crown, lower_only=True),
    "lipschitz": lipschitz,
    "box_ball": box_ball,
    "sdp_crown": functools.partial(sdp_crown, lower_only=True),
    "best": _best,
}


def bound_method(method: str) -> Bound:
    """The bound transformation of that name.

    Raises:
      ValueError: if there is none.
    """
    if method not in METHODS:
        raise ValueError(f"Unknown method {method!r}; expected one of {', '.join(METHODS)}. Choose one of these.")
    return METHODS[method]
