"""Lipschitz constants: estimates (power iteration against NumPy, sums over branches, gradients) and certificates."""

import math
from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import cure_jax as cj
from cure_jax import graph as graphs
from cure_jax.bounds.lipschitz import (
    enclosing_ball,
    estimated_norms,
    initial_vectors,
    lipschitz,
    pairwise_lipschitz,
)
from cure_jax.bounds.norms.spectral import BlockNorms, block_norms
from cure_jax.regions import Hull
from tests.networks import NETWORKS, grid

_KEY = jax.random.key(0)


def _estimated(graph: graphs.Graph, vectors: tuple[jax.Array, ...]) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    """The matrix of constants by one more power iteration on each vector, and the new vectors."""
    norms, vectors = estimated_norms(graph, vectors)
    return pairwise_lipschitz(graph, norms), vectors


def _converged(f: Callable, shape: tuple[int, ...], iterations: int = 300) -> tuple[np.ndarray, tuple[jax.Array, ...]]:
    """The matrix of constants, and the vectors, after many power iterations."""
    example = jnp.zeros(shape)
    vectors = initial_vectors(graphs.trace(f, example), _KEY)

    def iterate(vectors: tuple, _: None) -> tuple[tuple, None]:
        return estimated_norms(graphs.trace(f, example), vectors)[1], None

    @jax.jit
    def run(vectors: tuple) -> tuple[jax.Array, tuple]:
        return _estimated(graphs.trace(f, example), lax.scan(iterate, vectors, length=iterations)[0])

    constants, vectors = run(vectors)
    return np.asarray(constants), vectors


def _weights(*shape: int, seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng((seed, *shape)).normal(size=shape).astype(np.float32))


def _norm(matrix: jax.Array) -> float:
    return float(np.linalg.norm(np.asarray(matrix, np.float64), ord=2))


def _distances(rows: jax.Array) -> np.ndarray:
    """|w_y - w_j|_2 of all pairs."""
    rows = np.asarray(rows, np.float64).reshape(len(rows), -1)
    return np.linalg.norm(rows[:, None] - rows[None], axis=-1)


def test_a_linear_network_has_the_distances_of_its_rows() -> None:
    last = _weights(3, 5)
    constants, vectors = _converged(lambda x: last @ x + 1.0, (5,))
    np.testing.assert_allclose(constants, _distances(last), rtol=1e-5)
    assert vectors == ()


def test_dense_layers_multiply_by_their_spectral_norms() -> None:
    first, second, last = _weights(6, 4), _weights(5, 6), _weights(3, 5)
    # A diagonal map, as normalisation is, belongs to the block around it.
    scale = jnp.array([1.0, 2.0, 0.5, 3.0])

    def f(x: jax.Array) -> jax.Array:
        return last @ jax.nn.relu(second @ jax.nn.relu(first @ ((x - 0.3) / scale) + 0.1))

    constants, vectors = _converged(f, (4,))
    expected = _norm(np.asarray(first) / np.asarray(scale)) * _norm(second) * _distances(last)
    np.testing.assert_allclose(constants, expected, rtol=1e-4)
    np.testing.assert_allclose(constants, constants.T, rtol=1e-6)
    np.testing.assert_array_equal(np.diag(constants), np.zeros(3))
    assert [vector.shape for vector in vectors] == [(4,), (6,)]


def test_a_convolution_is_an_operator_on_its_image() -> None:
    kernel, last = _weights(3, 3, 2, 3), _weights(4, 27)

    def convolved(x: jax.Array) -> jax.Array:
        layout = ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated(x[None], kernel, (2, 2), ((1, 1), (1, 1)), dimension_numbers=layout)[0]

    matrix = jax.jacobian(convolved)(jnp.zeros((5, 5, 2))).reshape(27, 50)
    constants, _ = _converged(lambda x: last @ jax.nn.relu(convolved(x)).reshape(-1), (5, 5, 2))
    np.testing.assert_allclose(constants, _norm(matrix) * _distances(last), rtol=1e-3)


