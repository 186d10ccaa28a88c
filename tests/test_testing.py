"""The assertions for users: they pass for what is right, and fail for each planted bug with a message that helps."""

import dataclasses
import functools
import math
import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from jax.tree_util import Partial

import cure_jax as cj
from cure_jax import rules, testing
from cure_jax.regions import Interval, LpBall, hull
from tests import networks

KEY = jax.random.key(0)
X = jnp.array([0.4, 0.6])
few = settings(deadline=None, max_examples=10, derandomize=True, database=None)


@pytest.mark.parametrize("bound", [cj.ibp, cj.crown])
def test_sound_bounds_pass(bound):
    testing.assert_bounds_sound(bound, networks.random_mlp(0), cj.l2_ball(X, 0.3, (0.0, 1.0)), key=KEY, num_samples=50)


def shifted(by):
    """CROWN with all upper bounds lowered by a share of their distance from the lower ones."""

    def bound(f):
        def bounds(region):
            right = cj.crown(f)(region)
            return Interval(right.lower, right.upper - by * (right.upper - right.lower))

        return bounds

    return bound


def test_a_bound_that_is_a_little_too_tight_is_refuted():
    f = lambda x: jnp.array([[1.0, -2.0], [3.0, 1.0]]) @ x  # noqa: E731
    for ball in (cj.linf_ball, cj.l2_ball, cj.l1_ball):
        with pytest.raises(AssertionError, match=r"output \(\d,\) is .*, above its upper bound .* by .* at a point"):
            testing.assert_bounds_sound(shifted(1e-3), f, ball(X, 0.3), key=KEY, num_samples=50)


def test_gradient_ascent_finds_what_samples_do_not():
    """A narrow peak in 40 dimensions, away from all corners."""
    peak = jnp.full(40, 0.53)
    f = lambda x: jax.nn.relu(1 - 0.5 * jnp.sum(jnp.abs(x - peak)))[None]  # noqa: E731
    region = cj.linf_ball(jnp.full(40, 0.5), 0.06)
    wrong = lambda f: lambda region: Interval(jnp.zeros(1), jnp.full(1, 0.8))  # noqa: E731
    with pytest.raises(AssertionError, match="found by gradient ascent"):
        testing.assert_bounds_sound(wrong, f, region, key=KEY, num_samples=20)


TRACED = []


def counted(weights, x):
    TRACED.append(weights)
    return jnp.abs(x) @ weights


def between_minus_one_and_one(f):
    return lambda region: Interval(jnp.full(2, -1.0), jnp.full(2, 1.0))


def test_a_network_given_as_a_partial_is_compiled_once_and_tested_with_its_own_weights():
    check = functools.partial(testing.assert_bounds_sound, between_minus_one_and_one, key=KEY, num_samples=10)
    small = jnp.array([[0.1, -0.2], [0.3, 0.1]])
    check(Partial(counted, small), cj.l2_ball(X, 0.3))
    traced = len(TRACED)
    check(Partial(counted, 2 * small), cj.l2_ball(X - 0.1, 0.2))
    with pytest.raises(AssertionError, match="above its upper bound 1"):
        check(Partial(counted, 100 * small), cj.l2_ball(X, 0.3))
    assert len(TRACED) == traced


def test_what_a_function_closes_over_may_change():
    held = {"weights": jnp.array([[0.1, -0.2], [0.3, 0.1]]), "bound": 1.0}
    f = lambda x: x @ held["weights"]  # noqa: E731

    def bound(f):
        return lambda region: Interval(jnp.full(2, -held["bound"]), jnp.full(2, held["bound"]))

    check = functools.partial(testing.assert_bounds_sound, region=cj.l2_ball(X, 0.3), key=KEY, num_samples=10)
    check(between_minus_one_and_one, f)
    check(bound, Partial(jnp.dot, jnp.eye(2)))
    held |= {"weights": 100 * held["weights"], "bound": 0.1}
    with pytest.raises(AssertionError, match="bound"):
        check(between_minus_one_and_one, f)
    with pytest.raises(AssertionError, match="bound"):
        check(bound, Partial(jnp.dot, jnp.eye(2)))


