"""Looks for perturbed pixels outside of their bounds: parameters inside cells, images computed anew in float64.

    python launch/checks/containment.py --samples=1000000

For every geometric transformation, and some compositions, it draws cells of several widths, bounds the pixels on each
in float32 (intervals by `ibp`, lines in the parameters), and compares with the transformation as NumPy computes it in
float64 at parameters sampled in the cell, its ends among them. One pixel outside of an interval, or of the lines, by
more than what float64 rounds (1e-13), ends it with exit status 1. --samples counts parameters for each transformation;
each perturbs a whole image. Prints, for each, the mean width of intervals and of what lines give, over that of the
samples, by width of cells.
"""

import functools
import itertools
import math
import sys
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

import cure_jax as cj
from cure_jax.commands.parts import common
from cure_jax.data import digits
from cure_jax.perturbations import Geometric
from cure_jax.regions import Box, Interval

# Not among those of the process: tests import several programs.
_OWN = flags.FlagValues()
_SAMPLES = flags.DEFINE_integer("samples", 1_000_000, "Parameters for each transformation, at least.", flag_values=_OWN)
_SEED = flags.DEFINE_integer("seed", 0, "Of cells and parameters.", flag_values=_OWN)

_FAMILIES = {"contrast": "colour", "brightness": "colour", "blur": "blur"}
# Of the reference: it sums pixels in [0, 1].
_ROUNDING = 1e-13
_PER_CELL = 2000
_WIDTHS = (1.0, 0.2, 0.02)
_BATCH = 20


class Case(NamedTuple):
    """A perturbation and the widest cells that are tried, by parameter."""

    perturbation: Geometric
    widths: tuple[float, ...]


def cases() -> dict[str, Case]:
    """What is looked at, by name."""
    p = cj.perturbations
    return {
        "rotation": Case(p.rotation(-180, 180), (4.0,)),
        "translation": Case(p.translation((-2, 2), (-2, 2)), (0.5, 0.5)),
        "scaling": Case(p.scaling(0.7, 1.3), (0.1,)),
        "shear": Case(p.shear(-0.3, 0.3), (0.1,)),
        "contrast": Case(p.contrast(0.5, 2), (0.2,)),
        "brightness": Case(p.brightness(-0.5, 0.5), (0.1,)),
        "blur": Case(p.blur(0, 1.5), (0.2,)),
        "Sc R C B": Case(
            p.compose(p.scaling(0.9, 1.1), p.rotation(-30, 30), p.contrast(0.9, 1.1), p.brightness(-0.1, 0.1)),
            (0.05, 2.0, 0.1, 0.1),
        ),
        "B R blur Sh": Case(
            p.compose(p.brightness(-0.1, 0.1), p.rotation(-30, 30), p.blur(0, 1), p.shear(-0.1, 0.1)),
            (0.1, 2.0, 0.1, 0.05),
        ),
    }


def reference(perturbation: Geometric, x: np.ndarray, thetas: np.ndarray) -> np.ndarray:
    """The perturbed images `[samples, *x]` in float64, at parameters `[samples, parameters]`."""
    images = np.broadcast_to(x.astype(np.float64), (len(thetas), *x.shape))
    numbered = enumerate(perturbation.kinds)
    for family, run in itertools.groupby(numbered, lambda item: _FAMILIES.get(item[1], "affine")):
        for kinds, places in _together(family, list(run)):
            values = thetas[:, places]
            if family == "affine":
                images = _moved(images, kinds, values)
            elif family == "blur":
                images = _blurred(images, values[:, 0], perturbation.taps)
            else:
                images = _coloured(images, kinds, values)
    return images


def _together(family: str, run: list[tuple[int, str]]) -> list[tuple[list[str], list[int]]]:
    """Several blurs are done one by one, anything else at once."""
    runs = [[item] for item in run] if family == "blur" else [run]
    return [([kind for _, kind in part], [i for i, _ in part]) for part in runs]


def _coloured(images: np.ndarray, kinds: list[str], values: np.ndarray) -> np.ndarray:
    for kind, value in zip(kinds, values.T, strict=True):
        here = value[:, None, None, None]
        images = images * here if kind == "contrast" else images + here
    return np.clip(images, 0, 1)