def test_branches_add_their_constants() -> None:
    first, inner, outer, last = _weights(5, 4), _weights(6, 5), _weights(5, 6), _weights(3, 5)

    def f(x: jax.Array) -> jax.Array:
        h = jax.nn.relu(first @ x)
        return last @ jax.nn.relu(outer @ jax.nn.relu(inner @ h) + h)

    constants, vectors = _converged(f, (4,))
    # The identity branch has norm 1.
    expected = _norm(first) * (_norm(outer) * _norm(inner) + 1) * _distances(last)
    np.testing.assert_allclose(constants, expected, rtol=1e-4)
    assert len(vectors) == 4


def test_a_branch_around_everything_reaches_the_logits_by_itself() -> None:
    first, last, around = _weights(5, 4), _weights(3, 5), _weights(3, 4, seed=1)
    constants, _ = _converged(lambda x: last @ jax.nn.relu(first @ x) + around @ x, (4,))
    np.testing.assert_allclose(constants, _norm(first) * _distances(last) + _distances(around), rtol=1e-4)


def test_a_maximum_of_two_takes_both_operands_together() -> None:
    first, second, last = _weights(5, 4), _weights(5, 4, seed=1), _weights(3, 5)
    constants, _ = _converged(lambda x: last @ jnp.maximum(first @ x, second @ x), (4,))
    expected = np.hypot(_norm(first), _norm(second)) * _distances(last)
    np.testing.assert_allclose(constants, expected, rtol=1e-4)


def test_each_call_iterates_once_and_approaches_from_below() -> None:
    first, last = _weights(8, 6), _weights(2, 8)
    graph = graphs.trace(lambda x: last @ jax.nn.relu(first @ x), jnp.zeros(6))
    vectors, estimates = initial_vectors(graph, _KEY), []
    expected_vector = np.asarray(vectors[0], np.float64)
    for _ in range(8):
        constants, vectors = _estimated(graph, vectors)
        estimates.append(float(constants[0, 1]))
        expected_vector = np.asarray(first).T @ (np.asarray(first) @ expected_vector)
        expected_vector /= np.linalg.norm(expected_vector)
        np.testing.assert_allclose(vectors[0], expected_vector, rtol=1e-4, atol=1e-5)
    limit = _norm(first) * _distances(last)[0, 1]
    assert np.all(np.diff(estimates) > -1e-5)
    assert estimates[0] < 0.99 * limit
    assert np.all(np.asarray(estimates) <= limit * (1 + 1e-5))


def test_the_gradient_is_that_of_u_w_v_with_the_vectors_held() -> None:
    first, last, x = _weights(8, 6), _weights(3, 8), jnp.zeros(6)

    def constants(first: jax.Array, last: jax.Array, vectors: tuple) -> jax.Array:
        graph = graphs.trace(lambda x: last @ jax.nn.relu(first @ x), x)
        return jnp.sum(jnp.triu(_estimated(graph, vectors)[0]))

    vectors = initial_vectors(graphs.trace(lambda x: last @ jax.nn.relu(first @ x), x), _KEY)
    by_first, by_last = jax.grad(constants, argnums=(0, 1))(first, last, vectors)
    # Not converged: a gradient through the iteration itself would differ.
    left = np.asarray(first) @ np.asarray(vectors[0])
    left /= np.linalg.norm(left)
    right = np.asarray(first).T @ left
    right /= np.linalg.norm(right)
    distances = _distances(last)
    np.testing.assert_allclose(by_first, np.sum(np.triu(distances)) * np.outer(left, right), rtol=1e-4, atol=1e-4)
    norm, rows = left @ np.asarray(first) @ right, np.asarray(last)
    expected = sum(
        norm * np.outer(np.eye(3)[y] - np.eye(3)[j], rows[y] - rows[j]) / distances[y, j]
        for y in range(3)
        for j in range(y + 1, 3)
    )
    np.testing.assert_allclose(by_last, expected, rtol=1e-4, atol=1e-4)


def test_no_gradient_flows_into_the_vectors() -> None:
    first, last = _weights(8, 6), _weights(3, 8)
    graph = graphs.trace(lambda x: last @ jax.nn.relu(first @ x), jnp.zeros(6))
    vectors = initial_vectors(graph, _KEY)
    total = jax.grad(lambda vectors: jnp.sum(_estimated(graph, vectors)[0]))(vectors)
    renewed = jax.grad(lambda vectors: jnp.sum(_estimated(graph, vectors)[1][0]))(vectors)
    for gradient in (*total, *renewed):
        np.testing.assert_array_equal(gradient, np.zeros(6))