@pytest.mark.parametrize("second", [lambda x: x * 1e38 * 1e2, lambda x: jnp.sqrt(x - 10)], ids=["inf", "nan"])
def test_values_that_are_infinite_or_no_numbers_excuse_nothing(second):
    def f(x):
        return jnp.stack([x[0], second(x[1])])

    def too_tight(f):
        return lambda region: cj.Interval(jnp.array([0.0, -jnp.inf]), jnp.array([0.1, jnp.inf]))

    def finite(f):
        return lambda region: cj.Interval(jnp.array([0.0, 0.0]), jnp.array([1.0, 1e38]))

    for bound, index in ((too_tight, 0), (finite, 1)):
        with pytest.raises(AssertionError, match=rf"output \({index},\) is"):
            testing.assert_bounds_sound(bound, f, cj.linf_ball(jnp.full(2, 0.6), 0.3), key=KEY, num_samples=20)


def test_bounds_of_another_shape_or_without_numbers_are_refused():
    for wrong, message in ((jnp.zeros(3), r"shape \(3,\); expected \(2,\)"), (jnp.full(2, jnp.nan), "not a number")):
        with pytest.raises(AssertionError, match=message):
            testing.assert_bounds_sound(
                lambda f, w=wrong: lambda region: Interval(w, w), jnp.sin, cj.l2_ball(X, 0.1), key=KEY
            )


@pytest.mark.parametrize(
    ("f", "shape"),
    [
        (jax.nn.relu, (3,)),
        (lambda x: jnp.maximum(x[0], x[1]), (2, 2)),
        (lambda x: jnp.max(x, axis=1), (2, 3)),
        (lambda x: jnp.ones((2, 3)) @ x + 1.0, (3,)),
    ],
)
def test_registered_rules_pass(f, shape):
    testing.assert_rule_sound(f, shape, key=KEY, num_boxes=3, num_samples=100)


def relu_rule():
    graph = cj.graph.trace(jax.nn.relu, jnp.zeros(3))
    return rules.lookup(graph.equations[-1])


def scaled_intercept(factor):
    """Of the upper line of the relu."""
    rule = relu_rule()

    def relax(equation, intervals, alpha):
        lower, upper = rule.relax(equation, intervals, alpha)
        return rules.Relaxation(lower, upper._replace(intercept=factor * upper.intercept))

    return rule._replace(relax=relax)


def narrow_interval(equation, x):
    return Interval(jnp.maximum(x.lower, 0), jnp.maximum(x.upper, 0) * 0.99)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (lambda: scaled_intercept(0.7), "distance from the line at .*by the upper line of `max`, alpha"),
        (lambda: relu_rule()._replace(interval=narrow_interval), "value .* above its upper .*by the interval of `max`"),
    ],
)
def test_wrong_nonlinear_rules_are_refuted(rule, message):
    with pytest.raises(AssertionError, match=message):
        testing.assert_rule_sound(jax.nn.relu, (3,), key=KEY, rule=rule(), num_boxes=3, num_samples=100)


def test_a_wrong_magnitude_is_refuted():
    rule = rules.Affine(lambda equation, q, radius: jnp.abs(equation.evaluate(radius)))
    weights = jnp.array([[1.0, -2.0], [0.5, 1.0]])
    with pytest.raises(AssertionError, match=r"magnitude of `dot_general` for q = 1\.0 is off"):
        testing.assert_rule_sound(lambda x: weights @ x, (2,), key=KEY, rule=rule)


@dataclasses.dataclass(frozen=True)
class Broken:
    """A ball whose methods can be replaced."""

    ball: LpBall
    methods: dict

    def _method(self, name):
        return self.methods.get(name, getattr(self.ball, name))


# Written out, as Python 3.12 looks for the methods of a protocol without calling `__getattr__`.
for method in ("bounding_box", "contains", "project", "sample", "steepest", "support"):
    setattr(Broken, method, property(functools.partial(Broken._method, name=method)))


BALL = cj.l2_ball(X, 0.5)


