"""Work on selected rows only, in chunks: as many rows at once as memory allows, and none that nobody needs."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

__all__ = ["map_selected"]

Row = Callable[[Int[Array, ""]], Float[Array, " values"]]


def map_selected(
    row: Row, selected: Bool[Array, " rows"], values: int, chunk: int | Callable[[], int]
) -> Float[Array, "rows values"]:
    """Applies a function to the index of every selected row; the others are 0.

    Rows are computed `chunk` at a time, in a loop that ends with the last selected one (under `jax.vmap`, of the whole
    batch). Derivatives go through all rows, in a loop of fixed length, as those of `jax.lax.map` do.

    Args:
      row: from an index in [0, rows) to `[values]`; it may close over traced arrays.
      selected: which rows are wanted.
      values: length of a result.
      chunk: how many rows at once; or a function that says so, called after `row` was traced.

    Returns:
      `[rows, values]`.
    """
    example = jax.ShapeDtypeStruct((), jnp.int32)
    pure, constants = jax.closure_convert(row, jnp.zeros(example.shape, example.dtype))
    at_once = chunk() if callable(chunk) else chunk
    return _map(pure, values, min(at_once, len(selected)), selected, constants)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1, 2))
def _map(pure, values: int, chunk: int, selected: jax.Array, constants: list[jax.Array]) -> jax.Array:
    rows = selected.shape[0]
    # Selected rows first, then `rows`, an index that is dropped.
    order = jnp.nonzero(selected, size=rows + chunk, fill_value=rows)[0].astype(jnp.int32)
    count = jnp.sum(selected, dtype=jnp.int32)
    compute = jax.vmap(lambda index: pure(index, *constants))
    dtype = jax.eval_shape(pure, jax.ShapeDtypeStruct((), jnp.int32), *constants).dtype

    def step(i: jax.Array, results: jax.Array) -> jax.Array:
        indices = jax.lax.dynamic_slice(order, (i * chunk,), (chunk,))
        return results.at[indices].set(compute(jnp.minimum(indices, rows - 1)), mode="drop")

    return jax.lax.fori_loop(0, -(-count // chunk), step, jnp.zeros((rows, values), dtype))


@_map.defjvp
def _map_jvp(pure, values, chunk, primals, tangents):
    selected, constants = primals
    _, moving = tangents

    def everywhere(constants: list[jax.Array]) -> jax.Array:
        indices = jnp.arange(selected.shape[0], dtype=jnp.int32)
        results = jax.lax.map(jax.checkpoint(lambda index: pure(index, *constants)), indices, batch_size=chunk)
        return jnp.where(selected[:, None], results, 0)

    return jax.jvp(everywhere, (constants,), (moving,))