@pytest.mark.parametrize("fault", ["equal rows", "no weights"])
def test_gradients_stay_finite_where_norms_are_0(fault: str) -> None:
    first = jnp.zeros((8, 6)) if fault == "no weights" else _weights(8, 6)
    last = jnp.ones((3, 8))

    def total(first: jax.Array, last: jax.Array) -> jax.Array:
        graph = graphs.trace(lambda x: last @ jax.nn.relu(first @ x), jnp.zeros(6))
        return jnp.sum(_estimated(graph, initial_vectors(graph, _KEY))[0])

    value, gradients = jax.value_and_grad(total, argnums=(0, 1))(first, last)
    assert value == 0
    assert all(np.all(np.isfinite(gradient)) for gradient in gradients)


def test_converged_constants_bound_the_margins() -> None:
    weights = [_weights(8, 4), _weights(8, 8), _weights(3, 8)]

    def f(x: jax.Array) -> jax.Array:
        h = jax.nn.relu(weights[0] @ x)
        return weights[2] @ (h + jnp.abs(weights[1] @ h))

    constants, _ = _converged(f, (4,))
    graph = graphs.trace(f, jnp.zeros(4))
    proved = pairwise_lipschitz(graph, block_norms(f, jnp.zeros(4)))
    np.testing.assert_allclose(proved, constants, rtol=1e-3)
    assert np.all(proved >= constants * (1 - 1e-6))
    x = jnp.full(4, 0.5)
    points = jax.vmap(cj.l2_ball(x, 0.3).sample)(jax.random.split(_KEY, 500))
    moved = np.asarray(jax.vmap(f)(points)) - np.asarray(f(x))
    differences = np.abs(moved[:, :, None] - moved[:, None, :])
    assert np.all(differences <= 0.3 * constants + 1e-4)
    # Not absurdly loose.
    assert np.all(differences.max(axis=0)[~np.eye(3, dtype=bool)] > 0.03 * constants[~np.eye(3, dtype=bool)])


def test_a_classifier_that_is_constant_is_refused() -> None:
    with pytest.raises(ValueError, match="does not depend on its input"):
        pairwise_lipschitz(graphs.trace(lambda x: jnp.ones(3), jnp.zeros(2)), BlockNorms((), ()))


_REGIONS: dict[str, Callable[[jax.Array, jax.Array], cj.Region]] = {
    "l2": lambda x, eps: cj.l2_ball(x, eps),
    "l2, cut": lambda x, eps: cj.l2_ball(x, eps, (0.0, 1.0)),
    "l1": lambda x, eps: cj.l1_ball(x, eps),
    "l1.5, cut": lambda x, eps: cj.lp_ball(x, eps, 1.5, (0.0, 1.0)),
    "l4": lambda x, eps: cj.lp_ball(x, eps, 4.0),
    "linf, cut": lambda x, eps: cj.linf_ball(x, eps, (0.0, 1.0)),
    "l2, radius by pixel": lambda x, eps: cj.l2_ball(x, jnp.stack([eps, 2 * eps])),
    "l4, radius by pixel": lambda x, eps: cj.lp_ball(x, jnp.stack([eps, 2 * eps]), 4.0),
    "hull": lambda x, eps: Hull((cj.l1_ball(x, 2 * eps), cj.linf_ball(x + 0.1, eps))),
}


@pytest.mark.parametrize("name", _REGIONS)
def test_the_enclosing_ball_holds_the_region(name: str) -> None:
    region = _REGIONS[name](jnp.array([0.4, 0.9]), jnp.float32(0.3))
    center, radius = enclosing_ball(region)
    angles = jnp.linspace(0, 2 * jnp.pi, 100, dtype=jnp.float32)
    directions = jnp.stack([jnp.cos(angles), jnp.sin(angles)], axis=1)
    reach = jax.jit(jax.vmap(region.support))(directions) - directions @ center
    assert np.all(np.asarray(reach) <= radius * (1 + 1e-5))


