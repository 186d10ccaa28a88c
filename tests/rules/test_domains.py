"""A rule holds on its domain only: outside of it nothing is known, whatever is asked and by whichever method."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import cure_jax as cj
from cure_jax.certification import METHODS
from cure_jax.rules import registry

# By the primitive: a function outside of the domain of its rule around the point, and the point.
OUTSIDE = {
    "elu": (lambda x: jax.nn.elu(x, -5.0), -1.0),
    "celu": (lambda x: jax.nn.celu(x, -0.5), -1.0),
    "log": (jnp.log, 0.3),
    "log1p": (jnp.log1p, -0.7),
    "sqrt": (jnp.sqrt, 0.3),
    "rsqrt": (lax.rsqrt, 0.3),
    "pow": (lambda x: x**1.5, 0.3),
    "integer_pow": (lambda x: x**-1, 0.3),
}
MORE = {
    "elu of 0": (lambda x: jax.nn.elu(x, 0.0), -1.0),
    "elu, one of them negative": (lambda x: jax.nn.elu(x, jnp.array([-5.0])), -1.0),
    "elu, not a number": (lambda x: jax.nn.elu(x, jnp.nan), -1.0),
    "pow negative": (lambda x: x**-0.5, 0.3),
    "pow of odd negative": (lambda x: x**-3.0, 0.3),
    "integer_pow of even negative": (lambda x: x**-2, 0.3),
}
CASES = {**OUTSIDE, **MORE}


def test_every_rule_with_a_domain_has_a_case():
    with_domain = {
        name
        for name, entries in registry._TABLE.items()
        if any(isinstance(rule, registry.Nonlinear) and rule.domain for _, rule in entries)
    }
    assert with_domain == set(OUTSIDE)


# All but those that are made of the others.
ALONE = [name for name in METHODS if name != "best"]


@pytest.mark.parametrize(
    ("case", "method"),
    [*itertools.product(OUTSIDE, ALONE), *itertools.product(MORE, ("ibp", "crown_ibp", "lipschitz"))],
)
def test_nothing_is_known_outside(case, method):
    function, point = CASES[case]
    region = cj.l1_ball(jnp.array([point]), 0.9)
    bounds = jax.jit(METHODS[method](function))(region)
    assert not bounds.lower > -np.inf
    assert not bounds.upper < np.inf


@pytest.mark.parametrize("method", ["lipschitz", "box_ball", "sdp_crown", "best"])
@pytest.mark.parametrize("case", ["elu", "celu"])
def test_a_slope_of_the_wrong_sign_is_no_certificate(case, method):
    function, _ = CASES[case]
    x, far = jnp.array([-1.0]), jnp.array([-0.1])
    between = (function(x) + function(far)) / 2
    f = lambda x: jnp.concatenate([function(x), between])  # noqa: E731
    label = int(jnp.argmax(f(x)))
    region = cj.l2_ball(x, 0.9)
    assert region.contains(far, 1e-6)
    assert int(jnp.argmax(f(far))) != label
    assert not cj.certify(f, x, label, region, method).verified
