"""Combining norms: weights, the worst for each example, fair and reproducible partitions, alignment in closed form."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cure_jax.bounds.ibp import Layers
from cure_jax.regions import Interval
from cure_jax.training.multi_norm import BatchObjective, Outcome, alignment, joint, random_norm, worst
from cure_jax.training.objectives import Network, Objective, Worst

_CLASSES = 3
_SCALE = jnp.float32(1.0)
_NETWORK = Network(certified=lambda x: x, attacked=lambda x: x)


def _times(factor: float, shift: float = 0.0, layers: Layers | None = None) -> Objective:
    """Its logits are those of the network, scaled, and shifted in class 1."""

    def objective(network: Network, x: jax.Array, label: jax.Array, scale: jax.Array, key: jax.Array) -> Worst:
        return Worst(factor * network.certified(x) + shift * jnp.array([0.0, 1.0, 0.0]), layers)

    return objective


def _drawn(network: Network, x: jax.Array, label: jax.Array, scale: jax.Array, key: jax.Array) -> Worst:
    """Logits drawn with the key of the example."""
    return Worst(jax.random.normal(key, x.shape))


def _batch(size: int, seed: int = 0) -> tuple[jax.Array, jax.Array]:
    generator = np.random.default_rng(seed)
    logits = jnp.asarray(generator.normal(size=(size, _CLASSES)).astype(np.float32))
    return logits, jnp.asarray(generator.integers(_CLASSES, size=size).astype(np.int32))


def _keys(size: int, step: int = 0) -> jax.Array:
    """As a training step makes them: of the step and the global index."""
    return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.fold_in(jax.random.key(5), step), jnp.arange(size))


def _run(objective: BatchObjective, size: int, part: slice = slice(None), step: int = 0) -> Outcome:
    images, labels = _batch(size)
    return objective(_NETWORK, images[part], labels[part], _SCALE, _keys(size, step)[part])


def _cross_entropies(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    logits = np.asarray(logits, np.float64)
    return np.log(np.sum(np.exp(logits), axis=1)) - logits[np.arange(len(labels)), np.asarray(labels)]


def test_joint_adds_the_losses_in_equal_shares_or_by_weights() -> None:
    images, labels = _batch(6)
    single = {name: _cross_entropies(factor * images, labels) for name, factor in {"linf": 2.0, "l2": -1.0}.items()}
    norms = {"linf": _times(2.0), "l2": _times(-1.0)}
    np.testing.assert_allclose(_run(joint(norms), 6).losses, 0.5 * single["linf"] + 0.5 * single["l2"], rtol=1e-5)
    weighted = joint(norms, {"l2": 0.9, "linf": 0.3})
    np.testing.assert_allclose(_run(weighted, 6).losses, 0.3 * single["linf"] + 0.9 * single["l2"], rtol=1e-5)
    alone = joint({"linf": _times(2.0)})
    np.testing.assert_allclose(_run(alone, 6).losses, single["linf"], rtol=1e-5)


def test_joint_and_worst_tell_the_logits_of_every_norm() -> None:
    images, _ = _batch(6)
    for combine in (joint, worst):
        outcome = _run(combine({"linf": _times(2.0), "l2": _times(-1.0)}), 6)
        assert list(outcome.worst) == ["linf", "l2"]
        np.testing.assert_allclose(outcome.worst["linf"].logits, 2 * images)
        np.testing.assert_allclose(outcome.worst["l2"].logits, -images)


def test_worst_takes_the_larger_loss_of_each_example_and_not_of_the_batch() -> None:
    images, labels = _batch(16)
    single = np.stack([_cross_entropies(factor * images, labels) for factor in (2.0, -1.0)])
    expected = single.max(axis=0)
    assert 0 < np.sum(single[0] > single[1]) < 16, "each norm should be the worst somewhere"
    assert expected.mean() > single.mean(axis=1).max() + 0.1
    np.testing.assert_allclose(_run(worst({"linf": _times(2.0), "l2": _times(-1.0)}), 16).losses, expected, rtol=1e-5)


def test_the_gradient_of_worst_is_that_of_the_worst_norm_alone() -> None:
    images, labels = _batch(16)
    single = np.stack([_cross_entropies(factor * images, labels) for factor in (2.0, -1.0)])

    def losses(factors: jax.Array) -> jax.Array:
        return _run(worst({"linf": _times(factors[0]), "l2": _times(factors[1])}), 16).losses

    slopes = jax.jacobian(losses)(jnp.array([2.0, -1.0]))
    np.testing.assert_array_equal(slopes != 0, (single == single.max(axis=0)).T)


@pytest.mark.parametrize("combine", [joint, worst])
def test_every_norm_draws_its_own_numbers_for_every_example(combine: Callable[..., BatchObjective]) -> None:
    outcome = _run(combine({"linf": _drawn, "l2": _drawn}), 4)
    drawn = np.concatenate([outcome.worst["linf"].logits, outcome.worst["l2"].logits])
    assert len(np.unique(drawn)) == drawn.size
    second_half = _run(combine({"linf": _drawn, "l2": _drawn}), 4, slice(2, 4))
    np.testing.assert_array_equal(second_half.worst["l2"].logits, outcome.worst["l2"].logits[2:])


# Loss 1 for the first norm, 2 for the second, 3 for the third, whatever the example.
def _revealing(norms: int) -> BatchObjective:
    def reveal(index: int) -> Objective:
        def objective(network: Network, x: jax.Array, label: jax.Array, scale: jax.Array, key: jax.Array) -> Worst:
            others = jnp.log(jnp.expm1(jnp.float32(index + 1)) / (_CLASSES - 1))
            return Worst(jnp.where(jnp.arange(_CLASSES, dtype=jnp.int32) == label, 0, others))

        return objective

    return random_norm({f"norm{index}": reveal(index) for index in range(norms)})


def _dealt(norms: int, size: int, part: slice = slice(None), step: int = 0) -> np.ndarray:
    """The index of the norm of each example."""
    losses = np.asarray(_run(_revealing(norms), size, part, step).losses)
    assert np.max(np.abs(losses - losses.round())) < 1e-3
    return losses.round().astype(int) - 1


@pytest.mark.parametrize(("norms", "size"), [(1, 4), (2, 16), (3, 12)])
def test_random_norm_gives_each_example_one_norm_and_each_norm_an_equal_part(norms: int, size: int) -> None:
    for step in range(3):
        assert np.bincount(_dealt(norms, size, step=step)).tolist() == [size // norms] * norms


def test_random_norm_deals_anew_at_every_step_and_leaves_no_place_to_one_norm() -> None:
    dealt = np.stack([_dealt(2, 16, step=step) for step in range(20)])
    share = dealt.mean(axis=0)
    assert np.all((share > 0.1) & (share < 0.9))
    assert len(np.unique(dealt, axis=0)) == 20
    # Nor do the pairs of a batch agree with each other.
    assert 0.3 < np.mean(dealt[:, ::2]) < 0.7


@pytest.mark.parametrize(("norms", "size", "devices"), [(2, 16, 2), (2, 16, 8), (3, 12, 2), (3, 12, 4)])
def test_random_norm_partitions_alike_on_any_number_of_devices(norms: int, size: int, devices: int) -> None:
    share = size // devices
    parts = [_dealt(norms, size, slice(first, first + share), step=2) for first in range(0, size, share)]
    np.testing.assert_array_equal(np.concatenate(parts), _dealt(norms, size, step=2))


def test_random_norm_keeps_every_example_with_its_image_and_label() -> None:
    images, labels = _batch(16)
    outcome = _run(random_norm({"linf": _times(2.0), "l2": _times(-1.0)}), 16)
    single = np.stack([_cross_entropies(factor * images, labels) for factor in (2.0, -1.0)])
    np.testing.assert_allclose(outcome.losses, single[_dealt(2, 16), np.arange(16)], rtol=1e-5)
    assert outcome.worst == {}


def test_random_norm_of_a_batch_that_cannot_be_parted_is_refused() -> None:
    with pytest.raises(ValueError, match=r"random_norm got 7 examples a device; expected a multiple of 2.*batch_size"):
        _run(_revealing(2), 7)


def test_boxes_are_those_of_the_last_norm_that_propagated_one() -> None:
    layers = [Layers(Interval(jnp.zeros(2), jnp.full(2, width)), ()) for width in (1.0, 2.0)]
    norms = {"linf": _times(1.0, layers=layers[0]), "l1": _times(1.0, layers=layers[1]), "l2": _times(1.0)}
    for combine, size in ((joint, 6), (worst, 6), (random_norm, 2)):
        boxes = _run(combine(norms), 6).boxes
        np.testing.assert_array_equal(boxes.layers.first.upper, np.full((size, 2), 2.0))
        assert _run(combine({"l2": _times(1.0)}), 6).boxes is None


@pytest.mark.parametrize("combine", [joint, worst, random_norm])
def test_no_norm_at_all_is_refused(combine: Callable[..., BatchObjective]) -> None:
    with pytest.raises(ValueError, match="no objectives; expected at least one norm"):
        combine({})


def test_joint_refuses_weights_of_other_norms() -> None:
    with pytest.raises(ValueError, match=r"weights for \['l1'\]; expected \['linf'\]"):
        joint({"linf": _times(1.0)}, {"l1": 1.0})


@pytest.mark.parametrize("weights", [{"linf": 1.0, "l2": -0.1}, {"linf": 0.0, "l2": 0.0}, {"linf": 1.0, "l2": np.nan}])
def test_joint_refuses_weights_out_of_range(weights: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"finite numbers, at least 0 and not all 0"):
        joint({"linf": _times(1.0), "l2": _times(1.0)}, weights)


_LABELS = jnp.array([0, 1, 2, 0, 1, 0], jnp.int32)
# Right, wrong, right, wrong, wrong, right.
_LOWER = jnp.array([[2.0, 1, 0], [3, 0, 1], [0, 1, 4], [0, 1, 0], [0, -1, 1], [0, -1, -1]])
_HIGHER = jnp.array([[0.0, 1, 0], [3, 3, 1], [0, 2, 3], [2, 1, 0], [0, -3, 1], [0, 1, -2]])


def _divergence(lower: np.ndarray, higher: np.ndarray) -> np.ndarray:
    p, q = (np.exp(np.asarray(x, np.float64)) for x in (lower, higher))
    p, q = p / p.sum(axis=1, keepdims=True), q / q.sum(axis=1, keepdims=True)
    return np.sum(p * np.log(p / q), axis=1)


def test_alignment_averages_the_divergence_over_what_lower_gets_right() -> None:
    value = float(alignment(_LOWER, _HIGHER, _LABELS, None))
    right = [0, 2, 5]
    assert value == pytest.approx(_divergence(_LOWER, _HIGHER)[right].mean(), rel=1e-5)
    # Not the other way round, not over what higher gets right, not over all.
    assert abs(value - _divergence(_HIGHER, _LOWER)[right].mean()) > 1e-2
    assert abs(value - _divergence(_LOWER, _HIGHER).mean()) > 1e-2


def test_alignment_gradient_treats_the_choice_as_given() -> None:
    right = jnp.array([1.0, 0, 1, 0, 0, 1])

    def given(lower: jax.Array, higher: jax.Array) -> jax.Array:
        p, q = jax.nn.log_softmax(lower), jax.nn.log_softmax(higher)
        return jnp.sum(right * jnp.sum(jnp.exp(p) * (p - q), axis=1)) / 3

    gradients = jax.grad(lambda *logits: alignment(*logits, _LABELS, None), argnums=(0, 1))(_LOWER, _HIGHER)
    for gradient, expected in zip(gradients, jax.grad(given, argnums=(0, 1))(_LOWER, _HIGHER), strict=True):
        np.testing.assert_allclose(gradient, expected, atol=1e-6)
        assert np.max(np.abs(gradient)) > 0.01


def test_alignment_of_nothing_is_0_with_gradient_0() -> None:
    wrong = (_LABELS + 1) % 3
    lower = 5.0 * jax.nn.one_hot(wrong, 3)
    value, gradients = jax.value_and_grad(alignment, argnums=(0, 1))(lower, _HIGHER, _LABELS, None)
    assert value == 0
    for gradient in gradients:
        np.testing.assert_array_equal(gradient, np.zeros((6, 3)))


def test_alignment_is_finite_where_softmax_is_0_or_1() -> None:
    lower, higher = 1e4 * jax.nn.one_hot(_LABELS, 3), -1e4 * jax.nn.one_hot(_LABELS, 3)
    value, gradients = jax.value_and_grad(alignment, argnums=(0, 1))(lower, higher, _LABELS, None)
    assert value == pytest.approx(1e4 + np.log(2), rel=1e-5)
    assert all(np.all(np.isfinite(gradient)) for gradient in gradients)


@pytest.mark.parametrize("devices", [2, 3, 6])
def test_alignment_over_devices_is_that_of_the_whole_batch(devices: int) -> None:
    # The devices have different numbers of right examples, down to none.
    parts = [array.reshape(devices, 6 // devices, *array.shape[1:]) for array in (_LOWER, _HIGHER, _LABELS)]
    values = jax.vmap(lambda *part: alignment(*part, "devices"), axis_name="devices")(*parts)
    np.testing.assert_allclose(values, np.full(devices, alignment(_LOWER, _HIGHER, _LABELS, None)), rtol=1e-6)
