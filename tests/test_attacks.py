"""Attacks: they stay in the region, find what is there on a linear classifier, and more effort is never weaker."""

import functools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cure_jax.attacks import apgd, pgd
from cure_jax.regions import l2_ball, lp_ball

NORMS = (1.0, 1.5, 2.0, math.inf)
norms = pytest.mark.parametrize("p", NORMS)
attacks = pytest.mark.parametrize("attack", [pgd, apgd])


def network(x, scale=1.0):
    """A small smooth network with three classes, fixed."""
    r = np.random.default_rng(0)
    inner, outer = (jnp.asarray(r.normal(size=s), jnp.float32) for s in ((8, 12), (3, 8)))
    return scale * (outer @ jnp.tanh(inner @ x))


def cross_entropy(logits, label):
    return -jax.nn.log_softmax(logits)[label]


def margin(logits, label):
    return jnp.max(jnp.delete(logits, label)) - logits[label]


def random_input(seed, size=12):
    return jnp.asarray(np.clip(np.random.default_rng(seed).uniform(-0.3, 1.3, size), 0, 1), jnp.float32)


@functools.cache
def on_network(attack, p, within, **options):
    """The compiled attack on the network: (x, eps, label, key) -> adversarial example."""

    def run(x, eps, label, key):
        return attack(network, x, label, lp_ball(x, eps, p, within), key=key, **options)

    return jax.jit(run)


@attacks
@pytest.mark.parametrize("within", [None, (0.0, 1.0)])
@norms
def test_result_stays_in_ball_and_box(attack, within, p):
    # Adding the projected offset to the current iterate, and not to the center, leaves the ball: this notices.
    run = on_network(attack, p, within, steps=20)
    for seed in range(5):
        for eps in (0.1, 1.0):
            x = random_input(seed)
            found = np.asarray(run(x, eps, seed % 3, jax.random.key(seed)), float)
            assert np.linalg.norm(found - np.asarray(x, float), p) <= eps * (1 + 1e-5)
            assert within is None or (found.min() >= 0 and found.max() <= 1)


@attacks
@pytest.mark.parametrize(("loss", "measure"), [("cross_entropy", cross_entropy), ("margin", margin)])
def test_loss_is_never_below_that_of_the_clean_input(attack, loss, measure):
    run = on_network(attack, 2.0, (0.0, 1.0), steps=3, step_size=50.0, loss=loss)
    for seed in range(10):
        x = random_input(seed)
        # Labelled with the least likely class, the clean input is the worst point or close to it.
        label = int(jnp.argmin(network(x)))
        found = run(x, 1e-3, label, jax.random.key(seed))
        assert measure(network(found), label) >= measure(network(x), label) - 1e-6


@attacks
@norms
def test_linear_classifier_falls_exactly_beyond_its_margin(attack, p):
    weight = jnp.asarray(np.random.default_rng(0).normal(size=19), jnp.float32)
    x = random_input(1, 19)
    # The margin at x is 1: the boundary passes through the box.
    bias = 1.0 - jnp.dot(weight, x)

    def linear(x):
        return jnp.stack([jnp.dot(weight, x) + bias, jnp.zeros(())])

    @jax.jit
    def lowest(eps):
        return bias - lp_ball(x, eps, p, (0.0, 1.0)).support(-weight)

    # The distance to the boundary within the box, by bisection of what the region proves.
    low, high = 0.0, 20.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if lowest(middle) > 0 else (low, middle)
    assert 0 < high < 20

    @jax.jit
    def attacked(eps):
        region = lp_ball(x, eps, p, (0.0, 1.0))
        return linear(attack(linear, x, 0, region, key=jax.random.key(0), steps=200, loss="margin"))

    assert attacked(1.01 * high)[0] < 0
    assert attacked(0.999 * high)[0] > 0


@attacks
def test_planted_adversarial_corner_is_found(attack):
    # Only within 0.1 of one corner of the box is the other class ahead.
    corner = jnp.array([1.0, 0.0, 1.0])

    def f(x):
        return jnp.stack([jnp.sum(jnp.abs(x - corner)), jnp.array(0.1)])

    x = jnp.full((3,), 0.5)
    found = attack(f, x, 0, lp_ball(x, 0.5, math.inf, (0.0, 1.0)), key=jax.random.key(0), steps=20)
    np.testing.assert_allclose(found, corner, atol=0.04)


@attacks
@pytest.mark.parametrize("p", [2.0, math.inf])
def test_more_restarts_are_never_weaker_and_sometimes_stronger(attack, p):
    def waves(x):
        return jnp.stack([jnp.zeros(()), jnp.sum(jnp.sin(13 * x)) + jnp.sum(x)])

    @functools.partial(jax.jit, static_argnames="restarts")
    def loss(x, key, restarts):
        region = lp_ball(x, 1.0, p, (0.0, 1.0))
        return margin(waves(attack(waves, x, 0, region, key=key, steps=4, restarts=restarts, loss="margin")), 0)

    gains = []
    for seed in range(5):
        x, key = random_input(seed, 4), jax.random.key(seed)
        gains.append(loss(x, key, 8) - loss(x, key, 1))
    assert min(gains) >= 0
    assert max(gains) > 0.01


