"""Tracing: calls are inlined, constants folded, products made precise, and what cannot be recorded is refused."""

import functools
import inspect
import runpy

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from cure_jax.graph import Node, UnsupportedPrimitive, recording, trace

X = jnp.array([0.3, -1.2, 0.7, 0.1])
W = jnp.asarray(np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32))
V = jnp.asarray(np.random.default_rng(1).normal(size=(3, 2)).astype(np.float32))
B = jnp.array([0.1, -0.2, 0.3])
NETWORK = ["dot_general", "add", "max", "dot_general"]


def network(x):
    return jax.nn.relu(x @ W + B) @ V


def names(graph):
    return [equation.name for equation in graph.equations]


@jax.custom_jvp
def tripled(x):
    return 3 * x


@jax.custom_vjp
def quadrupled(x):
    return 4 * x


# Derivatives that have nothing to do with the functions: a trace must not look at them.
tripled.defjvp(lambda primals, tangents: (7 * primals[0], 0 * tangents[0]))
quadrupled.defvjp(lambda x: (7 * x, None), lambda _, g: (0 * g,))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda f: f,
        jax.jit,
        jax.checkpoint,
        jax.named_call,
        lambda f: jax.jit(jax.checkpoint(jax.jit(f))),
        lambda f: lambda x: jax.vmap(f)(x[None])[0],
        lambda f: lambda x: jax.linearize(f, x)[0],
    ],
    ids=["plain", "jit", "remat", "named", "nested", "vmap", "linearize"],
)
def test_calls_are_inlined(wrap):
    graph = trace(wrap(network), X)
    assert [name for name in names(graph) if name not in ("broadcast_in_dim", "squeeze", "copy")] == NETWORK
    np.testing.assert_allclose(graph.evaluate(X), network(X), rtol=1e-6)


@pytest.mark.parametrize(("f", "factor"), [(tripled, 3), (quadrupled, 4)])
def test_functions_with_their_own_derivatives_count_as_what_they_compute(f, factor):
    graph = trace(lambda x: jax.jit(f)(x) + 1, X)
    assert names(graph) == ["mul", "add"]
    np.testing.assert_allclose(graph.evaluate(X), factor * X + 1, rtol=1e-6)


def test_a_call_of_the_same_function_twice_keeps_its_values_apart():
    inner = jax.jit(lambda x, y: x * 2 - y)
    graph = trace(lambda x: inner(inner(x, B), inner(B, x)), X[:3])
    np.testing.assert_allclose(graph.evaluate(X[:3]), 2 * (2 * X[:3] - B) - (2 * B - X[:3]), rtol=1e-6)
    assert len({equation.output.index for equation in graph.equations}) == len(graph.equations)


def test_what_does_not_depend_on_the_input_is_computed():
    key = jax.random.key(3)

    def f(x):
        scale = lax.scan(lambda carry, _: (carry * 2, None), jnp.ones(4), None, length=3)[0]
        shift = lax.cond(jnp.sum(W) > 100, lambda: 1.0, lambda: jnp.sort(B)[0])
        return x * jnp.exp(scale) + jax.random.normal(key, (4,)) + shift

    graph = trace(f, X)
    assert names(graph) == ["mul", "add", "add"]
    np.testing.assert_allclose(graph.evaluate(X), f(X), rtol=1e-6)


def test_what_the_output_does_not_need_is_left_out():
    graph = trace(lambda x: (jnp.exp(x), x * 2)[1], X)
    assert names(graph) == ["mul"]


def test_outputs_may_be_constants_or_the_input():
    constant = trace(lambda x: B * 2, X)
    assert not isinstance(constant.output, Node)
    np.testing.assert_array_equal(constant.evaluate(X), 2 * B)
    identity = trace(lambda x: x, X)
    assert identity.output == identity.input
    np.testing.assert_array_equal(identity.evaluate(X), X)


def test_operands_keep_their_places():
    graph = trace(lambda x: (B - x) * 2 + (B - x), X[:3])
    sub, _, _, add = graph.equations
    assert sub.positions == (1,)
    assert add.positions == (0, 1)
    assert sub.bounded == (graph.input,)
    np.testing.assert_array_equal(sub.evaluate(X[:3]), B - X[:3])
    same = trace(lambda x: lax.add(x, x), X).equations[0]
    assert same.bounded == (same.bounded[0],) * 2


