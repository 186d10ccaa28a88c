"""Estimated Lipschitz constants: power iteration against NumPy, sums over branches, gradients."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import cure_jax as cj
from cure_jax import graph as graphs
from cure_jax.bounds.lipschitz import initial_vectors, pairwise_lipschitz

_KEY = jax.random.key(0)


def _converged(f: Callable, shape: tuple[int, ...], iterations: int = 300) -> tuple[np.ndarray, tuple[jax.Array, ...]]:
    """The matrix of constants, and the vectors, after many power iterations."""
    example = jnp.zeros(shape)
    vectors = initial_vectors(graphs.trace(f, example), _KEY)

    def iterate(vectors: tuple, _: None) -> tuple[tuple, None]:
        return pairwise_lipschitz(graphs.trace(f, example), vectors)[1], None

    @jax.jit
    def run(vectors: tuple) -> tuple[jax.Array, tuple]:
        return pairwise_lipschitz(graphs.trace(f, example), lax.scan(iterate, vectors, length=iterations)[0])

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
        constants, vectors = pairwise_lipschitz(graph, vectors)
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
        return jnp.sum(jnp.triu(pairwise_lipschitz(graph, vectors)[0]))

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
    total = jax.grad(lambda vectors: jnp.sum(pairwise_lipschitz(graph, vectors)[0]))(vectors)
    renewed = jax.grad(lambda vectors: jnp.sum(pairwise_lipschitz(graph, vectors)[1][0]))(vectors)
    for gradient in (*total, *renewed):
        np.testing.assert_array_equal(gradient, np.zeros(6))


@pytest.mark.parametrize("fault", ["equal rows", "no weights"])
def test_gradients_stay_finite_where_norms_are_0(fault: str) -> None:
    first = jnp.zeros((8, 6)) if fault == "no weights" else _weights(8, 6)
    last = jnp.ones((3, 8))

    def total(first: jax.Array, last: jax.Array) -> jax.Array:
        graph = graphs.trace(lambda x: last @ jax.nn.relu(first @ x), jnp.zeros(6))
        return jnp.sum(pairwise_lipschitz(graph, initial_vectors(graph, _KEY))[0])

    value, gradients = jax.value_and_grad(total, argnums=(0, 1))(first, last)
    assert value == 0
    assert all(np.all(np.isfinite(gradient)) for gradient in gradients)


def test_converged_constants_bound_the_margins() -> None:
    weights = [_weights(8, 4), _weights(8, 8), _weights(3, 8)]

    def f(x: jax.Array) -> jax.Array:
        h = jax.nn.relu(weights[0] @ x)
        return weights[2] @ (h + jnp.abs(weights[1] @ h))

    constants, _ = _converged(f, (4,))
    x = jnp.full(4, 0.5)
    points = jax.vmap(cj.l2_ball(x, 0.3).sample)(jax.random.split(_KEY, 500))
    moved = np.asarray(jax.vmap(f)(points)) - np.asarray(f(x))
    differences = np.abs(moved[:, :, None] - moved[:, None, :])
    assert np.all(differences <= 0.3 * constants + 1e-4)
    # Not absurdly loose.
    assert np.all(differences.max(axis=0)[~np.eye(3, dtype=bool)] > 0.03 * constants[~np.eye(3, dtype=bool)])


def test_a_classifier_that_is_constant_is_refused() -> None:
    with pytest.raises(ValueError, match="does not depend on its input"):
        pairwise_lipschitz(graphs.trace(lambda x: jnp.ones(3), jnp.zeros(2)), ())
