"""What a set of perturbed images must answer: it is described by cells, each of which a bound can take at once."""

from collections.abc import Callable
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Array, Float, Key

from cure_jax.regions import Region

__all__ = ["Inputs", "Perturbation"]


class Inputs(NamedTuple):
    """The perturbed images of one image in one cell: `transform(point)` for the points of a region.

    Attributes:
      region: of points: of parameters, such as an angle, or of images themselves.
      transform: from a point `[*point]` to an image `[*x]`; of primitives that have rules of bounds.
      point: of the region. Its image is a perturbed image (the region may hold others too), so that no certificate can
        be given where it is misclassified.
    """

    region: Region
    transform: Callable[[Array], Array]
    point: Float[Array, "*point"]


@runtime_checkable
class Perturbation(Protocol):
    """A set of perturbed images of any image, as a pytree.

    Its cells cover it: every perturbed image of x is `transform(point)` for some cell and some point of its region.
    A cell is a row of numbers, float32. What the numbers mean only the perturbation knows: the ends of parameters, or
    the place of a window.
    """

    def cells(self, shape: tuple[int, ...]) -> Float[np.ndarray, "cells numbers"]:
        """Return the cells to begin with, for images of a shape; they cover the perturbation.

        Raises:
          ValueError: if images of that shape cannot be perturbed like this.
        """
        ...

    def split(self, cell: Float[np.ndarray, " numbers"], shape: tuple[int, ...]) -> Float[np.ndarray, "parts numbers"]:
        """Return cells that cover a cell, with end points in common bit for bit; none if it is too small to be cut."""
        ...

    def inputs(self, x: Float[Array, "*x"], cell: Float[Array, " numbers"]) -> Inputs:
        """Return the perturbed images of x in a cell; both may be traced."""
        ...

    def sample(self, x: Float[Array, "*x"], key: Key[Array, ""]) -> Float[Array, "*x"]:
        """Return a random perturbed image of x."""
        ...
