"""Weight initialisation for interval bound propagation."""

import math
from typing import Any

import jax
from jaxtyping import PRNGKeyArray, PyTree

from cure_jax.models.functional import functional


def ibp_init(model: Any, params: PyTree, key: PRNGKeyArray, example: Any) -> PyTree:
    r"""Draw the kernels of a network so that interval bounds neither explode nor vanish with depth.

    Every kernel of a dense or convolutional layer of `flax.linen` or `flax.nnx` but the last becomes

    .. math::

      W_{ij} \sim \mathcal{N}\left(0, \frac{2 \pi}{n^2}\right) ,

    :math:`n` the fan-in: the width of an interval then keeps its expected size through an affine layer followed by a
    ReLU. The last affine layer, biases, normalisation layers and whatever else the model holds keep their values.

    The layers are found by running the model on abstract values, so that any module of flax will do; "last" is the
    one that runs last. A model without such layers is an error, and so are functions, whose layers nobody knows.

    Args:
      model: The network.
      params: Its `"params"` collection, as `model.init` of a linen module returns it.
      key: A PRNG key. Kernels depend on it and on their place in the order of execution, and on nothing else.
      example: An input as `model.init` takes it, batch axis included; only its shape and dtype are read.

    Returns:
      The parameters, of the same structure, shapes and dtypes.

    Raises:
      ValueError: If the model runs no dense or convolutional layer, or `params` are not this model's.

    Examples:
      >>> import flax.linen as nn
      >>> import jax
      >>> import jax.numpy as jnp
      >>> model = nn.Sequential([nn.Dense(256), nn.relu, nn.Dense(10)])
      >>> images = jnp.zeros((1, 512))
      >>> params = model.init(jax.random.key(0), images)["params"]
      >>> params = ibp_init(model, params, jax.random.key(1), images)
      >>> round(float(params["layers_0"]["kernel"].std() * 512), 1)  # the root of 2 pi
      2.5

    References:
      Shi et al., `Fast Certified Robust Training with Short Warmup <https://arxiv.org/abs/2103.17268>`_, 2021,
      section 4.1
    """
    network = functional(model)
    fan_ins = network.fan_ins(example)
    if not fan_ins:
        raise ValueError(
            f"ibp_init found no layer to initialise in {network.name}; a module that runs the dense or convolutional "
            "layers of flax.linen or flax.nnx was expected. Keep its own initialisation: "
            "config.initialization = 'default'."
        )
    # A dict keeps the order of execution.
    order = {path: index for index, path in enumerate(fan_ins)}
    last = next(reversed(fan_ins))
    found = set()

    def draw(key_path: tuple, leaf: jax.Array) -> jax.Array:
        path = tuple(entry.key for entry in key_path)
        found.add(path)
        if path not in order or path == last:
            return leaf
        noise = jax.random.normal(jax.random.fold_in(key, order[path]), leaf.shape, leaf.dtype)
        return noise * (math.sqrt(2 * math.pi) / fan_ins[path])

    drawn = jax.tree_util.tree_map_with_path(draw, params)
    if missing := [".".join(path) for path in fan_ins if path not in found]:
        raise ValueError(
            f"ibp_init got parameters without {', '.join(missing)}; the 'params' collection of this "
            f"{network.name} was expected. Pass model.init(key, example)['params']."
        )
    return drawn
