"""Laws of all bounds: they hold on dense grids, are exact on linear maps and points, and are ordinary JAX functions."""

import functools
import itertools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cure_jax as cj
from cure_jax.certification import METHODS
from tests import networks

NORMS = (math.inf, 2.0, 1.0, 3.0)
# `best` is the tightest of the others; the optimised ones take long to compile.
CHEAP = ("ibp", "crown_ibp", "crown", "lipschitz", "box_ball")
CASES = [(method, p) for method in CHEAP for p in NORMS]
CASES += [
    ("alpha_crown", math.inf),
    ("alpha_crown", 2.0),
    ("sdp_crown", 2.0),
    ("sdp_crown", 1.0),
    ("vertex_crown", 1.0),
]


def _on_networks(method, p):
    """The residual network takes long to compile: in the quick run each method has one norm."""
    quick = p == {"crown": 3.0, "sdp_crown": 2.0, "vertex_crown": 1.0}.get(method, math.inf)
    return [
        pytest.param(method, p, name, marks=[] if name == "mlp" or quick else pytest.mark.slow)
        for name in networks.NETWORKS
    ]


@pytest.mark.parametrize(("method", "p", "network"), [case for pair in CASES for case in _on_networks(*pair)])
def test_bounds_hold_on_a_grid(method, p, network):
    apply, make_params = networks.NETWORKS[network]

    @jax.jit
    def violations(params, x, eps):
        f = functools.partial(apply, params)
        region = cj.lp_ball(x, eps, p, within=(0.0, 1.0))
        bounds, box = METHODS[method](f)(region), region.bounding_box()
        points = networks.grid(box)
        inside = jax.vmap(region.contains)(points)[:, None]
        values = jax.vmap(f)(points)
        above = jnp.max(jnp.where(inside, bounds.lower[None] - values, -jnp.inf))
        return above, jnp.max(jnp.where(inside, values - bounds.upper[None], -jnp.inf))

    generator = np.random.default_rng(0)
    for seed in range(8):
        x = jnp.asarray(generator.uniform(size=2).astype(np.float32))
        for eps in (0.1, 0.4):
            below, above = violations(make_params(seed), x, jnp.float32(eps))
            assert -1e6 < below < 1e-5
            assert -1e6 < above < 1e-5


