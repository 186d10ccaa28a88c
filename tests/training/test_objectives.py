"""Single-norm objectives: where the boxes lie, what they bound, and that nothing breaks while the radius is 0."""

import functools
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

import cure_jax as cj
from cure_jax import attacks, smoothing
from cure_jax import graph as graphs
from cure_jax.bounds.ibp import ibp_margins_in_training
from cure_jax.bounds.lipschitz import estimated_norms, initial_vectors
from cure_jax.regions import Interval, LpBall, linf_ball, lp_ball
from cure_jax.training import objectives
from cure_jax.training.objectives import Network, Objective
from tests.networks import mlp, mlp_params, random_mlp

PIXELS = (0.0, 1.0)
_ONE = jnp.float32(1.0)
_ZERO = jnp.float32(0.0)
_KEY = jax.random.key(3)


def _ball(p: float, within: tuple[float, float] | None = PIXELS) -> Callable:
    return functools.partial(lp_ball, p=p, within=within)


def _network(f: Callable, attacked: Callable | None = None, **fields: Any) -> Network:
    return Network(certified=f, attacked=attacked or f, precision=jax.lax.Precision.HIGHEST, **fields)


@functools.cache
def _compiled(objective: Objective) -> Callable:
    return jax.jit(lambda f, x, label, scale, fields: objective(_network(f, **fields), x, label, scale, _KEY).logits)


def _worst(objective: Objective, f: Partial, x: jax.Array, label: int, scale: float = 1.0, **fields: Any) -> np.ndarray:
    return np.asarray(_compiled(objective)(f, x, jnp.int32(label), jnp.float32(scale), fields))


def _affine(weights: jax.Array, bias: jax.Array, x: jax.Array) -> jax.Array:
    return jnp.dot(weights, x, precision="highest") + bias


def _linear(seed: int = 0, classes: int = 3, pixels: int = 4) -> tuple[np.ndarray, np.ndarray, Partial]:
    generator = np.random.default_rng(seed)
    weights, bias = (generator.normal(size=shape).astype(np.float32) for shape in ((classes, pixels), (classes,)))
    return weights, bias, Partial(_affine, jnp.asarray(weights), jnp.asarray(bias))


_X = jnp.array([0.4, 0.5, 0.55, 0.6])


# Where the small box lies. Pixels: black, white, grey, and dark enough for the limits to cross.
_PIXELS = jnp.array([0.0, 1.0, 0.5, 0.05])


def _small_box(monkeypatch: pytest.MonkeyPatch, found: jax.Array, scale: jax.Array = _ONE, **options: Any) -> Interval:
    """The box that is propagated (the input of the first layer) if the attack finds `found`."""
    monkeypatch.setattr(attacks, "pgd", lambda *args, **kwargs: found)
    objective = objectives.small_box(_ball(np.inf), 0.1, **options)
    network = _network(random_mlp(0, (4, 3, 2)))
    return jax.jit(lambda scale: objective(network, _PIXELS, jnp.int32(0), scale, _KEY).layers.first)(scale)


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
    box = _small_box(monkeypatch, _PIXELS, jnp.float32(0.5), ratio=0.2)
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
    box = _small_box(monkeypatch, _PIXELS, _ZERO, ratio=0.8)
    # At the white pixel the upper limit wins.
    _assert_box(box, [0.0, 1 - 2e-6, 0.5 - 1e-6, 0.05 - 1e-6], [1e-6, 1.0, 0.5 + 1e-6, 0.05 + 1e-6])


