"""What a function closes over may change between two calls: every bound is one of the function as it is now."""

import flax.nnx as nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cure_jax as cj

X = jnp.array([1.0, 2.0])
REGION = cj.l1_ball(X, 0.1)
BOUNDS = {
    "alpha_crown": lambda f: cj.alpha_crown(f, steps=1),
    "box_ball": cj.box_ball,
    "crown": cj.crown,
    "ibp": cj.ibp,
    "intermediate": lambda f: lambda region: cj.crown(f, cj.intermediate_bounds(f)(region))(region),
    "lipschitz": cj.lipschitz,
    "outward": lambda f: cj.crown(f, arithmetic="outward"),
    "sdp_crown": lambda f: cj.sdp_crown(f, steps=1),
    "vertex_crown": lambda f: cj.vertex_crown(f, steps=1),
}
OLD, NEW = jnp.array([[1.0, 0.5], [0.0, 2.0]]), jnp.array([[10.0, 0.5], [0.0, 20.0]])


def _wide(box):
    return cj.Interval(box.lower - 100, box.upper + 100)


def _with_custom_jvp(weights):
    product = jax.custom_jvp(lambda x: weights["w"] @ x)
    product.defjvp(lambda primals, tangents: (product(*primals), weights["w"] @ tangents[0]))
    return product


# From a dictionary of weights to a function that is made once.
FUNCTIONS = {
    "closure": lambda weights: lambda x: jax.nn.relu(weights["w"] @ x),
    "custom bounds": lambda weights: cj.custom_bounds(lambda x: weights["w"] @ x, interval=_wide),
    "custom derivative": _with_custom_jvp,
    "mapped": lambda weights: jax.vmap(lambda x: weights["w"][0, 0] * x),
    "margins": lambda weights: cj.margins(lambda x: weights["w"] @ x, 0),
    "partial": lambda weights: jax.tree_util.Partial(lambda scale, x: scale * (weights["w"] @ x), jnp.float32(1.0)),
}


@pytest.mark.parametrize("bound", BOUNDS)
@pytest.mark.parametrize("kind", FUNCTIONS)
def test_bounds_are_those_of_the_weights_of_now(kind, bound):
    if (kind, bound) == ("custom bounds", "outward"):
        pytest.skip("the rounding of custom bounds is not known")
    weights = {"w": OLD}
    f = FUNCTIONS[kind](weights)
    for now in (OLD, NEW):
        weights["w"] = now
        bounds, value = BOUNDS[bound](f)(REGION), f(X)
        assert np.all((bounds.lower <= value + 1e-5) & (value <= bounds.upper + 1e-5))
        if kind != "custom bounds":
            assert np.all(bounds.lower > value - 10) or bound == "lipschitz"


def test_the_values_of_custom_bounds_are_those_of_now():
    weights = {"w": OLD}
    f = FUNCTIONS["custom bounds"](weights)
    first = f(X)
    weights["w"] = NEW
    np.testing.assert_allclose(f(X), NEW @ X)
    assert not np.allclose(first, f(X))


def test_a_model_that_takes_a_step_is_bounded_after_it():
    model = nnx.Linear(2, 2, rngs=nnx.Rngs(0))
    f = lambda x: model(x)  # noqa: E731
    before = cj.crown(f)(REGION)
    model.kernel[...] = model.kernel[...] + 5.0
    after, value = cj.crown(f)(REGION), f(X)
    assert np.all((after.lower <= value) & (value <= after.upper))
    assert np.all(before.upper < after.lower)
