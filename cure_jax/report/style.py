"""What all pictures share: names and colours of norms and methods, and matplotlib, imported on first use."""

import math
from collections.abc import Iterable
from os import PathLike
from typing import Any

# Okabe and Ito's palette, which colour-blind readers can tell apart.
_NORM_COLORS = {"linf": "#0072B2", "l2": "#E69F00", "l1": "#009E73"}
_OTHER_COLORS = ("#CC79A7", "#56B4E9", "#D55E00", "#F0E442")
_METHOD_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_METHOD_DASHES, _METHOD_MARKERS = ("-", "--", ":", "-."), ("o", "s", "^", "D")
_NORM_NAMES = {"linf": r"$\ell_\infty$", "l2": r"$\ell_2$", "l1": r"$\ell_1$"}
_NORM_ORDER = ("linf", "l2", "l1")
UNION_COLOR, ATTACK_COLOR, MARK_COLOR, GRID_COLOR = "#5B5B5B", "#C4C4C4", "#606060", "#E5E5E5"


def import_figure() -> Any:
    """Returns matplotlib's class of figures; its absence comes with the command that repairs it."""
    try:
        # Not pyplot: that would choose a backend and keep every figure alive.
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "matplotlib is not installed; pictures are drawn with it. Run: pip install 'cure-jax[logging]'"
        ) from error
    return Figure


def tidy(axes: Any, *, grid: str = "both") -> None:
    """Leaves two of the four spines, and a pale grid behind the data."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis=grid, color=GRID_COLOR, linewidth=0.8)
    axes.set_axisbelow(True)


def save(figure: Any, path: str | PathLike[str], title: str) -> None:
    """Writes a PNG with a title above, unless that is empty."""
    if title:
        figure.suptitle(plain(title), fontsize=9, color=MARK_COLOR)
    figure.savefig(path, format="png", dpi=200)


def ordered(norms: Iterable[str]) -> list[str]:
    """l_inf, l_2, l_1, then all others by name."""
    return sorted(norms, key=lambda norm: (_NORM_ORDER.index(norm) if norm in _NORM_ORDER else math.inf, norm))


def norm_name(norm: str) -> str:
    """How a norm is written in a picture."""
    return _NORM_NAMES.get(norm, plain(norm))


def norm_color(norm: str, index: int) -> str:
    """The colour of a norm, the same in all pictures; `index` chooses one for a norm without."""
    return _NORM_COLORS.get(norm, _OTHER_COLORS[index % len(_OTHER_COLORS)])


def method_style(index: int) -> tuple[str, str, str]:
    """The colour, the dashes and the marker of the method at this place; 28 methods differ."""
    color, cycle = _METHOD_COLORS[index % len(_METHOD_COLORS)], index // len(_METHOD_COLORS)
    return color, _METHOD_DASHES[cycle % len(_METHOD_DASHES)], _METHOD_MARKERS[cycle % len(_METHOD_MARKERS)]


def plain(text: str) -> str:
    """A text that matplotlib does not take for a formula."""
    return text.replace("$", r"\$")
