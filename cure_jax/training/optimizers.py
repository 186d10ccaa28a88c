"""What is made of a gradient before it is multiplied by the learning rate."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import optax

__all__ = ["SCALINGS", "scaling", "weight_decay"]

# By the names in a config. RAdam starts without a warm-up of the rate: Liu et al., ICLR 2020.
SCALINGS: Mapping[str, Callable[[], optax.GradientTransformation]] = {
    "adam": optax.scale_by_adam,
    "radam": optax.scale_by_radam,
}


def scaling(name: str, clip: float) -> optax.GradientTransformation:
    """An adaptive optimiser without its learning rate, behind a limit on the 2-norm of the whole gradient.

    Args:
      name: one of `SCALINGS`.
      clip: the largest 2-norm; 0 for none.
    """
    scale = SCALINGS[name]()
    return optax.chain(optax.clip_by_global_norm(clip), scale) if clip else scale


def weight_decay(weight: float) -> optax.GradientTransformation:
    """Decoupled weight decay (Loshchilov and Hutter, ICLR 2019) of kernels; biases and scales are left alone."""
    return optax.add_decayed_weights(weight, mask=_is_kernel)


def _is_kernel(params: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)
