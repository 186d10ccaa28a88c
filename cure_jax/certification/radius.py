"""The largest radius at which one example is proved, by bisection."""

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Integer

from cure_jax.certification.certificate import certify
from cure_jax.regions import Region

__all__ = ["certified_radius"]


def certified_radius(  # noqa: PLR0913  (as `certify`, and what a bisection needs)
    f: Callable[[jax.Array], jax.Array],
    x: Float[Array, "*x"],
    label: Integer[Array, ""] | int,
    make_region: Callable[[jax.Array, jax.Array], Region],
    method: str | Sequence[str] = "crown",
    tolerance: float = 1e-3,
    *,
    high: float = 1.0,
    arithmetic: str = "float32",
) -> Float[Array, ""]:
    """Looks for a large radius at which `certify` proves one example.

    Args:
      f: one example `[*x]` to logits `[classes]`.
      x: the example; `jax.vmap` over examples and labels gives batches.
      label: its class; may be traced.
      make_region: from the example and a radius to a region, `lambda x, eps: linf_ball(x, eps, (0.0, 1.0))`.
      method: as for `certify`.
      tolerance: in the units of the radius: how close to each other the last radii are.
      high: the largest radius that is tried; nothing beyond it is asked for.
      arithmetic: as for `certify`.

    Returns:
      A radius at which the example was proved; 0 if it was at none that was tried. As bounds need not be monotone in
      the radius, smaller ones are not proved by that (though what lies in a proved region is), and there may be larger
      ones. Where they are monotone it is the largest, less at most `tolerance`.

    Raises:
      ValueError: unless 0 < tolerance <= high < inf, and as `certify`.
      UnsupportedPrimitive: as `certify`.

    Soundness:
      As `certify`, for the radius that is returned, as the dtype of `x` holds it: it was itself proved.

    Examples:
      >>> import jax.numpy as jnp, cure_jax as cj
      >>> x = jnp.array([0.8, 0.3])
      >>> round(float(cj.certified_radius(lambda x: x, x, 0, cj.linf_ball, tolerance=1e-4)), 3)
      0.25
    """
    if not 0 < tolerance <= high < math.inf:
        raise ValueError(f"tolerance is {tolerance} and high {high}; expected 0 < tolerance <= high < inf.")
    x = jnp.asarray(x)

    def step(number: jax.Array, bracket: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, top = bracket
        radius = jnp.where(number == 0, top, low + (top - low) / 2)
        proved = certify(f, x, label, make_region(x, radius), method, arithmetic=arithmetic).verified
        return jnp.where(proved, radius, low), jnp.where(proved, top, radius)

    halvings = max(0, math.ceil(math.log2(high / tolerance)))
    bracket = (jnp.zeros((), x.dtype), jnp.asarray(high, x.dtype))
    return lax.fori_loop(0, 1 + halvings, step, bracket)[0]
