"""Gradient projection: the formula, its life inside an optimiser, and the two ways in which it goes wrong."""

from collections.abc import Iterator

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cure_jax.training.gradient_projection import combine, epoch_projection, gradient_projection


def _tree(seed: int) -> dict:
    keys = jax.random.split(jax.random.key(seed), 3)
    return {
        "kernel": jax.random.normal(keys[0], (3, 4)),
        "bias": jax.random.normal(keys[1], (4,)),
        "scale": jax.random.normal(keys[2], ()),
    }


def _scaled(tree: dict, factor: float) -> dict:
    return jax.tree.map(lambda leaf: factor * leaf, tree)


def _cosine(a: np.ndarray, b: np.ndarray) -> float:
    a, b = (np.asarray(x, np.float64).ravel() for x in (a, b))
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


def test_combine_follows_the_formula_in_every_leaf() -> None:
    certified, natural, beta = _tree(2), _tree(0), 0.3
    combined = combine(certified, natural, beta)
    cosines = {name: _cosine(natural[name], certified[name]) for name in certified}
    assert min(cosines.values()) < 0 < max(cosines.values()), "the trees should exercise both branches"
    for name, cosine in cosines.items():
        expected = (1 - beta) * certified[name] + beta * max(cosine, 0.0) * natural[name]
        np.testing.assert_allclose(combined[name], expected, rtol=1e-5, atol=1e-6)


def test_combine_of_orthogonal_and_oblique_vectors_in_closed_form() -> None:
    certified = jnp.array([1.0, 0.0])
    np.testing.assert_allclose(combine(certified, jnp.array([0.0, 5.0]), 0.5), [0.5, 0.0], atol=1e-7)
    np.testing.assert_allclose(combine(certified, jnp.array([3.0, 4.0]), 0.5), [0.5 + 0.9, 1.2], rtol=1e-6)


def test_combine_drops_an_opposing_update() -> None:
    certified = _tree(0)
    chex.assert_trees_all_close(combine(certified, _scaled(certified, -7.0), 0.8), _scaled(certified, 0.2), rtol=1e-5)


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_combine_of_equal_updates_changes_nothing(beta: float) -> None:
    chex.assert_trees_all_close(combine(_tree(0), _tree(0), beta), _tree(0), rtol=1e-6)


@pytest.mark.parametrize("factor", [1e-25, 0.1, 1e25])
def test_combine_is_homogeneous_even_where_squares_leave_the_range_of_float32(factor: float) -> None:
    combined = combine(_scaled(_tree(0), factor), _scaled(_tree(1), factor), 0.6)
    chex.assert_trees_all_close(_scaled(combined, 1 / factor), combine(_tree(0), _tree(1), 0.6), rtol=1e-5, atol=1e-6)


def test_combine_with_a_zero_update_is_finite() -> None:
    tree, zeros = _tree(0), jax.tree.map(jnp.zeros_like, _tree(0))
    chex.assert_trees_all_close(combine(tree, zeros, 0.8), _scaled(tree, 0.2), rtol=1e-5)
    chex.assert_trees_all_equal(combine(zeros, tree, 0.8), zeros)
    chex.assert_trees_all_equal(combine(zeros, zeros, 0.8), zeros)


def test_combine_keeps_dtypes_and_takes_empty_leaves_and_any_container() -> None:
    tree = (jnp.ones(3, jnp.bfloat16), None, [jnp.ones((0, 2))])
    combined = combine(tree, tree, jnp.float32(0.5))
    chex.assert_trees_all_equal_shapes_and_dtypes(combined, tree)
    np.testing.assert_allclose(combined[0].astype(jnp.float32), 1.0, rtol=1e-2)


@pytest.fixture
def _optax_promotion() -> Iterator[None]:
    """The strict promotion of this suite is for our own code: optax's Adam raises floats to integer powers."""
    with jax.numpy_dtype_promotion("standard"):
        yield


_runs_adam = pytest.mark.usefixtures("_optax_promotion")


