"""A picture of what one certificate says of every norm at once."""

import math
from collections.abc import Mapping
from os import PathLike

import numpy as np
from numpy.typing import ArrayLike

from cure_jax.report.style import (
    import_figure,
    method_style,
    plain,
    save,
    tidy,
)

__all__ = ["radius_of_every_norm"]

_TICKS = (1.0, 1.25, 1.5, 2.0, 3.0, 5.0, math.inf)


def radius_of_every_norm(
    path: str | PathLike[str], curves: Mapping[str, tuple[ArrayLike, ArrayLike]], *, title: str = ""
) -> None:
    """Draws certified radii against the exponent of the norm, from 1 to infinity, in equal steps of 1 / p.

    Args:
      path: Where the PNG goes.
      curves: {name: (exponents p [norms], radii [norms])}, as from `cure_jax.covered_radius`; radii in pixel units.
      title: What stands above: the data set, radii, how many images.

    Raises:
      ValueError: There are no curves, the two arrays of one have different lengths, or a radius is not positive.
      ModuleNotFoundError: matplotlib is missing.
    """
    figure_class = import_figure()
    arrays = {name: tuple(np.asarray(part, float) for part in curve) for name, curve in curves.items()}
    if not arrays or any(p.shape != radii.shape or np.any(radii <= 0) for p, radii in arrays.values()):
        raise ValueError(
            f"Got curves of the shapes { {name: [part.shape for part in curve] for name, curve in arrays.items()} }; "
            "expected at least one, of exponents and as many positive radii. Repair it."
        )
    figure = figure_class(figsize=(5.4, 3.4), layout="constrained")
    axes = figure.subplots()
    for index, (name, (exponents, radii)) in enumerate(arrays.items()):
        color, dashes, _ = method_style(index)
        axes.plot(1 / exponents, radii, color=color, linestyle=dashes, linewidth=2, label=plain(name))
    names = [r"$\infty$" if math.isinf(p) else f"{p:g}" for p in _TICKS]
    axes.set(xticks=[1 / p for p in _TICKS], xticklabels=names, xlabel="exponent of the norm", yscale="log")
    axes.set_ylabel("certified radius (pixels in [0, 1])")
    axes.invert_xaxis()
    axes.legend(frameon=False)
    tidy(axes)
    save(figure, path, title)
