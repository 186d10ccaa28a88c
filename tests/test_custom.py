"""`custom_bounds`: the function stays what it was, and its bounds are the user's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cure_jax as cj
from cure_jax.rules import LinearMap

X = jnp.array([0.3, -1.2, 0.7])
W = jnp.array([[1.0, -1.0], [0.5, 2.0], [-1.0, 0.3]])


def cubed(x):
    return jnp.where(x > 0, x**3, 0)


def interval(x):
    return cj.Interval(cubed(x.lower), cubed(x.upper))


def relax(x):
    tangent = 3 * jnp.maximum(x.center, 0) ** 2
    chord = (cubed(x.upper) - cubed(x.lower)) / (x.upper - x.lower)
    return (tangent, cubed(x.center) - tangent * x.center), (chord, cubed(x.lower) - chord * x.lower)


bounded = cj.custom_bounds(cubed, interval=interval, relax=relax)


def outcome(f, *arguments):
    return np.asarray(f(*arguments))


@pytest.mark.parametrize(
    "transform",
    [
        lambda f: f,
        jax.jit,
        jax.vmap,
        lambda f: jax.vmap(jax.jit(f)),
        lambda f: jax.grad(lambda x: jnp.sum(f(x))),
        lambda f: jax.jacfwd(f),
        lambda f: jax.hessian(lambda x: jnp.sum(f(x))),
        lambda f: jax.jit(jax.vmap(jax.grad(f))),
        lambda f: jax.checkpoint(f),
    ],
)
def test_the_function_behaves_as_before(transform):
    np.testing.assert_allclose(outcome(transform(bounded), X), outcome(transform(cubed), X), rtol=1e-6)


def test_what_is_closed_over_may_be_traced_and_batched():
    def loss(scale, wrap):
        return jnp.sum(wrap(lambda x: cubed(scale * x))(X))

    plain, wrapped = lambda f: f, lambda f: cj.custom_bounds(f, interval=lambda x: x)
    for transform in (jax.grad, jax.jit, lambda f: jax.vmap(jax.grad(f))):
        scale = jnp.array([1.0, 2.0]) if transform not in (jax.grad, jax.jit) else jnp.float32(1.5)
        expected = transform(lambda s: loss(s, plain))(scale)
        np.testing.assert_allclose(transform(lambda s: loss(s, wrapped))(scale), expected, rtol=1e-6)


def _bounds_hold(f, eps=0.4):
    region = cj.linf_ball(X, eps)
    values = jax.vmap(f)(jax.vmap(region.sample)(jax.random.split(jax.random.key(0), 300)))
    widths = []
    for bound in (cj.ibp, cj.crown):
        box = jax.jit(lambda region, bound=bound: bound(f)(region))(region)
        assert jnp.all((values >= box.lower[None] - 1e-5) & (values <= box.upper[None] + 1e-5))
        widths.append(box.upper - box.lower)
    return widths


def test_bounds_are_the_users():
    ibp, crown = _bounds_hold(lambda x: bounded(x) @ W - x[:2])
    assert jnp.sum(crown) < jnp.sum(ibp)


def test_without_lines_the_interval_is_taken():
    flat = cj.custom_bounds(cubed, interval=interval)
    ibp, crown = _bounds_hold(lambda x: flat(x) @ W)
    np.testing.assert_allclose(ibp, crown, rtol=1e-5)


def test_mapped_functions_have_mapped_bounds():
    one = cj.custom_bounds(
        lambda x: jnp.sum(cubed(x)), interval=lambda x: cj.Interval(*(jnp.sum(cubed(e)) for e in (x.lower, x.upper)))
    )
    _bounds_hold(lambda x: jax.vmap(jax.vmap(one, 1), 1)(jnp.stack([x[:, None] * W, -x[:, None] * W])))
    _bounds_hold(lambda x: jax.vmap(bounded, in_axes=1, out_axes=1)(x[:, None] * W))


def product(x, y):
    return x * jnp.sin(y)


def test_arguments_that_are_constant_come_as_points():
    def box(x, y):
        ends = jnp.stack([x.lower * jnp.sin(y.lower), x.upper * jnp.sin(y.lower)])
        return cj.Interval(jnp.min(ends, axis=0), jnp.max(ends, axis=0))

    def lines(x, y):
        line = (jnp.sin(y.lower), jnp.cos(y.lower)), -jnp.cos(y.lower) * y.lower
        return line, line

    scaled = cj.custom_bounds(product, interval=box, relax=lines)
    ibp, crown = _bounds_hold(lambda x: scaled(x, jnp.array([1.0, 2.0, 3.0])) - x)
    assert jnp.all(crown < ibp)
    np.testing.assert_allclose(crown, 0.8 * jnp.abs(jnp.sin(jnp.array([1.0, 2.0, 3.0])) - 1), rtol=1e-4)


def test_linear_maps_need_not_be_elementwise():
    def lines(x):
        pull = lambda c: (jnp.repeat(c, 3),)  # noqa: E731
        return LinearMap(pull, jnp.zeros(1)), LinearMap(pull, jnp.zeros(1))

    total = cj.custom_bounds(
        lambda x: jnp.sum(x, keepdims=True),
        interval=lambda x: cj.Interval(jnp.sum(x.lower, keepdims=True), jnp.sum(x.upper, keepdims=True)),
        relax=lines,
    )
    _, crown = _bounds_hold(lambda x: total(x) - x[:1])
    np.testing.assert_allclose(crown, 2 * 2 * 0.4, rtol=1e-5)


@pytest.mark.parametrize(
    ("function", "error", "message"),
    [
        (lambda x: cj.custom_bounds(lambda x: (x, x), interval=interval)(x), TypeError, "must return one array; got 2"),
        (lambda x: cj.custom_bounds(cubed, interval=lambda x: x.lower)(x), ValueError, "expected an Interval"),
        (lambda x: cj.custom_bounds(jnp.sum, interval=lambda x: x)(x), ValueError, r"limits of shape \(3,\); expected"),
        (
            lambda x: cj.custom_bounds(cubed, interval=interval, relax=lambda x: (((1.0, 2.0), 0.0),) * 2)(x),
            ValueError,
            "returned 2 slopes",
        ),
        (
            lambda x: cj.custom_bounds(
                jnp.sum, interval=lambda x: cj.Interval(x.lower[0], x.upper[0]), relax=lambda x: ((1.0, 0.0),) * 2
            )(x),
            ValueError,
            "slopes are for elementwise functions",
        ),
    ],
)
def test_wrong_bounds_are_errors(function, error, message):
    with pytest.raises(error, match=message):
        cj.crown(function)(cj.linf_ball(X, 0.1))


def test_crown_does_not_refine_what_is_said_to_be_decided():
    """The box that `relax` gets is that of intervals, not that of back-substitution."""
    seen = {}

    def recording(name):
        def relax_and_record(x):
            seen[name] = x
            return relax(x)

        return relax_and_record

    def f(name, undecided):
        inner = cj.custom_bounds(cubed, interval=interval, relax=recording(name), undecided=undecided)
        # The difference of two ReLUs of the same: intervals forget that, back-substitution does not.
        return lambda x: inner(jax.nn.relu(x + 2) - jax.nn.relu(x + 1.5))

    region = cj.linf_ball(X, 0.1)
    cj.crown(f("all", None))(region)
    cj.crown(f("none", lambda x: (jnp.zeros(x.shape, bool),)))(region)
    assert bool(jnp.all(seen["none"].radius > seen["all"].radius + 0.05))
