"""Few pixels of an image, anywhere, with any content: the ball of the l_0 norm as a perturbation of one cell."""

import dataclasses
import math
import operator
from typing import SupportsIndex

import jax
import numpy as np
from jaxtyping import Array, Float, Key

from cure_jax import pytrees
from cure_jax.perturbations.perturbation import Inputs
from cure_jax.regions import L0Ball, l0_ball

__all__ = ["Pixels", "pixels"]


@pytrees.register
@dataclasses.dataclass(frozen=True)
class Pixels:
    """All images that differ from one in a few pixels; build it with `pixels`.

    Its only cell is the ball as a whole, and has no numbers.

    Attributes:
      lower: the least value of a pixel.
      upper: the greatest.
      count: how many pixels may differ; static.
    """

    lower: float
    upper: float
    count: int = dataclasses.field(metadata={"static": True})

    def region(self, x: Float[Array, "*x"]) -> L0Ball:
        """Return the perturbed images of x: `cure_jax.l0_ball`."""
        return l0_ball(x, self.count, within=(self.lower, self.upper))

    def cells(self, shape: tuple[int, ...]) -> Float[np.ndarray, "cells numbers"]:
        """Return the one cell.

        Raises:
          ValueError: if images of that shape have fewer pixels.
        """
        jax.eval_shape(self.region, jax.ShapeDtypeStruct(shape, np.float32))
        return np.zeros((1, 0), np.float32)

    def split(self, cell: Float[np.ndarray, " numbers"], shape: tuple[int, ...]) -> Float[np.ndarray, "parts numbers"]:
        """Return nothing: the cell cannot be cut."""
        del shape
        return np.zeros((0, len(cell)), np.float32)

    def inputs(self, x: Float[Array, "*x"], cell: Float[Array, " numbers"]) -> Inputs:
        """Return the ball, and x as its point."""
        del cell
        return Inputs(self.region(x), lambda image: image, x)

    def sample(self, x: Float[Array, "*x"], key: Key[Array, ""]) -> Float[Array, "*x"]:
        """Return x with random pixels changed."""
        return self.region(x).sample(key)


def pixels(count: SupportsIndex, within: tuple[float, float] = (0.0, 1.0)) -> Pixels:
    """Returns the perturbation that may put anything into a few pixels of an image, all channels of each together.

    Args:
      count: how many pixels.
      within: the least and the greatest value of a pixel.

    Returns:
      What `certify_perturbation` takes; `cure_jax.l0_ball` says more.

    Raises:
      TypeError: a count that is no integer.
      ValueError: a count below 1, or limits that are not in order. Images with fewer pixels are refused when they are
        certified.
    """
    try:
        number = operator.index(count)
    except TypeError as error:
        raise TypeError(f"count is {count!r}; expected an integer: give a number of pixels.") from error
    lower, upper = map(float, within)
    if number < 1 or not -math.inf < lower <= upper < math.inf:
        raise ValueError(
            f"count is {count} and within {within}; expected at least 1 pixel and two finite limits in order: correct "
            "them."
        )
    return Pixels(lower, upper, number)
