"""Loops and branches are written out where their course is known while they are traced, and refused otherwise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import SingleDeviceSharding

import cure_jax as cj
from cure_jax.graph import UnsupportedPrimitive, control_flow, trace

X = jnp.array([0.3, -1.2, 0.7])
ROWS = jnp.asarray(np.random.default_rng(0).normal(size=(3, 3)).astype(np.float32))
REGION = cj.linf_ball(X, 0.1)


def scanned(x, reverse=False):
    """A carry and a column of results, both of the input and of constants."""

    def step(carry, entry):
        row, scale = entry
        carry = jax.nn.relu(carry * scale + row)
        return carry, carry[0] - row[1]

    carry, column = lax.scan(step, x, (ROWS, x), reverse=reverse)
    return jnp.concatenate([carry, column])


def counted(x):
    return lax.fori_loop(1, 4, lambda i, y: jnp.maximum(y * i.astype(float), 0.1), x)


def until(x):
    """A loop whose length its own counters tell, and a tensor among what it carries."""
    _, y = lax.while_loop(lambda s: s[0] < 20, lambda s: (3 * s[0], jnp.abs(s[1]) - 0.5), (1, x))
    return y


def inner_steps(x):
    return lax.scan(lambda y, _: (lax.scan(lambda z, _: (jnp.abs(z - 0.1), None), y, None, 2)[0], None), x, None, 2)[0]


def branched(x):
    return lax.switch(7, [lambda x: x, lambda x: jnp.abs(x), lambda x: -2 * x], x)


def within_a_loop(x):
    """The index of a step decides about a branch."""
    return lax.fori_loop(0, 3, lambda i, y: lax.cond(i == 1, jnp.abs, lambda y: y - 0.5, y), x)


def kept(x):
    x, y = lax.optimization_barrier((x, 2 * x))
    x = lax.with_sharding_constraint(checkpoint_name(x, "hidden"), SingleDeviceSharding(jax.devices()[0]))
    return jax.device_put(x) - jax.nn.relu(y)


WRITTEN_OUT = {
    "scan": scanned,
    "scan reversed": lambda x: scanned(x, reverse=True),
    "scan of nothing": lambda x: lax.scan(lambda y, row: (y * row, y), x, ROWS[:0])[0],
    "fori_loop": counted,
    "fori_loop with traced limits": lambda x: lax.fori_loop(
        0, jnp.argmax(jnp.arange(3, dtype=jnp.int32)).astype(jnp.int32), lambda i, y: y - i.astype(float), x
    ),
    "while": until,
    "nested": inner_steps,
    "switch": branched,
    "cond in a loop": within_a_loop,
    "map": lambda x: lax.map(lambda row: jnp.maximum(x @ row, 0), ROWS),
    "diagonal": lambda x: jnp.diagonal(jnp.maximum(x[:, None] - x[None] + ROWS, 0)),
    "associative_scan": lambda x: lax.associative_scan(jnp.maximum, x),
    "identities": kept,
}


@pytest.mark.parametrize("name", list(WRITTEN_OUT))
def test_what_is_known_while_tracing_is_written_out(name):
    f = WRITTEN_OUT[name]
    graph = trace(f, X)
    assert not {equation.name for equation in graph.equations} & {"scan", "while", "cond", "optimization_barrier"}
    points = jax.vmap(REGION.sample)(jax.random.split(jax.random.key(0), 50))
    values, replayed = jax.device_get(jax.jit(lambda x: (jax.vmap(f)(x), jax.vmap(graph.evaluate)(x)))(points))
    np.testing.assert_allclose(replayed, values, rtol=1e-5, atol=1e-6)
    bounds = jax.device_get(jax.jit(lambda: cj.ibp(f)(REGION))())
    assert np.all((values >= bounds.lower - 1e-5) & (values <= bounds.upper + 1e-5))
    assert np.max(bounds.upper - bounds.lower) < 10


def test_a_branch_that_is_known_is_the_only_one():
    assert [equation.name for equation in trace(branched, X).equations] == ["mul"]
    compiled = []
    jax.jit(lambda x: compiled.append(trace(branched, x)))(X)
    assert [equation.name for equation in compiled[0].equations] == ["mul"]


@pytest.mark.parametrize("index", [-3, 0, 1, 2, 9])
def test_an_index_that_is_a_parameter_selects_among_all_branches(index):
    @jax.jit
    def both(index):
        f = lambda x: lax.switch(index, [lambda x: x, jnp.abs, lambda x: -2 * x], x)  # noqa: E731
        return cj.crown(f)(REGION), f(X - 0.1), f(X + 0.1)

    bounds, *ends = both(index)
    np.testing.assert_allclose(bounds.lower, jnp.minimum(*ends), rtol=1e-5)
    np.testing.assert_allclose(bounds.upper, jnp.maximum(*ends), rtol=1e-5)


REFUSED = {
    "while": (
        lambda x: lax.while_loop(lambda y: y[0] < 3, lambda y: 2 * y, x),
        "how often it runs depends on the input",
    ),
    "cond": (lambda x: lax.cond(x[0] > 0, jnp.abs, lambda x: -x, x), "which branch it takes depends on the input"),
    "scan": (lambda x: lax.scan(lambda y, _: (y / 2, None), x, None, 10_001)[0], "it has 10001 steps"),
}


@pytest.mark.parametrize("name", list(REFUSED))
def test_what_the_input_decides_is_refused(name):
    f, reason = REFUSED[name]
    with pytest.raises(UnsupportedPrimitive, match=rf"`{name}` \({reason}.*test_control_flow"):
        trace(f, X)


def test_loops_without_an_end_are_refused(monkeypatch):
    monkeypatch.setattr(control_flow, "_MOST_STEPS", 100)
    with pytest.raises(UnsupportedPrimitive, match=r"`while` \(it runs more than 100 times"):
        trace(lambda x: lax.while_loop(lambda s: s[0] < 3, lambda s: (s[0] * 1, s[1]), (0, x))[1], X)


def test_a_length_that_only_the_program_knows_is_refused():
    with pytest.raises(UnsupportedPrimitive, match="how often it runs is not known while it is traced"):
        jax.jit(lambda n: cj.ibp(lambda x: lax.fori_loop(0, n, lambda i, y: y / 2, x))(REGION))(3)
