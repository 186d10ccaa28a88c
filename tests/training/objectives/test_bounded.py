"""Objectives that bound a region: how far, against closed forms, samples and verifiers."""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

import cure_jax as cj
from cure_jax import graph as graphs
from cure_jax.bounds.ibp import ibp_margins_in_training
from cure_jax.bounds.lipschitz import estimated_norms, initial_vectors
from cure_jax.regions import LpBall, linf_ball, lp_ball
from cure_jax.training import objectives
from cure_jax.training.objectives import Objective
from tests.networks import random_mlp
from tests.training.objectives.one_example import KEY, ONE, PIXELS, X, ball_of, linear, network_of, wide, worst_of


def test_worst_logits_of_a_linear_network_in_closed_form() -> None:
    weights, bias, f = linear()
    clean = np.asarray(weights @ X + bias)
    # By objective, with 0.7 of the radius 0.2 at half of the ramp: the dual exponent.
    halves = {
        objectives.dual_norm(ball_of(1.0), 0.2, fraction=0.7): np.inf,
        objectives.dual_norm(ball_of(2.0), 0.2, fraction=0.7): 2,
        objectives.dual_norm(ball_of(np.inf), 0.2, fraction=0.7): 1,
        objectives.box(ball_of(2.0), 0.2, fraction=0.7): 1,
    }
    for label in range(3):
        natural = clean - clean[label]
        np.testing.assert_allclose(worst_of(objectives.natural(), f, X, label), natural, rtol=1e-5, atol=1e-6)
        for objective, q in halves.items():
            raised = natural + 0.07 * np.linalg.norm(weights - weights[label], ord=q, axis=1)
            np.testing.assert_allclose(worst_of(objective, f, X, label, 0.5), raised, rtol=1e-4, atol=1e-5)


@jax.jit
def _sampled_logits(f: Partial, region: LpBall) -> jax.Array:
    return jax.vmap(f)(jax.vmap(region.sample)(jax.random.split(KEY, 500)))


@pytest.mark.parametrize("p", [1.0, 2.0, np.inf])
@pytest.mark.parametrize("maker", [objectives.box, objectives.dual_norm])
def test_box_and_dual_norm_are_sound_on_the_propagated_ball(maker: Callable[..., Objective], p: float) -> None:
    objective = maker(ball_of(p), 0.4, fraction=0.8)
    for seed in range(5):
        f, label = random_mlp(seed, (2, 8, 3)), seed % 3
        x = jnp.asarray(np.random.default_rng(seed).uniform(size=2).round(1), jnp.float32)
        worst = worst_of(objective, f, x, label, 0.5)
        logits = _sampled_logits(f, lp_ball(x, 0.16, p, PIXELS))
        reached = np.max(logits - logits[:, [label]], axis=0)
        assert np.all(reached <= worst + 1e-5)
        # Nor is it vacuous: a ball of a tenth of the radius does not bound this one.
        assert np.any(reached > worst_of(objective, f, x, label, 0.05))


def test_dual_norm_is_tighter_than_the_box_around_the_ball() -> None:
    f = random_mlp(7, (4, 8, 3))
    dual = worst_of(objectives.dual_norm(ball_of(2.0), 0.2), f, X, 0)
    boxed = worst_of(objectives.box(ball_of(2.0), 0.2), f, X, 0)
    assert np.all(dual <= boxed + 1e-6)
    assert np.all(dual[1:] < boxed[1:] - 1e-2)


def test_lipschitz_raises_wrong_logits_by_the_constants_of_the_label() -> None:
    weights, bias, f = linear()
    constants = jnp.array([[0.0, 1.0, 2.0], [1.0, 0.0, 5.0], [2.0, 5.0, 0.0]])
    clean = np.asarray(weights @ X + bias)
    objective = objectives.lipschitz(0.4, fraction=0.7)
    worst = worst_of(objective, f, X, 1, 0.5, lipschitz=constants)
    np.testing.assert_allclose(worst, clean - clean[1] + 0.14 * np.array([1.0, 0.0, 5.0]), rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match=r"without Lipschitz constants.*pairwise_lipschitz"):
        objective(network_of(f), X, jnp.int32(1), ONE, KEY)


