"""What affine equations add enters linear bounds once, at the nodes where coefficients arrive."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cure_jax as cj
from cure_jax import graph as graphs
from cure_jax.bounds.folding.constants import Bases

_RANDOM = np.random.default_rng(0)
_WEIGHTS = [jnp.asarray(_RANDOM.normal(size=size), jnp.float32) for size in ((3, 4), (4, 4), (4, 4), (4, 2))]
_MEAN, _SCALE, _BIAS = (jnp.asarray(_RANDOM.uniform(0.5, 2, size=(1, 4)), jnp.float32) for _ in range(3))


def _network(x: jax.Array, activation=jax.nn.relu) -> jax.Array:
    """Normalised, with a shortcut, and affine equations one behind the other."""
    h = ((x[None] @ _WEIGHTS[0] - _MEAN) * _SCALE + _BIAS) @ _WEIGHTS[1] - 0.3
    h = activation(h) + 0.5 * h
    return (activation(h @ _WEIGHTS[2] + _BIAS) @ _WEIGHTS[3])[0] + jnp.array([5.0, -7.0])


def test_a_base_is_the_value_where_the_input_and_all_activations_are_zero():
    x = jnp.ones(3)
    graph = graphs.trace(_network, x)
    found = Bases(graph).of(graph.output)
    expected = _network(jnp.zeros(3), activation=jnp.zeros_like)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert Bases(graph).of(graph.input) is None
    assert Bases(graphs.trace(lambda x: x @ _WEIGHTS[0] @ _WEIGHTS[1], x)).of(graph.output) is None


@pytest.mark.parametrize("bound", [cj.crown, cj.alpha_crown, cj.sdp_crown, cj.vertex_crown])
def test_bounds_of_a_point_are_its_values(bound):
    x = jnp.array([0.3, -0.2, 0.9])
    ball = cj.l1_ball if bound is cj.vertex_crown else cj.l2_ball
    found = jax.jit(bound(_network))(ball(x, 0.0))
    np.testing.assert_allclose(found.lower, _network(x), rtol=1e-5)
    np.testing.assert_allclose(found.upper, _network(x), rtol=1e-5)


@pytest.mark.parametrize("activation", [jax.nn.relu, jax.nn.sigmoid, jax.nn.leaky_relu])
def test_what_a_mask_leaves_out_is_infinite_and_spoils_no_other_entry(activation):
    mask = jnp.array([0.0, -jnp.inf, 0.0])

    def f(x: jax.Array) -> jax.Array:
        return 2 * activation(x + mask)[::2]

    region = cj.linf_ball(jnp.array([0.1, 0.2, -0.3]), 0.4)
    found = jax.jit(cj.crown(f))(region)
    assert jnp.all(jnp.isfinite(found.lower) & jnp.isfinite(found.upper))
    points = jax.vmap(region.sample)(jax.random.split(jax.random.key(0), 100))
    values = jax.vmap(f)(points)
    assert jnp.all((values >= found.lower[None] - 1e-5) & (values <= found.upper[None] + 1e-5))
