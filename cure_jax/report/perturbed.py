"""A picture of one perturbed image: what it becomes, and what is proved of it, cell by cell."""

from collections.abc import Mapping
from os import PathLike

import numpy as np
from numpy.typing import ArrayLike

from cure_jax.report.style import MARK_COLOR, UNION_COLOR, import_figure, method_style, plain, tidy

# The ends of cells `[cells + 1]`, and the bound that was proved on each `[cells]`.
Steps = tuple[ArrayLike, ArrayLike]


def margins_along(
    path: str | PathLike[str],
    images: Mapping[str, np.ndarray],
    parameters: ArrayLike,
    margins: ArrayLike,
    bounds: Mapping[str, Steps],
    *,
    parameter_name: str,
) -> None:
    """Draws perturbed images in a row, and below them the margin along a parameter with its proved bounds.

    Args:
      path: Where the PNG goes.
      images: `[height, width, channels]`, pixels in [0, 1], by what stands above each.
      parameters: `[points]`, ascending.
      margins: `[points]`, the least margin of the network there.
      bounds: By method, ends of cells and lower bounds of the margin on them.
      parameter_name: What the axis is called, with its unit.

    Raises:
      ValueError: There are no images, or the arrays of a method do not fit together.
      ModuleNotFoundError: matplotlib is missing.
    """
    figure_class = import_figure()
    if not images:
        raise ValueError("Got no images; expected at least one, e.g. {'0°': image}. Give those at the ends.")
    for method, (edges, lower) in bounds.items():
        if np.shape(edges) != (len(np.asarray(lower)) + 1,):
            raise ValueError(
                f"bounds[{method!r}] has {len(np.asarray(edges))} ends of {len(np.asarray(lower))} cells; expected one "
                "more than cells. Give both ends of the last cell."
            )
    figure = figure_class(figsize=(7.2, 4.6), layout="constrained")
    grid = figure.add_gridspec(2, len(images), height_ratios=(1, 1.7))
    for index, (title, image) in enumerate(images.items()):
        panel = figure.add_subplot(grid[0, index])
        panel.imshow(np.squeeze(image), cmap="gray", vmin=0, vmax=1)
        panel.set_title(plain(title), fontsize=9)
        panel.set_axis_off()
    panel = figure.add_subplot(grid[1, :])
    panel.plot(parameters, margins, color=MARK_COLOR, linewidth=1.5, label="margin of the network")
    for index, (method, (edges, lower)) in enumerate(bounds.items()):
        color, dash, _ = method_style(index)
        panel.stairs(lower, edges, baseline=None, color=color, linestyle=dash, label=f"proved by {plain(method)}")
    panel.axhline(0, color=UNION_COLOR, linewidth=0.8)
    panel.set(xlabel=plain(parameter_name), ylabel="least margin")
    panel.set_xlim(float(np.min(parameters)), float(np.max(parameters)))
    tidy(panel)
    panel.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=150)