def _run(transform: optax.GradientTransformationExtraArgs, certified: list, natural: list) -> tuple[list, tuple]:
    params = jax.tree.map(jnp.zeros_like, certified[0])
    state, updates, step = transform.init(params), [], jax.jit(transform.update)
    for certified_grads, natural_grads in zip(certified, natural, strict=True):
        update, state = step(certified_grads, state, params, natural=natural_grads)
        updates.append(update)
    return updates, state


def _run_inner(inner: optax.GradientTransformation, gradients: list) -> tuple[list, tuple]:
    params = jax.tree.map(jnp.zeros_like, gradients[0])
    state, updates, step = inner.init(params), [], jax.jit(inner.update)
    for gradient in gradients:
        update, state = step(gradient, state, params)
        updates.append(update)
    return updates, state


_CERTIFIED = [_tree(seed) for seed in range(5)]
_NATURAL = [_tree(seed) for seed in range(10, 15)]


@_runs_adam
def test_each_gradient_goes_through_its_own_adam() -> None:
    updates, state = _run(gradient_projection(optax.scale_by_adam(), 0.6, 0), _CERTIFIED, _NATURAL)
    certified, certified_state = _run_inner(optax.scale_by_adam(), _CERTIFIED)
    natural, natural_state = _run_inner(optax.scale_by_adam(), _NATURAL)
    chex.assert_trees_all_close(
        updates, [combine(*pair, 0.6) for pair in zip(certified, natural, strict=True)], rtol=1e-5
    )
    chex.assert_trees_all_close(state.certified, certified_state)
    chex.assert_trees_all_close(state.natural, natural_state)


@_runs_adam
def test_before_start_step_natural_gradients_are_ignored_even_nan() -> None:
    start = 3
    poisoned = [jax.tree.map(lambda leaf: jnp.full_like(leaf, jnp.nan), tree) for tree in _NATURAL[:start]]
    transform = gradient_projection(optax.scale_by_adam(), 0.6, start)
    before, state = _run(transform, _CERTIFIED[:start], poisoned)
    expected, expected_state = _run_inner(optax.scale_by_adam(), _CERTIFIED[:start])
    chex.assert_trees_all_close(before, expected)
    chex.assert_trees_all_close(state.certified, expected_state)
    chex.assert_trees_all_equal(state.natural, transform.init(_CERTIFIED[0]).natural)

    updates, state = _run(transform, _CERTIFIED, poisoned + _NATURAL[start:])
    certified, _ = _run_inner(optax.scale_by_adam(), _CERTIFIED)
    natural, natural_state = _run_inner(optax.scale_by_adam(), _NATURAL[start:])
    chex.assert_trees_all_close(
        updates[start:], [combine(*pair, 0.6) for pair in zip(certified[start:], natural, strict=True)], rtol=1e-5
    )
    chex.assert_trees_all_close(state.natural, natural_state)
    assert int(state.step) == len(_CERTIFIED)


@_runs_adam
def test_the_states_never_contaminate_each_other() -> None:
    transform = gradient_projection(optax.scale_by_adam(), 0.6, 0)
    _, state = _run(transform, _CERTIFIED, _NATURAL)
    _, other_natural = _run(transform, _CERTIFIED, [_scaled(tree, -3.0) for tree in _NATURAL])
    _, other_certified = _run(transform, [_scaled(tree, -3.0) for tree in _CERTIFIED], _NATURAL)
    chex.assert_trees_all_equal(state.certified, other_natural.certified)
    chex.assert_trees_all_equal(state.natural, other_certified.natural)
    assert not np.allclose(state.natural.mu["kernel"], other_natural.natural.mu["kernel"])


@_runs_adam
def test_wrong_turn_a_raw_natural_gradient_after_adam_is_always_dropped() -> None:
    """Updates point downhill, gradients uphill: perfect agreement then looks like opposition."""
    optimizer = optax.adam(0.1)
    (certified_update,), _ = _run_inner(optimizer, _CERTIFIED[:1])
    wrong = combine(certified_update, _CERTIFIED[0], 0.5)
    chex.assert_trees_all_close(wrong, _scaled(certified_update, 0.5), rtol=1e-5)
    (right,), _ = _run(gradient_projection(optimizer, 0.5, 0), _CERTIFIED[:1], _CERTIFIED[:1])
    chex.assert_trees_all_close(right, certified_update, rtol=1e-5)


