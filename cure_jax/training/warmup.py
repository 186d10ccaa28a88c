"""The warm-up regulariser of fast certified training: tight and balanced bounds while the radius grows.

Source: Shi et al., "Fast Certified Robust Training with Short Warmup", NeurIPS 2021, Eqs. 9-11.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from cure_jax.bounds.ibp import Layers
from cure_jax.numerics import pmean
from cure_jax.regions import Interval

__all__ = ["bound_regularizer"]

_TOLERANCE = 0.5


def bound_regularizer(layers: Layers, axis_name: str | None) -> Float[Array, ""]:
    """Penalises wide pre-activation bounds, and layers whose units are mostly active or mostly inactive.

    With c and r the centers and radii of a layer's pre-activations over batch and units, r_in the mean radius at the
    first layer's input, [z]+ = max(z, 0) and tol = 0.5:

        tightness = [tol - r_in / mean r]+ / tol
        balance = ([tol - ratio(means)]+ + [tol - ratio(variances)]+) / tol,    ratio(a, b) = min(a / b, b / a)

    the ratios comparing units that are surely active (lower > 0) with units that are surely inactive (upper < 0).

    Args:
      layers: intervals with a leading batch axis.
      axis_name: the device axis over which batch quantities are summed; None for one device.

    Returns:
      The mean over layers of tightness + balance; a balance that is not finite (no active or no inactive unit) counts
      as 0.
    """
    found = layers.pre_activations
    if not found:
        return jnp.zeros((), layers.first.dtype)
    # Of all layers in one sum over devices, and what needs these means in another.
    values = [jnp.mean(layers.first.radius), *(value for interval in found for value in _averages(interval))]
    input_radius, *means = pmean(jnp.stack(values), axis_name)
    radius, mean, of_active, of_inactive, active, inactive = jnp.stack(means).reshape(len(found), -1).T
    spreads = [_spreads(interval, mean[index]) for index, interval in enumerate(found)]
    of_active_around, of_inactive_around = pmean(jnp.array(spreads), axis_name).T
    tightness = jnp.maximum(_TOLERANCE - input_radius / jnp.maximum(radius, 1e-12), 0) / _TOLERANCE
    ratios = _ratio(of_active, -of_inactive), _ratio(of_active_around, of_inactive_around)
    balance = sum(jnp.maximum(_TOLERANCE - ratio, 0) for ratio in ratios) / _TOLERANCE
    return jnp.mean(tightness + jnp.where((active > 0) & (inactive > 0), balance, 0))


def _surely(interval: Interval) -> tuple[jax.Array, jax.Array]:
    """Ones where units are surely active, and where they are surely inactive."""
    return (interval.lower > 0).astype(interval.dtype), (interval.upper < 0).astype(interval.dtype)


def _averages(interval: Interval) -> tuple[jax.Array, ...]:
    """Over batch and units: radii, centers, those of active and of inactive units, the shares of these units."""
    center, (active, inactive) = interval.center, _surely(interval)
    return tuple(
        jnp.mean(values) for values in (interval.radius, center, center * active, center * inactive, active, inactive)
    )


def _spreads(interval: Interval, mean: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The mean squared distance from the mean center, of active and of inactive units."""
    squared, (active, inactive) = (interval.center - mean) ** 2, _surely(interval)
    return jnp.mean(squared * active), jnp.mean(squared * inactive)


def _ratio(a: jax.Array, b: jax.Array) -> jax.Array:
    """min(a / b, b / a), and 0, with gradient 0, where one of them is not positive."""
    positive = (a > 0) & (b > 0)
    a, b = jnp.where(positive, a, 1), jnp.where(positive, b, 1)
    return jnp.where(positive, jnp.minimum(a / b, b / a), 0)