def test_enclosing_balls_have_the_radius_of_the_norms() -> None:
    x = jnp.full(16, 0.5)
    radii = {p: float(enclosing_ball(cj.lp_ball(x, 0.1, p))[1]) for p in (1.0, 2.0, 4.0, math.inf)}
    expected = {1: 0.1, 2: 0.1, 4: 0.1 * 16**0.25, math.inf: 0.1 * 4}
    assert radii == pytest.approx(expected, rel=1e-5)
    # A corner of the pixel box leaves half of every coordinate of a box.
    assert float(enclosing_ball(cj.linf_ball(jnp.zeros(16), 0.1, (0.0, 1.0)))[1]) == pytest.approx(0.05 * 4, rel=1e-5)


@pytest.mark.parametrize("network", NETWORKS)
def test_certificates_hold_on_a_grid(network: str) -> None:
    f, parameters = NETWORKS[network]

    @jax.jit
    def check(weights, x: jax.Array, eps: jax.Array) -> tuple[jax.Array, jax.Array]:
        region = cj.l2_ball(x, eps, (0.0, 1.0))
        bounds = lipschitz(lambda x: f(weights, x))(region)
        points = grid(region.bounding_box())
        values = jax.vmap(lambda x: f(weights, x))(points)
        inside = jax.vmap(region.contains)(points)[:, None]
        broken = inside & ((values < bounds.lower[None] - 1e-5) | (values > bounds.upper[None] + 1e-5))
        return jnp.sum(broken), jnp.sum(bounds.upper <= bounds.lower)

    for seed in range(4):
        x = jax.random.uniform(jax.random.key(seed), 2)
        for eps in (0.05, 0.5):
            assert check(parameters(seed), x, jnp.float32(eps)) == (0, 0)


