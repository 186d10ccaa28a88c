"""A canary: the primitives in the inference jaxpr of every network, and bounds of networks of common layers.

A change of the primitives means that bound rules may be missing.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import cure_jax as cj
from cure_jax import graph, models, rules

NORMALIZATION = {"sub", "div"}
# The batch axis of one example: broadcast_in_dim adds it, squeeze drops it.
MLP = {"broadcast_in_dim", "squeeze", "reshape", "dot_general", "add", "custom_jvp_call", "jit", "max", *NORMALIZATION}
CONV = MLP | {"convolution"}
BATCH_NORM = CONV | {"rsqrt", "mul"}
# Of weights alone, but for abs, mul and what moves pixels into channels.
CONTRACTING = (CONV - {"custom_jvp_call", "jit"}) | {"abs", "mul", "reduce_sum", "rsqrt", "transpose"}
PRIMITIVES = {
    "mlp": MLP,
    "conv_small": CONV,
    "conv_medium": CONV,
    "conv_deep": CONV,
    "lipschitz_net": CONTRACTING,
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


ACTIVATIONS = {
    name: getattr(module, name)
    for module in (jax.nn, nn, nnx)
    for name in (
        *("celu", "elu", "gelu", "hard_sigmoid", "hard_silu", "hard_swish", "hard_tanh", "leaky_relu", "log_sigmoid"),
        *("relu", "relu6", "selu", "sigmoid", "silu", "soft_sign", "softplus", "swish", "tanh"),
        *("log_softmax", "softmax", "logsumexp", "standardize", "glu"),
    )
    if hasattr(module, name)
}


class Everything(nn.Module):
    """Layers of flax.linen, one after the other."""

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(4, (3, 3), feature_group_count=2)(x)
        x = nn.LayerNorm()(x)
        x = nn.avg_pool(nn.silu(x), (2, 2), (2, 2))
        x = nn.max_pool(nn.PReLU()(x), (2, 2), (1, 1), "SAME") - nn.pooling.min_pool(x, (2, 2), (1, 1), "SAME")
        x = nn.gelu(nn.Dense(4)(jnp.mean(x, axis=(1, 2))))
        return nn.softmax(nn.Dense(3)(nn.RMSNorm()(x)))


class Attention(nn.Module):
    """Products of two bounded operands."""

    @nn.compact
    def __call__(self, x):
        x = x + nn.MultiHeadDotProductAttention(num_heads=2)(x)
        return nn.log_softmax(nn.Dense(3)(nn.glu(nn.Dense(4)(jnp.max(x, 1)))))


class Modules(nnx.Module):
    """Layers of flax.nnx."""

    def __init__(self):
        rngs = nnx.Rngs(0)
        self.conv = nnx.Conv(2, 4, (3, 3), feature_group_count=2, rngs=rngs)
        self.norms = nnx.List([nnx.BatchNorm(4, use_running_average=True, rngs=rngs), nnx.RMSNorm(4, rngs=rngs)])
        self.prelu, self.dense = nnx.PReLU(), nnx.Linear(4, 3, rngs=rngs)

    def __call__(self, x):
        x = nnx.elu(self.norms[0](self.conv(x)))
        x = self.norms[1](self.prelu(nnx.avg_pool(x, (2, 2), (2, 2))))
        return self.dense(jnp.mean(nnx.tanh(x), axis=(1, 2)))


def _linen(model, shape):
    x = jax.random.uniform(jax.random.key(1), shape)
    variables = model.init(jax.random.key(0), x[None])
    return lambda x: model.apply(variables, x[None])[0], x


def _nnx(model, shape):
    return lambda x: model(x[None])[0], jax.random.uniform(jax.random.key(1), shape)


NETWORKS = {
    "linen": lambda: _linen(Everything(), (4, 4, 2)),
    "attention": lambda: _linen(Attention(), (3, 4)),
    "nnx": lambda: _nnx(Modules(), (4, 4, 2)),
}


@pytest.mark.parametrize("name", list(ACTIVATIONS))
def test_activations_have_rules(name):
    traced = graph.trace(ACTIVATIONS[name], jax.ShapeDtypeStruct((4, 2), jnp.float32))
    assert all(rules.lookup(equation) for equation in traced.equations)


@pytest.mark.parametrize("name", list(NETWORKS))
def test_bounds_of_common_layers_hold(name):
    # Pooling and normalisation of flax count with integers.
    with jax.numpy_dtype_promotion("standard"):
        f, x = NETWORKS[name]()
        region = cj.linf_ball(x, 1e-3)
        values = jax.jit(jax.vmap(f))(jax.vmap(region.sample)(jax.random.split(jax.random.key(2), 300)))
        both = jax.jit(lambda region: (cj.ibp(f)(region), cj.crown(f, intermediate="ibp")(region)))(region)
    for box in both:
        assert jnp.all(jnp.isfinite(box.lower) & jnp.isfinite(box.upper))
        assert jnp.all((values >= box.lower[None] - 1e-5) & (values <= box.upper[None] + 1e-5))
    ibp, crown = (jnp.sum(box.upper - box.lower) for box in both)
    assert crown < ibp
