"""The warm-up regulariser of fast certified training: tight and balanced bounds while the radius grows.

Source: Shi et al., "Fast Certified Robust Training with Short Warmup", NeurIPS 2021, Eqs. 9-11.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from cure_jax.bounds.ibp import Layers
from cure_jax.numerics import pmean, psum
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
    if not layers.pre_activations:
        return jnp.zeros((), layers.first.dtype)
    input_radius = pmean(jnp.mean(layers.first.radius), axis_name)
    terms = [_layer(interval, input_radius, axis_name) for interval in layers.pre_activations]
    return jnp.mean(jnp.stack(terms))


def _layer(interval: Interval, input_radius: jax.Array, axis_name: str | None) -> jax.Array:
    center = interval.center
    active = (interval.lower > 0).astype(center.dtype)
    inactive = (interval.upper < 0).astype(center.dtype)
    radius = pmean(jnp.mean(interval.radius), axis_name)
    tightness = jnp.maximum(_TOLERANCE - input_radius / jnp.maximum(radius, 1e-12), 0) / _TOLERANCE
    mean = pmean(jnp.mean(center), axis_name)
    squared = (center - mean) ** 2
    means = _ratio(pmean(jnp.mean(center * active), axis_name), -pmean(jnp.mean(center * inactive), axis_name))
    variances = _ratio(psum(jnp.sum(squared * active), axis_name), psum(jnp.sum(squared * inactive), axis_name))
    some = (psum(jnp.sum(active), axis_name) > 0) & (psum(jnp.sum(inactive), axis_name) > 0)
    balance = (jnp.maximum(_TOLERANCE - means, 0) + jnp.maximum(_TOLERANCE - variances, 0)) / _TOLERANCE
    return tightness + jnp.where(some, balance, 0)


def _ratio(a: jax.Array, b: jax.Array) -> jax.Array:
    """min(a / b, b / a), and 0, with gradient 0, where one of them is not positive."""
    positive = (a > 0) & (b > 0)
    a, b = jnp.where(positive, a, 1), jnp.where(positive, b, 1)
    return jnp.where(positive, jnp.minimum(a / b, b / a), 0)
