"""A canary: the primitives in the inference jaxpr of every network. A change means that bound rules may be missing."""

import jax
import numpy as np
import pytest

from cure_jax import models

NORMALIZATION = {"sub", "div"}
# The batch axis of one example: broadcast_in_dim adds it, squeeze drops it.
MLP = {"broadcast_in_dim", "squeeze", "reshape", "dot_general", "add", "custom_jvp_call", "jit", "max", *NORMALIZATION}
CONV = MLP | {"convolution"}
BATCH_NORM = CONV | {"rsqrt", "mul"}
PRIMITIVES = {
    "mlp": MLP,
    "conv_small": CONV,
    "conv_medium": CONV,
    "cnn5": BATCH_NORM,
    "cnn7": BATCH_NORM,
    "cnn7_narrow": BATCH_NORM,
    "cnn7_wide": BATCH_NORM,
    "resnet": BATCH_NORM | {"reduce_sum"},
}


def _primitives(jaxpr):
    found = set()
    for equation in jaxpr.eqns:
        found.add(equation.primitive.name)
        for value in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda v: hasattr(v, "eqns")):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                found |= _primitives(inner)
    return found


@pytest.mark.parametrize("name", models.names())
def test_primitives_canary(name):
    model = models.create(name, 10, mean=(0.5,), std=(0.25,))
    image = np.zeros((8, 8, 1), np.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), image[None])
    jaxpr = jax.make_jaxpr(lambda variables, x: model.apply(variables, x[None])[0])(variables, image)
    assert _primitives(jaxpr.jaxpr) == PRIMITIVES[name]
