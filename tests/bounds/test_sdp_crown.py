"""The l_2-ball relaxation: sound for every parameter, exact where theory says so, no looser than what it uses."""

import functools
import importlib
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cure_jax as cj
from cure_jax import graph as graphs
from cure_jax.bounds.box_ball import Ball, box_ball, propagate_balls
from cure_jax.bounds.lipschitz import lipschitz
from cure_jax.bounds.norms.spectral import BlockNorms, block_norms, norms_by_block
from cure_jax.bounds.sdp_crown import Layer, _layers, _lower_bound, _Problem, _relaxations, sdp_crown
from tests.networks import NETWORKS, grid

# Looked up when it is called, where a bug can be planted.
_SDP_CROWN = importlib.import_module("cure_jax.bounds.sdp_crown")


def _layer_bound(*arguments: Any) -> jax.Array:
    return _SDP_CROWN.layer_bound(*arguments)


_REGIONS: dict[str, Callable[[jax.Array, jax.Array], cj.Region]] = {
    "l2, cut": lambda x, eps: cj.l2_ball(x, eps, (0.0, 1.0)),
    "linf": lambda x, eps: cj.linf_ball(x, eps),
}
# Slopes left and right of the kink: relu, its mirror image, |x|, leaky relus, one of them not monotone.
_SLOPES = [(0.0, 1.0), (1.0, 0.0), (-1.0, 1.0), (0.1, 1.0), (3.0, 1.0), (-0.5, 1.0)]


def _weights(*shape: int, seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng((seed, *shape)).normal(size=shape).astype(np.float32))


def _layer(key: jax.Array, slopes: tuple[float, float]) -> Layer:
    """In three dimensions, with a box that cuts the ball on some sides and a kink away from 0."""
    keys = jax.random.split(key, 4)
    center, radius = jax.random.normal(keys[0], 3), jax.random.uniform(keys[1], (), minval=0.1, maxval=2.0)
    room = jax.random.uniform(keys[2], (2, 3), maxval=1.5) * radius
    box = cj.Interval(center - room[0], center + room[1])
    return Layer(box, Ball(center, radius), jax.random.normal(keys[3], 3), tuple(map(jnp.float32, slopes)))


def _points(layer: Layer, count: int = 30) -> jax.Array:
    """A grid over the box with the points outside of the ball drawn to its surface, which keeps them in the box."""
    shares = jnp.asarray(np.stack(np.meshgrid(*[np.linspace(0, 1, count)] * 3), -1).reshape(-1, 3), jnp.float32)

    def place(share: jax.Array) -> jax.Array:
        offset = layer.box.lower + share * (layer.box.upper - layer.box.lower) - layer.ball.center
        return layer.ball.center + offset * jnp.minimum(1, layer.ball.radius / (jnp.linalg.norm(offset) + 1e-6))

    return jax.vmap(place)(shares)


def _value(layer: Layer, x: jax.Array) -> jax.Array:
    return layer.kink + jnp.where(x > layer.kink, layer.slopes[1], layer.slopes[0]) * (x - layer.kink)


@pytest.mark.parametrize("slopes", _SLOPES)
def test_every_slope_and_every_multiplier_is_sound(slopes: tuple[float, float]) -> None:
    @jax.jit
    def gaps(key: jax.Array) -> jax.Array:
        """The least of <c, sigma(x)> - <g, x> - h over the layer, for many c, g and lam on many layers."""
        keys = jax.random.split(key, 4)
        layer = _layer(keys[0], slopes)
        coefficients, g = jax.random.normal(keys[1], (2, 50, 3)) * 2
        multipliers = jnp.exp(8 * jax.random.normal(keys[2], 50)).at[0].set(0.0)
        h = jax.vmap(functools.partial(_layer_bound, layer))(coefficients, g, multipliers)
        points = _points(layer)
        values = coefficients @ jax.vmap(functools.partial(_value, layer))(points).T - g @ points.T
        return (jnp.min(values, axis=1) - h) / (1 + jnp.abs(h))

    gap = np.asarray(jax.vmap(gaps)(jax.random.split(jax.random.key(0), 20)))
    assert gap.min() >= -1e-4
    assert np.all(np.isfinite(gap))


@pytest.mark.parametrize("slopes", _SLOPES[:3])
def test_the_best_multiplier_is_exact_for_the_linear_pieces(slopes: tuple[float, float]) -> None:
    """Where ball and box lie on one piece the problem is convex, and duality leaves no gap."""
    layer = _layer(jax.random.key(1), slopes)
    layer = layer._replace(kink=layer.ball.center - 10.0)
    coefficients, g = jnp.array([1.0, -2.0, 0.5]), jnp.array([0.3, 0.3, -1.0])
    bounds = jax.vmap(lambda lam: _layer_bound(layer, coefficients, g, lam))(jnp.geomspace(1e-3, 1e2, 2000))
    points = _points(layer, 60)
    least = jnp.min(jax.vmap(functools.partial(_value, layer))(points) @ coefficients - points @ g)
    # The grid misses the minimiser by a cell.
    assert -1e-4 <= least - jnp.max(bounds) <= 0.05


