"""Which methods are tried on which regions, by name."""

import jax.numpy as jnp
import pytest

import cure_jax as cj
from cure_jax.certification.methods import METHODS, bound_method, cheap_to_tight, tried

X = jnp.array([0.8, 0.3])
REGIONS = {
    "linf": cj.linf_ball(X, 0.1),
    "l2": cj.l2_ball(X, 0.1),
    "l1": cj.l1_ball(X, 0.1),
    "hull": cj.hull(cj.l1_ball(X, 0.1), cj.linf_ball(X, 0.1)),
}


@pytest.mark.parametrize("region", REGIONS.values(), ids=REGIONS)
def test_best_stands_for_its_methods_wherever_it_is_named(region):
    best = cheap_to_tight(region)
    assert tried("best", region) == best
    assert tried(("best", "sdp_crown"), region) == tuple(dict.fromkeys((*best, "sdp_crown")))
    assert tried(("crown", "best"), region) == ("crown", *(name for name in best if name != "crown"))
    assert "best" not in tried(("best", "best"), region)


@pytest.mark.parametrize("region", REGIONS.values(), ids=REGIONS)
def test_methods_are_known_and_tried_once(region):
    for names in (cheap_to_tight(region), cheap_to_tight(region, "outward")):
        assert {*names} <= {*METHODS} - {"best"}
        assert len({*names}) == len(names)


def test_the_vertices_of_the_ball_are_for_l1_alone():
    assert [name for name, region in REGIONS.items() if "vertex_crown" in cheap_to_tight(region)] == ["l1"]


def test_several_names_give_the_tightest_of_each():
    def f(x):
        return jnp.array([1.0, 0.0]) - jnp.maximum(x, 0.5) @ jnp.array([[1.0, -1.0], [-1.0, 1.0]])

    found = bound_method(("crown", "ibp"))(f)(REGIONS["l2"])
    for name in ("crown", "ibp"):
        alone = bound_method(name)(f)(REGIONS["l2"])
        assert jnp.all(found.lower >= alone.lower)
        assert jnp.all(found.upper <= alone.upper)
