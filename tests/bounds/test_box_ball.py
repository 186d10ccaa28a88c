"""Boxes and balls together: sound on grids, never looser than boxes alone, tighter where a layer turns a ball."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cure_jax as cj
from cure_jax import graph as graphs
from cure_jax.bounds.box_ball import box_ball, propagate_balls
from cure_jax.bounds.norms.spectral import BlockNorms, block_norms, norms_by_block
from tests.networks import NETWORKS, grid

_REGIONS: dict[str, Callable[[jax.Array, jax.Array], cj.Region]] = {
    "l2, cut": lambda x, eps: cj.l2_ball(x, eps, (0.0, 1.0)),
    "linf": lambda x, eps: cj.linf_ball(x, eps),
    "l1": lambda x, eps: cj.l1_ball(x, eps),
}


def _weights(*shape: int, seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng((seed, *shape)).normal(size=shape).astype(np.float32))


@functools.cache
def _norms_of(network: str) -> Callable[[Any], BlockNorms]:
    """Compiled apart, once for all regions."""
    f, _ = NETWORKS[network]
    return jax.jit(lambda weights: block_norms(lambda x: f(weights, x), jnp.zeros(2)))


@pytest.mark.parametrize(("network", "norm"), [("mlp", "l1"), ("residual", "l2, cut"), ("residual", "linf")])
def test_bounds_hold_on_a_grid_and_are_no_looser_than_boxes(network: str, norm: str) -> None:
    f, parameters = NETWORKS[network]

    @jax.jit
    def check(weights: Any, norms: BlockNorms, x: jax.Array, eps: jax.Array) -> tuple[jax.Array, jax.Array]:
        region = _REGIONS[norm](x, eps)
        bounds = box_ball(lambda x: f(weights, x), norms=norms)(region)
        boxes = cj.ibp(lambda x: f(weights, x))(region)
        points = grid(region.bounding_box())
        values = jax.vmap(lambda x: f(weights, x))(points)
        inside = jax.vmap(region.contains)(points)[:, None]
        broken = inside & ((values < bounds.lower[None] - 1e-5) | (values > bounds.upper[None] + 1e-5))
        looser = (bounds.lower < boxes.lower - 1e-5) | (bounds.upper > boxes.upper + 1e-5)
        return jnp.sum(broken), jnp.sum(looser)

    for seed in range(4):
        weights, x = parameters(seed), jax.random.uniform(jax.random.key(seed), 2)
        norms = _norms_of(network)(weights)
        for eps in (0.0, 0.05, 0.5):
            assert check(weights, norms, x, jnp.float32(eps)) == (0, 0)


def test_what_is_known_of_the_nodes_holds() -> None:
    """Every ball and every box, of every node, on samples of the surface."""
    weights = [_weights(12, 6), _weights(12, 12), _weights(4, 12)]

    def f(x: jax.Array) -> jax.Array:
        h = jax.nn.relu(weights[0] @ x)
        h = h + jnp.abs(weights[1] @ h - 1.0)
        return weights[2] @ jnp.maximum(h[:6], h[6:]).repeat(2)

    region = cj.l2_ball(jnp.linspace(-1, 1, 6, dtype=jnp.float32), 0.4)
    graph = graphs.trace(f, region.center)
    directions = jax.random.normal(jax.random.key(0), (400, 6))
    directions = directions / jnp.linalg.norm(directions, axis=1, keepdims=True)

    def values(x: jax.Array) -> dict[int, jax.Array]:
        found = {graph.input.index: x}
        for equation in graph.equations:
            found[equation.output.index] = equation.evaluate(*(found[node.index] for node in equation.bounded))
        return found

    known = jax.jit(lambda: propagate_balls(graph, region, norms_by_block(graph, None)))()
    samples = jax.jit(jax.vmap(values))(region.center[None] + 0.4 * directions)
    assert set(known.intervals) == set(samples)
    assert len(known.balls) == 8
    for index, sampled in samples.items():
        box = known.intervals[index]
        assert np.all((sampled >= box.lower[None] - 1e-5) & (sampled <= box.upper[None] + 1e-5))
    for index, (center, radius) in known.balls.items():
        distance = np.linalg.norm(np.asarray(samples[index] - center[None]), axis=1)
        assert np.all(distance <= radius * (1 + 1e-5))
        # Not absurdly loose.
        assert distance.max() > 0.05 * radius


def test_balls_survive_rotations_that_boxes_lose() -> None:
    """Orthogonal layers with open ReLUs: the ball keeps its radius, boxes grow by a factor in every layer."""
    rotations = [jnp.linalg.qr(_weights(16, 16, seed=i))[0] for i in range(3)]

    def f(x: jax.Array) -> jax.Array:
        for rotation in rotations:
            x = jax.nn.relu(rotation @ x + 50.0) - 50.0
        return rotations[0] @ x

    region = cj.l2_ball(jnp.zeros(16), 1.0)
    bounds, boxes = jax.jit(lambda region: (box_ball(f)(region), cj.ibp(f)(region)))(region)
    np.testing.assert_allclose(bounds.upper - bounds.lower, np.full(16, 2.0), rtol=0.01)
    assert np.all(bounds.upper - bounds.lower >= 2 - 1e-4)
    assert np.all(boxes.upper - boxes.lower > 10)


def test_the_last_block_sees_ball_and_box_together() -> None:
    """Half of the neurons cannot fall below 0: neither the ball nor the box alone knows the value."""
    f = lambda x: jnp.array([[-1.0, -1.0]]) @ jax.nn.relu(x)  # noqa: E731
    bounds = jax.jit(box_ball(f))(cj.l2_ball(jnp.array([0.0, 1.0]), 1.0))
    # Of (y0, y1) with y0 >= 0 and |(y0, y1 - 1)| <= 1, the sum is between 0 (ball: 1 - sqrt 2) and 1 + sqrt 2 (box: 3).
    assert float(bounds.upper[0]) == pytest.approx(0.0, abs=1e-5)
    assert float(bounds.lower[0]) == pytest.approx(-1 - 2**0.5, rel=1e-3)


def test_norms_can_be_handed_in_and_those_of_another_network_cannot() -> None:
    f = lambda x: _weights(3, 5) @ jax.nn.relu(_weights(5, 4) @ x)  # noqa: E731
    region = cj.l2_ball(jnp.ones(4), 0.1)
    with_norms = jax.jit(lambda norms: box_ball(f, norms=norms)(region))
    np.testing.assert_array_equal(with_norms(block_norms(f, region.center)).lower, with_norms(None).lower)
    with pytest.raises(ValueError, match="another network"):
        with_norms(block_norms(lambda x: jnp.abs(_weights(6, 4) @ x), region.center))


def test_vmap_and_grad() -> None:
    weights = [_weights(6, 4), _weights(3, 6)]

    def width(weights: list[jax.Array], x: jax.Array, eps: jax.Array) -> jax.Array:
        bounds = box_ball(lambda x: weights[1] @ jax.nn.relu(weights[0] @ x))(cj.l2_ball(x, eps, (0.0, 1.0)))
        return jnp.sum(bounds.upper - bounds.lower)

    value_and_slopes = jax.value_and_grad(width, argnums=(0, 2))
    points, eps = jax.random.uniform(jax.random.key(1), (3, 4)), jnp.array([0.0, 0.1, 0.2])
    together, (slopes, by_radius) = jax.jit(jax.vmap(value_and_slopes, in_axes=(None, 0, 0)))(weights, points, eps)
    one = jax.jit(width)
    np.testing.assert_allclose(together, [one(weights, x, e) for x, e in zip(points, eps, strict=True)], rtol=1e-4)
    assert all(np.all(np.isfinite(slope)) for slope in (*slopes, by_radius))
    assert np.all(by_radius[1:] > 0)
