"""Pictures of one image under perturbations: how bad it was made, and what is proved of it all the same."""

from collections.abc import Sequence
from os import PathLike
from typing import NamedTuple

import numpy as np

from cure_jax.report.style import (
    ATTACK_COLOR,
    MARK_COLOR,
    UNION_COLOR,
    import_figure,
    plain,
    save,
    tidy,
)

__all__ = ["Perturbed", "perturbed_images"]


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


def perturbed_images(path: str | PathLike[str], rows: Sequence[Perturbed], label: int, *, title: str = "") -> None:
    """Draws for each perturbation the image, the worst that was found, and the certified range of all margins.

    A bar reaches from the proved lower bound of a margin to the margin of the image itself, with a mark at that of the
    worst image. Where all bars are above 0 no perturbed image is misclassified.

    Args:
      path: Where the PNG goes.
      rows: One for each perturbation.
      label: The class of the image.
      title: What stands above: the data set, radii, how many images.

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
    figure.supxlabel("bars: from the proved bound to the image itself; lines: the worst found", fontsize="small")
    save(figure, path, title)
