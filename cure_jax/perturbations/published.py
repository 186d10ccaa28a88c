"""Parameter ranges of published benchmarks of geometric robustness, by name.

Source: Yang et al., Provable Defense Against Geometric Transformations (ICLR 2023), and the code of its authors,
github.com/uiuc-arc/CGT at 68b5a23, whose grids of cells are given here too.
"""

from collections.abc import Mapping
from typing import NamedTuple

from cure_jax.perturbations.constructors import (
    brightness,
    compose,
    contrast,
    rotation,
    scaling,
    shear,
    translation,
)
from cure_jax.perturbations.geometric import Geometric

__all__ = ["PUBLISHED", "Published"]


class Published(NamedTuple):
    """A benchmark.

    Attributes:
      dataset: its name in `cure_jax.data`.
      perturbation: the set of perturbed images.
      cells: into how many cells the authors divide it, for every image.
    """

    dataset: str
    perturbation: Geometric
    cells: int


PUBLISHED: Mapping[str, Published] = {
    "mnist_R(30)": Published("mnist", rotation(-30, 30), 240),
    "mnist_T(2,2)": Published("mnist", translation((-2, 2), (-2, 2)), 6_400),
    "mnist_Sc(5)_R(5)_C(5)_B(.01)": Published(
        "mnist",
        compose(scaling(0.95, 1.05), rotation(-5, 5), contrast(0.95, 1.05), brightness(-0.01, 0.01)),
        3_200,
    ),
    "mnist_Sh(2)_R(2)_Sc(2)_C(2)_B(.001)": Published(
        "mnist",
        compose(
            shear(-0.02, 0.02), rotation(-2, 2), scaling(0.98, 1.02), contrast(0.98, 1.02), brightness(-0.001, 0.001)
        ),
        16_384,
    ),
    "cifar10_R(10)": Published("cifar10", rotation(-10, 10), 100_000),
    "cifar10_R(2)_Sh(2)": Published("cifar10", compose(rotation(-2, 2), shear(-0.02, 0.02)), 64_000),
    "cifar10_Sc(1)_R(1)_C(1)_B(.001)": Published(
        "cifar10",
        compose(scaling(0.99, 1.01), rotation(-1, 1), contrast(0.99, 1.01), brightness(-0.001, 0.001)),
        640_000,
    ),
    "tinyimagenet_R(5)": Published("tinyimagenet", rotation(-5, 5), 10_000),
    "tinyimagenet_Sc(2)": Published("tinyimagenet", scaling(0.98, 1.02), 2_000),
    "tinyimagenet_Sh(2)": Published("tinyimagenet", shear(-0.02, 0.02), 2_000),
}