def test_derivatives_of_the_margin_scatter_nothing() -> None:
    """On TPUs a scatter is a loop over the examples: it took nine tenths of a step."""
    objective, constants = objectives.lipschitz(0.4), 1.0 - jnp.eye(2)

    def loss(weights: jax.Array, label: jax.Array) -> jax.Array:
        f = lambda x: weights @ x  # noqa: E731
        network = network_of(f, lipschitz=constants * weights[0, 0])
        return jnp.sum(objective(network, X, label, ONE, KEY).logits ** 2)

    labels, weights = jnp.array([0, 1]), jnp.ones((2, X.size))
    text = str(jax.make_jaxpr(jax.vmap(jax.grad(loss), (None, 0)))(weights, labels))
    assert "scatter" not in text
    indexed = jax.vmap(jax.grad(lambda x, label: x[label]), (None, 0))
    assert "scatter" in str(jax.make_jaxpr(indexed)(weights[0], labels))


def test_crown_ibp_goes_from_linear_bounds_to_ibp() -> None:
    ball, f = ball_of(np.inf), wide()
    objective = objectives.crown_ibp(ball, 0.2, fraction=0.5)
    for scale in (0.5, 1.0):
        region = ball(X, 0.1 * scale)
        margins = cj.margins(f, 1)
        by_ibp, by_crown = jax.jit(
            lambda region, m=margins: (cj.ibp(m)(region).lower, cj.crown(m, intermediate="ibp")(region).lower)
        )(region)
        expected = (1 - scale) * by_crown + scale * by_ibp
        assert np.max(np.abs(by_crown - by_ibp)) > 1e-3
        np.testing.assert_allclose(np.delete(worst_of(objective, f, X, 1, scale), 1), -expected, rtol=1e-4, atol=1e-5)
    kept = objectives.crown_ibp(ball, 0.1, final=1.0)
    np.testing.assert_allclose(np.delete(worst_of(kept, f, X, 1), 1), -by_crown, rtol=1e-4, atol=1e-5)


def test_box_ball_bounds_as_the_verifier_with_estimated_norms() -> None:
    f, ball = wide(), ball_of(2.0)
    graph = graphs.trace(f, X)
    vectors = initial_vectors(graph, KEY)
    for _ in range(50):
        norms, vectors = jax.jit(lambda v: estimated_norms(graph, v))(vectors)
    found = worst_of(objectives.box_ball(ball, 0.2), f, X, 0, norms=norms)
    proved = jax.jit(lambda region: cj.box_ball(cj.margins(f, 0))(region).lower)(ball(X, 0.2))
    # Proved norms are a little larger than estimated ones.
    np.testing.assert_allclose(np.delete(found, 0), -proved, rtol=2e-2, atol=1e-3)
    with pytest.raises(ValueError, match="without block norms"):
        objectives.box_ball(ball, 0.2)(network_of(f), X, jnp.int32(0), ONE, KEY)


def test_intervals_around_a_point_have_no_width_when_training() -> None:
    """The warm-up divides by widths, and would learn from room for rounding."""
    weights = jnp.asarray(np.random.default_rng(0).normal(size=(7, 5)), jnp.float32)
    x = jnp.asarray(np.random.default_rng(1).uniform(size=7), jnp.float32)
    _, layers = ibp_margins_in_training(lambda x: jax.nn.relu((x - 0.3) / 0.2 @ weights + 100.0), jnp.int32(0))(
        linf_ball(x, 0.0)
    )
    for interval in (layers.first, *layers.pre_activations):
        np.testing.assert_array_equal(interval.radius, 0)


def test_shrinking_cuts_what_crosses_zero_and_nothing_else() -> None:
    f = Partial(lambda x: jnp.stack([jax.nn.relu(x[0] - 0.3), jax.nn.relu(x[1] + 1.0), jnp.zeros(())]))
    x = jnp.array([0.3, 0.5])
    plain = worst_of(objectives.box(ball_of(np.inf), 0.2), f, x, 2)
    shrunk = worst_of(objectives.box(ball_of(np.inf), 0.2, shrinking=0.4), f, x, 2)
    np.testing.assert_allclose(plain, [0.2, 1.7, 0.0], atol=1e-6)
    # The first ReLU may be on or off: its upper end 0.2 becomes 0.8 * 0.2; the second one is on.
    np.testing.assert_allclose(shrunk, [0.16, 1.7, 0.0], atol=1e-6)
    # What the regulariser hears of the layer before the ReLU is not shrunk.
    layers = [
        ibp_margins_in_training(f, jnp.int32(0), shrinking=share)(linf_ball(x, 0.2))[1].pre_activations
        for share in (0.0, 0.4)
    ]
    chex.assert_trees_all_close(*layers)
    assert len(layers[0]) == 2