@_runs_adam
def test_wrong_turn_projecting_before_adam_cancels_the_factor() -> None:
    """Adam normalises the scale of its input, so that 1 - beta has no effect on it."""
    opposed = [_scaled(tree, -1.0) for tree in _CERTIFIED]
    projected = [combine(*pair, 0.8) for pair in zip(_CERTIFIED, opposed, strict=True)]
    wrong, _ = _run_inner(optax.scale_by_adam(), projected)
    plain, _ = _run_inner(optax.scale_by_adam(), _CERTIFIED)
    chex.assert_trees_all_close(wrong, plain, rtol=1e-4)
    right, _ = _run(gradient_projection(optax.scale_by_adam(), 0.8, 0), _CERTIFIED, opposed)
    chex.assert_trees_all_close(right, _scaled(plain, 0.2), rtol=1e-4)


@_runs_adam
def test_a_schedule_is_chained_after() -> None:
    schedule = optax.piecewise_constant_schedule(0.5, {2: 0.1})
    chained = optax.chain(gradient_projection(optax.scale_by_adam(), 0.6, 1), optax.scale_by_learning_rate(schedule))
    updates, _ = _run(chained, _CERTIFIED, _NATURAL)
    bare, _ = _run(gradient_projection(optax.scale_by_adam(), 0.6, 1), _CERTIFIED, _NATURAL)
    rates = [0.5, 0.5, 0.05, 0.05, 0.05]
    chex.assert_trees_all_close(
        updates, [_scaled(update, -rate) for update, rate in zip(bare, rates, strict=True)], rtol=1e-6
    )


def test_extra_arguments_reach_both_copies_of_an_inner_that_takes_them() -> None:
    def update(updates: dict, state: tuple, params: dict | None = None, *, factor: float) -> tuple[dict, tuple]:
        del params
        return _scaled(updates, factor), state

    inner = optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)
    transform = gradient_projection(inner, 0.6, 0)
    state = transform.init(_CERTIFIED[0])
    updates, _ = transform.update(_CERTIFIED[0], state, natural=_NATURAL[0], factor=3.0)
    chex.assert_trees_all_close(updates, _scaled(combine(_CERTIFIED[0], _NATURAL[0], 0.6), 3.0), rtol=1e-5)

    plain = gradient_projection(optax.identity(), 0.6, 0)
    updates, _ = plain.update(_CERTIFIED[0], plain.init(_CERTIFIED[0]), natural=_NATURAL[0], factor=3.0)
    chex.assert_trees_all_close(updates, combine(_CERTIFIED[0], _NATURAL[0], 0.6))