@pytest.mark.parametrize("p", [2.0, np.inf])
def test_the_small_box_surrounds_what_pgd_finds_in_the_attacked_network(p: float) -> None:
    certified, attacked, label = random_mlp(0, (4, 8, 3)), random_mlp(2, (4, 8, 3)), jnp.int32(1)
    objective = objectives.small_box(_ball(p), 0.1, ratio=0.1)
    boxed = jax.jit(lambda: objective(_network(certified, attacked), _X, label, _ONE, _KEY).layers)()
    found = jax.jit(lambda: attacks.pgd(attacked, _X, label, lp_ball(_X, 0.1, p, PIXELS), key=_KEY))()
    expected = np.clip(found, _X - 0.1 + 0.01, _X + 0.1 - 0.01)
    _assert_box(boxed.first, list(expected - 0.01), list(expected + 0.01))
    assert np.max(np.abs(expected - _X)) > 0.01


@pytest.mark.parametrize("p", [2.0, np.inf])
def test_ratio_0_is_adversarial_training(p: float) -> None:
    f = random_mlp(4, (4, 8, 3))
    small = _worst(objectives.small_box(_ball(p), 0.1, ratio=0.0, steps=12), f, _PIXELS, 2)
    found = _worst(objectives.adversarial(_ball(p), 0.1, steps=12), f, _PIXELS, 2)
    np.testing.assert_allclose(small, found, atol=2e-6)
    assert np.max(np.abs(found - _worst(objectives.natural(), f, _PIXELS, 2))) > 1e-2


