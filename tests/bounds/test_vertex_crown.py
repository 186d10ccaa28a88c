"""CROWN at the vertices of an l_1 ball: exact where theory says so, sound, tighter than CROWN where it should be."""

import sys

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


@pytest.mark.parametrize("name", ["strides", "uneven padding", "dilated", "channels first"])
def test_windows_are_dense_coefficients(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    f = NETWORKS[name]
    x = jnp.asarray(np.random.default_rng(1).integers(0, 3, size=(7, 6, 2)) / 2, jnp.float32)
    region = cj.l1_ball(x, 0.4, (0.0, 1.0))
    bounds = jax.jit(vertex_crown(f, 0))(region)
    for module in ("vertex_crown", "linear"):
        monkeypatch.setattr(sys.modules[f"cure_jax.bounds.{module}"], "moving_axes", lambda graph, node: ())
    dense = jax.jit(vertex_crown(f, 0))(region)
    chex.assert_trees_all_close(bounds, dense, atol=1e-5, rtol=1e-5)
    assert jnp.all(bounds.lower <= f(x))
    assert jnp.all(f(x) <= bounds.upper)


@pytest.mark.parametrize("name", ["two", "residual"])
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
