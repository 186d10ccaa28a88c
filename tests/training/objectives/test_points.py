"""Noisy views are those of the noise, and learn the label."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cure_jax import smoothing
from cure_jax.training import objectives
from cure_jax.training.objectives import Objective
from tests.training.objectives.one_example import (
    KEY,
    X,
    network_of,
    wide,
)

_NOISES = [smoothing.gaussian(0.3, levels=20), smoothing.splitting(0.5, levels=20)]


def _loss_of_views(objective: Objective, f: Callable, scale: float) -> tuple[float, np.ndarray]:
    """The loss, and the views of the network that it was computed from."""
    views: list[np.ndarray] = []

    def seen(x: jax.Array) -> jax.Array:
        jax.debug.callback(lambda x: views.append(np.asarray(x)), x)
        return f(x)

    loss = objective(network_of(seen), X, jnp.int32(2), jnp.float32(scale), KEY).loss
    jax.effects_barrier()
    return float(loss), np.stack(views)


@pytest.mark.parametrize("noise", _NOISES, ids=lambda noise: noise.kind)
def test_noisy_views_are_classified_as_the_label_and_alike(noise: smoothing.Noise) -> None:
    f = wide()
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
        np.sort(half, axis=0), np.sort(np.asarray(X) + 0.5 * (views - np.asarray(X)), axis=0), atol=1e-6
    )
    clean = objectives.cross_entropy(f(X), jnp.int32(2))
    assert _loss_of_views(objectives.noisy(noise, samples=3), f, 0.0)[0] == pytest.approx(float(clean), rel=1e-5)


@pytest.mark.parametrize("fields", [{"samples": 0}, {"consistency": 1.0}, {"samples": 2, "entropy": -1.0}])
def test_noise_without_views_to_compare_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="expected at least one view, two for a consistency"):
        objectives.noisy(_NOISES[0], **fields)
