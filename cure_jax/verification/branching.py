"""Which neuron to split."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from cure_jax.verification.problem import Specification
from cure_jax.verification.split_bound import Bounded, Network, free_of, least

__all__ = ["Candidates", "Rates", "candidates", "worth"]

# Of the better half of a domain, what counts beside the worse one.
_BETTER = 0.1
# What older trials count beside newer ones.
_MEMORY = 0.9


class Candidates(NamedTuple):
    """The neuron of each layer that looks best.

    Attributes:
      neurons: `[layers]`, their numbers among those of all layers.
      slack: `[layers]`, what their relaxations are off by; -1 where the layer has no neuron to be split.
    """

    neurons: jax.Array
    slack: jax.Array


def candidates(
    network: Network, specification: Specification, sides: jax.Array, found: Bounded, count: int
) -> Candidates:
    """Chooses a neuron of each layer by trial: of those that look best, the one whose two halves have the best bounds.

    Two scores say which look best, half of them each. The first is what the chord of a neuron's relaxation is off by,
    at most, times its coefficient. The second is what its relaxation is off by at the input where the bound is
    attained; these numbers add up to the gap between the bound and the value there. Halves are bounded with the
    multipliers that they start from, without an optimiser.

    Args:
      network: with its bounds on the domain.
      specification: of the domain.
      sides: `[neurons]`, of the domain.
      found: its bound.
      count: how many are tried in each layer; an even number.

    Returns:
      The choice. Where scores say nothing (they are 0 or no numbers) it is the widest neuron.

    Sources: Bunel et al., "Branch and Bound for Piecewise Linear Neural Network Verification", JMLR 2020, Section 5.3
    (BaBSR, the first score); De Palma et al., "Improved Branch and Bound for Neural Network Verification via Lagrangian
    Decomposition", 2021, Section 5 (filtered smart branching).
    """
    free = free_of(network) & (sides == 0)
    if not network.layers:
        return Candidates(jnp.zeros(0, jnp.int32), jnp.zeros(0, found.slack.dtype))
    width, chord = _widths(network)
    scores = [jnp.abs(found.coefficients) * chord, found.slack]
    picked, useful = [], []
    for part in network.slices.values():
        size = min(count // 2, part.stop - part.start)
        best = [jax.lax.top_k(jnp.where(free & (score > 0), score, -1)[part], size) for score in scores]
        widest = jnp.argmax(jnp.where(free, width, -1)[part])[None]
        numbers = jnp.concatenate([*(numbers for _, numbers in best), widest]) + part.start
        values = jnp.concatenate([*(values for values, _ in best), jnp.zeros(1, width.dtype)])
        pad = 2 * (count // 2) - 2 * size
        picked.append(jnp.pad(numbers, (pad, 0), mode="edge"))
        useful.append(jnp.pad(values, (pad, 0), constant_values=-1) > 0)
    tried, useful = jnp.stack(picked), jnp.stack(useful)

    def gain(neuron: jax.Array) -> jax.Array:
        start = found.multipliers._replace(beta=found.multipliers.beta.at[neuron].set(0))
        half = jax.vmap(lambda side: least(network, specification, sides.at[neuron].set(side), start)[0])
        return worth(*half(jnp.array([1, -1], sides.dtype)))

    gains = jax.vmap(jax.vmap(gain))(tried[:, :-1])
    gains = jnp.where(useful[:, :-1] & jnp.isfinite(gains), gains, -jnp.inf)
    # The last one, the widest, is for where nothing else is known.
    best = jnp.where(jnp.any(jnp.isfinite(gains), axis=1), jnp.argmax(gains, axis=1), tried.shape[1] - 1)
    neurons = tried[jnp.arange(len(tried)), best]
    slack = jnp.where(jnp.isfinite(found.slack), jnp.maximum(found.slack, 0), 0)
    return Candidates(neurons, jnp.where(free[neurons], slack[neurons], -1))


def worth(one: ArrayLike, other: ArrayLike) -> jax.Array:
    """What the bounds of two halves are worth together: the worse one counts.

    A half that is proved is worth no more than just that, and one whose bound is not a number nothing.
    """
    one, other = (jnp.minimum(jnp.where(jnp.isnan(bound), -jnp.inf, bound), 0) for bound in (one, other))
    return jnp.minimum(one, other) + _BETTER * jnp.maximum(one, other)


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


class Rates:
    """What splits gain, layer by layer, for each unit of what the relaxation of the neuron is off by.

    A split gains in two ways: its own relaxation becomes exact, and the bounds of the layers behind it become tighter.
    How much the second is worth depends on the network. It is found by trial for some domains, and remembered for the
    others, as solvers of mixed-integer programs remember pseudo-costs.

    Source: Achterberg, Koch and Martin, "Branching rules revisited", Operations Research Letters, 2005.
    """

    def __init__(self, sums: np.ndarray) -> None:
        """Starts with nothing known, or where others ended.

        Args:
          sums: `[2, layers]`, of what was gained, and of what relaxations were off by; 0 at first.
        """
        self.sums = sums

    def learn(self, gains: np.ndarray, slack: np.ndarray) -> None:
        """Enters what was tried, both `[domains, layers]`; a negative slack is for none."""
        usable = (slack > 0) & np.isfinite(gains)
        new = [np.sum(np.where(usable, values, 0), axis=0) for values in (gains, slack)]
        self.sums = _MEMORY * self.sums + np.stack(new)

    def gains(self, slack: np.ndarray) -> np.ndarray:
        """What splits are expected to gain, `[..., layers]`, where their relaxations are off by so much."""
        gained, off_by = self.sums
        return np.where(slack >= 0, slack * gained / np.maximum(off_by, np.finfo(float).tiny), -1)
