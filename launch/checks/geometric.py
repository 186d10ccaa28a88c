"""Certifies geometric perturbations by lines in the parameters, and by the published interval method, side by side.

    python launch/checks/geometric.py --network=mnist_cpu/max --perturbation="mnist_R(30)" --images=100

Same network, same images, same search (cells are split where they are undecided), four ways to bound a cell:

    published   pixels as sums of intervals of weights times pixels, in [0, 1] (Yang et al., ICLR 2023), then IBP
    intervals   pixels by this library's enclosures, then IBP
    crown       lines in the parameters, then CROWN
    crown_ibp   the same, with the layers inside by IBP

The reference is an implementation of our own of the published bounds. It is given two things that the published method
has not: the search, and margins in place of differences of bounds of logits. Prints certified accuracy, cells of an
image and seconds of an image, without compilation; and the accuracy under attack, below which no certified accuracy
may lie above. `--perturbation` is a name in `cure_jax.perturbations.PUBLISHED`, a call such as "rotation(-10, 10)", or
several with a plus between them, applied in this order.
"""

import ast
import dataclasses
import functools
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from cure_jax import data, models, perturbations, pytrees, report
from cure_jax.certification import bound_method, margins
from cure_jax.commands.parts import common
from cure_jax.perturbations import Geometric, Inputs, affine, intervals
from cure_jax.perturbations.colour import COLOURS
from cure_jax.progress import compile_seconds
from cure_jax.regions import Box, Interval
from cure_jax.validation import validate

# Not among those of the process: tests import several programs.
_OWN = flags.FlagValues()
_NETWORK = flags.DEFINE_string(
    "network", "digits/max", "A name of cure_jax.models.pretrained_names().", flag_values=_OWN
)
_PERTURBATION = flags.DEFINE_string("perturbation", "rotation(-10, 10)", "A benchmark, or a call.", flag_values=_OWN)
_WAYS = flags.DEFINE_list(
    "ways",
    ["published", "intervals", "crown_ibp", "crown"],
    "How cells are bounded; none: pictures only.",
    flag_values=_OWN,
)
_IMAGES = flags.DEFINE_integer("images", 100, "The first so many test images.", flag_values=_OWN)
_BATCH = flags.DEFINE_integer("batch_size", 32, "Cells at once.", flag_values=_OWN)
_MAX_CELLS = flags.DEFINE_integer("max_cells", 2000, "Of an image; then it is given up.", flag_values=_OWN)
_PICTURE = flags.DEFINE_string(
    "picture", None, "Where a picture of the first image goes; of one parameter.", flag_values=_OWN
)
_PICTURE_OF_EACH = flags.DEFINE_string(
    "picture_of_each", None, "Where a picture of the first image under each perturbation goes.", flag_values=_OWN
)
_JSON = flags.DEFINE_string("json", None, "Where to keep the figures.", flag_values=_OWN)