def test_without_a_box_it_is_the_theorem() -> None:
    key = jax.random.key(2)
    keys = jax.random.split(key, 4)
    center, coefficients, g = jax.random.normal(keys[0], (3, 7))
    wide, zero, one = jnp.full(7, 1e4), jnp.zeros(7), jnp.ones(())
    rho = jnp.float32(0.8)
    layer = Layer(cj.Interval(-wide, wide), Ball(center, rho), zero, (jnp.zeros(()), one))
    for lam in (0.3, 2.0):
        cut = np.minimum(np.minimum(coefficients - g - lam * center, g + lam * center), 0)
        expected = -0.5 * (lam * (rho**2 - np.sum(center**2)) + np.sum(cut**2) / lam)
        np.testing.assert_allclose(_layer_bound(layer, coefficients, g, jnp.float32(lam)), expected, rtol=1e-5)


def test_around_0_the_best_multiplier_gives_the_norm() -> None:
    """xc = 0: the optimum is -rho |min(c - g, g, 0)|_2, the exact value of the layer."""
    coefficients, g = _weights(2, 50)
    wide, rho = jnp.full(50, 1e4), jnp.float32(0.5)
    layer = Layer(cj.Interval(-wide, wide), Ball(jnp.zeros(50), rho), jnp.zeros(50), (jnp.zeros(()), jnp.ones(())))
    bounds = jax.vmap(lambda lam: _layer_bound(layer, coefficients, g, lam))(jnp.geomspace(0.1, 1e3, 3000))
    cut = np.minimum(np.minimum(coefficients - g, g), 0)
    np.testing.assert_allclose(jnp.max(bounds), -0.5 * np.linalg.norm(cut), rtol=1e-4)


def test_a_multiplier_of_0_is_the_relaxation_on_the_box() -> None:
    """With slope 0 or 1 below, and the chord above, as CROWN has them."""
    lower, upper = jnp.array([-1.0, -2.0]), jnp.array([3.0, 1.0])
    layer = Layer(cj.Interval(lower, upper), Ball((lower + upper) / 2, jnp.float32(9.0)), jnp.zeros(2), _unit_slopes())
    chord = upper / (upper - lower)
    positive = _layer_bound(layer, jnp.ones(2), jnp.array([0.0, 1.0]), jnp.zeros(()))
    negative = _layer_bound(layer, -jnp.ones(2), -chord, jnp.zeros(()))
    np.testing.assert_allclose(positive, 0.0, atol=1e-6)
    np.testing.assert_allclose(negative, jnp.sum(chord * lower), rtol=1e-6)


def _unit_slopes() -> tuple[jax.Array, jax.Array]:
    return jnp.zeros(()), jnp.ones(())


@functools.cache
def _norms_of(network: str) -> Callable[[Any], BlockNorms]:
    """Compiled apart, once for all regions."""
    f, _ = NETWORKS[network]
    return jax.jit(lambda weights: block_norms(lambda x: f(weights, x), jnp.zeros(2)))


@pytest.mark.parametrize(("network", "norm"), [("mlp", "linf"), ("residual", "l2, cut")])
def test_bounds_hold_on_a_grid_and_are_no_looser_than_what_they_use(network: str, norm: str) -> None:
    f, parameters = NETWORKS[network]

    @jax.jit
    def check(weights: Any, norms: BlockNorms, x: jax.Array, eps: jax.Array) -> tuple[jax.Array, ...]:
        region, function = _REGIONS[norm](x, eps), lambda x: f(weights, x)
        bounds = sdp_crown(function, 6, norms=norms)(region)
        points = grid(region.bounding_box())
        values, inside = jax.vmap(function)(points), jax.vmap(region.contains)(points)[:, None]
        broken = inside & ((values < bounds.lower[None] - 1e-5) | (values > bounds.upper[None] + 1e-5))
        looser = [
            (bounds.lower < other.lower - 1e-5) | (bounds.upper > other.upper + 1e-5)
            for other in (box_ball(function, norms=norms)(region), lipschitz(function, norms=norms)(region))
        ]
        return jnp.sum(broken), jnp.sum(jnp.stack(looser)), jnp.sum(~jnp.isfinite(bounds.lower))

    for seed in range(4):
        weights, x = parameters(seed), jax.random.uniform(jax.random.key(seed), 2)
        norms = _norms_of(network)(weights)
        for eps in (0.0, 0.05, 0.5):
            assert check(weights, norms, x, jnp.float32(eps)) == (0, 0, 0)