def test_ratio_1_is_ibp() -> None:
    f, label = random_mlp(5, (4, 8, 3)), 1
    # A box as wide as the region itself leaves no room for the attack; at white pixels only if it is kept inside.
    for x, inside in ((_X, False), (_PIXELS, True)):
        small = _worst(objectives.small_box(_ball(np.inf), 0.1, ratio=1.0, inside=inside), f, x, label)
        plain = _worst(objectives.box(_ball(np.inf), 0.1), f, x, label)
        lower = cj.ibp(cj.margins(f, label))(cj.linf_ball(x, 0.1, PIXELS)).lower
        np.testing.assert_allclose(plain[[0, 2]], -lower, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(small, plain, rtol=1e-5, atol=1e-5)


def test_worst_logits_of_a_linear_network_in_closed_form() -> None:
    weights, bias, f = _linear()
    clean = np.asarray(weights @ _X + bias)
    # By objective, with 0.7 of the radius 0.2 at half of the ramp: the dual exponent.
    halves = {
        objectives.dual_norm(_ball(1.0), 0.2, fraction=0.7): np.inf,
        objectives.dual_norm(_ball(2.0), 0.2, fraction=0.7): 2,
        objectives.dual_norm(_ball(np.inf), 0.2, fraction=0.7): 1,
        objectives.box(_ball(2.0), 0.2, fraction=0.7): 1,
    }
    for label in range(3):
        natural = clean - clean[label]
        np.testing.assert_allclose(_worst(objectives.natural(), f, _X, label), natural, rtol=1e-5, atol=1e-6)
        for objective, q in halves.items():
            raised = natural + 0.07 * np.linalg.norm(weights - weights[label], ord=q, axis=1)
            np.testing.assert_allclose(_worst(objective, f, _X, label, 0.5), raised, rtol=1e-4, atol=1e-5)


def test_attacks_and_small_boxes_on_two_classes_reach_the_corner() -> None:
    weights, bias, f = _linear(classes=2)
    difference = weights[1] - weights[0]
    corner = difference @ np.asarray(_X) + bias[1] - bias[0] + 0.1 * np.sum(np.abs(difference))
    for objective in (objectives.adversarial(_ball(np.inf), 0.2), objectives.small_box(_ball(np.inf), 0.2, ratio=0.3)):
        np.testing.assert_allclose(_worst(objective, f, _X, 0, 0.5), [0.0, corner], rtol=1e-5, atol=1e-5)


@jax.jit
def _sampled_logits(f: Partial, region: LpBall) -> jax.Array:
    return jax.vmap(f)(jax.vmap(region.sample)(jax.random.split(_KEY, 500)))


@pytest.mark.parametrize("p", [1.0, 2.0, np.inf])
@pytest.mark.parametrize("maker", [objectives.box, objectives.dual_norm])
def test_box_and_dual_norm_are_sound_on_the_propagated_ball(maker: Callable[..., Objective], p: float) -> None:
    objective = maker(_ball(p), 0.4, fraction=0.8)
    for seed in range(5):
        f, label = random_mlp(seed, (2, 8, 3)), seed % 3
        x = jnp.asarray(np.random.default_rng(seed).uniform(size=2).round(1), jnp.float32)
        worst = _worst(objective, f, x, label, 0.5)
        logits = _sampled_logits(f, lp_ball(x, 0.16, p, PIXELS))
        reached = np.max(logits - logits[:, [label]], axis=0)
        assert np.all(reached <= worst + 1e-5)
        # Nor is it vacuous: a ball of a tenth of the radius does not bound this one.
        assert np.any(reached > _worst(objective, f, x, label, 0.05))


def test_dual_norm_is_tighter_than_the_box_around_the_ball() -> None:
    f = random_mlp(7, (4, 8, 3))
    dual = _worst(objectives.dual_norm(_ball(2.0), 0.2), f, _X, 0)
    boxed = _worst(objectives.box(_ball(2.0), 0.2), f, _X, 0)
    assert np.all(dual <= boxed + 1e-6)
    assert np.all(dual[1:] < boxed[1:] - 1e-2)


def test_lipschitz_raises_wrong_logits_by_the_constants_of_the_label() -> None:
    weights, bias, f = _linear()
    constants = jnp.array([[0.0, 1.0, 2.0], [1.0, 0.0, 5.0], [2.0, 5.0, 0.0]])
    clean = np.asarray(weights @ _X + bias)
    objective = objectives.lipschitz(0.4, fraction=0.7)
    worst = _worst(objective, f, _X, 1, 0.5, lipschitz=constants)
    np.testing.assert_allclose(worst, clean - clean[1] + 0.14 * np.array([1.0, 0.0, 5.0]), rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match=r"without Lipschitz constants.*pairwise_lipschitz"):
        objective(_network(f), _X, jnp.int32(1), _ONE, _KEY)


def test_derivatives_of_the_margin_scatter_nothing() -> None:
    """On TPUs a scatter is a loop over the examples: it took nine tenths of a step."""
    objective, constants = objectives.lipschitz(0.4), 1.0 - jnp.eye(2)

    def loss(weights: jax.Array, label: jax.Array) -> jax.Array:
        f = lambda x: weights @ x  # noqa: E731
        network = _network(f, lipschitz=constants * weights[0, 0])
        return jnp.sum(objective(network, _X, label, _ONE, _KEY).logits ** 2)

    labels, weights = jnp.array([0, 1]), jnp.ones((2, _X.size))
    text = str(jax.make_jaxpr(jax.vmap(jax.grad(loss), (None, 0)))(weights, labels))
    assert "scatter" not in text
    indexed = jax.vmap(jax.grad(lambda x, label: x[label]), (None, 0))
    assert "scatter" in str(jax.make_jaxpr(indexed)(weights[0], labels))


_EVERY_OBJECTIVE: dict[str, Objective] = {
    "natural": objectives.natural(),
    "lipschitz": objectives.lipschitz(0.1),
    "adversarial": objectives.adversarial(_ball(np.inf), 0.1, steps=2),
    "box": objectives.box(_ball(np.inf), 0.1),
    "small_box": objectives.small_box(_ball(np.inf), 0.1, ratio=0.4, steps=2),
    "small_box, l2": objectives.small_box(_ball(2.0), 0.1, ratio=0.4, steps=2),
    "dual_norm, l2": objectives.dual_norm(_ball(2.0), 0.1),
    "dual_norm, l1": objectives.dual_norm(_ball(1.0), 0.1),
    "noisy": objectives.noisy(smoothing.gaussian(0.2), samples=2, consistency=1.0),
}


@pytest.mark.parametrize("name", _EVERY_OBJECTIVE)
def test_gradients_are_finite_at_every_scale_and_flow_through_the_certified_network_alone(name: str) -> None:
    objective = _EVERY_OBJECTIVE[name]
    assert isinstance(objective, objectives.Objective)

    def loss(certified: list, attacked: list, scale: jax.Array) -> jax.Array:
        f, g = (Partial(mlp, params) for params in (certified, attacked))
        network = _network(f, g, lipschitz=1.0 - jnp.eye(2))
        worst = objective(network, _PIXELS, jnp.int32(1), scale, _KEY)
        assert worst.logits.shape == (2,)
        return jnp.sum(worst.logits * jnp.array([1.0, 3.0])) + jnp.sum(worst.logits**2)

    params = mlp_params(2, (4, 5, 2))
    gradient = jax.jit(jax.grad(loss, argnums=(0, 1)))
    for scale in (0.0, 1.0):
        certified, attacked = gradient(params, params, jnp.float32(scale))
        assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(certified))
        assert any(np.any(leaf != 0) for leaf in jax.tree.leaves(certified))
        assert all(np.all(leaf == 0) for leaf in jax.tree.leaves(attacked))