@_runs_adam
def test_jit_scan_and_pmap_agree_with_the_plain_call() -> None:
    transform = gradient_projection(optax.scale_by_adam(), 0.6, 2)
    params = jax.tree.map(jnp.zeros_like, _CERTIFIED[0])
    expected, expected_state = _run(transform, _CERTIFIED, _NATURAL)
    expected = jax.tree.map(lambda *leaves: jnp.stack(leaves), *expected)
    certified = jax.tree.map(lambda *leaves: jnp.stack(leaves), *_CERTIFIED)
    natural = jax.tree.map(lambda *leaves: jnp.stack(leaves), *_NATURAL)

    def step(state: tuple, gradients: tuple) -> tuple:
        update, state = transform.update(gradients[0], state, params, natural=gradients[1])
        return state, update

    def scan(certified: dict, natural: dict) -> tuple:
        return jax.lax.scan(step, transform.init(params), (certified, natural))

    state, updates = jax.jit(scan)(certified, natural)
    chex.assert_trees_all_close(updates, expected, rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_close(state, expected_state, rtol=1e-5, atol=1e-6)

    def halves(tree: dict) -> dict:
        return jax.tree.map(lambda leaf: jnp.stack([0.5 * leaf, 1.5 * leaf]), tree)

    def scan_of_means(certified: dict, natural: dict) -> tuple:
        return scan(*jax.lax.pmean((certified, natural), "devices"))

    mapped = jax.pmap(scan_of_means, "devices", out_axes=None, devices=jax.devices()[:2])
    state, updates = jax.device_get(mapped(halves(certified), halves(natural)))
    chex.assert_trees_all_close(updates, jax.device_get(expected), rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_close(state, jax.device_get(expected_state), rtol=1e-5, atol=1e-6)


def test_missing_natural_gradients_are_a_clear_error() -> None:
    transform = gradient_projection(optax.sgd(0.1), 0.6, 0)
    with pytest.raises(TypeError, match="natural=natural_grads"):
        transform.update(_CERTIFIED[0], transform.init(_CERTIFIED[0]), _CERTIFIED[0])


@pytest.mark.parametrize(("beta", "start_step", "name"), [(1.5, 0, "beta"), (-0.1, 0, "beta"), (0.5, -1, "start_step")])
def test_impossible_settings_are_refused(beta: float, start_step: int, name: str) -> None:
    with pytest.raises(ValueError, match=name):
        gradient_projection(optax.identity(), beta, start_step)


def _rate(step: jax.Array) -> jax.Array:
    return jnp.where(jnp.asarray(step) < 5, 0.1, 0.02)


def _walk(gradients: list, params: dict, adam_state: tuple | None, first: int) -> tuple[dict, tuple]:
    """Plain Adam from somewhere on, with the learning rates of these steps."""
    adam = optax.scale_by_adam()
    state = adam.init(params) if adam_state is None else adam_state
    for step, gradient in enumerate(gradients, first):
        change, state = adam.update(gradient, state, params)
        params = optax.apply_updates(params, _scaled(change, -float(_rate(jnp.int32(step)))))
    return params, state


@_runs_adam
def test_epochs_are_combined_as_wholes() -> None:
    """Two trainings from the same point, each by plain Adam; the second period starts where the first one met."""
    period, beta, certified, natural = 3, 0.4, [_tree(s) for s in range(9)], [_tree(s) for s in range(20, 29)]
    transform = epoch_projection(optax.scale_by_adam(), beta, 2, period, _rate)
    params = _tree(99)
    state, update, reached = transform.init(params), jax.jit(transform.update), []
    for step in range(9):
        change, state = update(certified[step], state, params, natural=natural[step])
        params = optax.apply_updates(params, change)
        reached.append(params)

    # The first period begins before the projection: certified alone.
    start, certified_state = _walk(certified[:3], _tree(99), None, 0)
    chex.assert_trees_all_close(reached[2], start, rtol=1e-5, atol=1e-6)
    natural_state = None
    for first in (3, 6):
        middle, _ = _walk(certified[first : first + 2], start, certified_state, first)
        chex.assert_trees_all_close(reached[first + 1], middle, rtol=1e-5, atol=1e-6)
        ends = []
        end, certified_state = _walk(certified[first : first + 3], start, certified_state, first)
        ends.append(end)
        end, natural_state = _walk(natural[first : first + 3], start, natural_state, first)
        ends.append(end)
        gone = [jax.tree.map(jnp.subtract, end, start) for end in ends]
        start = jax.tree.map(jnp.add, start, combine(gone[0], gone[1], beta))
        chex.assert_trees_all_close(reached[first + 2], start, rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_close(state.natural_params, start, rtol=1e-5, atol=1e-6)


@_runs_adam
def test_epoch_projection_ignores_natural_gradients_before_its_start() -> None:
    poisoned = jax.tree.map(lambda leaf: jnp.full_like(leaf, jnp.nan), _tree(0))
    transform = epoch_projection(optax.scale_by_adam(), 0.5, 4, 2, _rate)
    params = _tree(1)
    state = transform.init(params)
    for step in range(4):
        change, state = transform.update(_CERTIFIED[step], state, params, natural=poisoned)
        params = optax.apply_updates(params, change)
    expected, _ = _walk(_CERTIFIED[:4], _tree(1), None, 0)
    chex.assert_trees_all_close(params, expected, rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_close(state.natural_params, params)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((1.5, 0, 1), "beta=1.5"), ((0.5, -1, 1), "start_step=-1"), ((0.5, 0, 0), "period=0")],
)
def test_epoch_projection_refuses(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        epoch_projection(optax.identity(), *arguments, _rate)