def test_certificates_of_a_linear_network_are_exact() -> None:
    weights = _weights(3, 5)
    bounds = lipschitz(lambda x: weights @ x + 1.0)(cj.l2_ball(jnp.ones(5), 0.2))
    center, moved = np.asarray(weights.sum(axis=1)) + 1, 0.2 * np.linalg.norm(np.asarray(weights), axis=1)
    np.testing.assert_allclose(bounds.lower, center - moved, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(bounds.upper, center + moved, rtol=1e-5, atol=1e-5)


def test_certificates_attain_the_norm_of_the_blocks() -> None:
    """Inputs along the singular vectors, with all ReLUs open: nothing but the norm itself is sound."""
    left, _, right = np.linalg.svd(np.asarray(_weights(6, 6), np.float64))
    # Close singular values: power iteration would still be below the first after many steps.
    first = jnp.asarray((left @ np.diag([1.0, 0.999, 0.998, 0.9, 0.5, 0.1]) @ right).astype(np.float32))
    last = jnp.asarray(left[:, :1].T.astype(np.float32))
    f = lambda x: last @ jax.nn.relu(first @ x + 10.0)  # noqa: E731
    region = cj.l2_ball(jnp.zeros(6), 1.0)
    bounds = jax.jit(lipschitz(f))(region)
    reached = f(jnp.asarray(right[0].astype(np.float32)))
    assert bounds.upper >= reached
    np.testing.assert_allclose(bounds.upper, reached, rtol=1e-3)


def test_margins_are_bounded_by_the_distances_of_rows_with_the_norms_of_the_network() -> None:
    first, second, last, x = _weights(6, 4), _weights(5, 6), _weights(3, 5), jnp.full(4, 0.5)

    def f(x: jax.Array) -> jax.Array:
        return last @ jax.nn.relu(second @ jax.nn.relu(first @ x))

    norms = block_norms(f, x)
    bounds = jax.jit(lambda label: lipschitz(cj.margins(f, label), norms=norms)(cj.l2_ball(x, 0.1)))(1)
    width = 2 * 0.1 * _norm(first) * _norm(second) * _distances(last)[1, [0, 2]]
    np.testing.assert_allclose(bounds.upper - bounds.lower, width, rtol=2e-3)
    assert np.all(bounds.upper - bounds.lower >= width * (1 - 1e-5))


def test_certificates_under_jit_vmap_and_grad() -> None:
    first, last = _weights(6, 4), _weights(3, 6)
    norms = block_norms(lambda x: last @ jnp.abs(first @ x), jnp.zeros(4))

    def lower(x: jax.Array, eps: jax.Array) -> jax.Array:
        return lipschitz(lambda x: last @ jnp.abs(first @ x), norms=norms)(cj.l2_ball(x, eps)).lower

    points, eps = _weights(5, 4), jnp.float32(0.1)
    together = jax.jit(jax.vmap(lower, in_axes=(0, None)))(points, eps)
    np.testing.assert_allclose(together, np.stack([lower(x, eps) for x in points]), rtol=1e-5, atol=1e-5)
    slope = jax.grad(lambda eps: jnp.sum(lower(points[0], eps)))(eps)
    np.testing.assert_allclose(slope, -norms.values[0] * np.sum(np.linalg.norm(last, axis=1)), rtol=1e-4)


def test_a_function_without_a_lipschitz_constant_has_infinite_bounds() -> None:
    bounds = lipschitz(lambda x: x[:1] * x[1:])(cj.l2_ball(jnp.ones(2), 0.1))
    assert bounds.lower == -jnp.inf
    assert bounds.upper == jnp.inf


def test_the_certificate_of_a_constant_is_the_constant() -> None:
    bounds = lipschitz(lambda x: jnp.ones(3))(cj.l2_ball(jnp.ones(2), 0.1))
    np.testing.assert_array_equal(bounds.lower, np.ones(3))
    np.testing.assert_array_equal(bounds.upper, np.ones(3))


def _three_layers(parameters):
    first, second, last = parameters
    return lambda x: last @ jax.nn.relu(second @ jax.nn.relu(first @ x) + 0.1)


@pytest.mark.parametrize("layer", [1, *(pytest.param(layer, marks=pytest.mark.slow) for layer in (0, 2))])
@pytest.mark.parametrize("bound", [cj.lipschitz, cj.box_ball, pytest.param(cj.sdp_crown, marks=pytest.mark.slow)])
def test_gradients_are_finite_where_a_layer_is_zero(bound, layer):
    parameters = [jnp.ones((4, 3)), jnp.eye(4), jnp.ones((2, 4))]
    parameters[layer] = jnp.zeros_like(parameters[layer])
    for region in (cj.l2_ball(jnp.array([0.5, 0.2, 0.3]), 0.1, (0.0, 1.0)), cj.linf_ball(jnp.ones(3), 0.1)):
        width = lambda p, region=region: jnp.sum(bound(_three_layers(p))(region).lower)  # noqa: E731
        chex.assert_tree_all_finite(jax.grad(width)(parameters))


def test_gradients_of_the_norm_of_a_convolution_of_zeros_are_finite():
    def f(kernel):
        options = {"dimension_numbers": ("NHWC", "HWIO", "NHWC")}
        return lambda x: jax.nn.relu(jax.lax.conv_general_dilated(x[None], kernel, (1, 1), "SAME", **options))

    region = cj.l2_ball(jnp.full((16, 16, 2), 0.5), 0.1)
    for kernel in (jnp.zeros((3, 3, 2, 2)), jnp.ones((3, 3, 2, 2)).at[..., 0].set(0)):
        chex.assert_tree_all_finite(jax.grad(lambda k: jnp.sum(cj.lipschitz(f(k))(region).upper))(kernel))


def test_the_estimate_of_a_layer_that_was_zero_recovers():
    parameters = [jnp.ones((4, 3)), jnp.zeros((4, 4)), jnp.ones((2, 4))]
    x = jax.ShapeDtypeStruct((3,), jnp.float32)
    vectors = initial_vectors(graphs.trace(_three_layers(parameters), x), jax.random.key(0))
    norms, vectors = estimated_norms(graphs.trace(_three_layers(parameters), x), vectors)
    assert norms.values[1] == 0
    parameters[1] = 2 * jnp.eye(4)
    norms, _ = estimated_norms(graphs.trace(_three_layers(parameters), x), vectors)
    np.testing.assert_allclose(norms.values[1], 2.0, rtol=1e-4)
