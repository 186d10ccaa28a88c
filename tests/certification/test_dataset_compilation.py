"""Programs for many examples are compiled once, and never answer for another function."""

import collections
import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

import cure_jax as cj
from cure_jax.training.config import make_regions, norm_exponent
from tests import networks
from tests.certification.examples import IMAGES, LABELS, REGIONS, F


def test_a_certificate_of_a_network_compiles_once_for_all_batches():
    traces = []

    def counted(x):
        traces.append(1)
        return F(x)

    cj.certify_dataset(counted, IMAGES, LABELS, {"linf": REGIONS["linf"]}, batch_size=4)
    few = len(traces)
    traces.clear()
    cj.certify_dataset(counted, np.tile(IMAGES, (4, 1)), np.tile(LABELS, 4), {"linf": REGIONS["linf"]}, batch_size=4)
    assert len(traces) <= few


@pytest.mark.parametrize(
    ("method", "norm"), [("crown", "linf"), ("sdp_crown", "l2"), pytest.param("best", "linf", marks=pytest.mark.slow)]
)
def test_partials_are_compiled_once_for_all_their_arrays(method, norm):
    # A list would be a value that the function holds, and another one after each call.
    traces = collections.deque()

    def counted(params, x):
        traces.append(1)
        return networks.mlp(params, x)

    def ball(eps, x):
        return cj.lp_ball(x, eps, norm_exponent(norm))

    def certify(seed, eps):
        f, make_region = Partial(counted, networks.mlp_params(seed)), Partial(ball, jnp.float32(eps))
        regions = {norm: make_region}
        return cj.certify_dataset(f, IMAGES, LABELS, regions, method=method, batch_size=32).margin[norm]

    first = certify(3, 0.05)
    traces.clear()
    second, larger = certify(4, 0.05), certify(3, 0.1)
    assert len(traces) <= 2  # of the number of classes, which compiles nothing
    # What `best` has decided it does not look at again with a tighter method.
    assert method == "best" or np.all(larger < first)
    assert np.any(second != first)


def test_functions_that_hold_equal_arrays_are_compiled_once_and_others_are_not_mistaken_for_them():
    traces = []

    @dataclasses.dataclass(frozen=True)
    class Shifted:
        by: np.ndarray

        def __call__(self, params, x):
            traces.append(1)
            return networks.mlp(params, x - self.by)

    params, by = networks.mlp_params(3), np.full(IMAGES.shape[1:], 0.1, np.float32)

    regions = make_regions({"linf": 0.05})

    def certify(by):
        traces.clear()
        f = Partial(Shifted(by), params)
        return cj.certify_dataset(f, IMAGES, LABELS, regions, batch_size=32).margin["linf"]

    first = certify(by)
    np.testing.assert_array_equal(certify(by.copy()), first)
    assert len(traces) <= 1  # of the number of classes, which compiles nothing
    by[:] = 0.2
    changed = certify(by)
    expected = cj.certify_dataset(lambda x: networks.mlp(params, x - by), IMAGES, LABELS, regions, batch_size=32)
    np.testing.assert_allclose(changed, expected.margin["linf"], rtol=1e-5, atol=1e-6)
    assert np.any(changed != first)


def test_what_a_plain_callable_holds_may_change_between_calls():
    class Held:
        flipped, eps = False, 0.01

    def f(x):
        return F(x)[::-1] if Held.flipped else F(x)

    regions = {"linf": lambda x: cj.linf_ball(x, Held.eps, within=(0.0, 1.0))}
    before = cj.certify_dataset(f, IMAGES, LABELS, regions)
    Held.eps = 0.1
    larger = cj.certify_dataset(f, IMAGES, LABELS, regions)
    assert np.all(larger.margin["linf"] < before.margin["linf"])
    Held.flipped, Held.eps = True, 0.01
    flipped = cj.certify_dataset(f, IMAGES, 2 - LABELS, regions)
    np.testing.assert_allclose(flipped.margin["linf"], before.margin["linf"], atol=1e-6)
    np.testing.assert_array_equal(flipped.correct, before.correct)


def test_a_function_that_holds_other_arrays_in_any_way_is_another_one():
    """An object that is no dataclass, two of them, and one whose array is changed."""

    class Shifted:
        def __init__(self, by):
            self.by = by

        def __call__(self, params, x):
            return networks.mlp(params, x - self.by)

    params, regions, by = (
        networks.mlp_params(3),
        make_regions({"linf": 0.05}),
        np.full(IMAGES.shape[1:], 0.1, np.float32),
    )

    def certify(function):
        return cj.certify_dataset(Partial(function, params), IMAGES, LABELS, regions, batch_size=32).margin["linf"]

    shifted = Shifted(by)
    first, other = certify(shifted), certify(Shifted(2 * by))
    by[:] = 0.2
    changed = certify(shifted)
    assert np.max(np.abs(other - first)) > 1e-3
    np.testing.assert_array_equal(changed, other)
