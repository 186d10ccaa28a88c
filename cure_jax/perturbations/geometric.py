"""Geometric perturbations: images as functions of a few parameters, such as an angle, each from an interval.

    rotation       degrees, anticlockwise     contrast     factor of the pixels
    translation    pixels, down and right     brightness   added to the pixels, in [0, 1]
    scaling        factor, above 1 larger     blur         standard deviation, in pixels
    shear          pixels to the right for each pixel upwards

`rotation(-10, 10)` and its like make one, `compose` puts several one after the other. `Geometric.apply` is the image as
a function of the parameters; it has bounds of its own, so that `ibp` and `crown` hold for
`lambda theta: f(perturbation.apply(x, theta))` over a `box` of parameters.

References:
  Balunovic et al., Certifying Geometric Robustness of Neural Networks (NeurIPS 2019); Yang et al., Provable Defense
  Against Geometric Transformations (ICLR 2023): interval bounds of pixels, for cells of parameters.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from cure_jax import pytrees
from cure_jax.custom import custom_bounds
from cure_jax.perturbations.affine import INVERSES, sources, sources_over
from cure_jax.perturbations.blur import blurred, blurred_over
from cure_jax.perturbations.colour import COLOURS, coloured, coloured_over
from cure_jax.perturbations.enclosure import (
    Enclosure,
    PixelLines,
    centre_and_radius,
    lines,
    of_image,
    values,
)
from cure_jax.perturbations.interpolation import interpolate, interpolate_over
from cure_jax.perturbations.intervals import add, product
from cure_jax.perturbations.perturbation import Inputs
from cure_jax.regions import Box, Interval

__all__ = ["KINDS", "Geometric", "Kind"]

# Of a cell that is new, as effects (see `Kind`); and of one that is too small to be split.
_FIRST, _LEAST = 2.0, 1e-4
# A cell is bounded in parts, along each parameter of `affine` and of `blur` in so many, by the number of these.
_PARTS = (1, 4, 3, 2)


class Kind(NamedTuple):
    """One parameter.

    Attributes:
      unit: of its values, for messages.
      least: that is allowed.
      greatest: that is allowed.
      neutral: the value that changes nothing.
      effect: about how many pixels a unit moves the image, of half the size h, as `base + slope h`; of colours, what
        changes pixels as much. By that, cells begin and are split; it has no bearing on soundness.
    """

    unit: str
    least: float | int
    greatest: float | int
    neutral: float | int
    effect: tuple[float | int, float | int]


KINDS: Mapping[str, Kind] = {
    "rotation": Kind("degrees", -180, 180, 0, (0, math.pi / 180)),
    "rows": Kind("pixels", -1000, 1000, 0, (1, 0)),
    "columns": Kind("pixels", -1000, 1000, 0, (1, 0)),
    "scaling": Kind("a factor, 1 for no change", 0.1, 10, 1, (0, 1)),
    "shear": Kind("pixels to the right for each pixel upwards", -2, 2, 0, (0, 1)),
    "contrast": Kind("a factor, 1 for no change", 0, 10, 1, (2, 0)),
    "brightness": Kind("pixel values in [0, 1]", -1, 1, 0, (4, 0)),
    "blur": Kind("pixels, a standard deviation", 0, 20, 0, (1, 0)),
}


@pytrees.register
@dataclasses.dataclass(frozen=True)
class Geometric:
    """Perturbations one after the other, each by a parameter from an interval. Build it with `rotation` and the others.

    Adjacent rotations, translations, scalings and shears move the image at once, with one interpolation, zeros from
    outside; adjacent changes of colour are cut to [0, 1] once, after the last.

    Its cells are boxes of parameters: all lower ends, then all upper ends, in the units of `KINDS`.

    Attributes:
      lower: the least value of each parameter.
      upper: the greatest.
      kinds: what each does, names in `KINDS`, in the order in which they are applied.
      taps: how many pixels to each side a blur goes.
    """

    lower: tuple[float, ...]
    upper: tuple[float, ...]
    kinds: tuple[str, ...] = dataclasses.field(metadata={"static": True})
    taps: int = dataclasses.field(default=0, metadata={"static": True})

    def apply(self, x: Float[Array, "height width channels"], theta: Float[Array, " parameters"]) -> Array:
        """Return the perturbed image.

        Args:
          x: the image, pixels in [0, 1].
          theta: the parameters, in the units of `KINDS`.

        Raises:
          ValueError: if there are not as many parameters as `kinds`, or x has no three axes.

        Soundness:
          Over a box of parameters `ibp` and `crown` bound its pixels with room for every rounding of the geometry:
          sines, places and weights. Boxes that move a pixel by more than two get the range of the whole image.
        """
        _check_shape(x.shape)
        if theta.shape != (len(self.kinds),):
            raise ValueError(
                f"theta has shape {theta.shape}; expected ({len(self.kinds)},), a number for each of "
                f"{', '.join(self.kinds)}. Give them in that order."
            )

        def value(x: jax.Array, *fields: jax.Array) -> jax.Array:
            return self._perturbed(x, jnp.stack([field.ravel()[0] for field in fields]))

        def interval(x: Interval, *fields: Interval) -> Interval:
            cell = _cell(fields)
            parts = self._parts(cell)
            return values(self._enclosures(x, parts), parts)

        def relax(x: Interval, *fields: Interval) -> tuple:
            found = self.lines(x, _cell(fields))
            slopes = (jnp.zeros(x.shape, x.dtype), *found.slopes)
            return (slopes, found.lower), (slopes, found.upper)

        def undecided(x: Interval, *fields: Interval) -> tuple[jax.Array, ...]:
            # Of the parameters the boxes are exact.
            return jnp.ones(x.shape, bool), *(jnp.zeros(field.shape, bool) for field in fields)

        # A parameter as an image of its own: coefficients on windows of the image stay on windows.
        fields = [jnp.broadcast_to(parameter, x.shape) for parameter in theta]
        bounded = custom_bounds(value, interval=interval, relax=relax, undecided=undecided)
        return bounded(x, *fields)

    def lines(self, x: Interval, cell: Interval) -> PixelLines:
        """Return lines in the parameters for the pixels of images between x.lower and x.upper, over a box of them."""
        parts = self._parts(cell)
        return lines(self._enclosures(x, parts), parts, cell)

    def cells(self, shape: tuple[int, ...]) -> Float[np.ndarray, "cells numbers"]:
        """Return boxes that cover all parameters, none of which moves the image much."""
        _check_shape(shape)
        edges = [
            _edges(low, high, max(1, math.ceil(_effect(kind, shape) * (high - low) / _FIRST)))
            for kind, low, high in zip(self.kinds, self.lower, self.upper, strict=True)
        ]
        boxes = itertools.product(*(list(itertools.pairwise(along)) for along in edges))
        return np.array([[*(low for low, _ in box), *(high for _, high in box)] for box in boxes], np.float32)

    def split(self, cell: Float[np.ndarray, " numbers"], shape: tuple[int, ...]) -> Float[np.ndarray, "parts numbers"]:
        """Return the halves of a cell along the parameter that moves the image most in it."""
        count = len(self.kinds)
        low, high = cell[:count], cell[count:]
        middle = low + (high - low) / 2
        effects = (high - low) * np.array([_effect(kind, shape) for kind in self.kinds], cell.dtype)
        effects = np.where((low < middle) & (middle < high), effects, 0)
        side = int(np.argmax(effects))
        if effects[side] < _LEAST:
            return np.zeros((0, 2 * count), cell.dtype)
        parts = np.stack([cell, cell])
        parts[0, count + side] = parts[1, side] = middle[side]
        return parts

    def inputs(self, x: Float[Array, "*x"], cell: Float[Array, " numbers"]) -> Inputs:
        """Return the perturbed images of x in a cell: those of a box of parameters."""
        ends = jnp.asarray(cell, x.dtype)
        region = Box(ends[: len(self.kinds)], ends[len(self.kinds) :])
        return Inputs(region, lambda theta: self.apply(x, theta), region.center)

    def sample(self, x: Float[Array, "*x"], key: Key[Array, ""]) -> Float[Array, "*x"]:
        """Return the image perturbed by random parameters."""
        return self.apply(x, self.parameters(x.dtype).sample(key))

    def parameters(self, dtype: np.dtype | type = np.float32) -> Box:
        """Return the box of all parameters."""
        return Box(jnp.stack([jnp.asarray(end, dtype) for end in self.lower]), jnp.stack([*self.upper]).astype(dtype))

    def _perturbed(self, x: jax.Array, theta: jax.Array) -> jax.Array:
        for family, kinds, places in self._runs():
            here = theta[places]
            if family == "affine":
                x = interpolate(x, *sources(kinds, here, x.shape[:2]))
            elif family == "colour":
                x = coloured(kinds, x, here)
            else:
                x = blurred(x, here[0], self.taps)
        return x

    def _enclosures(self, x: Interval, parts: Interval) -> Enclosure:
        """Of each part of a cell."""
        return jax.vmap(lambda lower, upper: self._enclosure(x, Interval(lower, upper)))(parts.lower, parts.upper)

    def _enclosure(self, x: Interval, cell: Interval) -> Enclosure:
        known, (middle, radius) = of_image(x), centre_and_radius(cell)
        for family, kinds, places in self._runs():
            box = Interval(cell.lower[places], cell.upper[places])
            if family == "affine":
                known = _moved_over(known, kinds, box, middle[places], radius[places])
            elif family == "colour":
                known = coloured_over(kinds, known, box, middle[places])
            else:
                known = blurred_over(known, Interval(box.lower[0], box.upper[0]), middle[places][0], self.taps)
        return known

    def _runs(self) -> Iterator[tuple[str, tuple[str, ...], slice]]:
        """Adjacent kinds of one family, and where their parameters are."""
        start = 0
        numbered = enumerate(self.kinds)
        for key, run in itertools.groupby(numbered, lambda item: _family(item[1]) or item[0]):
            kinds = tuple(kind for _, kind in run)
            yield (key if isinstance(key, str) else "blur"), kinds, slice(start, start + len(kinds))
            start += len(kinds)

    def _parts(self, cell: Interval) -> Interval:
        """Parts of a cell, which cover it: `[parts, parameters]`."""
        curved = [kind not in COLOURS for kind in self.kinds]
        count = _PARTS[min(sum(curved), len(_PARTS) - 1)]
        sides = [_sides(cell.lower[i], cell.upper[i], count if curved[i] else 1) for i in range(len(self.kinds))]
        chosen = list(itertools.product(*(range(count if bends else 1) for bends in curved)))

        def gathered(end: int) -> jax.Array:
            return jnp.stack([jnp.stack([sides[i][end][j] for i, j in enumerate(row)]) for row in chosen])

        return Interval(gathered(0), gathered(1))


def _moved_over(
    known: Enclosure, kinds: tuple[str, ...], cell: Interval, middle: jax.Array, radius: jax.Array
) -> Enclosure:
    """The image moved by affine transformations: the chain rule over places and pixels."""
    places = sources_over(kinds, cell, middle, radius, known.range.shape[:2])
    at_middle = interpolate_over(known.middle, *places.middle).range
    found = interpolate_over(known.range, *places.range)
    carried = jax.vmap(lambda slope: interpolate_over(slope, *places.range).range)(known.slopes)
    by_row, by_column = (
        product(jax.tree.map(lambda end: end[None], derivative), jax.tree.map(lambda end: end[..., None], slope))
        for derivative, slope in zip((found.by_row, found.by_column), places.slopes, strict=True)
    )
    slopes = jax.tree.map(lambda *parts: jnp.concatenate(parts), carried, add(by_row, by_column))
    return Enclosure(at_middle, found.range, slopes)


def _family(kind: str) -> str:
    if kind in INVERSES:
        return "affine"
    return "colour" if kind in COLOURS else ""


def _cell(fields: tuple[Interval, ...]) -> Interval:
    """The box of the parameters, each of which is an image of one value."""
    return Interval(*(jnp.stack([end.ravel()[0] for end in ends]) for ends in zip(*map(_ends, fields), strict=True)))


def _ends(interval: Interval) -> tuple[jax.Array, jax.Array]:
    return interval.lower, interval.upper


def _sides(low: jax.Array, high: jax.Array, count: int) -> tuple[list[jax.Array], list[jax.Array]]:
    """The lower and the upper ends of parts of an interval; neighbours share theirs."""
    inner = [jnp.clip(low + (high - low) * (i / count), low, high) for i in range(1, count)]
    edges = [low, *inner, high]
    return edges[:-1], edges[1:]


def _effect(kind: str, shape: tuple[int, ...]) -> float:
    base, slope = KINDS[kind].effect
    return base + slope * max(shape[:2]) / 2


def _edges(low: float, high: float, count: int) -> np.ndarray:
    """Ends of cells, float32, the outermost rounded outward."""
    edges = np.linspace(low, high, count + 1).astype(np.float32)
    edges[0], edges[-1] = _rounded(low, -np.inf), _rounded(high, np.inf)
    return edges


def _rounded(value: float, towards: float) -> np.float32:
    nearest = np.float32(value)
    is_inside = float(nearest) > value if towards < 0 else float(nearest) < value
    return np.nextafter(nearest, np.float32(towards)) if is_inside else nearest


def _check_shape(shape: tuple[int, ...]) -> None:
    if len(shape) != 3:
        raise ValueError(
            f"Got an image of shape {shape}; expected (height, width, channels). Add the axis of channels, and use "
            "jax.vmap for batches."
        )
