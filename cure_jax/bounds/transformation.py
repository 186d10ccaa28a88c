"""What bound transformations have in common: `bound(f)(region)`, and a sentence for whoever calls them otherwise."""

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from cure_jax.regions import Region
from cure_jax.regions.region import check_region
from cure_jax.validation import described

__all__ = ["transformation"]

P = ParamSpec("P")
Result = TypeVar("Result")


def transformation(make: Callable[P, Callable[[Region], Result]]) -> Callable[P, Callable[[Region], Result]]:
    """Wraps a bound transformation `make(f, **options) -> (region -> bounds)`; it stays what it is.

    Raises:
      TypeError: when it is called, if `f` is no function or a region stands beside it; when its result is called, if
        that is given no region.
    """
    name = getattr(make, "__name__", "bound")

    @functools.wraps(make)
    def checked(*args: P.args, **options: P.kwargs) -> Callable[[Region], Result]:
        first, rest = args[0] if args else options.get("f"), args[1:]
        if not callable(first):
            raise TypeError(
                f"{name} got {described(first)}; expected a function of one example. For a flax network: "
                f"{name}(fitted.classifier), or {name}(cj.models.classifier(model, variables))."
            )
        if any(isinstance(value, Region) for value in rest):
            raise TypeError(
                f"{name} got {described(rest[0])} beside f; expected f alone, as it returns a function of regions. "
                f"Write {name}(f)(region)."
            )
        bounds = make(*args, **options)

        @functools.wraps(bounds)
        def of_region(region: Region) -> Result:
            check_region(region, f"{name}(f)")
            return bounds(region)

        return of_region

    return checked