@pytest.mark.parametrize(
    "region",
    [
        cj.linf_ball(X, jnp.array([0.3, 0.0]), (0.0, 1.0)),
        cj.lp_ball(X, 0.7, 1.5, (0.0, 1.0)),
        hull(cj.linf_ball(X, 0.1), cj.l1_ball(X, 0.15, (0.0, 1.0))),
        Broken(BALL, {}),
    ],
    ids=["linf", "l1.5", "hull", "user's"],
)
def test_valid_regions_pass(region):
    testing.assert_region_valid(region, key=KEY, num_samples=40)


@pytest.mark.parametrize(
    ("name", "method", "message"),
    [
        ("support", cj.linf_ball(X, 0.3).support, "`support` is less than at a sample"),
        ("support", cj.linf_ball(X, 0.5).support, "the gradient of `support` is a point outside"),
        ("support", lambda a: BALL.support(a) + 0.1, "`support` is not (attained|homogeneous)"),
        ("support", lambda a: jnp.sum(a * X) + 0.5 * jnp.linalg.norm(a), "at 0 is not finite"),
        ("sample", lambda key: cj.l2_ball(X, 0.6).sample(key), "`sample` returns points outside of `contains`"),
        ("bounding_box", cj.linf_ball(X, 0.3).bounding_box, "`sample` returns points outside of `bounding_box`"),
        ("project", lambda x: x, "`project` returns points outside"),
        ("project", lambda x: X, "`project` does not return the nearest"),
        ("project", lambda x: X + 0.9 * (BALL.project(x) - X), "`project` moves its own results"),
        ("steepest", lambda x, g: -BALL.steepest(x, g), "`steepest` descends"),
        ("steepest", lambda x, g: g / 0, "`steepest` is not finite"),
    ],
)
def test_broken_regions_are_refuted(name, method, message):
    with pytest.raises(AssertionError, match=rf"Broken: .*{message}"):
        testing.assert_region_valid(Broken(BALL, {name: method}), key=KEY, num_samples=40)


compiled = jax.jit(lambda f, region: (cj.crown(f)(region), f(region.project(region.center + 1))))


def test_strategies_draw_what_bounds_hold_for():
    widths, norms, values = set(), set(), []

    @few
    @given(testing.networks((3, 4, 2)), testing.regions((3,), norms=(2.0, math.inf)), testing.boxes((2,), largest=3.0))
    def holds(f, region, box):
        bounds, value = compiled(f, region)
        assert jnp.all((bounds.lower <= value + 1e-4) & (value <= bounds.upper + 1e-4))
        assert jnp.all((box.lower >= -3) & (box.lower <= box.upper) & (box.upper <= 3))
        assert region.bounding_box().lower.min() >= 0
        norms.add(region.p)
        widths.update(np.asarray(region.radius).tolist())
        values.append(float(value[0]))

    holds()
    assert norms == {2.0, math.inf}
    assert 0.0 in widths
    assert len(widths) > 3
    assert len(set(values)) > 3


class TestVariants(chex.TestCase):
    @testing.variants
    def test_bounds_and_certificates_are_the_same_in_every_variant(self):
        f = networks.random_mlp(1)

        def everything(x, label):
            region = cj.l2_ball(x, 0.1, (0.0, 1.0))
            certificate = cj.certify(f, x, label, region)
            return cj.ibp(f)(region), certificate.verified, certificate.margin

        label = jnp.argmax(f(X))
        expected = jax.jit(everything)(X, label)
        # Eager bounds take seconds: that variant is left to the library's own tests.
        if self.variant.type != chex.ChexVariantType.WITHOUT_JIT:
            everything = jax.jit(everything)
        chex.assert_trees_all_close(self.variant(everything)(X, label), expected, atol=1e-5)
        if self.variant.type == chex.ChexVariantType.WITH_PMAP:
            chex.assert_trees_all_close(self.variant(testing.with_vmap(everything))(X, label), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("package", "call"),
    [
        ("hypothesis.strategies", lambda: testing.boxes((2,))),
        ("chex", lambda: testing.variants(lambda self: None)),
    ],
)
def test_a_missing_package_is_named(monkeypatch, package, call):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ModuleNotFoundError, match=rf"{package} is not installed.*pip install 'cure-jax\[testing\]'"):
        call()