def _moved(images: np.ndarray, kinds: list[str], values: np.ndarray) -> np.ndarray:
    """Forward matrices, inverted as a whole, and the pixels around each place, weighed."""
    count, height, width, _ = images.shape
    matrix = np.broadcast_to(np.eye(3), (count, 3, 3))
    for kind, value in zip(kinds, values.T, strict=True):
        matrix = _forward(kind, value) @ matrix
    rows, columns = np.mgrid[:height, :width]
    u, v = columns - (width - 1) / 2, (height - 1) / 2 - rows
    at = np.linalg.solve(matrix, np.stack([u.ravel(), v.ravel(), np.ones(u.size)])[None])
    row, column = (height - 1) / 2 - at[:, 1], at[:, 0] + (width - 1) / 2
    padded = np.pad(images, [(0, 0), (2, 2), (2, 2), (0, 0)])
    found = np.zeros((count, height * width, images.shape[3]))
    for below, right in itertools.product((0, 1), repeat=2):
        i, j = np.floor(row) + below, np.floor(column) + right
        weight = (1 - np.abs(row - i)) * (1 - np.abs(column - j))
        inside = (i >= 0) & (i < height) & (j >= 0) & (j < width)
        index = [np.where(inside, place, -2).astype(int) + 2 for place in (i, j)]
        found += weight[..., None] * padded[np.arange(count)[:, None], index[0], index[1]]
    return found.reshape(images.shape)


def _forward(kind: str, value: np.ndarray) -> np.ndarray:
    matrix = np.tile(np.eye(3), (len(value), 1, 1))
    if kind == "rotation":
        cos, sin = np.cos(np.deg2rad(value)), np.sin(np.deg2rad(value))
        matrix[:, 0, 0], matrix[:, 0, 1], matrix[:, 1, 0], matrix[:, 1, 1] = cos, -sin, sin, cos
    elif kind == "scaling":
        matrix[:, 0, 0] = matrix[:, 1, 1] = value
    elif kind == "shear":
        matrix[:, 0, 1] = value
    elif kind == "columns":
        matrix[:, 0, 2] = value
    else:
        matrix[:, 1, 2] = -value
    return matrix


def _blurred(images: np.ndarray, deviations: np.ndarray, taps: int) -> np.ndarray:
    """By matrices of weights, along rows and columns."""
    weighed = []
    for size in images.shape[1:3]:
        distance = np.abs(np.subtract.outer(np.arange(size), np.arange(size)))
        with np.errstate(divide="ignore", invalid="ignore"):
            steps = np.exp(-(np.arange(-taps, taps + 1) ** 2) / (2 * deviations[:, None] ** 2))
        steps = np.where(np.isnan(steps), 1, steps)
        steps = (steps / steps.sum(axis=1, keepdims=True))[:, taps:]
        reached = np.pad(steps, [(0, 0), (0, max(0, size - taps - 1))])[:, distance]
        weighed.append(reached)
    return np.einsum("nij,njkc,nlk->nilc", weighed[0], images, weighed[1], optimize=True)


class Bounds(NamedTuple):
    """Of the pixels of an image on cells: `[cells, ...]`."""

    lower: Any
    upper: Any
    slopes: Any
    lower_line: Any
    upper_line: Any


@functools.partial(jax.jit, static_argnames="perturbation")
def bounds_of(perturbation: Geometric, x: jax.Array, lower: jax.Array, upper: jax.Array) -> Bounds:
    """Intervals and lines on cells `[cells, parameters]`, in the dtype of x."""

    def one(low: jax.Array, high: jax.Array) -> Bounds:
        interval = cj.ibp(lambda theta: perturbation.apply(x, theta))(Box(low, high))
        lines = perturbation.lines(Interval(x, x), Interval(low, high))
        return Bounds(interval.lower, interval.upper, lines.slopes, lines.lower, lines.upper)

    return jax.vmap(one)(lower, upper)