_NOISES = [smoothing.gaussian(0.3, levels=20), smoothing.splitting(0.5, levels=20)]


def _loss_of_views(objective: Objective, f: Callable, scale: float) -> tuple[float, np.ndarray]:
    """The loss, and the views of the network that it was computed from."""
    views: list[np.ndarray] = []

    def seen(x: jax.Array) -> jax.Array:
        jax.debug.callback(lambda x: views.append(np.asarray(x)), x)
        return f(x)

    loss = objective(_network(seen), _X, jnp.int32(2), jnp.float32(scale), _KEY).loss
    jax.effects_barrier()
    return float(loss), np.stack(views)


@pytest.mark.parametrize("noise", _NOISES, ids=lambda noise: noise.kind)
def test_noisy_views_are_classified_as_the_label_and_alike(noise: smoothing.Noise) -> None:
    f = _wide()
    loss, views = _loss_of_views(objectives.noisy(noise, samples=3, consistency=2.0, entropy=0.7), f, 1.0)
    assert views.shape == (3, 4)
    assert len({tuple(view) for view in views.tolist()}) == 3
    by_view = np.asarray(jax.vmap(jax.nn.softmax)(jax.vmap(f)(jnp.asarray(views))), float)
    mean = by_view.mean(axis=0)
    natural = -np.log(by_view[:, 2]).mean()
    divergence = np.mean([np.sum(mean * np.log(mean / view)) for view in by_view])
    expected = natural + 2.0 * divergence - 0.7 * np.sum(mean * np.log(mean))
    assert loss == pytest.approx(expected, rel=1e-4)
    assert _loss_of_views(objectives.noisy(noise, samples=3), f, 1.0)[0] == pytest.approx(natural, rel=1e-4)
    # Half of the noise on the ramp, none before it.
    half = _loss_of_views(objectives.noisy(noise, samples=3), f, 0.5)[1]
    np.testing.assert_allclose(
        np.sort(half, axis=0), np.sort(np.asarray(_X) + 0.5 * (views - np.asarray(_X)), axis=0), atol=1e-6
    )
    clean = objectives.cross_entropy(f(_X), jnp.int32(2))
    assert _loss_of_views(objectives.noisy(noise, samples=3), f, 0.0)[0] == pytest.approx(float(clean), rel=1e-5)


@pytest.mark.parametrize("fields", [{"samples": 0}, {"consistency": 1.0}, {"samples": 2, "entropy": -1.0}])
def test_noise_without_views_to_compare_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="expected at least one view, two for a consistency"):
        objectives.noisy(_NOISES[0], **fields)


def _wide(seed: int = 4) -> Partial:
    return Partial(mlp, mlp_params(seed, (4, 8, 8, 3)))