@pytrees.register
@dataclasses.dataclass(frozen=True)
class PublishedIntervals:
    """The interval method of Yang et al. as a perturbation: affine transformations first, then colours.

    Attributes:
      of: the perturbation, whose cells these are.
    """

    of: Geometric

    def cells(self, shape: tuple[int, ...]) -> np.ndarray:
        """Return the cells of the perturbation."""
        return self.of.cells(shape)

    def split(self, cell: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """Return the halves of a cell."""
        return self.of.split(cell, shape)

    def sample(self, x: jax.Array, key: jax.Array) -> jax.Array:
        """Return a random perturbed image."""
        return self.of.sample(x, key)

    def inputs(self, x: jax.Array, cell: jax.Array) -> Inputs:
        """Return the box of pixels of a cell."""
        known = self.of.inputs(x, cell)
        box = pixel_box(self.of, x, known.region.bounding_box())
        point = jnp.clip(known.transform(known.point), box.lower, box.upper)
        return Inputs(Box(box.lower, box.upper), lambda image: image, point)


def pixel_box(perturbation: Geometric, x: jax.Array, cell: Interval) -> Interval:
    """Pixels on a cell: the sum over all pixels of an interval of weights times the pixel.

    Args:
      perturbation: affine transformations, then colours.
      x: the image.
      cell: of the parameters.

    Raises:
      ValueError: for a blur, or a colour before a movement: the published bounds have neither.
    """
    kinds = [kind for kind in perturbation.kinds if kind not in COLOURS]
    if perturbation.kinds[: len(kinds)] != tuple(kinds) or not affine.INVERSES.keys() >= set(kinds):
        raise ValueError(
            f"The published bounds are of movements of pixels, then colours; got {', '.join(perturbation.kinds)}. "
            "Leave out --ways=published."
        )
    bounds = [Interval(low, high) for low, high in zip(cell.lower, cell.upper, strict=True)]
    found = Interval(x, x)
    if kinds:
        matrices = [affine.INVERSES[kind].matrix_over(box) for kind, box in zip(kinds, bounds, strict=False)]
        rows, columns = affine.placed(affine.multiplied(matrices), x.shape[:2])
        weights = [_hats(place, size) for place, size in zip((rows, columns), x.shape[:2], strict=True)]
        lower, upper = (
            jnp.einsum("hwi,hwj,ijc->hwc", row, column, x)
            for row, column in zip(*((part.lower, part.upper) for part in weights), strict=True)
        )
        found = Interval(jnp.clip(lower, 0, 1), jnp.clip(upper, 0, 1))
    for kind, box in zip(perturbation.kinds[len(kinds) :], bounds[len(kinds) :], strict=True):
        found = intervals.product(found, box) if kind == "contrast" else intervals.add(found, box)
    return Interval(jnp.clip(found.lower, 0, 1), jnp.clip(found.upper, 0, 1))


def _hats(place: Interval, size: int) -> Interval:
    """The weights max(0, 1 - |place - pixel|) of the pixels along an axis, `[height, width, size]`."""
    pixels = jnp.arange(size, dtype=place.dtype)[None, None]
    low, high = place.lower[..., None] - pixels, place.upper[..., None] - pixels
    farthest = jnp.maximum(jnp.abs(low), jnp.abs(high))
    nearest = jnp.where((low <= 0) & (high >= 0), 0, jnp.minimum(jnp.abs(low), jnp.abs(high)))
    return Interval(jnp.maximum(1 - farthest, 0), jnp.maximum(1 - nearest, 0))


def parsed(text: str) -> Geometric:
    """The perturbation that a benchmark's name stands for, or calls such as "rotation(-10, 10) + contrast(0.9, 1.1)".

    Raises:
      ValueError: for anything else.
    """
    if text in perturbations.PUBLISHED:
        return perturbations.PUBLISHED[text].perturbation
    try:
        calls = _summands(ast.parse(text, mode="eval").body)
        limits = [tuple(float(ast.literal_eval(argument)) for argument in call.args) for call in calls]
        names = [call.func.id for call in calls if isinstance(call.func, ast.Name)]
        assert len(names) == len(calls)
        assert all(name in perturbations.GEOMETRIC for name in names)
        assert all(len(pair) == 2 for pair in limits)
    except (AssertionError, SyntaxError, TypeError, ValueError) as error:
        raise ValueError(
            f"--perturbation is {text!r}; expected one of {', '.join(perturbations.PUBLISHED)}, or calls such as "
            "'rotation(-10, 10)', joined by '+'. Choose one."
        ) from error
    return perturbations.compose(
        *(perturbations.GEOMETRIC[name](*pair) for name, pair in zip(names, limits, strict=True))
    )


def _summands(node: ast.expr) -> list[ast.Call]:
    """The calls of a sum, from the left."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return [*_summands(node.left), *_summands(node.right)]
    assert isinstance(node, ast.Call)
    return [node]


def measured(way: str, f: Any, images: np.ndarray, labels: np.ndarray, perturbation: Geometric) -> dict[str, Any]:
    """Certifies, and says what it took."""
    chosen = PublishedIntervals(perturbation) if way == "published" else perturbation
    method = way if way in ("crown", "crown_ibp") else "ibp"
    began = time.monotonic()
    with compile_seconds() as compiling:
        found = perturbations.certify_perturbation(
            f, images, labels, chosen, method=method, batch_size=_BATCH.value, max_cells=_MAX_CELLS.value
        )
        seconds = time.monotonic() - began - compiling()
    verified = found.verified
    return {
        "certified": float(verified.mean()),
        "given_up": float(found.unfinished.mean()),
        "cells": float(found.cells.mean()),
        "cells_of_verified": float(found.cells[verified].mean()) if verified.any() else float("nan"),
        "seconds": seconds / len(images),
        "verified": verified.tolist(),
        "margin": found.margin.tolist(),
    }


def along(
    f: Any, x: np.ndarray, label: int, perturbation: Geometric, ways: Sequence[str], images: int = 5
) -> report.Along:
    """An image along its parameter, with the bounds of its margin on 30 cells.

    Args:
      f: one image to logits.
      x: the image.
      label: its class.
      perturbation: one with a single parameter.
      ways: names in `_WAYS_DRAWN`.
      images: how many are shown.

    Raises:
      ValueError: if there are several parameters.
    """
    if len(perturbation.kinds) > 1:
        raise ValueError(f"--picture is for one parameter; got {', '.join(perturbation.kinds)}. Leave it out.")
    kind, low, high = "".join(perturbation.kinds), min(perturbation.lower), max(perturbation.upper)
    thetas = np.linspace(low, high, 401, dtype=np.float32)[:, None]

    @jax.jit
    def margin(theta: jax.Array) -> jax.Array:
        return jnp.min(margins(lambda t: f(perturbation.apply(jnp.asarray(x), t)), label)(theta))

    @functools.partial(jax.jit, static_argnames=("method", "published"))
    def bound(cell: jax.Array, method: str, published: bool) -> jax.Array:
        region, transform, _ = (PublishedIntervals(perturbation) if published else perturbation).inputs(
            jnp.asarray(x), cell
        )
        return jnp.min(bound_method(method)(margins(lambda t: f(transform(t)), label))(region).lower)

    edges = np.linspace(low, high, 31, dtype=np.float32)
    cells = np.stack([edges[:-1], edges[1:]], axis=1)
    bounds = {name: (edges, [float(bound(cell, *_WAYS_DRAWN[name])) for cell in cells]) for name in ways}
    shown = {
        f"{theta:g}": np.asarray(perturbation.apply(jnp.asarray(x), jnp.float32([theta])))
        for theta in np.linspace(low, high, images)
    }
    name = f"{_AXES.get(kind, kind)}, {perturbations.KINDS[kind].unit}"
    return report.Along(shown, thetas[:, 0], jax.lax.map(margin, thetas), bounds, name)


# Method, and whether pixels are bounded as published.
_WAYS_DRAWN = {"CROWN on lines": ("crown", False), "IBP on intervals": ("ibp", False), "published": ("ibp", True)}
# Parameters that are not called as their perturbation.
_AXES = {"rows": "translation, down", "columns": "translation, to the right"}
_EACH = (
    perturbations.rotation(-20, 20),
    Geometric((-1.0,), (1.0,), ("columns",)),
    perturbations.scaling(0.8, 1.2),
    perturbations.shear(-0.3, 0.3),
    perturbations.contrast(0.5, 1.5),
    perturbations.brightness(-0.3, 0.3),
    perturbations.blur(0, 1),
)


def main() -> None:
    """Prints a table."""
    name = _NETWORK.value
    f, perturbation = models.pretrained(name).classifier, parsed(_PERTURBATION.value)
    dataset = models.pretrained_index()[name]["config"]["dataset"]
    images, labels, classes = data.load(dataset, "test")
    images, labels = validate(images[: _IMAGES.value], labels[: _IMAGES.value], classes)
    example, title = (images[0], int(labels[0])), f"{name}, the first test image; bounds on 30 cells"
    if _PICTURE.value:
        report.margins_along(_PICTURE.value, along(f, *example, perturbation, tuple(_WAYS_DRAWN)), title=title)
    if _PICTURE_OF_EACH.value:
        rows = [along(f, *example, each, tuple(_WAYS_DRAWN)[:2], images=3) for each in _EACH]
        report.margins_along_each(_PICTURE_OF_EACH.value, rows, title=title)
    if not _WAYS.value:
        return
    attack = perturbations.attack_perturbation(f, images, labels, perturbation, key=jax.random.key(0))
    print(f"{name}, {_PERTURBATION.value}, {len(images)} images: {attack.survived.mean():.1%} under attack")
    print("| way | certified | given up | cells | of certified images | seconds an image |")
    print("| --- | --- | --- | --- | --- | --- |")
    results: dict[str, Any] = {"attack": float(attack.survived.mean())}
    for way in _WAYS.value:
        found = results[way] = measured(way, f, images, labels, perturbation)
        broken = np.array(found["verified"]) & ~attack.survived
        above = np.array(found["verified"]) & (np.array(found["margin"]) > attack.margin + 1e-4)
        assert not np.any(broken | above), (
            f"{way} proves what the attack breaks: images {np.flatnonzero(broken | above)}"
        )
        print(
            f"| {way} | {found['certified']:.1%} | {found['given_up']:.1%} | {found['cells']:.1f} | "
            f"{found['cells_of_verified']:.1f} | {found['seconds']:.3f} |",
            flush=True,
        )
    if _JSON.value:
        Path(_JSON.value).write_text(json.dumps(results))


if __name__ == "__main__":
    flags.FLAGS.append_flag_values(_OWN)
    _OWN.mark_as_parsed()
    common.run(main)
