"""Bounds against auto_LiRPA's on the same networks (tests/golden/README.md)."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cure_jax as cj
from tests import golden_networks

OURS = {
    "IBP": cj.ibp,
    "CROWN-IBP": functools.partial(cj.crown, intermediate="ibp"),
    "CROWN": cj.crown,
    "alpha-CROWN": functools.partial(cj.alpha_crown, steps=40, tolerance=-1.0, lower_only=True),
    "vertex_crown": functools.partial(cj.vertex_crown, lower_only=True),
}
# Of the optimised bounds, those that compile in seconds; the others are marked slow.
QUICK = [("mlp_digits_s0", "linf"), ("mlp_digits_s0", "l1"), ("conv_digits_s0", "linf")]


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


# CROWN of the deepest network takes half a minute a norm.
REFERENCES = [
    pytest.param(method, name, norm, marks=[pytest.mark.slow] if deepest and norm != "linf" else [])
    for method in ("IBP", "CROWN-IBP", "CROWN")
    for name in golden_networks.NAMES
    for norm in golden_networks.BALLS
    for deepest in [(method, name) == ("CROWN", "deep_digits_s0")]
]


@pytest.mark.parametrize(("method", "name", "norm"), REFERENCES)
def test_no_looser_than_the_reference(name, norm, method):
    _, arrays = golden_networks.load(name)
    worst = (bounds(name, norm, method, False) - arrays[f"{norm}.{method}"]).min()
    assert worst >= -1e-3, f"looser by {-worst}"


@pytest.mark.parametrize(
    ("name", "norm"),
    [
        pytest.param(name, norm, marks=[] if (name, norm) in QUICK else [pytest.mark.slow])
        for name in golden_networks.NAMES
        for norm in golden_networks.BALLS
    ],
)
def test_optimised_bounds_reach_the_reference(name, norm):
    """All but 5 % of what 50 steps of the reference gain over its CROWN, in every margin, in 40 of ours."""
    _, arrays = golden_networks.load(name)
    reference, plain = arrays[f"{norm}.alpha-CROWN"], arrays[f"{norm}.CROWN"]
    found = bounds(name, norm, "alpha-CROWN", False)
    assert (found - reference + 0.05 * (reference - plain)).min() >= -1e-5
    assert (found - bounds(name, norm, "CROWN", False)).min() >= 0


@pytest.mark.parametrize("norm", ["l2", pytest.param("l1", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] if name in ("deep_digits_s0", "resnet_digits_s0") else [])
        for name in golden_networks.NAMES
    ],
)
def test_the_pixel_box_makes_crown_tighter(name, norm):
    whole, cut = bounds(name, norm, "CROWN", False), bounds(name, norm, "CROWN", True)
    assert (cut > whole).mean() > 0.95
    assert (cut - whole).mean() > 0.1


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[] if (name, "l1") in QUICK else [pytest.mark.slow]) for name in golden_networks.NAMES],
)
def test_vertices_are_tighter_than_the_optimised_reference_in_every_margin(name):
    """On whole l_1 balls, where the reference optimises every slope of every neuron."""
    _, arrays = golden_networks.load(name)
    assert np.all(bounds(name, "l1", "vertex_crown", False) > arrays["l1.alpha-CROWN"])
