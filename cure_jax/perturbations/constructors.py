"""Geometric perturbations by name, in the units people use."""

import math
from collections.abc import Callable, Mapping

from cure_jax.perturbations.geometric import KINDS, Geometric

__all__ = [
    "GEOMETRIC",
    "blur",
    "brightness",
    "compose",
    "contrast",
    "rotation",
    "scaling",
    "shear",
    "translation",
]

# A blur goes so many standard deviations far: what is further away weighs 0.3 % of the middle.
_REACH = 3


def rotation(low: float | int, high: float | int) -> Geometric:
    """Rotations about the middle of the image, bilinear, zeros from outside.

    Args:
      low: the least angle, in DEGREES, anticlockwise; within -180 and 180.
      high: the greatest.

    Raises:
      ValueError: if the interval is empty or not within these limits.

    Examples:
      >>> import jax.numpy as jnp, cure_jax as cj
      >>> bar = jnp.array([[0.0, 1.0, 0.0]] * 3)[..., None]
      >>> cj.perturbations.rotation(-90, 90).apply(bar, jnp.array([90.0]))[..., 0].round(2) + 0.0
      Array([[0., 0., 0.],
             [1., 1., 1.],
             [0., 0., 0.]], dtype=float32)
    """
    return _single("rotation", low, high)


def translation(rows: tuple[float | int, float | int], columns: tuple[float | int, float | int]) -> Geometric:
    """Translations, bilinear, zeros from outside.

    Args:
      rows: the least and the greatest shift DOWNWARDS, in PIXELS.
      columns: those to the right.

    Raises:
      ValueError: if an interval is empty or beyond 1000 pixels.
    """
    return compose(_single("rows", *rows), _single("columns", *columns))


def scaling(low: float | int, high: float | int) -> Geometric:
    """Scalings about the middle of the image, bilinear, zeros from outside.

    Args:
      low: the least FACTOR, within 0.1 and 10: 0.95, not 95 %.
      high: the greatest; above 1 the image grows.

    Raises:
      ValueError: if the interval is empty or not within these limits.
    """
    return _single("scaling", low, high)


def shear(low: float | int, high: float | int) -> Geometric:
    """Shears along the rows about the middle of the image, bilinear, zeros from outside.

    Args:
      low: how far pixels move to the right for each pixel above the middle, at least, as a FRACTION: 0.02, not 2 %.
      high: at most.

    Raises:
      ValueError: if the interval is empty or not within -2 and 2.
    """
    return _single("shear", low, high)


def contrast(low: float | int, high: float | int) -> Geometric:
    """Pixels times a factor, cut to [0, 1].

    Args:
      low: the least FACTOR, within 0 and 10.
      high: the greatest.

    Raises:
      ValueError: if the interval is empty or not within these limits.
    """
    return _single("contrast", low, high)


def brightness(low: float | int, high: float | int) -> Geometric:
    """Pixels plus a number, cut to [0, 1].

    Args:
      low: the least number, pixels being in [0, 1]: 0.01, not 2.55; within -1 and 1.
      high: the greatest.

    Raises:
      ValueError: if the interval is empty or not within these limits.
    """
    return _single("brightness", low, high)


def blur(low: float | int, high: float | int) -> Geometric:
    """Gaussian blur, zeros from outside.

    Args:
      low: the least standard deviation, in PIXELS; 0 is no blur.
      high: the greatest, at most 20. The kernel ends at three of it.

    Raises:
      ValueError: if the interval is empty or not within these limits.
    """
    return _single("blur", low, high, taps=max(1, math.ceil(_REACH * high)))


GEOMETRIC: Mapping[str, Callable[[float | int, float | int], Geometric]] = {
    "rotation": rotation,
    "translation": lambda low, high: translation((low, high), (low, high)),
    "scaling": scaling,
    "shear": shear,
    "contrast": contrast,
    "brightness": brightness,
    "blur": blur,
}


def compose(*perturbations: Geometric) -> Geometric:
    """Several perturbations, applied in the order in which they are given.

    Args:
      perturbations: one or more. Adjacent ones that move pixels are one movement, interpolated once.

    Raises:
      ValueError: if there is none.
    """
    if not perturbations:
        raise ValueError("compose got no perturbation; expected at least one, e.g. rotation(-10, 10).")
    lower, upper, kinds = (
        tuple(value for each in perturbations for value in getattr(each, name)) for name in ("lower", "upper", "kinds")
    )
    return Geometric(lower, upper, kinds, max(each.taps for each in perturbations))


def _single(name: str, low: float | int, high: float | int, taps: int = 0) -> Geometric:
    kind = KINDS[name]
    if not (math.isfinite(low) and math.isfinite(high)) or low > high:
        raise ValueError(
            f"{name} got the interval [{low:g}, {high:g}], which is empty; expected finite ends, the lower one first."
        )
    if low < kind.least or high > kind.greatest:
        raise ValueError(
            f"{name} got the interval [{low:g}, {high:g}]; expected {kind.unit}, within {kind.least:g} and "
            f"{kind.greatest:g}. Convert the unit, or narrow the interval."
        )
    return Geometric((float(low),), (float(high),), (name,), taps)
