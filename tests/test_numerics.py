import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cure_jax import numerics
from tests.arrays import close, lowered, normal


def test_total_is_a_sum_with_its_derivatives():
    x = normal(3, 4, 5)
    for ours, theirs in (
        (numerics.total, jnp.sum),
        (lambda x: numerics.total(x**3) * numerics.total(x), lambda x: jnp.sum(x**3) * jnp.sum(x)),
    ):
        close(ours(x), theirs(x))
        close(jax.jit(jax.grad(ours))(x), jax.grad(theirs)(x))
        for axis in range(3):
            close(jax.jit(jax.vmap(ours, axis))(x), jax.vmap(theirs, axis)(x))
            close(jax.vmap(jax.grad(ours), axis)(x), jax.vmap(jax.grad(theirs), axis)(x))
        close(jax.hessian(ours)(x[0, 0]), jax.hessian(theirs)(x[0, 0]))
        close(jax.jvp(ours, (x,), (x,)), jax.jvp(theirs, (x,), (x,)))
    assert [e.primitive.name for e in jax.make_jaxpr(jax.vmap(numerics.total))(x).eqns] == ["total"]


def test_pinned_numbers_are_themselves_on_cpu_and_refused_elsewhere():
    x = jnp.array([1.5, -0.0, jnp.inf, -3e38])
    np.testing.assert_array_equal(jax.jit(numerics.pinned)(x), x)
    np.testing.assert_array_equal(jax.vmap(numerics.pinned)(x), numerics.pinned(x))
    assert jnp.isnan(numerics.pinned(jnp.array(jnp.nan)))
    close(jax.grad(lambda x: numerics.pinned(x) ** 2)(jnp.array(3.0)), jnp.array(6.0))
    with pytest.raises(ValueError, match=r"holds on CPU only; this program is compiled for tpu"):
        lowered(numerics.pinned, "tpu", x)


norm_and_gradient = jax.jit(jax.value_and_grad(numerics.norm), static_argnums=1)


@pytest.mark.parametrize("p", [1, 1.5, 2, 3.0, 7, math.inf])
def test_norm(p):
    x = normal(3, 4)
    ours = norm_and_gradient(x, p)
    close(ours, jax.jit(jax.value_and_grad(lambda x: jnp.linalg.norm(x.ravel(), p)))(x))


@pytest.mark.parametrize("p", [1, 1.5, 2, 3.0, 50, math.inf])
def test_norm_is_safe_at_zero_and_at_the_ends_of_the_range(p):
    value, gradient = norm_and_gradient(jnp.zeros((2, 3)), p)
    assert value == 0
    assert not np.any(gradient)
    for size in (1e30, 1e-30):
        value, gradient = norm_and_gradient(jnp.array([3.0, 0.0, -4.0]) * size, p)
        expected, direction = norm_and_gradient(jnp.array([3.0, 0.0, -4.0]), p)
        np.testing.assert_allclose(value, expected * size, rtol=1e-5)
        np.testing.assert_allclose(gradient, direction, rtol=1e-5)
    assert norm_and_gradient(jnp.array([1.0, -jnp.inf]), p)[0] == jnp.inf
    assert np.isnan(norm_and_gradient(jnp.array([1.0, jnp.nan]), p)[0])
    assert norm_and_gradient(jnp.zeros(0), p)[0] == 0


def test_norm_has_a_second_derivative():
    x = normal(4)
    direction = x / numerics.norm(x, 2)
    expected = (jnp.eye(4) - direction[:, None] * direction[None, :]) / numerics.norm(x, 2)
    close(jax.jit(jax.hessian(lambda x: numerics.norm(x, 2)))(x), expected)


@pytest.mark.parametrize("p", [1, 1.5, 2, 3.0, math.inf])
def test_the_dual_norm_is_attained_at_the_gradient(p):
    x = normal(5)
    assert numerics.dual(numerics.dual(p)) == pytest.approx(p)
    np.testing.assert_allclose(norm_and_gradient(norm_and_gradient(x, p)[1], numerics.dual(p))[0], 1.0, rtol=1e-5)


@pytest.mark.parametrize("p", [0.5, 0, -1, math.nan, -math.inf])
def test_an_exponent_below_one_is_refused(p):
    with pytest.raises(ValueError, match=f"got p={p}"):
        numerics.norm(jnp.ones(2), p)
    with pytest.raises(ValueError, match=f"got p={p}"):
        numerics.dual(p)


def test_collectives():
    tree = {"a": jnp.arange(4.0), "b": jnp.arange(8.0).reshape(4, 2)}
    for collective, reduce in ((numerics.psum, jnp.sum), (numerics.pmean, jnp.mean)):
        assert collective(tree, None) is tree
        over_axis = jax.vmap(functools.partial(collective, axis_name="i"), axis_name="i", out_axes=None)(tree)
        close(over_axis, jax.tree.map(lambda x, reduce=reduce: reduce(x, axis=0), tree))
