"""Additive noise on the grid of the pixels, and what radius a probability under it certifies.

The smoothed classifier of a base classifier F and noise e is

    g(y) = the class c of largest P(F(round(y + e)) = c),        for every real y,

where `round` takes each pixel to the nearest multiple of 1/levels. Rounding is a part of the base classifier: the
theorems below hold for any base classifier, so they hold for F after `round`, with real noise and real perturbations.
At an image x on the grid, round(x + e) = x + round(e), and round(e) is an integer for each pixel (divided by levels)
whose distribution is known. So it is drawn from a table, by integers, and added to x as integers: no floating-point
sum could tell F what x was.

What is certified: with p at least the lower bound of P(F(round(x + e)) = c), g(y) = c for EVERY real y, on the grid or
off it, with ||y - x|| at most the radius. Nothing is cut by the pixel box: the ball is whole.

The table rounds probabilities. The distribution that is drawn lies within `AdditiveNoise.error(size)` of the true one
in total variation, and a lower bound of one probability is a lower bound of the other one after subtracting that.
"""

import dataclasses
import functools
import math
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int32, Key
from scipy import special

from cure_jax.smoothing.table import AliasTable, alias_table, draw

__all__ = ["AdditiveNoise", "Noise", "check_levels", "gaussian", "laplace", "on_grid", "uniform"]

_NORMS = {"gaussian": "l2", "uniform": "l1", "laplace": "l1"}
# Cut off on each side.
_TAIL = 2.0**-40
# Of a distribution function in float64: four units in the last place of 1.
_FUNCTION_ERROR = 2.0**-50
_MOST_VALUES = 1 << 20
_MOST_LEVELS = 65535
# So that what is returned lies below the true radius in spite of rounding.
_ROOM = 1e-9


@runtime_checkable
class Noise(Protocol):
    """What a smoothed classifier averages over; hashable, so that programs are compiled for it.

    Attributes:
      kind: "gaussian", "uniform", "laplace" or "splitting".
      scale: in pixels of [0, 1].
      levels: pixels are multiples of 1/levels.
    """

    @property
    def kind(self) -> str: ...  # noqa: D102

    @property
    def scale(self) -> float: ...  # noqa: D102

    @property
    def levels(self) -> int: ...  # noqa: D102

    @property
    def norm(self) -> str:
        """The norm in which it certifies: "l1" or "l2"."""
        ...

    def sample(self, image: Int32[Array, "*x"], key: Key[Array, ""]) -> Float[Array, "*x"]:
        """A noisy view of an image that is given in levels, in pixels."""
        ...

    def numbered(self, image: Int32[Array, "*x"], key: Key[Array, ""], number: Int32[Array, ""]) -> Float[Array, "*x"]:
        """The view of this number; independent ones where they are random."""
        ...


