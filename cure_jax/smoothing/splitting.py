"""Deterministic smoothing for l_1: splitting noise, all of whose values are tried (DSSN)."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Int32, Key

from cure_jax.smoothing.noise import check_levels

__all__ = ["SplittingNoise", "splitting"]


@dataclasses.dataclass(frozen=True)
class SplittingNoise:
    r"""Noise that tells of each pixel only between which two splitting points it lies; made by `splitting`.

    Pixel i, a whole number of levels, is cut by splitting points at s + v_i + 1/2 + k N for all integers k, in levels.
    N = 2 half_width levels is their distance, v_i a fixed offset, and s = 0, ..., N - 1 the number of the noise, the
    same for all pixels. What the network sees is the middle of the piece in which the pixel lies, cut by [0, 1].

    All N noises are tried, so the smoothed classifier is known exactly. Move the image on its grid by K levels in
    total (an l_1 distance of K / levels). A pixel that moves by one level passes one half-odd point, and that is a
    splitting point for exactly one s. So at most K of the N noisy views change, and with them at most K votes. Each
    changed vote takes one from the top class and gives one to another class at most: while

        votes(top) - K  >  votes(other) + K       (>= where the top class comes first, as it wins ties)

    for every other class, the prediction stays. No probability and no random number is involved, and offsets may be
    anything; they are pseudo-random so that not all pixels are cut at the same level.

    What is certified is the prediction at every image ON THE GRID within the l_1 distance. Off the grid nothing is.

    Attributes:
      scale: half of the distance between splitting points, lambda, in pixels of [0, 1].
      levels: pixels are multiples of 1/levels.
      seed: of the offsets: a network is certified with those that it was trained with.

    References:
      Levine and Feizi, `Improved, Deterministic Smoothing for L1 Certified Robustness
      <https://arxiv.org/abs/2103.10834>`_, ICML 2021, Theorem 2 (splitting noise) and Corollary 1 (on a grid)
    """

    scale: float
    levels: int
    seed: int = 0

    @property
    def kind(self) -> str:
        """The name of this noise."""
        return "splitting"

    @property
    def norm(self) -> str:
        """The norm in which it certifies."""
        return "l1"

    @property
    def count(self) -> int:
        """N, the number of noises."""
        return round(2 * self.scale * self.levels)

    def sample(self, image: Int32[Array, "*x"], key: Key[Array, ""]) -> Float[Array, "*x"]:
        """The view of one of the noises, chosen at random: for training."""
        return self.numbered(image, key, jax.random.randint(key, (), 0, self.count, jnp.int32))

    def numbered(self, image: Int32[Array, "*x"], key: Key[Array, ""], number: Int32[Array, ""]) -> Float[Array, "*x"]:
        """The view of one of the noises."""
        del key
        # In half levels pixels are even, and splitting points odd.
        split = 2 * (number + jnp.asarray(_offsets(self, image.shape))) + 1
        lower = 2 * image - (2 * image - split) % (2 * self.count)
        middle = jnp.maximum(lower, 0) + jnp.minimum(lower + 2 * self.count, 2 * self.levels)
        return middle.astype(jnp.float32) / (4 * self.levels)

    def radius(self, votes: Int[np.ndarray, "*batch classes"]) -> Float[np.ndarray, "*batch"]:
        """The l_1 radius that the votes of all noises certify, in pixels of [0, 1]; the ball is closed.

        Args:
          votes: by class; they need not add up to N, as views with infinite logits have no vote.
        """
        top = np.argmax(votes, axis=-1, keepdims=True)
        classes = np.arange(votes.shape[-1])
        lead = np.take_along_axis(votes, top, -1) - votes - (classes < top)
        # Views without a vote may give one to any class, as others do.
        steps = np.where(classes == top, np.iinfo(np.int64).max, lead // 2).min(axis=-1)
        return steps / self.levels


def splitting(half_width: float | int, *, levels: int = 255, seed: int = 0) -> SplittingNoise:
    """Splitting noise: certifies in l_1, without chance, images on their grid.

    Args:
      half_width: lambda, in pixels of [0, 1]: the largest radius there can be. 2 * half_width * levels views are
        classified for each image.
      levels: pixels are multiples of 1/levels.
      seed: of the offsets.

    Raises:
      ValueError: if half_width is not positive, or 2 * half_width * levels no whole number; or if there are not 1 to
        65535 levels.

    Examples:
      >>> splitting(0.5).count
      255
    """
    check_levels("splitting", levels)
    count = 2 * half_width * levels
    if not (1 <= count < 2**24 and abs(count - round(count)) <= 1e-6 * count):
        raise ValueError(
            f"splitting got half_width={half_width} for {levels} levels, so that 2 * half_width * levels is "
            f"{count:g}; expected a whole number from 1 to {2**24 - 1}. Choose e.g. half_width={max(levels, 1)}/"
            f"{2 * levels}."
        )
    return SplittingNoise(round(count) / (2 * levels), int(levels), seed)


@functools.lru_cache(maxsize=16)
def _offsets(noise: SplittingNoise, shape: tuple[int, ...]) -> Int32[np.ndarray, "*shape"]:
    """Of each pixel; raw Philox output, a stream that NumPy guarantees."""
    stream = np.random.Philox(np.random.SeedSequence([noise.seed]))
    raw = stream.random_raw(int(np.prod(shape, dtype=np.int64)))
    offsets = (raw % np.uint64(noise.count)).astype(np.int32).reshape(shape)
    offsets.flags.writeable = False
    return offsets
