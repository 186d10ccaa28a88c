"""Parameters as they will be deployed: rounded to a smaller type, so that it is their network that is certified."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from cure_jax.models.functional import Variables

__all__ = ["rounded"]


def rounded(variables: Variables, dtype: DTypeLike) -> Variables:
    """Parameters rounded to the nearest values of a smaller type, in the type that they had.

    A certificate holds for the parameters that it was computed with, and for no others. Where a network is deployed
    with weights in bfloat16, certify the rounded ones. They stay in float32 here, so that the network and its bounds
    are computed as always: a device that also computes in bfloat16 rounds more than that, and is not covered.

    Args:
      variables: parameters and running averages, as in `Fitted.variables`. The averages are left as they are.
      dtype: to round to, such as "bfloat16". What is too large for it becomes infinite, and proves nothing.

    Returns:
      The same tree.

    Raises:
      TypeError: for a type that is not one of floating-point numbers.

    Examples:
      >>> from cure_jax import models
      >>> fitted = models.pretrained("digits/max")
      >>> f = models.classifier(fitted.model, models.rounded(fitted.variables, "bfloat16"))
      >>> float(jnp.abs(f(jnp.zeros((8, 8, 1))) - fitted.classifier(jnp.zeros((8, 8, 1)))).max()) < 0.1
      True
    """
    if not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(f"dtype is {jnp.dtype(dtype)}; expected floating-point numbers, such as bfloat16. Change it.")

    def nearest(parameter: Any) -> jax.Array:
        parameter = jnp.asarray(parameter)
        # A barrier: under jit XLA may leave out a cast there and back. `reduce_precision` knows no denormals.
        return jax.lax.optimization_barrier(parameter.astype(dtype)).astype(parameter.dtype)

    return {**variables, "params": jax.tree.map(nearest, variables["params"])}