@dataclasses.dataclass(frozen=True)
class AdditiveNoise:
    """Independent noise on every pixel; made by `gaussian`, `uniform`, `laplace`.

    Attributes:
      kind: the distribution.
      scale: sigma, half of the width, or b, in pixels of [0, 1].
      levels: pixels are multiples of 1/levels.
    """

    kind: str
    scale: float
    levels: int

    @property
    def norm(self) -> str:
        """The norm in which it certifies."""
        return _NORMS[self.kind]

    def sample(self, image: Int32[Array, "*x"], key: Key[Array, ""]) -> Float[Array, "*x"]:
        """`image` plus noise, in pixels; not cut to [0, 1]."""
        return (image + draw(_table(self), key, image.shape)).astype(jnp.float32) / self.levels

    def numbered(self, image: Int32[Array, "*x"], key: Key[Array, ""], number: Int32[Array, ""]) -> Float[Array, "*x"]:
        """The sample of this number, whatever else is drawn beside it."""
        return self.sample(image, jax.random.fold_in(key, number))

    def error(self, size: int) -> float:
        """Total variation between the noise that is drawn and the true one, of an image of `size` pixels, at most."""
        return size * _error(self)

    def radius(self, probability: Float[np.ndarray, "*batch"]) -> Float[np.ndarray, "*batch"]:
        """The radius that a lower bound of the probability of the top class certifies, in `norm`, rounded down.

        With p the bound, D the norm of a perturbation, and q(D) the least probability of the class that is left there:

        * gaussian, l_2: q(D) = Phi(Phi^-1(p) - D / sigma), so D < sigma Phi^-1(p) (Cohen et al., Theorem 1);
        * laplace, l_1: moving the density exp(-||e||_1 / b) by D multiplies it by at most exp(D / b), so the other
          classes have at most (1 - p) exp(D / b) together: D < -b log(2 (1 - p)) (Teng et al.);
        * uniform, l_1: two cubes of width 2 a that are moved apart by d share the fraction prod (1 - |d_i| / (2 a))_+,
          at least 1 - D / (2 a), so q(D) = p - D / (2 a): D < 2 a (p - 1/2) (Lee et al.; Yang et al.).

        Args:
          probability: p, in float64.

        Returns:
          The radius in pixels of [0, 1]; 0 where p is at most 1/2.

        References:
          * Cohen, Rosenfeld and Kolter, `Certified Adversarial Robustness via Randomized Smoothing
            <https://arxiv.org/abs/1902.02918>`_, ICML 2019, Theorem 1
          * Teng, Lee and Yuan, "l1 Adversarial Robustness Certificates: a Randomized Smoothing Approach", 2020
          * Lee, Yuan, Chang and Jaakkola, `Tight Certificates of Adversarial Robustness for Randomly Smoothed
            Classifiers <https://arxiv.org/abs/1906.04948>`_, NeurIPS 2019
          * Yang et al., `Randomized Smoothing of All Shapes and Sizes <https://arxiv.org/abs/2002.08118>`_, ICML 2020
        """
        # A probability of 1 is never certain; as a bound it would be wrong, and its radius infinite.
        p = np.clip(probability, 0.5, np.nextafter(1.0, 0.0))
        radii = {
            "gaussian": lambda: special.ndtri(p),
            "laplace": lambda: -np.log(2 * (1 - p)),
            "uniform": lambda: 2 * (p - 0.5),
        }
        return np.asarray(self.scale * np.maximum(radii[self.kind](), 0.0) * (1 - _ROOM))


def gaussian(sigma: float | int, *, levels: int = 255) -> AdditiveNoise:
    """Gaussian noise of standard deviation sigma: certifies in l_2.

    Args:
      sigma: in pixels of [0, 1].
      levels: the images that are certified have pixels that are multiples of 1/levels: 255 for 8 bits, 16 for digits.

    Raises:
      ValueError: if sigma is not positive and finite, or there are not 1 to 65535 levels.

    Examples:
      >>> round(float(gaussian(0.25).radius(np.array(0.9))), 4)
      0.3204
    """
    return _additive("gaussian", "sigma", sigma, levels)


def uniform(half_width: float | int, *, levels: int = 255) -> AdditiveNoise:
    """Noise that is uniform on [-half_width, half_width] in each pixel: certifies in l_1.

    Args:
      half_width: lambda, in pixels of [0, 1].
      levels: as for `gaussian`.

    Raises:
      ValueError: as `gaussian`.

    Examples:
      >>> round(float(uniform(0.5).radius(np.array(0.9))), 4)
      0.4
    """
    return _additive("uniform", "half_width", half_width, levels)


def laplace(scale: float | int, *, levels: int = 255) -> AdditiveNoise:
    """Noise of density exp(-|e| / scale) / (2 scale) in each pixel: certifies in l_1.

    Args:
      scale: b, in pixels of [0, 1]; the standard deviation is sqrt(2) b.
      levels: as for `gaussian`.

    Raises:
      ValueError: as `gaussian`.

    Examples:
      >>> round(float(laplace(0.25).radius(np.array(0.9))), 4)
      0.4024
    """
    return _additive("laplace", "scale", scale, levels)