class Containment(NamedTuple):
    """What was seen of one transformation.

    Attributes:
      samples: how many parameters.
      interval: by how much a pixel was outside of its interval, at most; not above 0 if none was.
      lines: of its lines.
      interval_width: mean width of intervals over that of the samples, by width of cells.
      lines_width: of what the lines give on the cell.
      gap: of the distance between the lines.
    """

    samples: int
    interval: float
    lines: float
    interval_width: tuple[float, ...]
    lines_width: tuple[float, ...]
    gap: tuple[float, ...]


def examine(case: Case, images: np.ndarray, samples: int, per_cell: int, rng: np.random.Generator) -> Containment:
    """Samples parameters in cells of `_WIDTHS` times the widest ones, and compares."""
    worst_interval, worst_line, ratios = -math.inf, -math.inf, []
    cells = max(_BATCH, -(-samples // (per_cell * len(_WIDTHS))))
    cells = -(-cells // _BATCH) * _BATCH
    for share in _WIDTHS:
        widths, done = np.zeros(4), 0
        while done < cells:
            x = images[rng.integers(len(images))]
            low, high = _drawn(case, share, rng)
            found = jax.device_get(bounds_of(case.perturbation, jnp.asarray(x), low, high))
            for i in range(_BATCH):
                seen = _compared(
                    case.perturbation, x, (low[i], high[i]), Bounds(*(part[i] for part in found)), per_cell, rng
                )
                worst_interval, worst_line = max(worst_interval, seen[0]), max(worst_line, seen[1])
                widths += seen[2]
            done += _BATCH
        ratios.append(tuple(widths[1:] / widths[0]))
    columns = list(zip(*ratios, strict=True))
    return Containment(cells * per_cell * len(_WIDTHS), worst_interval, worst_line, *columns)


def _drawn(case: Case, share: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    least, greatest = (np.array(end, np.float32) for end in (case.perturbation.lower, case.perturbation.upper))
    widths = np.array(case.widths, np.float32) * np.float32(share)
    low = rng.uniform(least, greatest - widths, (_BATCH, len(widths))).astype(np.float32)
    # Some cells begin where a pixel lands on another one.
    low[0] = np.clip(np.round(low[0]), least, greatest - widths)
    return low, low + widths


def _compared(
    perturbation: Geometric,
    x: np.ndarray,
    cell: tuple[np.ndarray, np.ndarray],
    found: Bounds,
    count: int,
    rng: np.random.Generator,
) -> tuple[float, float, np.ndarray]:
    """How far samples leave the interval and the lines, and mean widths: sampled, interval, lines, gap."""
    low, high = (end.astype(np.float64) for end in cell)
    thetas = rng.uniform(low, high, (count, len(low)))
    thetas[0], thetas[-1] = low, high
    images = reference(perturbation, x, thetas)
    found = Bounds(*(part.astype(np.float64) for part in found))
    outside = np.maximum(found.lower - images, images - found.upper).max()
    line = np.tensordot(thetas, found.slopes, axes=1)
    off = np.maximum(line + found.lower_line - images, images - line - found.upper_line).max()
    gap = found.upper_line - found.lower_line
    reach = np.abs(found.slopes).T @ (high - low)
    widths = [images.max(0) - images.min(0), found.upper - found.lower, gap + reach.T, gap]
    return float(outside), float(off), np.array([width.mean() for width in widths])


def main() -> None:
    """Prints a table; exit status 1 if a pixel was outside of its bounds."""
    images, broken = digits.load("test")[0], False
    print("| transformation | samples | farthest outside interval | outside lines | intervals | lines | gap |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name, case in cases().items():
        found = examine(case, images, _SAMPLES.value, _PER_CELL, np.random.default_rng(_SEED.value))
        ratios = [" / ".join(f"{ratio:.2f}" for ratio in column) for column in found[3:]]
        row: list[Any] = [name, found.samples, f"{found.interval:.0e}", f"{found.lines:.0e}", *ratios]
        print("| " + " | ".join(map(str, row)) + " |", flush=True)
        broken |= max(found.interval, found.lines) > _ROUNDING
    if broken:
        sys.exit(1)


if __name__ == "__main__":
    flags.FLAGS.append_flag_values(_OWN)
    _OWN.mark_as_parsed()
    common.run(main)
