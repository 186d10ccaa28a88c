"""Pictures of one image under perturbations: what it becomes, and what is proved of it all the same."""

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from cure_jax.report.style import ATTACK_COLOR, MARK_COLOR, UNION_COLOR, import_figure, method_style, plain, tidy

__all__ = ["Perturbed", "margins_along", "perturbed_images"]

# The ends of cells `[cells + 1]`, and the bound that was proved on each `[cells]`.
Steps = tuple[ArrayLike, ArrayLike]


class Perturbed(NamedTuple):
    """An image under one perturbation.

    Attributes:
      name: of the perturbation.
      image: `[height, width, channels]`, pixels in [0, 1].
      worst: the same, the worst that an attack found.
      lower: `[others]`, proved lower bounds of the margins to the other classes, ascending.
      clean: `[others]`, the margins of the image itself.
      attacked: `[others]`, the margins of `worst`.
    """

    name: str
    image: np.ndarray
    worst: np.ndarray
    lower: np.ndarray
    clean: np.ndarray
    attacked: np.ndarray


def perturbed_images(path: str | PathLike[str], rows: Sequence[Perturbed], label: int) -> None:
    """Draws for each perturbation the image, the worst that was found, and the certified range of all margins.

    A bar reaches from the proved lower bound of a margin to the margin of the image itself, with a mark at that of the
    worst image. Where all bars are above 0 no perturbed image is misclassified.

    Args:
      path: Where the PNG goes.
      rows: One for each perturbation.
      label: The class of the image.

    Raises:
      ValueError: There are no rows.
      ModuleNotFoundError: matplotlib is missing.
    """
    figure_class = import_figure()
    if not rows:
        raise ValueError("Got no perturbed images; expected at least one row. Give one for each perturbation.")
    figure = figure_class(figsize=(7.6, 0.7 + 1.9 * len(rows)), layout="constrained")
    panels = figure.subplots(len(rows), 3, squeeze=False, width_ratios=(1, 1, 2.2))
    classes = [name for name in range(len(rows[0].lower) + 1) if name != label]
    for (image, worst, margins), row in zip(panels, rows, strict=True):
        for panel, pixels in ((image, row.image), (worst, row.worst)):
            panel.imshow(np.squeeze(pixels), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            panel.set(xticks=[], yticks=[])
        image.set_ylabel(plain(row.name))
        proved = np.all(row.lower > 0)
        places = np.arange(len(classes))
        margins.bar(
            places, row.clean - row.lower, 0.6, row.lower, color=UNION_COLOR if proved else ATTACK_COLOR, zorder=2
        )
        margins.scatter(places, row.attacked, marker="_", s=90, color="#D55E00", zorder=3)
        margins.axhline(0, color=MARK_COLOR, linewidth=1)
        margins.set(xticks=places, xticklabels=[str(name) for name in classes])
        margins.set_title("proved" if proved else "not proved", fontsize="small", color=MARK_COLOR, loc="right", pad=2)
        tidy(margins, grid="y")
    panels[0, 0].set_title("image", fontsize="medium")
    panels[0, 1].set_title("worst found", fontsize="medium")
    panels[0, 2].set_title(f"margin of {label} over each class", fontsize="medium")
    panels[-1, 2].set_xlabel("bar: from the proved bound to the image; line: worst found")
    figure.savefig(path, dpi=150)


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
