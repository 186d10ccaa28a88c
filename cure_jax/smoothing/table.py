"""Random integers of any distribution, from random bits alone: no floating-point number is drawn."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Int32, Key, UInt32

__all__ = ["AliasTable", "alias_table", "draw"]

# What one cell of a table holds: 32 random bits decide between its two values.
_CELL = 1 << 32


class AliasTable(NamedTuple):
    """A distribution on the integers first, first + 1, ...

    Attributes:
      first: the least integer.
      weights: `[values]`, integers; the probability of `first + i` is weights[i] / (cells * 2^32), exactly.
      threshold: `[cells]`: cell i gives i itself for as many of its 2^32 words.
      alias: `[cells]`: and this one for the others.
    """

    first: int
    weights: Int[np.ndarray, " values"]
    threshold: UInt32[np.ndarray, " cells"]
    alias: Int32[np.ndarray, " cells"]

    @property
    def probabilities(self) -> Float[np.ndarray, " values"]:
        """`[values]`: what is drawn how often; exact."""
        return self.weights / (len(self.threshold) * _CELL)


def alias_table(probabilities: Float[np.ndarray, " values"], first: int) -> AliasTable:
    """The table of a distribution, whose probabilities are rounded to multiples of 1 / (cells * 2^32).

    What rounding leaves over goes to the most probable value. All else is integer arithmetic.

    Args:
      probabilities: of first, first + 1, ..., with a sum near 1.
      first: the least value.

    References:
      Walker, `An Efficient Method for Generating Discrete Random Variables with General Distributions
      <https://doi.org/10.1145/355744.355749>`_, 1977; the construction is that of Vose, 1991
    """
    cells = 1 << max(1, (len(probabilities) - 1).bit_length())
    weights = np.rint(probabilities * (cells * _CELL)).astype(np.int64)
    weights[np.argmax(weights)] += cells * _CELL - weights.sum()
    left = weights.tolist() + [0] * (cells - len(weights))
    threshold, alias = np.zeros(cells, np.uint32), np.arange(cells, dtype=np.int32)
    small = [cell for cell, weight in enumerate(left) if weight < _CELL]
    large = [cell for cell, weight in enumerate(left) if weight >= _CELL]
    while small and large:
        receiver, giver = small.pop(), large[-1]
        threshold[receiver], alias[receiver] = left[receiver], giver
        left[giver] -= _CELL - left[receiver]
        if left[giver] < _CELL:
            small.append(large.pop())
    # The sums are exact, so what remains is full and gives itself.
    assert not small
    assert all(left[cell] == _CELL for cell in large)
    return AliasTable(first, weights, threshold, alias)


def draw(table: AliasTable, key: Key[Array, ""], shape: tuple[int, ...]) -> Int32[Array, "*shape"]:
    """Independent draws: two words of random bits for each, one chooses the cell, one the value in it."""
    words = jax.random.bits(key, (2, *shape), jnp.uint32)
    depth = len(table.threshold).bit_length() - 1
    cell = jax.lax.shift_right_logical(words[0], jnp.uint32(32 - depth)).astype(jnp.int32)
    threshold, alias = (
        jnp.asarray(part).at[cell].get(mode="promise_in_bounds") for part in (table.threshold, table.alias)
    )
    return jnp.where(words[1] < threshold, cell, alias) + jnp.int32(table.first)
