"""Between attack and bound: where small boxes lie, what is combined with what, and what a teacher teaches."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cure_jax as cj
from cure_jax import attacks
from cure_jax.regions import Interval, LpBall, lp_ball
from cure_jax.training import objectives
from tests.networks import random_mlp
from tests.training.objectives.one_example import (
    FOUR_PIXELS,
    KEY,
    ONE,
    PIXELS,
    ZERO,
    X,
    ball_of,
    linear,
    network_of,
    wide,
    worst_of,
)


def _small_box(monkeypatch: pytest.MonkeyPatch, found: jax.Array, scale: jax.Array = ONE, **options: Any) -> Interval:
    """The box that is propagated (the input of the first layer) if the attack finds `found`."""
    monkeypatch.setattr(attacks, "pgd", lambda *args, **kwargs: found)
    objective = objectives.small_box(ball_of(np.inf), 0.1, **options)
    network = network_of(random_mlp(0, (4, 3, 2)))
    return jax.jit(lambda scale: objective(network, FOUR_PIXELS, jnp.int32(0), scale, KEY).layers.first)(scale)


def _assert_box(box: Interval, lower: list[float], upper: list[float]) -> None:
    np.testing.assert_allclose(box.lower, lower, atol=2e-7)
    np.testing.assert_allclose(box.upper, upper, atol=2e-7)


def test_the_small_box_lies_around_the_adversarial_example(monkeypatch: pytest.MonkeyPatch) -> None:
    # tau = 0.02; the limits of the centre are [0.02, 0.08], [0.92, 0.98], [0.42, 0.58], [0.02, 0.13].
    found = jnp.array([0.05, 0.93, 0.45, 0.1])
    box = _small_box(monkeypatch, found, ratio=0.2)
    _assert_box(box, [0.03, 0.91, 0.43, 0.08], [0.07, 0.95, 0.47, 0.12])


def test_the_small_box_is_shifted_into_the_hull_of_the_region(monkeypatch: pytest.MonkeyPatch) -> None:
    found = jnp.array([0.0, 1.0, 0.6, 0.15])
    box = _small_box(monkeypatch, found, ratio=0.2)
    _assert_box(box, [0.0, 0.96, 0.56, 0.11], [0.04, 1.0, 0.6, 0.15])


def test_the_small_box_shrinks_with_the_radius(monkeypatch: pytest.MonkeyPatch) -> None:
    # Half the radius: tau = 0.01 and the hulls are [0, 0.05], [0.95, 1], [0.45, 0.55], [0, 0.1].
    box = _small_box(monkeypatch, FOUR_PIXELS, jnp.float32(0.5), ratio=0.2)
    _assert_box(box, [0.0, 0.98, 0.49, 0.04], [0.02, 1.0, 0.51, 0.06])


def test_where_the_limits_cross_the_upper_one_wins_and_the_pixel_range_cuts(monkeypatch: pytest.MonkeyPatch) -> None:
    # tau = 0.08 is more than half of the hulls [0, 0.1], [0.9, 1] and [0, 0.15]: the centres are 0.02, 0.92 and 0.07.
    found = jnp.array([0.1, 0.9, 0.6, 0.15])
    box = _small_box(monkeypatch, found, ratio=0.8)
    _assert_box(box, [0.0, 0.84, 0.44, 0.0], [0.1, 1.0, 0.6, 0.15])


def test_inside_cuts_the_half_width_to_the_hull(monkeypatch: pytest.MonkeyPatch) -> None:
    found = jnp.array([0.1, 0.9, 0.6, 0.15])
    box = _small_box(monkeypatch, found, ratio=0.8, inside=True)
    _assert_box(box, [0.0, 0.9, 0.44, 0.0], [0.1, 1.0, 0.6, 0.15])


def test_while_the_radius_is_0_the_least_box_lies_around_the_example(monkeypatch: pytest.MonkeyPatch) -> None:
    box = _small_box(monkeypatch, FOUR_PIXELS, ZERO, ratio=0.8)
    # At the white pixel the upper limit wins.
    _assert_box(box, [0.0, 1 - 2e-6, 0.5 - 1e-6, 0.05 - 1e-6], [1e-6, 1.0, 0.5 + 1e-6, 0.05 + 1e-6])


@pytest.mark.parametrize("p", [2.0, np.inf])
def test_the_small_box_surrounds_what_pgd_finds_in_the_attacked_network(p: float) -> None:
    certified, attacked, label = random_mlp(0, (4, 8, 3)), random_mlp(2, (4, 8, 3)), jnp.int32(1)
    objective = objectives.small_box(ball_of(p), 0.1, ratio=0.1)
    boxed = jax.jit(lambda: objective(network_of(certified, attacked), X, label, ONE, KEY).layers)()
    found = jax.jit(lambda: attacks.pgd(attacked, X, label, lp_ball(X, 0.1, p, PIXELS), key=KEY))()
    expected = np.clip(found, X - 0.1 + 0.01, X + 0.1 - 0.01)
    _assert_box(boxed.first, list(expected - 0.01), list(expected + 0.01))
    assert np.max(np.abs(expected - X)) > 0.01


@pytest.mark.parametrize("p", [2.0, np.inf])
def test_ratio_0_is_adversarial_training(p: float) -> None:
    f = random_mlp(4, (4, 8, 3))
    small = worst_of(objectives.small_box(ball_of(p), 0.1, ratio=0.0, steps=12), f, FOUR_PIXELS, 2)
    found = worst_of(objectives.adversarial(ball_of(p), 0.1, steps=12), f, FOUR_PIXELS, 2)
    np.testing.assert_allclose(small, found, atol=2e-6)
    assert np.max(np.abs(found - worst_of(objectives.natural(), f, FOUR_PIXELS, 2))) > 1e-2


def test_ratio_1_is_ibp() -> None:
    f, label = random_mlp(5, (4, 8, 3)), 1
    # A box as wide as the region itself leaves no room for the attack; at white pixels only if it is kept inside.
    for x, inside in ((X, False), (FOUR_PIXELS, True)):
        small = worst_of(objectives.small_box(ball_of(np.inf), 0.1, ratio=1.0, inside=inside), f, x, label)
        plain = worst_of(objectives.box(ball_of(np.inf), 0.1), f, x, label)
        lower = cj.ibp(cj.margins(f, label))(cj.linf_ball(x, 0.1, PIXELS)).lower
        np.testing.assert_allclose(plain[[0, 2]], -lower, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(small, plain, rtol=1e-5, atol=1e-5)


def test_attacks_and_small_boxes_on_two_classes_reach_the_corner() -> None:
    weights, bias, f = linear(classes=2)
    difference = weights[1] - weights[0]
    corner = difference @ np.asarray(X) + bias[1] - bias[0] + 0.1 * np.sum(np.abs(difference))
    for objective in (
        objectives.adversarial(ball_of(np.inf), 0.2),
        objectives.small_box(ball_of(np.inf), 0.2, ratio=0.3),
    ):
        np.testing.assert_allclose(worst_of(objective, f, X, 0, 0.5), [0.0, corner], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("combination", objectives.COMBINATIONS)
def test_expressive_losses_lie_between_attack_and_bound(combination: str) -> None:
    ball, f, label = ball_of(np.inf), wide(), jnp.int32(2)

    def losses(alpha: float) -> tuple[jax.Array, jax.Array]:
        objective = objectives.expressive(ball, 0.1, combination=combination, alpha=alpha)

        def loss(shift: jax.Array) -> jax.Array:
            worst = objective(network_of(lambda x: f(x) + shift), X, label, ONE, KEY)
            return objectives.cross_entropy(worst.logits, label) if worst.loss is None else worst.loss

        return jax.jit(jax.value_and_grad(loss))(jnp.zeros(3))

    (attacked, _), (between, gradient), (bounded, _) = losses(0.0), losses(0.3), losses(1.0)
    by_ibp = worst_of(objectives.dual_norm(ball, 0.1), f, X, 2)
    np.testing.assert_allclose(bounded, objectives.cross_entropy(jnp.asarray(by_ibp), label), rtol=1e-4)
    assert attacked < between < bounded
    assert np.all(np.isfinite(gradient))
    if combination == "mtl":
        np.testing.assert_allclose(between, 0.7 * attacked + 0.3 * bounded, rtol=1e-5)
    if combination == "exp":
        np.testing.assert_allclose(between, attacked**0.7 * bounded**0.3, rtol=1e-4)


def test_attacks_may_reach_further_than_what_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both sides of MTL-IBP, and the box around what is found, by hand."""
    ball, f, label = ball_of(np.inf, None), wide(), jnp.int32(2)
    asked: list[float] = []

    def attack(network: Callable, x: jax.Array, label: jax.Array, region: LpBall, **options: Any) -> jax.Array:
        asked.append(float(region.radius[0]))
        return x + region.radius

    monkeypatch.setattr(attacks, "pgd", attack)
    objective = objectives.expressive(ball, 0.1, alpha=0.5, attack_eps=0.25)
    worst = objective(network_of(f), X, label, ONE, KEY)
    sides = objectives.cross_entropy(f(X + 0.25), label), objectives.cross_entropy(worst.logits, label)
    np.testing.assert_allclose(worst.loss, 0.5 * sides[0] + 0.5 * sides[1], rtol=1e-4)
    np.testing.assert_allclose(worst.logits, worst_of(objectives.dual_norm(ball, 0.1), f, X, 2), rtol=1e-4)

    objective = objectives.small_box(ball, 0.1, ratio=0.5, attack_eps=0.25)
    layers = objective(network_of(random_mlp(0, (4, 3, 2))), X, jnp.int32(0), ONE, KEY).layers
    # Of half-width 0.05, shifted into the box of the attack.
    np.testing.assert_allclose(layers.first.upper, X + 0.25, rtol=1e-5)
    np.testing.assert_allclose(layers.first.lower, X + 0.15, rtol=1e-5)
    np.testing.assert_allclose(asked, [0.25, 0.25], rtol=1e-6)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_distillation_learns_the_teachers_logits_at_what_the_attack_finds(
    monkeypatch: pytest.MonkeyPatch, alpha: float
) -> None:
    """AD-CERT by hand; of the label only the intervals know."""
    ball, f, teacher, label = ball_of(np.inf, None), wide(), wide(9), jnp.int32(2)
    monkeypatch.setattr(attacks, "pgd", lambda f, x, label, region, **options: x + region.radius)
    objective = objectives.distilled(ball, 0.1, alpha=alpha, attack_eps=0.25)
    worst = objective(network_of(f, teacher=teacher), X, label, ONE, KEY)
    taught, learned = (np.asarray(jax.nn.log_softmax(g(X + 0.25)), np.float64) for g in (teacher, f))
    divergence = np.sum(np.exp(taught) * (taught - learned))
    bounded = worst_of(objectives.dual_norm(ball, 0.1), f, X, 2)
    np.testing.assert_allclose(worst.logits, bounded, rtol=1e-4)
    by_ibp = objectives.cross_entropy(jnp.asarray(bounded), label)
    np.testing.assert_allclose(worst.loss, (1 - alpha) * divergence + alpha * by_ibp, rtol=1e-4)


