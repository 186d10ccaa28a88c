"""CROWN at the vertices of an l_1 ball: exact where theory says so, sound, tighter than CROWN where it should be."""

import sys
from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cure_jax as cj
from cure_jax.attacks import pgd
from cure_jax.bounds import in_float64, vertex_crown
from tests.bounds.test_coefficients import NETWORKS
from tests.networks import random_mlp

_NUMBERS = ("NHWC", "HWIO", "NHWC")


def _weights(*shape: int, seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng((seed, *shape)).normal(size=shape).astype(np.float32))


def _vertices(x: jax.Array, eps: float, lower: float, upper: float) -> jax.Array:
    """The center, and every pixel moved by eps if it may."""
    moves = np.concatenate([np.eye(x.size), -np.eye(x.size)]) * eps
    points = np.asarray(x) + moves
    inside = np.all((points >= lower - 1e-6) & (points <= upper + 1e-6), axis=1)
    return jnp.asarray(np.concatenate([np.asarray(x)[None], points[inside]]), jnp.float32)


@pytest.mark.parametrize("activation", [jax.nn.relu, jnp.abs, lambda x: jnp.maximum(x, 0.3)])
@pytest.mark.parametrize("within", [None, (0.0, 1.0)])
def test_concave_functions_are_bounded_exactly(within, activation) -> None:
    weights, shift, out = _weights(6, 20), _weights(20), -jnp.abs(_weights(20, 3))

    def f(x: jax.Array) -> jax.Array:
        return activation(x @ weights + shift) @ out + x @ _weights(6, 3)

    # Slopes that are optimised have nothing to gain where the first bound is exact.
    bounds = jax.jit(vertex_crown(f, 0))
    # Black and white pixels can move by the whole radius or not at all.
    for x in ([0.0, 1, 1, 0, 1, 0], [0.0, 0, 0, 0, 0, 0], [1.0, 1, 1, 1, 1, 1]):
        x = jnp.array(x)
        for eps in (0.3, 1.0):
            bound = bounds(cj.l1_ball(x, eps, within)).lower
            points = _vertices(x, eps, *(within or (-np.inf, np.inf)))
            np.testing.assert_allclose(bound, jnp.min(jax.vmap(f)(points), axis=0), rtol=1e-5, atol=1e-5)


def test_radii_of_their_own_and_pixels_that_stay() -> None:
    weights, out = _weights(4, 10), -jnp.abs(_weights(10, 2))

    def f(x: jax.Array) -> jax.Array:
        return jax.nn.relu(x @ weights) @ out

    x, radii = _weights(4, seed=5), jnp.array([0.5, 0.0, 1.5, 0.1])
    points = jnp.concatenate([x[None], x[None] + jnp.diag(radii), x[None] - jnp.diag(radii)])
    bound = jax.jit(vertex_crown(f, 0))(cj.l1_ball(x, radii)).lower
    np.testing.assert_allclose(bound, jnp.min(jax.vmap(f)(points), axis=0), rtol=1e-5, atol=1e-5)


_STANDING_STILL = ("one channel", "branches", "along one axis", "separable")


@pytest.mark.parametrize(
    ("name", "dense_output"),
    [
        ("strides", False),
        ("one channel", True),
        *(
            pytest.param(name, False, marks=pytest.mark.slow)
            for name in ("uneven padding", "dilated", "channels first", *_STANDING_STILL)
        ),
        pytest.param("along one axis", True, marks=pytest.mark.slow),
    ],
)
def test_windows_are_dense_coefficients(name: str, dense_output: bool) -> None:
    def f(x: jax.Array) -> jax.Array:
        y = NETWORKS[name](x)
        return jax.nn.relu(y).ravel() @ _weights(y.size, 3) + x.ravel() @ _weights(x.size, 3) if dense_output else y

    x = jnp.asarray(np.random.default_rng(1).integers(0, 3, size=(7, 9, 2)) / 2, jnp.float32)
    region = cj.l1_ball(x, 0.4, (0.0, 1.0))
    bounds = jax.jit(vertex_crown(f, 0))(region)
    with pytest.MonkeyPatch.context() as patch:
        for module in ("vertex_crown", "folding.linear"):
            patch.setattr(sys.modules[f"cure_jax.bounds.{module}"], "moving_axes", lambda graph, node: ())
        dense = jax.jit(vertex_crown(f, 0))(region)
    chex.assert_trees_all_close(bounds, dense, atol=1e-4, rtol=1e-5)
    assert jnp.all(bounds.lower <= f(x) + 1e-4)
    assert jnp.all(f(x) <= bounds.upper + 1e-4)