@pytest.mark.parametrize(
    ("f", "shape"),
    [
        (lambda x: x * B, ()),
        (lambda x: x[:, None] + jnp.ones((4, 3)), (4,)),
        (lambda x: jnp.maximum(x, jnp.sum(x)), (4,)),
        (lambda x: jnp.minimum(x[:, None], x[None]), (4,)),
        (lambda x: x - jnp.mean(x, axis=0, keepdims=True), (3, 2)),
        (lambda x: (x / B) - 1, (2, 2, 1)),
    ],
)
def test_nodes_are_broadcast_by_equations_of_their_own(f, shape):
    with jax.numpy_rank_promotion("allow"):
        graph = trace(f, jnp.zeros(shape))
        x = jnp.asarray(np.random.default_rng(0).normal(size=shape).astype(np.float32))
        np.testing.assert_allclose(graph.evaluate(x), f(x), rtol=1e-6)
    assert "broadcast_in_dim" in names(graph)
    for equation in graph.equations:
        if equation.name in recording._BROADCASTING:
            assert {node.shape for node in equation.bounded} == {equation.output.shape}


def test_each_result_of_a_split_is_a_slice():
    graph = trace(lambda x: jnp.split(x, [1, 3])[2] * jnp.split(x, 4)[1], X)
    assert names(graph) == ["slice", "slice", "mul"]
    np.testing.assert_array_equal(graph.evaluate(X), X[3:] * X[1:2])


@pytest.mark.parametrize(
    ("f", "expected"),
    [
        (lambda x: jnp.prod(x.reshape(2, 2), axis=1), {"mul"}),
        (lambda x: jnp.prod(jnp.concatenate([x, x[:1]])), {"mul"}),
        (jnp.cumprod, {"mul"}),
        (lambda x: lax.cummax(x, 0, reverse=True), {"max"}),
        (lambda x: lax.cummin(x.reshape(2, 2), 1), {"min"}),
        (lambda x: 3.0**x, {"mul", "exp"}),
        (lambda x: lax.top_k(x, 2)[0], {"sort", "rev"}),
        (lambda x: jnp.logaddexp(x, B[0]), {"logaddexp"}),
        (lambda x: jnp.where(x > 0, x, 0.5 * x - 1), {"piecewise_linear"}),
        (lambda x: jnp.where(B[0] <= x, jnp.exp(x), 2.0), {"exp", "where"}),
        (lambda x: jnp.where(x[0] > 0, x, 2 * x), {"mul", "where"}),
        (lambda x: x.at[jnp.array([2, -1])].set(x[:2]), {"scatter"}),
    ],
)
def test_what_is_recorded_as_other_equations_computes_the_same(f, expected):
    graph = trace(f, X)
    moves = {"slice", "reshape", "squeeze", "concatenate", "transpose", "broadcast_in_dim"}
    assert expected <= set(names(graph)) <= expected | moves
    for sign in (1, -1):
        np.testing.assert_allclose(graph.evaluate(sign * X), f(sign * X), rtol=1e-6)


def test_coefficients_pass_through_stopped_gradients():
    graph = trace(lambda x: lax.stop_gradient(x) * 2, X)
    assert names(graph) == ["mul"]
    np.testing.assert_array_equal(jax.grad(lambda x: jnp.sum(graph.evaluate(x)))(X), jnp.full(4, 2.0))


def test_nodes_are_finite():
    graph = trace(jax.nn.logsumexp, X)
    assert "is_finite" not in names(graph)
    assert "select_n" in names(graph)
    np.testing.assert_allclose(graph.evaluate(X), jax.nn.logsumexp(X), rtol=1e-6)


def test_a_quotient_is_a_product_with_a_reciprocal():
    graph = trace(lambda x: jnp.sum(x) / x + 1 / (2 + x), X)
    assert "div" not in names(graph)
    assert names(graph).count("integer_pow") == 2
    np.testing.assert_allclose(graph.evaluate(X), jnp.sum(X) / X + 1 / (2 + X), rtol=1e-5)


@pytest.mark.parametrize("mode", [None, "clip", "fill"])
def test_an_index_out_of_bounds_means_the_same_forwards_and_backwards(mode):
    graph = trace(lambda x: x.at[jnp.array([9, 1, -1])].get(mode=mode), X)
    value, pull = jax.vjp(graph.evaluate, X)
    if mode == "fill":
        value = jnp.nan_to_num(value)
    c = jnp.array([1.0, 10.0, 100.0])
    np.testing.assert_allclose(jnp.sum(pull(c)[0] * X), jnp.sum(c * value), rtol=1e-6)


def test_closed_over_tracers_stay_arguments_of_the_outer_function():
    def value(weights, x):
        return trace(lambda x: jax.jit(jax.nn.relu)(x @ weights), x).evaluate(x)

    expected = jax.nn.relu(X @ W)
    np.testing.assert_allclose(jax.jit(value)(W, X), expected, rtol=1e-6)
    np.testing.assert_allclose(
        jax.vmap(value, (0, None))(jnp.stack([W, 2 * W]), X), jnp.stack([expected, 2 * expected]), rtol=1e-6
    )
    chex.assert_trees_all_close(
        jax.grad(lambda w: jnp.sum(value(w, X)))(W), jax.grad(lambda w: jnp.sum(jax.nn.relu(X @ w)))(W), rtol=1e-6
    )


