"""Certificates: what is proved, and everything that must not be."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cure_jax as cj
from cure_jax.certification import METHODS, certificate
from tests import networks


def test_margins_are_in_ascending_order_of_the_other_classes():
    x = jnp.array([3.0, 5.0, 4.0, -1.0])
    for label in range(4):
        expected = [x[label] - x[j] for j in range(4) if j != label]
        np.testing.assert_array_equal(cj.margins(lambda x: x, label)(x), expected)
        np.testing.assert_array_equal(jax.jit(lambda x, y: cj.margins(lambda x: x, y)(x))(x, label), expected)


def test_margins_against_some_classes():
    x = jnp.array([3.0, 5.0, 4.0, 1.0])
    margins = jax.jit(lambda label, against: cj.margins(lambda x: x, label, against)(x))
    # In any order, several times; the label itself and what is no class have no margin that could be positive.
    np.testing.assert_array_equal(margins(1, jnp.array([3, 0, 0, 1, 4, -1, 2])), [4.0, 2.0, 2.0, 0.0, 0.0, 0.0, 1.0])
    np.testing.assert_array_equal(margins(1, jnp.array([3, 255], jnp.uint8)), [4.0, 0.0])
    for label in range(4):
        others = jnp.array([j for j in range(4) if j != label])
        np.testing.assert_array_equal(margins(label, others), cj.margins(lambda x: x, label)(x))
    for method in ("ibp", "crown", "alpha_crown", "lipschitz", "sdp_crown"):
        found = METHODS[method](cj.margins(lambda x: jax.nn.relu(x), 1, jnp.array([1, 9])))(cj.l2_ball(x, 0.1))
        assert not jnp.any(found.lower > 0)


@pytest.mark.parametrize(
    ("method", "p"),
    [(method, p) for method in ("ibp", "crown_ibp", "crown", "lipschitz", "box_ball") for p in (jnp.inf, 2.0, 1.0)]
    + [
        ("alpha_crown", jnp.inf),
        ("sdp_crown", 2.0),
        ("vertex_crown", 1.0),
        pytest.param("best", 2.0, marks=pytest.mark.slow),
    ],
)
def test_verified_examples_cannot_be_broken_on_a_grid(method, p):
    @jax.jit
    def verdicts(params, x, eps):
        f = functools.partial(networks.mlp, params)
        label = jnp.argmax(f(x))
        region = cj.lp_ball(x, eps, float(p), within=(0.0, 1.0))
        box = region.bounding_box()
        points = networks.grid(box)
        inside = jax.vmap(region.contains)(points)
        robust = jnp.all((jnp.argmax(jax.vmap(f)(points), axis=1) == label) | ~inside)
        return cj.certify(f, x, label, region, method).verified, robust

    generator, verified = np.random.default_rng(0), 0
    for seed in range(8):
        x = jnp.asarray(generator.uniform(size=2).astype(np.float32))
        for eps in (0.02, 0.1, 0.3):
            proved, robust = verdicts(networks.mlp_params(seed), x, jnp.float32(eps))
            assert robust or not proved
            verified += bool(proved)
    assert 8 <= verified < 24


def test_a_wrong_prediction_is_never_verified():
    x = jnp.array([0.9, 0.1])
    assert not cj.certify(lambda x: x, x, 1, cj.linf_ball(x, 0.0)).verified
    assert cj.certify(lambda x: x, x, 0, cj.linf_ball(x, 0.0)).verified


@pytest.mark.parametrize("label", [2**32, -(2**32), np.int64(2**32), np.array(2**32 + 1)])
def test_a_label_of_more_bits_is_no_other_label(label):
    x = jnp.array([0.8, 0.2])
    assert cj.certify(lambda x: x, x, 0, cj.linf_ball(x, 0.0)).verified
    assert not cj.certify(lambda x: x, x, label, cj.linf_ball(x, 0.0)).verified


@pytest.mark.parametrize("label", [-1, 2, 1000])
def test_a_label_out_of_range_is_never_verified(label):
    x = jnp.array([0.5, 0.5])
    f = lambda x: -jnp.abs(x) - 1.0  # noqa: E731
    assert not cj.certify(f, x, label, cj.linf_ball(x, 0.0)).verified
    assert not jax.jit(lambda y: cj.certify(f, x, y, cj.linf_ball(x, 0.0)).verified)(label)


def test_nan_is_never_verified():
    x = jnp.array([0.9, 0.1])
    assert not cj.certify(lambda x: x * jnp.nan, x, 0, cj.linf_ball(x, 0.1)).verified
    bad = jnp.array([jnp.nan, 0.1])
    assert not jax.jit(lambda x: cj.certify(lambda x: x, x, 0, cj.linf_ball(x, 0.1)).verified)(bad)
    assert not jax.jit(lambda e: cj.certify(lambda x: x, x, 0, cj.l2_ball(x, e)).verified)(jnp.nan)


def test_an_example_outside_of_its_region_is_never_verified():
    x = jnp.array([0.9, 0.1])
    assert not cj.certify(lambda x: x, x, 0, cj.linf_ball(x - 0.3, 0.1)).verified


@pytest.mark.parametrize("ball", [cj.linf_ball, cj.l2_ball, cj.l1_ball])
@pytest.mark.parametrize("eps", [-0.5, jnp.nan])
def test_a_region_whose_traced_radius_is_none_is_never_verified(eps, ball):
    x = jnp.array([0.9, 0.1])
    verified = jax.jit(lambda eps: cj.certify(lambda x: x + jnp.array([9.0, 0.0]), x, 0, ball(x, eps)).verified)
    assert verified(0.5)
    assert not verified(eps)
    constant = jax.jit(lambda eps: cj.certify(lambda x: jnp.array([1.0, 0.0]), x, 0, ball(x, eps)).verified)
    assert not constant(eps)


def test_an_infinite_bound_is_never_verified(monkeypatch):
    x, infinite = jnp.array([0.9, 0.1]), cj.Interval(jnp.array([jnp.inf]), jnp.array([jnp.inf]))
    monkeypatch.setattr(certificate, "bound_method", lambda *names: lambda f: lambda region: infinite)
    assert not cj.certify(lambda x: x, x, 0, cj.linf_ball(x, 0.1)).verified


def test_an_image_outside_of_the_pixel_box_is_never_verified():
    x = jnp.array([1.4, 0.1])
    verified = jax.jit(lambda x: cj.certify(lambda x: x, x, 0, cj.l2_ball(x, 0.1, within=(0.0, 1.0))).verified)
    assert not verified(x)


def test_ties_are_not_verified():
    x = jnp.array([0.5, 0.5])
    assert not cj.certify(lambda x: x, x, 0, cj.linf_ball(x, 0.0)).verified


def test_the_union_is_the_conjunction():
    x = jnp.array([0.8, 0.3])
    regions = {"linf": cj.linf_ball(x, 0.2), "l2": cj.l2_ball(x, 0.5)}
    result = cj.certify_union(lambda x: x, x, 0, regions)
    assert bool(result.norms["linf"].verified)
    assert not bool(result.norms["l2"].verified)
    assert not bool(result.verified)
    assert bool(cj.certify_union(lambda x: x, x, 0, {"linf": regions["linf"]}).verified)


def test_the_best_method_is_no_looser_than_any():
    f, x = networks.random_mlp(9), jnp.array([0.4, 0.6])
    region = cj.l2_ball(x, 0.2, within=(0.0, 1.0))
    margins = jax.jit(lambda x: {method: cj.certify(f, x, 0, region, method).margin for method in METHODS})(x)
    assert all(margins["best"] >= margin - 1e-6 for margin in margins.values())
    both = jax.jit(lambda x: cj.certify(f, x, 0, region, ("ibp", "lipschitz")).margin)(x)
    assert margins["ibp"] - 1e-6 <= both <= margins["best"] + 1e-6
    assert both >= margins["lipschitz"] - 1e-6


def test_bad_arguments_are_refused():
    x = jnp.array([0.8, 0.3])
    with pytest.raises(ValueError, match=r"Unknown method 'crwn'; expected one of ibp, crown_ibp, crown"):
        cj.certify(lambda x: x, x, 0, cj.linf_ball(x, 0.1), "crwn")
    for methods in (("ibp", "crwn"), ()):
        with pytest.raises(ValueError, match="Unknown method"):
            cj.certify(lambda x: x, x, 0, cj.linf_ball(x, 0.1), methods)
    with pytest.raises(ValueError, match="same shape"):
        cj.certify(lambda x: x, jnp.zeros(3), 0, cj.linf_ball(x, 0.1))
    with pytest.raises(ValueError, match="no regions"):
        cj.certify_union(lambda x: x, x, 0, {})
    with pytest.raises(ValueError, match=r"labels of shape \(2,\); expected one label"):
        inspect.unwrap(cj.certify)(lambda x: x, x, jnp.array([0, 1]), cj.linf_ball(x, 0.1))


@pytest.mark.parametrize("f", [lambda x: x[None], lambda x: x[:1], lambda x: x[0]])
def test_a_network_without_a_list_of_logits_is_refused(f):
    x = jnp.array([0.8, 0.3])
    with pytest.raises(ValueError, match="expected the logits of one example, at least 2"):
        cj.certify(f, x, 0, cj.linf_ball(x, 0.1))


LABEL_DTYPES = ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"]


@pytest.mark.parametrize("dtype", LABEL_DTYPES)
def test_a_label_is_one_class_in_every_dtype(dtype):
    weights = np.zeros((300, 2), np.float32)
    # 259 is 3 modulo 256. Where 259 wins, 3 must not be verified.
    weights[3, 0] = weights[259, 1] = 1.0
    f = lambda x: jnp.asarray(weights) @ x  # noqa: E731
    first, second = jnp.array([1.0, 0.2]), jnp.array([0.2, 1.0])
    labels = [np.asarray(3, dtype)] + ([jnp.asarray(3, dtype)] if "64" not in dtype else [])
    for label in labels:
        assert cj.certify(f, first, label, cj.linf_ball(first, 0.1)).verified
        assert not cj.certify(f, second, label, cj.linf_ball(second, 0.1)).verified
        margins = np.asarray(cj.margins(f, label)(second))
        assert margins[258] == np.float32(0.2) - 1
        assert np.count_nonzero(margins != np.float32(0.2)) == 1
    mapped = jax.vmap(lambda label: cj.margins(f, label)(second))(
        np.full(2, 3, dtype if "64" not in dtype else "int32")
    )
    np.testing.assert_array_equal(mapped, np.stack([margins, margins]))


@pytest.mark.parametrize(
    "label", [-1, 300, 2**32 + 3, 2**40, 2**70, -(2**40), np.int64(2**32 + 3), np.uint64(2**63 + 3)]
)
def test_a_label_that_is_no_class_is_never_verified(label):
    f = lambda x: jnp.zeros((300, 2)).at[3, 0].set(1.0) @ x  # noqa: E731
    x = jnp.array([1.0, 0.2])
    assert not cj.certify(f, x, label, cj.linf_ball(x, 0.1)).verified


@pytest.mark.parametrize("label", [1.0, np.float32(1.0), True])
def test_a_label_that_is_no_integer_is_refused(label):
    x = jnp.array([1.0, 0.2])
    # By the library, or by the checks of types that these tests switch on.
    with pytest.raises(TypeError, match=r"expected an integer|typechecking parameter 'label'"):
        cj.margins(lambda x: x, label)(x)