def _additive(kind: str, name: str, scale: float | int, levels: int) -> AdditiveNoise:
    if not 0 < scale < math.inf:
        raise ValueError(
            f"{kind} got {name}={scale}; expected a finite number above 0, in pixels of [0, 1]. Choose e.g. 0.25."
        )
    check_levels(kind, levels)
    noise = AdditiveNoise(kind, float(scale), int(levels))
    if 2 * _reach(noise) + 1 > _MOST_VALUES:
        raise ValueError(
            f"{kind} got {name}={scale} for {levels} levels, noise of {2 * _reach(noise) + 1} values; expected at most "
            f"{_MOST_VALUES}. Lower {name}, or choose fewer levels."
        )
    return noise


def check_levels(kind: str, levels: int) -> None:
    """Raises ValueError for a number of levels that is out of range."""
    if not 1 <= levels <= _MOST_LEVELS or int(levels) != levels:
        raise ValueError(
            f"{kind} got levels={levels}; expected a whole number from 1 to {_MOST_LEVELS}. Use 255 for images of 8 "
            "bits."
        )


def on_grid(images: np.ndarray, levels: int) -> Int32[np.ndarray, "*images"]:
    """Images in [0, 1] as whole numbers of levels.

    Args:
      images: `[examples, *x]`, floats that are multiples of 1/levels up to the rounding of float32, 2^-23.
      levels: of the grid.

    Raises:
      ValueError: naming the first pixel that lies off the grid.
    """
    wide = np.asarray(images, np.float64)
    whole = np.rint(wide * levels)
    off = np.abs(wide - whole / levels) > 2.0**-23
    if off.any():
        index = tuple(int(i) for i in np.unravel_index(np.argmax(off), off.shape))
        raise ValueError(
            f"images[{', '.join(map(str, index))}] is {wide[index]:.6g}, no multiple of 1/{levels}; a certificate by "
            f"smoothing is of images on the grid of its noise. Round the images (np.round(images * {levels}) / "
            f"{levels}), or give the noise the levels that they have."
        )
    return whole.astype(np.int32)


def _survival(noise: AdditiveNoise, t: np.ndarray) -> np.ndarray:
    """P(e > t) for t >= 0, in levels."""
    t = t / (noise.scale * noise.levels)
    survival = {
        "gaussian": lambda: special.ndtr(-t),
        "laplace": lambda: 0.5 * np.exp(-t),
        "uniform": lambda: np.clip((1 - t) / 2, 0.0, 0.5),
    }
    return survival[noise.kind]()


def _reach(noise: AdditiveNoise) -> int:
    """The largest value that is drawn: what lies beyond has a probability of at most `_TAIL` on each side."""
    quantile = {"gaussian": -special.ndtri(_TAIL), "laplace": -math.log(2 * _TAIL), "uniform": 1.0}[noise.kind]
    return math.ceil(quantile * noise.scale * noise.levels)


@functools.lru_cache(maxsize=16)
def _probabilities(noise: AdditiveNoise) -> np.ndarray:
    """Of round(e) = -reach, ..., reach, in float64."""
    edges = np.arange(_reach(noise) + 1) + 0.5
    beyond = _survival(noise, edges)
    positive = beyond[:-1] - beyond[1:]
    probabilities = np.concatenate([positive[::-1], [1 - 2 * beyond[0]], positive])
    probabilities.flags.writeable = False
    return probabilities


@functools.lru_cache(maxsize=16)
def _table(noise: AdditiveNoise) -> AliasTable:
    return alias_table(_probabilities(noise), -_reach(noise))


@functools.lru_cache(maxsize=16)
def _error(noise: AdditiveNoise) -> float:
    """Total variation for one pixel: rounding of the table, the tails, and of the distribution function."""
    probabilities = _probabilities(noise)
    rounding = np.abs(_table(noise).probabilities - probabilities).sum() / 2
    return float(rounding + 2 * _TAIL + len(probabilities) * _FUNCTION_ERROR)