@pytest.mark.parametrize("precision", [lax.Precision.HIGHEST, "high", None, (lax.Precision.DEFAULT,) * 2])
def test_every_product_gets_the_precision_asked_for(precision):
    def f(x):
        y = jnp.dot(x, W, precision=lax.Precision.HIGH)
        image = y.reshape(1, 1, 3, 1)
        kernel = jnp.ones((1, 2, 1, 2))
        numbers = ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated(image, kernel, (1, 1), "SAME", dimension_numbers=numbers, precision="default")

    graph = trace(f, X, precision=precision)
    pulled = jax.make_jaxpr(lambda x: jax.vjp(graph.evaluate, x)[1](jnp.ones(graph.output.shape)))(X)
    products = [e for e in pulled.eqns if e.primitive.name in ("dot_general", "conv_general_dilated", "convolution")]
    assert len(products) >= 4
    expected = recording._canonical(precision)
    for equation in products:
        found = equation.params["precision"]
        assert (found if isinstance(found, tuple) or found is None else (found, found)) == expected


def test_the_default_precision_is_the_highest():
    assert "HIGHEST" in str(jax.make_jaxpr(trace(network, X).evaluate)(X))


@pytest.mark.parametrize("dtype", [jnp.int32, jnp.bfloat16, jnp.float16, jnp.bool_, jnp.complex64])
def test_inputs_that_are_not_single_or_double_precision_are_refused(dtype):
    with pytest.raises(TypeError, match=f"float32 or float64 array; got {jnp.dtype(dtype).name}"):
        trace(lambda x: x, jnp.zeros(4, dtype))


@pytest.mark.parametrize("f", [lambda x: (x, 2 * x), lambda x: {"logits": x, "features": x}, lambda x: ()])
def test_several_outputs_are_refused(f):
    with pytest.raises(TypeError, match=r"must return one array; got [02] outputs"):
        trace(f, X)


def _written(x):
    reference = jax.new_ref(jnp.zeros(4))
    reference[...] = x
    return reference[...]


def _printed(x):
    jax.debug.print("{}", x)
    return x


REFUSED = {
    "eigh": lambda x: jnp.linalg.eigh(jnp.outer(x, x))[0],
    "pure_callback": lambda x: jax.pure_callback(lambda x: x, X, x),
    "debug_(print|callback)": _printed,
    "(new_)?ref": _written,
}


@pytest.mark.parametrize("name", list(REFUSED))
def test_loops_several_results_and_side_effects_are_refused(name):
    with pytest.raises(UnsupportedPrimitive, match=rf"`{name}` \(it has (several results|side effects)\).*test_graph"):
        trace(REFUSED[name], X)


class Probabilities(nn.Module):
    """A flax module that ends in a loop."""

    @nn.compact
    def __call__(self, x):
        return lax.linalg.lu(jnp.outer(x, nn.Dense(3)(x)))[0]


def _line_of(function, text):
    lines, start = inspect.getsourcelines(function)
    return start + next(i for i, line in enumerate(lines) if text in line)


def test_errors_name_the_line_of_the_user():
    @jax.jit
    def inner(x):
        return lax.linalg.lu(jnp.outer(x, x))[0]

    def f(x):
        return inner(x * 2)

    line = _line_of(f, "inner(x * 2)")
    with pytest.raises(UnsupportedPrimitive, match=rf"test_graph\.py:{line} \(.*f\)"):
        trace(f, X)


def test_errors_name_a_line_of_the_module_not_of_flax():
    model = Probabilities()
    variables = model.init(jax.random.key(0), X)
    line = _line_of(Probabilities.__call__, "lax.linalg.lu")
    with pytest.raises(UnsupportedPrimitive, match=rf"test_graph\.py:{line} "):
        trace(functools.partial(model.apply, variables), X)


def test_users_may_call_their_directory_as_they_like(tmp_path):
    path = tmp_path / "flax" / "network.py"
    path.parent.mkdir()
    path.write_text(
        "import jax.numpy as jnp; from jax import lax\n\n\ndef f(x):\n    return lax.linalg.lu(jnp.outer(x, x))[0]\n"
    )
    with pytest.raises(UnsupportedPrimitive, match=r"flax.network\.py:5 "):
        trace(runpy.run_path(str(path))["f"], X)


def test_the_same_code_reached_twice_is_named_where_it_is_called():
    cached = jax.jit(lambda x: lax.linalg.lu(jnp.outer(x, x))[0])
    jax.make_jaxpr(cached)(X)

    def elsewhere(x):
        return cached(x)

    line = _line_of(elsewhere, "return cached")
    with pytest.raises(UnsupportedPrimitive, match=rf"test_graph\.py:{line} "):
        trace(elsewhere, X)
