"""The radius that is found is proved itself, and close to the largest one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cure_jax as cj
from tests.networks import random_mlp

WEIGHTS = jnp.array([[1.0, -0.5, 0.25], [0.5, 1.0, -2.0], [-1.0, 0.25, 0.5]])


def linear(x):
    return x @ WEIGHTS


@pytest.mark.parametrize(("make", "q"), [(cj.linf_ball, 1), (cj.l2_ball, 2), (cj.l1_ball, np.inf)])
def test_of_linear_classifiers_it_is_the_distance_to_the_boundary(make, q):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32))
    labels = jnp.argmax(jax.vmap(linear)(x), axis=1)
    find = jax.jit(jax.vmap(lambda x, label: cj.certified_radius(linear, x, label, make, tolerance=1e-4, high=4.0)))
    radii = np.asarray(find(x, labels))
    for point, label, radius in zip(np.asarray(x), np.asarray(labels), radii, strict=True):
        others = [j for j in range(3) if j != label]
        differences = np.asarray(WEIGHTS)[:, [label]] - np.asarray(WEIGHTS)[:, others]
        exact = np.min(point @ differences / np.linalg.norm(differences, q, axis=0))
        assert min(exact, 4) - 1.1e-4 <= radius <= exact + 1e-5


def test_what_is_proved_at_the_limit_is_the_limit_and_what_is_wrong_is_0():
    x = jnp.array([1.0, 0.0])
    find = jax.jit(lambda label: cj.certified_radius(lambda x: x, x, label, cj.linf_ball, high=0.25))
    assert float(find(0)) == 0.25
    assert float(find(1)) == 0


def test_the_radius_itself_is_proved_where_proofs_are_not_monotone():
    f, x = random_mlp(0), jnp.array([0.5, 0.25])
    label = jnp.argmax(f(x))
    # Proofs come and go as the radius grows.
    make = lambda x, eps: cj.linf_ball(x, 1.5 * jnp.abs(jnp.sin(40.0 * eps)))  # noqa: E731
    proved = jax.jit(lambda eps: cj.certify(f, x, label, make(x, eps)).verified)
    grid = np.asarray(jax.vmap(proved)(jnp.linspace(0, 1, 200)))
    assert 0.1 < np.mean(grid) < 0.9
    radius = jax.jit(lambda high: cj.certified_radius(f, x, label, make, high=1.0) * high)(1.0)
    assert float(radius) == 0 or bool(proved(radius))


@pytest.mark.parametrize("options", [{"tolerance": 0.0}, {"tolerance": 2.0}, {"high": np.inf}])
def test_brackets_that_are_none_are_refused(options):
    with pytest.raises(ValueError, match="tolerance"):
        cj.certified_radius(linear, jnp.zeros(3), 0, cj.linf_ball, **options)