def test_a_channel_that_no_neuron_sees_is_not_that_of_the_neurons() -> None:
    def f(x: jax.Array) -> jax.Array:
        seen = jax.nn.relu(
            jax.lax.conv_general_dilated(
                x[None, ..., 1:], jnp.ones((1, 1, 1, 1)), (1, 1), "VALID", None, None, _NUMBERS
            )
        )
        return jnp.stack([2 * x[0, 0, 0] + 1.25, seen[0, 0, 0, 0]])

    x = jnp.full((1, 2, 2), 0.5)
    region, other = cj.l1_ball(x, 1.0), x.at[0, 0, 0].set(-0.5)
    assert region.contains(other)
    assert jnp.argmax(f(x)) == 0
    assert jnp.argmax(f(other)) == 1
    assert not jax.jit(lambda x: cj.certify(f, x, 0, region, "vertex_crown").verified)(x)


def test_convex_networks_are_bounded_exactly_layer_by_layer() -> None:
    # Positive weights behind convex layers are convex again; what bends down at the vertices is minus all of it.
    weights = [_weights(6, 20), jnp.abs(_weights(20, 15)), jnp.abs(_weights(15, 10)), -jnp.abs(_weights(10, 2))]

    def f(x: jax.Array) -> jax.Array:
        hidden = jax.nn.relu(x @ weights[0])
        for layer in weights[1:-1]:
            hidden = jax.nn.leaky_relu(hidden @ layer - 2.0)
        return hidden @ weights[-1]

    x = jnp.array([0.0, 1, 1, 0, 1, 0])
    bounds = jax.jit(vertex_crown(f, 0))
    for eps in (0.1, 0.5, 1.0):
        points = _vertices(x, eps, 0.0, 1.0)
        bound = bounds(cj.l1_ball(x, eps, (0.0, 1.0))).lower
        np.testing.assert_allclose(bound, jnp.min(jax.vmap(f)(points), axis=0), rtol=1e-4)


_ACTIVATIONS = (
    jax.nn.relu,
    jax.nn.leaky_relu,
    lambda x: jax.nn.leaky_relu(x, 0.3),
    jnp.abs,
    lambda x: jnp.maximum(x, 0.2),
    jnp.tanh,
)


@pytest.mark.parametrize(("depth", "residual"), [(2, False), pytest.param(3, True, marks=pytest.mark.slow)])
def test_deep_networks_of_all_activations(depth: int, residual: bool) -> None:
    """Points of the ball, its vertices and the segments between them among them, in float64."""
    generator = np.random.default_rng(depth)
    choices = [np.zeros(depth, int), *generator.integers(0, len(_ACTIVATIONS), size=(2, depth))]

    def network(choice: np.ndarray, weights: list[jax.Array]) -> Callable[[jax.Array], jax.Array]:
        def f(x: jax.Array) -> jax.Array:
            hidden = x @ weights[0]
            for index, layer in zip(choice, weights[1:], strict=True):
                active = _ACTIVATIONS[index](hidden)
                hidden = active @ layer + (hidden if residual else 0)
            return hidden

        return f

    def violation(choice, f, x, steps):
        region = cj.l1_ball(x, 0.8, (0.0, 1.0))
        bounds = vertex_crown(f, steps)(region)
        values = jax.vmap(f)(jnp.clip(x[None] + 0.8 * offsets, 0, 1))
        return jnp.maximum(jnp.max(bounds.lower[None] - values), jnp.max(values - bounds.upper[None]))

    shares = generator.exponential(size=(400, 4)) * (generator.random((400, 4)) < 0.5)
    offsets = np.concatenate([np.eye(4), -np.eye(4), shares / np.maximum(shares.sum(1), 1e-9)[:, None]])
    offsets = offsets * generator.choice([-1, 1], size=offsets.shape)
    with jax.enable_x64(True):
        for choice in choices:
            weights = [jnp.asarray(generator.normal(size=(30, *size))) for size in [(4, 5), *[(5, 5)] * depth]]
            images = jnp.asarray(generator.integers(0, 4, size=(30, 4)) / 3)
            found = jax.jit(jax.vmap(lambda w, x, choice=choice: violation(choice, network(choice, w), x, 0)))(
                weights, images
            )
            assert found.dtype == np.float64
            assert jnp.max(found) < 1e-9