@pytest.mark.parametrize("p", NORMS)
@pytest.mark.parametrize("method", ["ibp", "crown_ibp", "crown", "alpha_crown"])
def test_linear_maps_are_exact(method, p):
    generator = np.random.default_rng(0)
    weights = jnp.asarray(generator.normal(size=(5, 4)).astype(np.float32))
    x = jnp.asarray(generator.uniform(size=5).astype(np.float32))
    bounds = jax.jit(lambda x: METHODS[method](lambda x: (x * 2 - 1) @ weights + 1)(cj.lp_ball(x, 0.2, p)))(x)
    q = 1.0 if p == math.inf else (math.inf if p == 1 else p / (p - 1))
    center, radius = (x * 2 - 1) @ weights + 1, 0.2 * 2 * np.linalg.norm(weights, ord=q, axis=0)
    np.testing.assert_allclose(bounds.lower, center - radius, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(bounds.upper, center + radius, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("network", list(networks.NETWORKS))
@pytest.mark.parametrize("method", [*CHEAP, "sdp_crown"])
def test_a_point_gives_the_value(method, network):
    apply, make_params = networks.NETWORKS[network]
    f, x = functools.partial(apply, make_params(3)), jnp.array([0.3, 0.6])
    bounds = jax.jit(lambda x: METHODS[method](f)(cj.l2_ball(x, 0.0)))(x)
    np.testing.assert_allclose(bounds.lower, f(x), atol=1e-5)
    np.testing.assert_allclose(bounds.upper, f(x), atol=1e-5)


@pytest.mark.parametrize("method", ["ibp", "crown_ibp"])
def test_bounds_grow_with_the_radius(method):
    f, x = networks.random_mlp(1), jnp.array([0.4, 0.6])
    lower = jax.jit(lambda eps: METHODS[method](f)(cj.l2_ball(x, eps)).lower)
    lowers = [lower(eps) for eps in (0.05, 0.1, 0.2, 0.4)]
    if method == "ibp":
        assert all(jnp.all(b <= a + 1e-6) for a, b in itertools.pairwise(lowers))
    assert jnp.all(lowers[-1] < lowers[0])


@pytest.mark.parametrize("p", NORMS)
def test_the_first_layer_of_ibp_is_exact(p):
    f = networks.random_mlp(4, (2, 7))
    x = jnp.array([0.4, 0.6])
    exact = cj.crown(f)(cj.lp_ball(x, 0.3, p))
    shallow = cj.ibp(lambda x: jnp.maximum(f(x), -1e3))(cj.lp_ball(x, 0.3, p))
    np.testing.assert_allclose(shallow.lower, exact.lower, atol=1e-5)
    np.testing.assert_allclose(shallow.upper, exact.upper, atol=1e-5)


REPEATED = {
    "scalar": (lambda x: x[0] * jnp.array([1.0, 1.0, 2.0]), 1),
    "row": (lambda x: (x[None] - jnp.ones((3, 2))).reshape(-1), 2),
    "column": (lambda x: (jnp.array([[0.2, 0.3, 0.4]]) - x[:, None]).reshape(-1), 2),
    "gather": (lambda x: x[jnp.array([0, 1, 1])], 2),
    "tile": (lambda x: jnp.tile(x, 2), 2),
    "concatenate": (lambda x: jnp.concatenate([x, x]), 2),
    "stack": (lambda x: jnp.stack([x, 2 * x], axis=1).reshape(-1), 2),
    "sum of itself": (lambda x: x + x, 2),
}


@pytest.mark.parametrize("p", [2.0, 1.0])
@pytest.mark.parametrize("name", list(REPEATED))
def test_a_ball_with_repeated_coordinates_is_no_ball(name, p):
    repeat, size = REPEATED[name]
    x = jnp.full((size,), 0.4)
    weights = jnp.ones((repeat(x).size, 1))

    def shallow(x):
        return jnp.maximum(repeat(x) @ weights, -1e3)

    with jax.numpy_rank_promotion("allow"):
        bounds = jax.jit(lambda x: cj.ibp(shallow)(cj.lp_ball(x, 0.3, p)))(x)
        reached = 0.3 * np.linalg.norm(jax.jacobian(shallow)(x)[0], ord=2 if p == 2 else math.inf)
        assert bounds.lower[0] <= shallow(x)[0] - reached + 1e-6
        assert bounds.upper[0] >= shallow(x)[0] + reached - 1e-6


@pytest.mark.parametrize("p", [1.01, 1.1, 1.5])
def test_small_weights_do_not_vanish_in_the_dual_norm(p):
    f = lambda x: jax.nn.relu(x @ jnp.full((3, 2), 1e-2))  # noqa: E731
    x = jnp.full((3,), 0.5)
    upper = jax.jit(lambda x: cj.ibp(f)(cj.lp_ball(x, 0.1, p)).upper)(x)
    assert jnp.all(upper >= f(x.at[0].add(0.1)) - 1e-7)
    assert jnp.all(upper <= f(x + 0.1) + 1e-7)


def test_fill_values_and_indices_out_of_bounds_are_bounded():
    index = jnp.array([7, 0])

    def f(x):
        filled = [x.at[index].get(mode="fill", fill_value=value) for value in (-5.0, 5.0)]
        return jax.nn.relu(jnp.concatenate([*filled, x[index]]) + 4.0) - jnp.tile(x[:2], 3)

    bounds = jax.jit(lambda x: [METHODS[name](f)(cj.linf_ball(x, 0.1)) for name in ("ibp", "crown_ibp")])
    for interval in bounds(jnp.array([0.3, 0.6, 0.9])):
        for point in ([0.3, 0.6, 0.9], [0.2, 0.7, 0.8], [0.4, 0.5, 1.0]):
            assert interval.contains(f(jnp.array(point)), tolerance=1e-5)


def test_ibp_elides_the_last_layer():
    f, x = networks.random_mlp(5), jnp.array([0.4, 0.6])
    region = cj.linf_ball(x, 0.2)
    merged = cj.ibp(cj.margins(f, 1))(region).lower
    logits = cj.ibp(f)(region)
    separate = logits.lower[1] - jnp.delete(logits.upper, 1)
    assert jnp.all(merged >= separate - 1e-5)
    assert jnp.max(merged - separate) > 0.05


@pytest.mark.parametrize("method", ["ibp", "crown_ibp", "crown"])
def test_jit_vmap_and_chunks_agree_with_the_plain_call(method, monkeypatch):
    f = networks.random_mlp(2)
    xs = jnp.asarray(np.random.default_rng(2).uniform(size=(3, 2)).astype(np.float32))

    def lower(x):
        return METHODS[method](f)(cj.l2_ball(x, 0.2, within=(0.0, 1.0))).lower

    plain = jnp.stack([lower(x) for x in xs[:1]])
    chex.assert_trees_all_close(jax.jit(jax.vmap(lower))(xs)[:1], plain, atol=1e-5)
    monkeypatch.setattr("cure_jax.bounds.folding.linear._CHUNK_COEFFICIENTS", 8)
    chex.assert_trees_all_close(jax.jit(jax.vmap(lower))(xs)[:1], plain, atol=1e-5)


@pytest.mark.parametrize("method", CHEAP)
def test_gradients_of_bounds_are_right(method):
    x = jnp.array([0.37, 0.61])

    def loss(scale):
        f = networks.random_mlp(6)
        return jnp.sum(METHODS[method](lambda x: f(x * scale))(cj.l2_ball(x, 0.1)).lower)

    step, loss = 1e-3, jax.jit(loss)
    numeric = (loss(jnp.float32(1 + step)) - loss(jnp.float32(1 - step))) / (2 * step)
    np.testing.assert_allclose(jax.grad(loss)(jnp.float32(1.0)), numeric, rtol=2e-2, atol=2e-2)


def test_parameters_may_be_traced():
    def f(params, x):
        return jax.nn.relu(x @ params["a"]) @ params["b"]

    params = {"a": jnp.ones((2, 3)), "b": jnp.array([[1.0], [-1.0], [2.0]])}
    compiled = jax.jit(lambda params, x: cj.crown(functools.partial(f, params))(cj.l2_ball(x, 0.1)))
    x = jnp.array([0.2, 0.3])
    chex.assert_trees_all_close(
        compiled(params, x), cj.crown(functools.partial(f, params))(cj.l2_ball(x, 0.1)), atol=1e-6
    )


def test_an_output_that_does_not_depend_on_the_input_is_its_own_bound():
    bounds = cj.crown(lambda x: jnp.arange(3.0))(cj.linf_ball(jnp.zeros(2), 1.0))
    np.testing.assert_array_equal(bounds.lower, [0.0, 1.0, 2.0])


def test_unknown_intermediate_bounds_are_refused():
    with pytest.raises(ValueError, match="intermediate must be one of"):
        cj.crown(lambda x: x, intermediate="exact")


def test_every_product_is_given_the_highest_precision():
    f = networks.random_mlp(0)
    lowered = jax.jit(lambda x: cj.crown(f)(cj.linf_ball(x, 0.1)).lower).trace(jnp.zeros(2)).jaxpr
    dots = [line for line in str(lowered).splitlines() if "precision=" in line]
    assert dots
    assert all("HIGHEST" in line for line in dots)
