"""Bounds against auto_LiRPA's on the same networks (tests/golden/README.md)."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cure_jax as cj
from tests import golden_networks

OURS = {"IBP": cj.ibp, "CROWN-IBP": functools.partial(cj.crown, intermediate="ibp"), "CROWN": cj.crown}


@functools.cache
def bounds(name: str, norm: str, method: str, cut: bool) -> np.ndarray:
    f, arrays = golden_networks.load(name)
    ball = functools.partial(golden_networks.BALLS[norm], **({"within": (0.0, 1.0)} if cut else {}))

    def margins_of(x: jax.Array, label: jax.Array) -> jax.Array:
        return OURS[method](cj.margins(f, label))(ball(x, arrays[f"{norm}.eps"])).lower

    return np.asarray(jax.jit(jax.vmap(margins_of))(arrays["x"], arrays["label"]))


@pytest.mark.parametrize("name", golden_networks.NAMES)
def test_networks_are_the_same(name):
    f, arrays = golden_networks.load(name)
    np.testing.assert_allclose(jax.jit(jax.vmap(f))(jnp.asarray(arrays["x"])), arrays["logits"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("norm", list(golden_networks.BALLS))
@pytest.mark.parametrize("name", golden_networks.NAMES)
@pytest.mark.parametrize("method", list(OURS))
def test_no_looser_than_the_reference(name, norm, method):
    _, arrays = golden_networks.load(name)
    worst = (bounds(name, norm, method, False) - arrays[f"{norm}.{method}"]).min()
    assert worst >= -1e-3, f"looser by {-worst}"


@pytest.mark.parametrize("norm", ["l2", "l1"])
@pytest.mark.parametrize("name", golden_networks.NAMES)
def test_the_pixel_box_makes_crown_tighter(name, norm):
    whole, cut = bounds(name, norm, "CROWN", False), bounds(name, norm, "CROWN", True)
    assert (cut > whole).mean() > 0.95
    assert (cut - whole).mean() > 0.1
