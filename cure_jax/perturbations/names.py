"""Perturbations by name, as configs and command lines have them.

{"rotation": (-10, 10), "rotation+contrast": ((-2, 2), (0.98, 1.02)), "patch": 5, "pixels": 2}
"""

from collections.abc import Mapping, Sequence
from typing import Any

from cure_jax.perturbations import constructors
from cure_jax.perturbations.patch import patch
from cure_jax.perturbations.perturbation import Perturbation
from cure_jax.perturbations.pixels import pixels

__all__ = ["NAMES", "by_name", "by_names"]

NAMES = (*constructors.GEOMETRIC, "patch", "pixels")
_COUNTED = {"patch": patch, "pixels": pixels}


def by_name(name: str, value: Any) -> Perturbation:
    """Returns a perturbation by the name of its function.

    Args:
      name: one of `NAMES`; several geometric ones joined by "+" are applied in that order.
      value: of a geometric one its least and greatest parameter, in the units of that function (translations have those
        of both axes); of several, a pair for each; of "patch" its side or sides, of "pixels" their number.

    Raises:
      TypeError: for a value of another kind.
      ValueError: for an unknown name, and as the function of that name.

    Examples:
      >>> import cure_jax as cj
      >>> cj.perturbations.by_name("rotation+contrast", ((-2, 2), (0.98, 1.02))).kinds
      ('rotation', 'contrast')
    """
    parts = name.split("+")
    if unknown := [part for part in parts if part not in NAMES]:
        raise ValueError(
            f"Unknown perturbation {unknown[0]!r}; expected one of {', '.join(NAMES)}: choose one of these."
        )
    if name in _COUNTED:
        return _COUNTED[name](value)
    if counted := [part for part in parts if part in _COUNTED]:
        raise ValueError(
            f"{name!r} composes {counted[0]}; expected geometric perturbations only: certify it on its own."
        )
    values = [value] if len(parts) == 1 else value
    if not isinstance(values, Sequence) or len(values) != len(parts) or not all(map(_is_pair, values)):
        expected = (
            "(least, greatest)" if len(parts) == 1 else f"a pair (least, greatest) for each of {', '.join(parts)}"
        )
        raise TypeError(f"{name} is {value!r}; expected {expected}.")
    single = [constructors.GEOMETRIC[part](*limits) for part, limits in zip(parts, values, strict=True)]
    return constructors.compose(*single)


def by_names(values: Mapping[str, Any]) -> dict[str, Perturbation]:
    """Returns the perturbation of each entry, as `by_name`; what is empty or 0 is left out."""
    return {name: by_name(name, value) for name, value in values.items() if value}


def _is_pair(limits: Any) -> bool:
    return isinstance(limits, Sequence) and not isinstance(limits, str) and len(limits) == 2
