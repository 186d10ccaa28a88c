"""One window of an image, anywhere, with any content: adversarial patches.

A cell is a super-window: the places that a rectangle of positions of the window covers together. What may be there is a
box, pixels outside of it are exact, so one bound decides all of these positions at once. A super-window that is not
proved is cut into up to four smaller ones, until single positions are left.

Source: Chiang et al., "Certified Defenses for Adversarial Patches", ICLR 2020, section 4.1, for the box of a position.
"""

import dataclasses
import math
import operator
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key

from cure_jax import pytrees
from cure_jax.perturbations.perturbation import Inputs
from cure_jax.regions import box

__all__ = ["Patch", "patch"]


@pytrees.register
@dataclasses.dataclass(frozen=True)
class Patch:
    """All images that differ from one in a window alone; build it with `patch`, which checks its arguments.

    Its cells are (row, column, rows, columns): the window's upper left pixel is in one of so many rows from `row` on,
    and of so many columns from `column` on.

    Attributes:
      lower: the least value of a pixel.
      upper: the greatest.
      height: of the window, in pixels; static.
      width: the same; static.
      stride: so many rows and columns of positions make up one of the first cells; static.
    """

    lower: float
    upper: float
    height: int = dataclasses.field(metadata={"static": True})
    width: int = dataclasses.field(metadata={"static": True})
    stride: int = dataclasses.field(metadata={"static": True})

    def positions(self, shape: Sequence[int]) -> tuple[int, int]:
        """Return how many rows and columns of positions an image of a shape has.

        Raises:
          ValueError: if it is no image, or smaller than the window.
        """
        if len(shape) not in (2, 3) or shape[0] < self.height or shape[1] < self.width:
            raise ValueError(
                f"A patch of {self.height} x {self.width} pixels got images of shape {tuple(shape)}; expected [height, "
                "width, channels], at least as large as the patch: give a smaller patch."
            )
        return shape[0] - self.height + 1, shape[1] - self.width + 1

    def cells(self, shape: tuple[int, ...]) -> Float[np.ndarray, "cells numbers"]:
        """Return super-windows of `stride` x `stride` positions; they cover all positions, each once."""
        (rows, heights), (columns, widths) = (_cut(0, count, self.stride) for count in self.positions(shape))
        return _rectangles(rows, heights, columns, widths)

    def split(self, cell: Float[np.ndarray, " numbers"], shape: tuple[int, ...]) -> Float[np.ndarray, "parts numbers"]:
        """Return the halves or quarters of the positions of a cell; none of a single position."""
        del shape
        row, column, height, width = map(int, cell)
        if height * width == 1:
            return np.zeros((0, 4), np.float32)
        (rows, heights), (columns, widths) = (
            _cut(start, count, math.ceil(count / 2)) for start, count in ((row, height), (column, width))
        )
        return _rectangles(rows, heights, columns, widths)

    def inputs(self, x: Float[Array, "*x"], cell: Float[Array, " numbers"]) -> Inputs:
        """Return the box of all images whose pixels outside of a super-window are those of x.

        Its point is an image with a window in the middle of the positions, whose pixels are as far from x as they can.
        """
        row, column, rows, columns = (cell[i].astype(jnp.int32) for i in range(4))
        free = _window(x.shape, row, column, rows - 1 + self.height, columns - 1 + self.width)
        lower, upper = jnp.asarray(self.lower, x.dtype), jnp.asarray(self.upper, x.dtype)
        region = box(jnp.where(free, lower, x), jnp.where(free, upper, x))
        middle = _window(x.shape, row + (rows - 1) // 2, column + (columns - 1) // 2, self.height, self.width)
        farthest = jnp.where(x - lower > upper - x, lower, upper)
        return Inputs(region, lambda image: image, jnp.where(middle, farthest, x))

    def sample(self, x: Float[Array, "*x"], key: Key[Array, ""]) -> Float[Array, "*x"]:
        """Return x with a window at a random position, uniform in the range of pixels or, one time in two, at its ends.

        Where the pixels of x are not in that range, neither are those around the window.
        """
        row_key, column_key, value_key, end_key = jax.random.split(key, 4)
        rows, columns = self.positions(x.shape)
        row, column = jax.random.randint(row_key, (), 0, rows), jax.random.randint(column_key, (), 0, columns)
        share = jax.random.uniform(value_key, x.shape, x.dtype)
        share = jnp.where(jax.random.bernoulli(end_key), jnp.round(share), share)
        content = jnp.clip(self.lower + share * (self.upper - self.lower), self.lower, self.upper)
        return jnp.where(_window(x.shape, row, column, self.height, self.width), content, x)


def patch(size: int | Sequence[int], within: tuple[float, float] = (0.0, 1.0), *, stride: int = 2) -> Patch:
    """Returns the perturbation that may put anything into one window of an image, at any position.

    Args:
      size: k for a window of k x k pixels, or its height and width.
      within: the least and the greatest value of a pixel.
      stride: the search begins with windows of `size + stride - 1` pixels a side, each of which stands for
        `stride * stride` positions. The verdicts are those of single positions whatever it is; it is a matter of time.

    Returns:
      What `certify_perturbation` takes.

    Raises:
      TypeError: a size or stride that is no integer.
      ValueError: one below 1, or limits that are not finite and in order. Images that are smaller than the window are
        refused when they are certified.

    Examples:
      >>> import numpy as np, cure_jax as cj
      >>> cj.perturbations.patch(2, stride=3).cells((6, 4, 1)).tolist()  # row, column, rows and columns of positions
      [[0.0, 0.0, 3.0, 3.0], [3.0, 0.0, 2.0, 3.0]]
    """
    sides = tuple(size) if isinstance(size, Sequence) else (size, size)
    try:
        numbers = [operator.index(number) for number in (*sides, stride)]
    except TypeError as error:
        raise TypeError(
            f"size is {size!r} and stride {stride!r}; expected integers: give numbers of pixels."
        ) from error
    if len(sides) != 2 or min(numbers) < 1:
        raise ValueError(
            f"size is {size!r} and stride {stride!r}; expected a number of pixels of at least 1, or two, and a stride "
            "of at least 1: correct them."
        )
    lower, upper = map(float, within)
    if not -math.inf < lower <= upper < math.inf:
        raise ValueError(f"within is {within}; expected two finite limits in order: give e.g. (0., 1.).")
    return Patch(lower, upper, *numbers)


def _cut(start: int, count: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Starts and lengths of the parts of a range, all of one size but the last."""
    starts = np.arange(start, start + count, size)
    return starts, np.minimum(size, start + count - starts)


def _rectangles(rows: np.ndarray, heights: np.ndarray, columns: np.ndarray, widths: np.ndarray) -> np.ndarray:
    row, column = np.meshgrid(rows, columns, indexing="ij")
    height, width = np.meshgrid(heights, widths, indexing="ij")
    return np.stack([row, column, height, width], axis=-1).reshape(-1, 4).astype(np.float32)


def _window(
    shape: Sequence[int], row: Array, column: Array, height: Array | int, width: Array | int
) -> Bool[Array, "*x"]:
    """Which pixels lie in a rectangle."""
    rows, columns = (jnp.arange(size, dtype=jnp.int32) for size in shape[:2])
    inside = jnp.multiply.outer((rows >= row) & (rows < row + height), (columns >= column) & (columns < column + width))
    return jnp.broadcast_to(inside.reshape(*inside.shape, *(1,) * (len(shape) - 2)), tuple(shape))
