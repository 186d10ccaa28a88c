"""Rows that nobody asked for are not computed, whatever the size of chunks, and derivatives go through the others."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cure_jax.bounds.folding.selection import map_selected


@pytest.mark.parametrize("chunk", [1, 3, 7, 100])
def test_selected_rows_are_computed_and_others_zero(chunk):
    weights = jnp.arange(1.0, 8.0)
    selected = jnp.array([True, False, True, True, False, False, True])
    found = jax.jit(
        lambda weights: map_selected(lambda i: jnp.stack([weights[i], weights[i] ** 2]), selected, 2, chunk)
    )(weights)
    np.testing.assert_array_equal(found, jnp.where(selected[:, None], jnp.stack([weights, weights**2], 1), 0))


@pytest.mark.parametrize("wanted", [0, 1, 4, 7])
def test_the_loop_ends_with_the_last_selected_row(wanted):
    computed = []

    def row(index: jax.Array) -> jax.Array:
        jax.debug.callback(lambda i: computed.append(int(i)), index)
        return jnp.float32(index)[None]

    selected = jnp.arange(7) < wanted
    jax.block_until_ready(jax.jit(lambda selected: map_selected(row, selected, 1, 2))(selected))
    jax.effects_barrier()
    # The last chunk may be filled up.
    assert wanted <= len(computed) <= wanted + 1


def test_under_vmap_each_has_its_own_selection():
    selected = jnp.array([[True, False, True], [False, False, False], [True, True, True]])
    scale = jnp.array([1.0, 2.0, 3.0])
    found = jax.vmap(lambda s, w: map_selected(lambda i: w * (1 + i.astype(w.dtype))[None], s, 1, 2))(selected, scale)
    np.testing.assert_array_equal(found[..., 0], jnp.where(selected, scale[:, None] * jnp.arange(1.0, 4.0)[None], 0))


def test_derivatives_go_through_selected_rows_only():
    weights, selected = jnp.arange(1.0, 6.0), jnp.array([True, False, True, False, True])

    def total(weights: jax.Array) -> jax.Array:
        return jnp.sum(map_selected(lambda i: weights[i][None] ** 2, selected, 1, 2))

    expected = jnp.where(selected, 2 * weights, 0)
    np.testing.assert_array_equal(jax.jit(jax.grad(total))(weights), expected)
    np.testing.assert_array_equal(jax.jacfwd(total)(weights), expected)
