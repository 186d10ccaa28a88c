"""The methods that prove, by name, several of them as one, and which `best` uses on which regions."""

import functools
import itertools
import math
from collections.abc import Callable, Mapping, Sequence

import jax

from cure_jax.bounds import alpha_crown, box_ball, crown, ibp, lipschitz, sdp_crown, vertex_crown
from cure_jax.bounds.folding.vertices import vertices_of
from cure_jax.bounds.rounding.arithmetic import check_arithmetic
from cure_jax.regions import Interval, LpBall, Region
from cure_jax.validation import described

__all__ = ["METHODS", "OPTIMISED", "OUTWARD", "Bound", "bound_method", "cheap_to_tight", "tried"]

# Of a network; some have options.
Bound = Callable[..., Callable[[Region], Interval]]


# Those whose rounding errors can be bounded, from cheap to tight.
OUTWARD = ("ibp", "crown_ibp", "crown")
# Those that optimise every output by itself: the fewer outputs, the less work.
OPTIMISED = ("alpha_crown", "sdp_crown", "vertex_crown")


def cheap_to_tight(region: Region, arithmetic: str = "float32") -> tuple[str, ...]:
    """The methods that `best` combines on a region of this kind, in the order in which they are worth trying.

    Those that prove with l_2 balls hold on every region, but only for the balls of small p are they worth their time.
    """
    if arithmetic == "outward":
        return OUTWARD
    vertices = () if vertices_of(region) is None else ("vertex_crown",)
    if not isinstance(region, LpBall) or region.p == math.inf:
        return ("ibp", "crown_ibp", *vertices, "crown", "alpha_crown")
    return ("ibp", "lipschitz", "box_ball", "crown_ibp", *vertices, "sdp_crown", "crown", "alpha_crown")


def tried(method: str | Sequence[str], region: Region, arithmetic: str = "float32") -> tuple[str, ...]:
    """The methods to try on a region, in this order: those that are named, with those of "best" in its place."""
    named = [method] if isinstance(method, str) else method
    each = (cheap_to_tight(region, arithmetic) if name == "best" else (name,) for name in named)
    return tuple(dict.fromkeys(itertools.chain.from_iterable(each)))


def _tightest(
    f: Callable[[jax.Array], jax.Array], method: str | Sequence[str] = "best", arithmetic: str = "float32"
) -> Callable[[Region], Interval]:
    """For each output the tightest of several methods."""

    def bounds(region: Region) -> Interval:
        names = tried(method, region, arithmetic)
        found = [bound_method(name, arithmetic)(f)(region).without_overflow() for name in names]
        return functools.reduce(Interval.intersect, found)

    return bounds


METHODS: Mapping[str, Bound] = {
    "ibp": ibp,
    "crown_ibp": functools.partial(crown, intermediate="ibp"),
    "crown": crown,
    "alpha_crown": functools.partial(alpha_crown, lower_only=True),
    "lipschitz": lipschitz,
    "box_ball": box_ball,
    "sdp_crown": functools.partial(sdp_crown, lower_only=True),
    "vertex_crown": functools.partial(vertex_crown, lower_only=True),
    "best": _tightest,
}


def bound_method(method: str | Sequence[str], arithmetic: str = "float32") -> Bound:
    """The bound transformation of that name, or the tightest of several.

    Args:
      method: a name in `METHODS`, or several.
      arithmetic: "float32", or "outward" for one that accounts for its own rounding.

    Raises:
      TypeError: for a function instead of its name.
      ValueError: if there is none, or none in that arithmetic.
    """
    check_arithmetic(arithmetic)
    if callable(method):
        raise TypeError(
            f"method is {described(method)}; expected its name, one of {', '.join(METHODS)}. Write "
            f"method={getattr(method, '__name__', 'crown')!r}, or bound the margins with it yourself: "
            "cj.margins(f, label)."
        )
    names = (method,) if isinstance(method, str) else tuple(method)
    for name in names or ("",):
        if name not in METHODS:
            raise ValueError(f"Unknown method {name!r}; expected one of {', '.join(METHODS)}. Choose one of these.")
    if arithmetic == "outward" and not {*names} <= {*OUTWARD, "best"}:
        raise ValueError(
            f"The rounding of method {method!r} is not bounded; with arithmetic={arithmetic!r} choose one of "
            f"{', '.join((*OUTWARD, 'best'))}, or leave arithmetic out."
        )
    options = {} if arithmetic == "float32" else {"arithmetic": arithmetic}
    if isinstance(method, str):
        return functools.partial(METHODS[method], **options)
    return functools.partial(_tightest, method=names, **options)