def test_first_step_of_apgd_is_a_whole_one():
    # Algorithm 1: x_1 = P(x_0 + eta * gradient step); the share of 0.75 begins with the second step.
    x, weights = jnp.full(6, 0.5), jnp.asarray([[1.0, -2, 1, -1, 2, -1], [0.0, 0, 0, 0, 0, 0]])
    region, key = lp_ball(x, 0.1, math.inf), jax.random.key(3)
    found = apgd(lambda x: weights @ x, x, 0, region, key=key, steps=1, step_size=0.5)
    start = region.sample(jax.random.fold_in(key, 0))
    np.testing.assert_allclose(found, np.clip(start - 0.05 * np.sign(weights[0]), 0.4, 0.6), atol=1e-6)


@attacks
def test_more_steps_find_more(attack):
    x, key = random_input(0), jax.random.key(0)
    few, many = (
        margin(network(on_network(attack, 2.0, None, steps=steps, loss="margin")(x, 1.0, 0, key)), 0)
        for steps in (1, 40)
    )
    assert many > few + 0.01


@attacks
def test_jit_vmap_and_plain_calls_agree_and_the_key_decides(attack):
    xs = jnp.stack([random_input(seed) for seed in range(3)])
    labels, keys = jnp.arange(3), jax.random.split(jax.random.key(0), 3)

    def run(x, label, key):
        return attack(network, x, label, l2_ball(x, 0.5, (0.0, 1.0)), key=key, steps=5, restarts=2)

    compiled = jax.jit(jax.vmap(run))
    batched = compiled(xs, labels, keys)
    chex.assert_trees_all_close(batched[1], run(xs[1], labels[1], keys[1]), atol=1e-4)
    chex.assert_trees_all_equal(batched, compiled(xs, labels, keys))
    assert jnp.any(batched != compiled(xs, labels, keys[::-1]))


@attacks
@pytest.mark.parametrize("loss", ["cross_entropy", "margin", "dlr"])
def test_confident_networks_are_attacked_too(attack, loss):
    # Logits in the hundreds: the plain cross-entropy is 0 in float32, and so is its gradient.
    x = random_input(2)
    label = int(jnp.argmax(network(x)))

    def run(f, x):
        return attack(f, x, label, l2_ball(x, 0.5), key=jax.random.key(1), steps=30, loss=loss)

    confident = functools.partial(network, scale=20.0)
    found, clean = margin(network(jax.jit(functools.partial(run, confident))(x)), label), margin(network(x), label)
    assert found > clean + 0.5


@attacks
def test_nan_losses_are_passed_over(attack):
    def poisoned(x):
        return jnp.where(jnp.sum(x) > 1.1, jnp.nan, 1.0) * jnp.stack([1 - x[0], x[0] + x[1]])

    x = jnp.array([0.2, 0.2])
    found = attack(poisoned, x, 0, lp_ball(x, 0.6, math.inf), key=jax.random.key(3), steps=10, restarts=4)
    assert jnp.all(jnp.isfinite(poisoned(found)))
    assert margin(poisoned(found), 0) >= margin(poisoned(x), 0)
    nowhere = attack(lambda x: jnp.nan * x, x, 0, lp_ball(x, 0.6, math.inf), key=jax.random.key(3), steps=3)
    chex.assert_trees_all_equal(nowhere, x)


@attacks
def test_flat_networks_leave_a_point_of_the_region(attack):
    x = jnp.array([0.2, 0.9])
    for p in (1.0, 2.0):
        region = lp_ball(x, 0.3, p, (0.0, 1.0))
        found = attack(lambda x: jnp.zeros(3), x, 0, region, key=jax.random.key(0), steps=5)
        assert region.contains(found, tolerance=1e-6)


@attacks
def test_gradients_stop_at_the_result(attack):
    def f(scale):
        x = random_input(0)
        found = attack(functools.partial(network, scale=scale), x, 0, l2_ball(x, 0.5), key=jax.random.key(0), steps=2)
        return jnp.sum(found)

    assert jax.grad(f)(1.0) == 0


def test_inputs_in_float64_stay_so_whatever_the_network_computes_in():
    with jax.enable_x64(True):
        x = jnp.asarray(random_input(0), jnp.float64)
        found = pgd(lambda x: network(x.astype(jnp.float32)), x, 1, l2_ball(x, 0.5), key=jax.random.key(0), steps=3)
        assert found.dtype == jnp.float64


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps is 0.*raise it"),
        ({"restarts": 0}, "restarts is 0"),
        ({"step_size": -1.0}, "step_size is -1.0"),
    ],
)
@attacks
def test_wrong_options_are_named(attack, options, message):
    x = random_input(0)
    with pytest.raises(ValueError, match=message):
        attack(network, x, 0, l2_ball(x, 0.5), key=jax.random.key(0), **options)


@attacks
def test_wrong_networks_are_named(attack):
    x = random_input(0)
    with pytest.raises(ValueError, match=r"f returns shape \(1, 3\).*models.classifier"):
        attack(lambda x: network(x)[None], x, 0, l2_ball(x, 0.5), key=jax.random.key(0))
    with pytest.raises(ValueError, match=r"f returns shape \(2,\).*at least 3 for loss 'dlr'"):
        attack(lambda x: network(x)[:2], x, 0, l2_ball(x, 0.5), key=jax.random.key(0), loss="dlr")
