"""Rounded parameters are those that a device with smaller weights has, under jit too."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cure_jax import models

_VALUES = np.float32([0.0, -0.0, 1.0, 1 + 2**-9, -(1 + 2**-8 + 2**-9), 3.14159, 6e-8, -2.1e-5, 65519.0, 7e4, 1e38])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("transform", [lambda f: f, jax.jit, jax.vmap])
def test_parameters_are_the_nearest_of_the_type_and_averages_stay(dtype: str, transform) -> None:
    variables = {"params": {"kernel": jnp.asarray(_VALUES)}, "batch_stats": {"mean": jnp.asarray(_VALUES)}}
    found = transform(lambda tree: models.rounded(tree, dtype))(variables)
    with np.errstate(over="ignore"):
        expected = _VALUES.astype(jnp.dtype(dtype)).astype(np.float32)
    np.testing.assert_array_equal(found["params"]["kernel"], expected)
    assert found["params"]["kernel"].dtype == np.float32
    np.testing.assert_array_equal(found["batch_stats"]["mean"], _VALUES)


def test_a_type_without_fractions_is_refused() -> None:
    with pytest.raises(TypeError, match=r"dtype is int8; expected floating-point numbers.*Change it"):
        models.rounded({"params": {}}, jnp.int8)
