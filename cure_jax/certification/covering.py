"""What a certificate in one norm says about others: the cheapest rival of a certificate for several norms."""

import math
from collections.abc import Mapping

__all__ = ["covering_radius"]

# So that the radius still covers as float32.
_ROOM = 1e-6


def covering_radius(radii: Mapping[float, float], p: float, size: int) -> float:
    r"""The radius of an l_p ball that holds the balls of several norms around the same example.

    The l_q ball of radius r lies in the l_p ball of radius

    .. math::

      r \, d^{\max(0, 1/p - 1/q)}

    and touches it, at a corner of the box where the exponent is positive, else at an axis. So whoever is certified at
    the radius that is returned is certified in the union of all these balls, whether the pixels cut them or not, and a
    union certified accuracy means something where it is higher than the accuracy of one norm at this radius.

    Args:
      radii: by exponent q, from 1 to infinity, in pixels of [0, 1].
      p: the exponent of the one norm.
      size: d, the number of entries of an example.

    Returns:
      The radius, in pixels of [0, 1], rounded up by a part in a million.

    Raises:
      ValueError: for an exponent below 1, a radius that is negative or not finite, no radius at all, or a size below 1.

    Examples:
      >>> import math
      >>> round(covering_radius({math.inf: 2 / 255, 2.0: 0.25}, 2.0, 32 * 32 * 3), 4)
      0.4347

    References:
      Hölder's inequality.
    """
    if not radii or size < 1:
        raise ValueError(
            f"covering_radius got {len(radii)} radii and size={size}; expected at least one radius and the number of "
            "entries of an example."
        )
    for q, radius in radii.items():
        if not (p >= 1 and q >= 1 and 0 <= radius < math.inf):
            raise ValueError(
                f"covering_radius got p={p} and the radius {radius} of the l_{q:g} norm; expected exponents of at "
                "least 1 and finite radii of at least 0."
            )
    largest = max(radius * size ** max(0.0, 1 / p - 1 / q) for q, radius in radii.items())
    return largest * (1 + _ROOM)
