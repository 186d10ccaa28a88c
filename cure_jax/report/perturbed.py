"""Pictures of one perturbed image: what it becomes, and what is proved of it, cell by cell."""

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from cure_jax.report.style import (
    MARK_COLOR,
    UNION_COLOR,
    import_figure,
    method_style,
    plain,
    save,
    tidy,
)

# The ends of cells `[cells + 1]`, and the bound that was proved on each `[cells]`.
Steps = tuple[ArrayLike, ArrayLike]


class Along(NamedTuple):
    """What one parameter makes of an image, and what is proved of it.

    Attributes:
      images: `[height, width, channels]`, pixels in [0, 1], by what stands above each.
      parameters: `[points]`, ascending.
      margins: `[points]`, the least margin of the network there.
      bounds: By method, ends of cells and lower bounds of the margin on them.
      parameter_name: What the axis is called, with its unit.
    """

    images: Mapping[str, np.ndarray]
    parameters: ArrayLike
    margins: ArrayLike
    bounds: Mapping[str, Steps]
    parameter_name: str


def margins_along(path: str | PathLike[str], along: Along, *, title: str = "") -> None:
    """Draws perturbed images in a row, and below them the margin along a parameter with its proved bounds.

    Args:
      path: Where the PNG goes.
      along: What is drawn.
      title: What stands above: the data set, radii, how many images.

    Raises:
      ValueError: There are no images, or the arrays of a method do not fit together.
      ModuleNotFoundError: matplotlib is missing.
    """
    figure_class = import_figure()
    _check(along)
    figure = figure_class(figsize=(7.2, 4.6), layout="constrained")
    grid = figure.add_gridspec(2, len(along.images), height_ratios=(1, 1.7))
    _draw_images([figure.add_subplot(grid[0, index]) for index in range(len(along.images))], along)
    panel = figure.add_subplot(grid[1, :])
    _draw_margins(panel, along)
    panel.legend(frameon=False, fontsize=8)
    save(figure, path, title)


def margins_along_each(path: str | PathLike[str], rows: Sequence[Along], *, title: str = "") -> None:
    """Draws a row for each parameter: perturbed images, then the margin along it with its proved bounds.

    Args:
      path: Where the PNG goes.
      rows: What is drawn; as many images in each. The methods are those of the first row.
      title: What stands above: the data set, radii, how many images.

    Raises:
      ValueError: There are no rows, the rows have different numbers of images, or as for `margins_along`.
      ModuleNotFoundError: matplotlib is missing.
    """
    figure_class = import_figure()
    if len(counts := {len(row.images) for row in rows}) != 1:
        raise ValueError(
            f"Rows have {sorted(counts)} images; expected at least one row, and as many images in each. Give those at "
            "the ends, and the middle."
        )
    for row in rows:
        _check(row)
    columns = counts.pop()
    figure = figure_class(figsize=(7.6, 0.4 + 1.45 * len(rows)), layout="constrained")
    panels = figure.subplots(len(rows), columns + 1, squeeze=False, width_ratios=(*[1] * columns, 3.2))
    for (*images, panel), row in zip(panels, rows, strict=True):
        _draw_images(images, row)
        _draw_margins(panel, row)
        panel.set_ylabel("")
    handles, names = panels[0, -1].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=len(names), frameon=False, fontsize=8)
    save(figure, path, title)


def _check(along: Along) -> None:
    if not along.images:
        raise ValueError("Got no images; expected at least one, e.g. {'0°': image}. Give those at the ends.")
    for method, (edges, lower) in along.bounds.items():
        if np.shape(edges) != (len(np.asarray(lower)) + 1,):
            raise ValueError(
                f"bounds[{method!r}] has {len(np.asarray(edges))} ends of {len(np.asarray(lower))} cells; expected one "
                "more than cells. Give both ends of the last cell."
            )


def _draw_images(panels: Sequence[Any], along: Along) -> None:
    for panel, (title, image) in zip(panels, along.images.items(), strict=True):
        panel.imshow(np.squeeze(image), cmap="gray", vmin=0, vmax=1)
        panel.set_title(plain(title), fontsize=9)
        panel.set_axis_off()


def _draw_margins(panel: Any, along: Along) -> None:
    panel.plot(along.parameters, along.margins, color=MARK_COLOR, linewidth=1.5, label="margin of the network")
    for index, (method, (edges, lower)) in enumerate(along.bounds.items()):
        color, dash, _ = method_style(index)
        panel.stairs(lower, edges, baseline=None, color=color, linestyle=dash, label=f"proved by {plain(method)}")
    panel.axhline(0, color=UNION_COLOR, linewidth=0.8)
    panel.set(xlabel=plain(along.parameter_name), ylabel="least margin")
    panel.set_xlim(float(np.min(along.parameters)), float(np.max(along.parameters)))
    panel.locator_params(axis="x", nbins=6)
    tidy(panel)
