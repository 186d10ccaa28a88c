"""Batches of one shape, smaller ones where memory does not suffice."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from cure_jax.certification.batches import Batches

_EXAMPLES = np.arange(10.0, dtype=np.float32)


def _fitting(most: int, error: str = "RESOURCE_EXHAUSTED: Out of memory allocating 35572479880 bytes."):
    """Adds a number to examples, of which no more than so many fit; and remembers the sizes that it was asked for."""
    sizes = []

    def function(number: jax.Array, examples: np.ndarray) -> dict[str, jax.Array]:
        sizes.append(len(examples))
        if len(examples) > most:
            raise jax.errors.JaxRuntimeError(error)
        return {"sum": jnp.asarray(examples) + number}

    return function, sizes


def test_a_batch_that_does_not_fit_is_halved_from_then_on(caplog):
    batches, (function, sizes), told = Batches((2.0,), (_EXAMPLES,), 8, None), _fitting(3), []
    found = batches.apply(function, advance=told.append)
    np.testing.assert_array_equal(found["sum"], _EXAMPLES + 2)
    assert sizes == [8, 4, 2, 2, 2, 2, 2]
    assert sum(told) == len(_EXAMPLES)
    assert [record.getMessage() for record in caplog.records] == [
        f"A batch of {size} examples does not fit into memory; {size // 2} at once are tried." for size in (8, 4)
    ]
    batches.apply(function, np.array([7, 7, 1]))
    assert sizes[7:] == [2, 2]


@pytest.mark.parametrize(("most", "error"), [(0, "RESOURCE_EXHAUSTED: no"), (3, "INTERNAL: something else")])
def test_what_smaller_batches_do_not_help_is_an_error(most, error):
    function, _ = _fitting(most, error)
    with pytest.raises(jax.errors.JaxRuntimeError, match=error):
        Batches((2.0,), (_EXAMPLES,), 8, None).apply(function)


def test_a_batch_is_as_large_as_its_mesh_at_least():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    function, sizes = _fitting(8)
    Batches((2.0,), (_EXAMPLES,), 16, mesh).apply(function)
    assert sizes == [16, 8, 8]
    function, _ = _fitting(7)
    with pytest.raises(jax.errors.JaxRuntimeError):
        Batches((2.0,), (_EXAMPLES,), 16, mesh).apply(function)


def test_a_share_of_a_batch_divides_over_the_devices():
    function, sizes = _fitting(100)
    batches = Batches((2.0,), (_EXAMPLES,), 8, None)
    for share, expected in ((0.5, 4), (0.3, 2), (0.01, 1)):
        sizes.clear()
        np.testing.assert_array_equal(batches.apply(function, share=share)["sum"], _EXAMPLES + 2)
        assert set(sizes) == {expected}
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    for share, expected in ((0.5, 16), (0.4, 8), (0.01, 8)):
        sizes.clear()
        Batches((2.0,), (_EXAMPLES,), 32, mesh).apply(function, share=share)
        assert set(sizes) == {expected}