def test_crown_ibp_goes_from_linear_bounds_to_ibp() -> None:
    ball, f = _ball(np.inf), _wide()
    objective = objectives.crown_ibp(ball, 0.2, fraction=0.5)
    for scale in (0.5, 1.0):
        region = ball(_X, 0.1 * scale)
        margins = cj.margins(f, 1)
        by_ibp, by_crown = jax.jit(
            lambda region, m=margins: (cj.ibp(m)(region).lower, cj.crown(m, intermediate="ibp")(region).lower)
        )(region)
        expected = (1 - scale) * by_crown + scale * by_ibp
        assert np.max(np.abs(by_crown - by_ibp)) > 1e-3
        np.testing.assert_allclose(np.delete(_worst(objective, f, _X, 1, scale), 1), -expected, rtol=1e-4, atol=1e-5)
    kept = objectives.crown_ibp(ball, 0.1, final=1.0)
    np.testing.assert_allclose(np.delete(_worst(kept, f, _X, 1), 1), -by_crown, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("combination", objectives.COMBINATIONS)
def test_expressive_losses_lie_between_attack_and_bound(combination: str) -> None:
    ball, f, label = _ball(np.inf), _wide(), jnp.int32(2)

    def losses(alpha: float) -> tuple[jax.Array, jax.Array]:
        objective = objectives.expressive(ball, 0.1, combination=combination, alpha=alpha)

        def loss(shift: jax.Array) -> jax.Array:
            worst = objective(_network(lambda x: f(x) + shift), _X, label, _ONE, _KEY)
            return objectives.cross_entropy(worst.logits, label) if worst.loss is None else worst.loss

        return jax.jit(jax.value_and_grad(loss))(jnp.zeros(3))

    (attacked, _), (between, gradient), (bounded, _) = losses(0.0), losses(0.3), losses(1.0)
    by_ibp = _worst(objectives.dual_norm(ball, 0.1), f, _X, 2)
    np.testing.assert_allclose(bounded, objectives.cross_entropy(jnp.asarray(by_ibp), label), rtol=1e-4)
    assert attacked < between < bounded
    assert np.all(np.isfinite(gradient))
    if combination == "mtl":
        np.testing.assert_allclose(between, 0.7 * attacked + 0.3 * bounded, rtol=1e-5)
    if combination == "exp":
        np.testing.assert_allclose(between, attacked**0.7 * bounded**0.3, rtol=1e-4)


def test_attacks_may_reach_further_than_what_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both sides of MTL-IBP, and the box around what is found, by hand."""
    ball, f, label = _ball(np.inf, None), _wide(), jnp.int32(2)
    asked: list[float] = []

    def attack(network: Callable, x: jax.Array, label: jax.Array, region: LpBall, **options: Any) -> jax.Array:
        asked.append(float(region.radius[0]))
        return x + region.radius

    monkeypatch.setattr(attacks, "pgd", attack)
    objective = objectives.expressive(ball, 0.1, alpha=0.5, attack_eps=0.25)
    worst = objective(_network(f), _X, label, _ONE, _KEY)
    sides = objectives.cross_entropy(f(_X + 0.25), label), objectives.cross_entropy(worst.logits, label)
    np.testing.assert_allclose(worst.loss, 0.5 * sides[0] + 0.5 * sides[1], rtol=1e-4)
    np.testing.assert_allclose(worst.logits, _worst(objectives.dual_norm(ball, 0.1), f, _X, 2), rtol=1e-4)

    objective = objectives.small_box(ball, 0.1, ratio=0.5, attack_eps=0.25)
    layers = objective(_network(random_mlp(0, (4, 3, 2))), _X, jnp.int32(0), _ONE, _KEY).layers
    # Of half-width 0.05, shifted into the box of the attack.
    np.testing.assert_allclose(layers.first.upper, _X + 0.25, rtol=1e-5)
    np.testing.assert_allclose(layers.first.lower, _X + 0.15, rtol=1e-5)
    np.testing.assert_allclose(asked, [0.25, 0.25], rtol=1e-6)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_distillation_learns_the_teachers_logits_at_what_the_attack_finds(
    monkeypatch: pytest.MonkeyPatch, alpha: float
) -> None:
    """AD-CERT by hand; of the label only the intervals know."""
    ball, f, teacher, label = _ball(np.inf, None), _wide(), _wide(9), jnp.int32(2)
    monkeypatch.setattr(attacks, "pgd", lambda f, x, label, region, **options: x + region.radius)
    objective = objectives.distilled(ball, 0.1, alpha=alpha, attack_eps=0.25)
    worst = objective(_network(f, teacher=teacher), _X, label, _ONE, _KEY)
    taught, learned = (np.asarray(jax.nn.log_softmax(g(_X + 0.25)), np.float64) for g in (teacher, f))
    divergence = np.sum(np.exp(taught) * (taught - learned))
    bounded = _worst(objectives.dual_norm(ball, 0.1), f, _X, 2)
    np.testing.assert_allclose(worst.logits, bounded, rtol=1e-4)
    by_ibp = objectives.cross_entropy(jnp.asarray(bounded), label)
    np.testing.assert_allclose(worst.loss, (1 - alpha) * divergence + alpha * by_ibp, rtol=1e-4)


def test_who_already_knows_what_the_teacher_says_learns_nothing() -> None:
    f = _wide()

    def loss(shift: jax.Array, given: jax.Array) -> jax.Array:
        objective = objectives.distilled(_ball(np.inf), 0.1, alpha=0.0)
        network = _network(lambda x: f(x) + shift, teacher=lambda x: f(x) + given)
        return objective(network, _X, jnp.int32(1), _ONE, _KEY).loss

    pupil, of_the_teacher = jax.jit(jax.grad(loss, (0, 1)))(jnp.zeros(3), jnp.zeros(3))
    np.testing.assert_allclose(pupil, 0.0, atol=1e-6)
    pupil, of_the_teacher = jax.jit(jax.grad(loss, (0, 1)))(jnp.zeros(3), jnp.array([0.0, 1.0, 0.0]))
    assert pupil[1] < -0.1 < 0 < pupil[0]
    np.testing.assert_array_equal(of_the_teacher, 0.0)


def test_distillation_without_a_teacher_is_refused() -> None:
    with pytest.raises(ValueError, match=r"expected Network\(teacher=...\)"):
        objectives.distilled(_ball(np.inf), 0.1)(_network(_wide()), _X, jnp.int32(0), _ONE, _KEY)


def test_an_unknown_combination_is_refused() -> None:
    with pytest.raises(ValueError, match="cc, mtl, exp"):
        objectives.expressive(_ball(np.inf), 0.1, combination="sum")


def test_box_ball_bounds_as_the_verifier_with_estimated_norms() -> None:
    f, ball = _wide(), _ball(2.0)
    graph = graphs.trace(f, _X)
    vectors = initial_vectors(graph, _KEY)
    for _ in range(50):
        norms, vectors = jax.jit(lambda v: estimated_norms(graph, v))(vectors)
    found = _worst(objectives.box_ball(ball, 0.2), f, _X, 0, norms=norms)
    proved = jax.jit(lambda region: cj.box_ball(cj.margins(f, 0))(region).lower)(ball(_X, 0.2))
    # Proved norms are a little larger than estimated ones.
    np.testing.assert_allclose(np.delete(found, 0), -proved, rtol=2e-2, atol=1e-3)
    with pytest.raises(ValueError, match="without block norms"):
        objectives.box_ball(ball, 0.2)(_network(f), _X, jnp.int32(0), _ONE, _KEY)


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
    plain = _worst(objectives.box(_ball(np.inf), 0.2), f, x, 2)
    shrunk = _worst(objectives.box(_ball(np.inf), 0.2, shrinking=0.4), f, x, 2)
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