def test_every_choice_of_parameters_is_sound_for_a_whole_network() -> None:
    """Not only those that the optimiser meets: random ones in all layers, with sums and pooling between them."""
    f, parameters = NETWORKS["residual"]

    @jax.jit
    def excess(weights: Any, norms: BlockNorms, x: jax.Array, key: jax.Array) -> jax.Array:
        region = cj.l2_ball(x, jnp.float32(0.4), (0.0, 1.0))
        graph = graphs.trace(lambda x: f(weights, x), x)
        known = propagate_balls(graph, region, norms_by_block(graph, norms))
        problem = _Problem(graph, region, _layers(graph, known), _relaxations(graph, known))

        def relax(equation: graphs.Equation, coefficients: jax.Array) -> tuple[jax.Array, jax.Array]:
            layer, own = problem.layers[equation.output.index], jax.random.fold_in(key, equation.output.index)
            g = coefficients * (0.5 + jax.random.normal(own, coefficients.shape))
            return g, _layer_bound(layer, coefficients, g, jnp.exp(3 * jax.random.normal(own)))

        rows = jnp.concatenate([jnp.eye(3), -jnp.eye(3)])
        bounds = jax.vmap(lambda row: _lower_bound(problem, row, relax))(rows)
        points = grid(region.bounding_box())
        values = rows @ jax.vmap(lambda x: f(weights, x))(points).T
        least = jnp.min(jnp.where(jax.vmap(region.contains)(points)[None], values, jnp.inf), axis=1)
        return jnp.max((bounds - least) / (1 + jnp.abs(bounds)))

    for seed in range(3):
        weights, keys = parameters(seed), jax.random.split(jax.random.key(seed), 40)
        norms = _norms_of("residual")(weights)
        x = jax.random.uniform(keys[0], 2)
        assert np.max(jax.vmap(lambda key: excess(weights, norms, x, key))(keys)) <= 1e-5  # noqa: B023


@pytest.fixture(scope="module")
def wide() -> tuple[list[jax.Array], BlockNorms]:
    """Two hidden layers of 24, which boxes and lines neuron by neuron cannot see as wholes."""
    weights = [_weights(*shape) / np.float32(math.sqrt(shape[1])) for shape in ((24, 12), (24, 24), (3, 24))]
    return weights, jax.jit(lambda weights: block_norms(lambda x: _wide(weights, x), jnp.zeros(12)))(weights)


def _wide(weights: list[jax.Array], x: jax.Array) -> jax.Array:
    return weights[2] @ jax.nn.relu(weights[1] @ jax.nn.relu(weights[0] @ x))


def test_the_optimiser_gains_on_all_it_starts_from_and_samples_agree(wide: tuple[list[jax.Array], BlockNorms]) -> None:
    weights, norms = wide
    function = lambda x: _wide(weights, x)  # noqa: E731
    center = _weights(12)

    @jax.jit
    def bounds() -> dict[str, cj.Interval]:
        region = cj.l2_ball(center, 1.0)
        layers = cj.bounds.intermediate_bounds(function)(region)
        methods = {
            "sdp_crown": sdp_crown(function, 30, norms=norms),
            "with layers": sdp_crown(function, 30, norms=norms, intermediate=layers),
            "start": sdp_crown(function, 0, norms=norms),
            "lipschitz": lipschitz(function, norms=norms),
            "box_ball": box_ball(function, norms=norms),
            "crown": cj.crown(function, layers),
        }
        return {name: method(region) for name, method in methods.items()}

    found = bounds()
    directions = jax.random.normal(jax.random.key(0), (20000, 12))
    points = center[None] + directions / jnp.linalg.norm(directions, axis=1, keepdims=True)
    values = jax.vmap(function)(points)
    for bound in found.values():
        assert np.all((values >= bound.lower[None]) & (values <= bound.upper[None]))
    width = {name: float(jnp.sum(bound.upper - bound.lower)) for name, bound in found.items()}
    assert width["sdp_crown"] < 0.9 * min(width[name] for name in ("start", "lipschitz", "box_ball"))
    assert width["with layers"] < 0.99 * min(width["crown"], width["sdp_crown"])


def test_only_lower_bounds_under_vmap_with_a_finite_gradient(wide: tuple[list[jax.Array], BlockNorms]) -> None:
    weights, norms = wide

    def least(weights: list[jax.Array], x: jax.Array, eps: jax.Array) -> jax.Array:
        bounds = sdp_crown(lambda x: _wide(weights, x), 3, lower_only=True, norms=norms)(cj.l2_ball(x, eps))
        return jnp.sum(bounds.lower)

    points, eps = _weights(3, 12), jnp.array([0.0, 0.1, 1.0])
    value_and_slopes = jax.jit(jax.vmap(jax.value_and_grad(least, argnums=(0, 2)), in_axes=(None, 0, 0)))
    values, (slopes, by_radius) = value_and_slopes(weights, points, eps)
    np.testing.assert_allclose(values[0], jnp.sum(_wide(weights, points[0])), rtol=1e-3, atol=1e-3)
    assert all(np.all(np.isfinite(slope)) for slope in slopes)
    assert np.all(by_radius[1:] < 0)


def test_steps_are_not_negative() -> None:
    with pytest.raises(ValueError, match="steps must be at least 0"):
        sdp_crown(lambda x: x, -1)


def test_an_output_that_is_constant_is_its_own_bound() -> None:
    bounds = sdp_crown(lambda x: jnp.ones(3))(cj.l2_ball(jnp.ones(2), 0.1))
    np.testing.assert_array_equal(bounds.lower, np.ones(3))