def test_who_already_knows_what_the_teacher_says_learns_nothing() -> None:
    f = wide()

    def loss(shift: jax.Array, given: jax.Array) -> jax.Array:
        objective = objectives.distilled(ball_of(np.inf), 0.1, alpha=0.0)
        network = network_of(lambda x: f(x) + shift, teacher=lambda x: f(x) + given)
        return objective(network, X, jnp.int32(1), ONE, KEY).loss

    pupil, of_the_teacher = jax.jit(jax.grad(loss, (0, 1)))(jnp.zeros(3), jnp.zeros(3))
    np.testing.assert_allclose(pupil, 0.0, atol=1e-6)
    pupil, of_the_teacher = jax.jit(jax.grad(loss, (0, 1)))(jnp.zeros(3), jnp.array([0.0, 1.0, 0.0]))
    assert pupil[1] < -0.1 < 0 < pupil[0]
    np.testing.assert_array_equal(of_the_teacher, 0.0)


def test_distillation_without_a_teacher_is_refused() -> None:
    with pytest.raises(ValueError, match=r"expected Network\(teacher=...\)"):
        objectives.distilled(ball_of(np.inf), 0.1)(network_of(wide()), X, jnp.int32(0), ONE, KEY)


def test_an_unknown_combination_is_refused() -> None:
    with pytest.raises(ValueError, match="cc, mtl, exp"):
        objectives.expressive(ball_of(np.inf), 0.1, combination="sum")
