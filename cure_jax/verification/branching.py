"""Which neuron to split."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from cure_jax.verification.problem import Specification
from cure_jax.verification.split_bound import Bounded, Network, free_of, least

__all__ = ["Choice", "choose"]


class Choice(NamedTuple):
    """The neuron to split.

    Attributes:
      neuron: its number among those of all layers.
      possible: whether there is any.
    """

    neuron: jax.Array
    possible: jax.Array


def choose(network: Network, specification: Specification, sides: jax.Array, found: Bounded, candidates: int) -> Choice:
    """Chooses by trial: of the neurons that look best, the one whose two halves have the best bounds.

    Two scores say which look best, half of the candidates each. The first is what the chord of a neuron's relaxation
    is off by, at most, times its coefficient. The second is what its relaxation is off by at the input where the bound
    is attained; these numbers add up to the gap between the bound and the value there. Halves are bounded with the
    multipliers of the whole, without an optimiser.

    Args:
      network: with its bounds on the region.
      specification: of the domain.
      sides: `[neurons]`, of the domain.
      found: its bound.
      candidates: how many are tried; an even number.

    Returns:
      The choice. Where scores say nothing (they are 0 or no numbers) it is the widest neuron.

    Sources: Bunel et al., "Branch and Bound for Piecewise Linear Neural Network Verification", JMLR 2020, Section 5.3
    (BaBSR, the first score); De Palma et al., "Improved Branch and Bound for Neural Network Verification via Lagrangian
    Decomposition", 2021, Section 5 (filtered smart branching).
    """
    free = free_of(network) & (sides == 0)
    if not network.layers:
        return Choice(jnp.zeros((), jnp.int32), jnp.zeros((), bool))
    width, chord = _widths(network)
    half = min(candidates // 2, free.size)
    scores = [jnp.abs(found.coefficients) * chord, found.slack]
    picked = [jax.lax.top_k(jnp.where(free & (score > 0), score, -1), half) for score in scores]
    tried = jnp.concatenate([numbers for _, numbers in picked])
    worth = jnp.concatenate([values for values, _ in picked]) > 0

    def gain(neuron: jax.Array) -> jax.Array:
        halves = jax.vmap(lambda side: _half(network, specification, sides.at[neuron].set(side), found))
        bounds = halves(jnp.array([1, -1], sides.dtype))
        # A half that is proved is worth no more than just that.
        capped = jnp.minimum(jnp.where(jnp.isnan(bounds), -jnp.inf, bounds), 0)
        return jnp.min(capped) + 0.1 * jnp.max(capped)

    gains = jnp.where(worth, jax.vmap(gain)(tried), -jnp.inf)
    best = jnp.argmax(gains)
    widest = jnp.argmax(jnp.where(free, width, -1))
    neuron = jnp.where(jnp.isfinite(gains[best]), tried[best], widest)
    return Choice(neuron, jnp.any(free))


def _half(network: Network, specification: Specification, sides: jax.Array, found: Bounded) -> jax.Array:
    return least(network, specification, sides, found.multipliers)[0]


def _widths(network: Network) -> tuple[jax.Array, jax.Array]:
    """Of each neuron, the width of its box, and how far its chord is from the kink, `[neurons]`."""
    widths, chords = [], []
    for layer in network.layers.values():
        below, above = layer.kink - layer.box.lower, layer.box.upper - layer.kink
        width = layer.box.upper - layer.box.lower
        chord = jnp.abs(layer.slopes[1] - layer.slopes[0]) * below * above / jnp.where(width > 0, width, 1)
        widths.append(width.ravel())
        chords.append(chord.ravel())
    return jnp.concatenate(widths), jnp.concatenate(chords)
