"""The warm-up regulariser, against its formulas in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cure_jax.bounds.ibp import Layers
from cure_jax.regions import Interval
from cure_jax.training.warmup import bound_regularizer

_TOLERANCE = 0.5


def _interval(center: np.ndarray, radius: np.ndarray | float) -> Interval:
    return Interval(jnp.asarray(center - radius, jnp.float32), jnp.asarray(center + radius, jnp.float32))


def _layers(*intervals: Interval, input_radius: float = 0.1, batch: int = 4) -> Layers:
    return Layers(_interval(np.full((batch, 5), 0.5), input_radius), intervals)


def _ratio(a: float, b: float) -> float:
    return min(a / b, b / a)


def _excess(z: float) -> float:
    return max(z, 0.0)


def _expected(layers: Layers) -> float:
    """Section 4.3 of Shi et al., with loops in the place of masks."""
    input_radius = float(np.mean(np.asarray(layers.first.upper, np.float64) - np.asarray(layers.first.lower))) / 2
    terms = []
    for interval in layers.pre_activations:
        lower, upper = np.asarray(interval.lower, np.float64).ravel(), np.asarray(interval.upper, np.float64).ravel()
        centers, count = (lower + upper) / 2, lower.size
        tightness = _excess(_TOLERANCE - input_radius / np.mean((upper - lower) / 2)) / _TOLERANCE
        active = [c for c, low in zip(centers, lower, strict=True) if low > 0]
        inactive = [c for c, high in zip(centers, upper, strict=True) if high < 0]
        balance = 0.0
        if active and inactive:
            means = _ratio(sum(active) / count, -sum(inactive) / count)
            mean = centers.mean()
            variances = _ratio(sum((c - mean) ** 2 for c in active), sum((c - mean) ** 2 for c in inactive))
            balance = (_excess(_TOLERANCE - means) + _excess(_TOLERANCE - variances)) / _TOLERANCE
        terms.append(tightness + balance)
    return float(np.mean(terms))


def _random(seed: int, shift: float, radius: float) -> Interval:
    generator = np.random.default_rng(seed)
    shape = (4, 3, 2)
    return _interval(generator.normal(size=shape) + shift, radius * generator.uniform(0.5, 1.5, size=shape))


def test_tightness_in_closed_form() -> None:
    # All unstable, so nothing is to be balanced. Mean radius 0.4: 0.1 / 0.4 is 0.25, half of the tolerance.
    layers = _layers(_interval(np.zeros((4, 2)), np.array([0.3, 0.5])))
    assert float(bound_regularizer(layers, None)) == pytest.approx(0.5)
    # Twice as wide as the input is tolerated.
    assert float(bound_regularizer(_layers(_interval(np.zeros((4, 2)), 0.2)), None)) == pytest.approx(0.0, abs=1e-6)
    assert float(bound_regularizer(_layers(_interval(np.zeros((4, 2)), 0.05)), None)) == 0


def test_balance_in_closed_form() -> None:
    # Centres 4, -1 and an unstable 0 in every example: mean 1, ratio of means 1/4, of variances 4/9.
    layers = _layers(_interval(np.tile([4.0, -1.0, 0.0], (4, 1)), 0.01))
    assert float(bound_regularizer(layers, None)) == pytest.approx((0.25 + 0.5 - 4 / 9) / 0.5, rel=1e-5)
    # Mirrored, the same.
    mirrored = _layers(_interval(np.tile([-4.0, 1.0, 0.0], (4, 1)), 0.01))
    assert float(bound_regularizer(mirrored, None)) == pytest.approx((0.25 + 0.5 - 4 / 9) / 0.5, rel=1e-5)


@pytest.mark.parametrize("shift", [-1.2, 0.4, 0.8])
@pytest.mark.parametrize("radius", [0.02, 0.5])
def test_random_layers_agree_with_the_formulas(shift: float, radius: float) -> None:
    layers = _layers(_random(0, shift, radius), _random(1, -shift, 2 * radius), input_radius=0.05)
    expected = _expected(layers)
    assert expected > 0
    assert float(bound_regularizer(layers, None)) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    "center", [np.full((4, 3), 2.0), np.full((4, 3), -2.0), np.zeros((4, 3)), np.tile([2.0, 0.0, 1.0], (4, 1))]
)
def test_balance_is_0_without_an_active_or_without_an_inactive_neuron(center: np.ndarray) -> None:
    layers = _layers(_interval(center, 0.01))
    value, gradient = jax.value_and_grad(bound_regularizer)(layers, None)
    assert value == 0
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(gradient))


def test_a_layer_whose_bounds_have_no_width_is_tight_and_its_gradient_is_finite() -> None:
    layers = _layers(_interval(np.tile([2.0, -2.0, 0.0], (4, 1)), 0.0))
    value, gradient = jax.value_and_grad(bound_regularizer)(layers, None)
    assert value == 0
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(gradient))


def test_the_gradient_is_that_of_the_formulas() -> None:
    with jax.enable_x64(True):
        centers = np.random.default_rng(3).normal(size=(4, 5)) + 0.8
        first = Interval(jnp.full((4, 5), 0.45), jnp.full((4, 5), 0.55))
        lower, upper = jnp.asarray(centers - 0.3), jnp.asarray(centers + 0.3)

        def value(lower: jax.Array, upper: jax.Array) -> jax.Array:
            return bound_regularizer(Layers(first, (Interval(lower, upper),)), None)

        gradients = jax.grad(value, argnums=(0, 1))(lower, upper)
        step = 1e-6 * np.random.default_rng(4).normal(size=(2, 4, 5))
        moved = [
            _expected(Layers(first, (Interval(lower + sign * step[0], upper + sign * step[1]),))) for sign in (1, -1)
        ]
        slope = sum(float(jnp.sum(gradient * part)) for gradient, part in zip(gradients, step, strict=True))
        assert abs(slope) > 1e-8
        assert slope == pytest.approx((moved[0] - moved[1]) / 2, rel=1e-4)


def test_a_network_without_nonlinearities_needs_no_regularizer() -> None:
    assert float(bound_regularizer(_layers(), None)) == 0


@pytest.mark.parametrize("devices", [2, 4])
def test_devices_together_are_the_whole_batch(devices: int) -> None:
    # On one of the devices nothing may be active: ratios of sums are no means of ratios.
    intervals = [_random(5, 0.9, 0.2), _interval(np.array([[3.0, 1.0], [-1.0, 2.0], [1.0, 4.0], [2.0, 1.0]]), 0.3)]
    layers = _layers(*intervals)
    parts = jax.tree.map(lambda leaf: leaf.reshape(devices, 4 // devices, *leaf.shape[1:]), layers)
    values = jax.vmap(lambda part: bound_regularizer(part, "devices"), axis_name="devices")(parts)
    np.testing.assert_allclose(values, np.full(devices, _expected(layers)), rtol=1e-4)


def test_all_layers_share_two_sums_over_devices() -> None:
    layers = _layers(*(_random(seed, 0.4, 0.1) for seed in range(5)))
    axes = [("devices", 2)]
    jaxpr = jax.make_jaxpr(lambda part: bound_regularizer(part, "devices"), axis_env=axes)(layers)
    assert sum(equation.primitive.name.startswith("psum") for equation in jaxpr.eqns) == 2
