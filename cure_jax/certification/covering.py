"""What a certificate in one norm says about others: balls around balls, and balls inside of proved sets."""

import math
from collections.abc import Mapping

__all__ = ["covered_radius", "covering_radius"]

# So that the radius still covers, or is covered, as float32.
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
    _check("covering_radius", radii, p, size)
    largest = max(radius * size ** max(0.0, 1 / p - 1 / q) for q, radius in radii.items())
    return largest * (1 + _ROOM)


def covered_radius(radii: Mapping[float, float], p: float, size: int, *, hull: bool = False) -> float:
    r"""The radius of the largest l_p ball inside of what is proved: balls of several norms, or their convex hull.

    The counterpart of `covering_radius`. An l_p ball of radius

    .. math::

      r \, d^{-\max(0, 1/q - 1/p)}

    lies in the l_q ball of radius r. With an l_1 ball of radius E and an l_inf ball of radius e, e < E < d e, there is
    more room: with 1/p + 1/q = 1 and :math:`\alpha = E/e - \lfloor E/e \rfloor`, their union and their hull hold the
    balls of radii

    .. math::

      \left(e^p + \frac{(E - e)^p}{(d - 1)^{p-1}}\right)^{1/p} \quad\text{and}\quad
      \frac{E}{(E/e - \alpha + \alpha^q)^{1/q}}.

    So whoever is certified on these balls is certified in the l_p norm at the radius that is returned, for every p at
    once. This holds whether the pixels cut the balls or not. A hull must be the one of WHOLE balls, cut by the pixels
    afterwards: `hull(l1_ball(x, E), linf_ball(x, e), within=...)`. That of balls that were cut before is smaller, and
    so is what certificates on both balls prove without one on the hull.

    Args:
      radii: that are certified, by exponent q, from 1 to infinity, in pixels of [0, 1].
      p: the exponent of the norm that is asked for.
      size: d, the number of entries of an example.
      hull: whether the convex hull of the l_1 and the l_inf ball is certified, rather than the balls alone.

    Returns:
      The radius, in pixels of [0, 1], rounded down by a part in a million. It is the largest for radii of the norms 1
      and infinity; with others among them, or alone, it is the largest for one of them.

    Raises:
      ValueError: for an exponent below 1, a radius that is negative or not finite, no radius at all, a size below 1, or
        a hull without radii of the norms 1 and infinity.

    Examples:
      >>> import math
      >>> radii = {1.0: 1.0, math.inf: 0.1}
      >>> [round(covered_radius(radii, p, 784), 3) for p in (1.0, 2.0, math.inf)]
      [1.0, 0.105, 0.1]
      >>> [round(covered_radius(radii, p, 784, hull=True), 3) for p in (1.0, 2.0, math.inf)]
      [1.0, 0.316, 0.1]

    References:
      Croce & Hein, Provable robustness against all adversarial l_p-perturbations for p >= 1 (ICLR 2020): proposition
      3.1 for the union, theorem 3.1 for the hull.
    """
    _check("covered_radius", radii, p, size)
    largest = max(radius * size ** -max(0.0, 1 / q - 1 / p) for q, radius in radii.items())
    few, many = radii.get(1.0), radii.get(math.inf)
    if hull and (few is None or many is None):
        raise ValueError(
            f"covered_radius got hull=True and radii of the norms {sorted(radii)}; expected 1 and inf among them: give "
            "both radii of the hull."
        )
    # Elsewhere one of the two balls holds the other one.
    if few is not None and many is not None and many < few < size * many:
        largest = max(largest, _in_hull(few, many, p) if hull else _in_union(few, many, p, size))
    return largest * (1 - _ROOM)


def _in_union(few: float, many: float, p: float, size: int) -> float:
    if p == math.inf:
        return many
    # In units of `many`, and of a ratio below 1, so that powers do not overflow.
    excess = few / many - 1
    return many * (1 + excess * (excess / (size - 1)) ** (p - 1)) ** (1 / p)


def _in_hull(few: float, many: float, p: float) -> float:
    if p == 1:
        return few
    ratio, q = few / many, 1.0 if p == math.inf else p / (p - 1)
    alpha = ratio - math.floor(ratio)
    return few / (math.floor(ratio) + alpha**q) ** (1 / q)


def _check(name: str, radii: Mapping[float, float], p: float, size: int) -> None:
    if not radii or size < 1:
        raise ValueError(
            f"{name} got {len(radii)} radii and size={size}; expected at least one radius and the number of entries of "
            "an example."
        )
    for q, radius in radii.items():
        if not (p >= 1 and q >= 1 and 0 <= radius < math.inf):
            raise ValueError(
                f"{name} got p={p} and the radius {radius} of the l_{q:g} norm; expected exponents of at least 1 and "
                "finite radii of at least 0."
            )