@pytest.mark.parametrize("name", ["two", pytest.param("residual", marks=pytest.mark.slow)])
def test_nothing_in_the_ball_is_outside_of_the_bounds(name: str) -> None:
    f, key = NETWORKS[name], jax.random.key(0)
    entries = jnp.arange(0, jax.eval_shape(f, jnp.zeros((7, 6, 2))).size, 7)

    def attacked(region: cj.LpBall, entry: jax.Array) -> jax.Array:
        """The least value of an entry and of minus the entry that an attack finds."""

        def least(sign: jax.Array) -> jax.Array:
            def both(x: jax.Array) -> jax.Array:
                return jnp.stack([sign * f(x).ravel()[entry], 0.0])

            return both(pgd(both, region.center, 0, region, key=key, steps=20, loss="margin"))[0]

        return jax.vmap(least)(jnp.array([1.0, -1.0])) * jnp.array([1.0, -1.0])

    @jax.jit
    def bounded_and_found(region: cj.LpBall) -> tuple[cj.Interval, jax.Array]:
        return vertex_crown(f)(region), jax.vmap(attacked, (None, 0))(region, entries)

    for seed in range(3):
        # Black, white and gray pixels.
        x = jnp.asarray(np.random.default_rng(seed).integers(0, 4, size=(7, 6, 2)) / 3, jnp.float32)
        bounds, found = bounded_and_found(cj.l1_ball(x, 1.0, (0.0, 1.0)))
        assert jnp.all(found[:, 0] >= bounds.lower.ravel()[entries] - 1e-5)
        assert jnp.all(found[:, 1] <= bounds.upper.ravel()[entries] + 1e-5)


@pytest.mark.slow
def test_many_neurons_of_which_each_pixel_moves_few() -> None:
    # What each neuron may lose adds up in CROWN; one pixel is all that can move.
    kernels = [_weights(3, 3, *features) / 5 for features in ((2, 16), (16, 16), (16, 2))]

    def f(x: jax.Array) -> jax.Array:
        for kernel in kernels[:2]:
            x = jax.nn.relu(
                jax.lax.conv_general_dilated(x[None], kernel, (1, 1), "SAME", dimension_numbers=_NUMBERS)[0]
            )
        return jax.lax.conv_general_dilated(x[None], kernels[2], (1, 1), "SAME", dimension_numbers=_NUMBERS)[0]

    x = jnp.asarray(np.random.default_rng(0).integers(0, 2, size=(7, 6, 2)), jnp.float32)
    region = cj.l1_ball(x, 1.0, (0.0, 1.0))
    ours, crowns = jax.jit(lambda r: (vertex_crown(f)(r), cj.crown(f)(r)))(region)
    assert jnp.mean(ours.upper - ours.lower) < 0.8 * jnp.mean(crowns.upper - crowns.lower)


@pytest.mark.parametrize(
    ("f", "make"),
    [
        (random_mlp(0), lambda x: cj.l2_ball(x, 0.2)),
        (random_mlp(0), lambda x: cj.hull(cj.l1_ball(x, 0.2), cj.linf_ball(x, 0.1))),
        (lambda x: jnp.tanh(x @ _weights(2, 5)) @ _weights(5, 3), lambda x: cj.l1_ball(x, 0.2)),
        (lambda x: jnp.minimum(x @ _weights(2, 5), 0.1) @ _weights(5, 3), lambda x: cj.l1_ball(x, 0.2)),
        (lambda x: x @ _weights(2, 5), lambda x: cj.l1_ball(x, 0.2)),
        (lambda x: jnp.ones(3), lambda x: cj.l1_ball(x, 0.2)),
    ],
)
def test_elsewhere_it_is_crown(f, make) -> None:
    region = make(jnp.array([0.4, 0.6]))
    chex.assert_trees_all_close(vertex_crown(f)(region), cj.crown(f)(region), atol=1e-6)


def test_batches_derivatives_and_both_types() -> None:
    f, x = random_mlp(2), jnp.array([[0.4, 0.6], [0.1, 0.9]])

    def least(x: jax.Array) -> jax.Array:
        return vertex_crown(f)(cj.l1_ball(x, 0.3, (0.0, 1.0))).lower

    batch, alone = jax.jit(jax.vmap(least))(x), jax.jit(least)
    np.testing.assert_allclose(batch, jnp.stack([alone(each) for each in x]), atol=1e-6)
    slope = jax.jit(jax.grad(lambda eps: vertex_crown(f, 0)(cj.l1_ball(x[0], eps)).lower.sum()))(0.3)
    assert slope < 0
    wide = in_float64(lambda f, x: vertex_crown(f)(cj.l1_ball(x, 0.3, (0.0, 1.0))).lower)(f, np.asarray(x[0]))
    assert wide.dtype == np.float64
    np.testing.assert_allclose(wide, batch[0], atol=1e-5)
