"""Windows of coefficients are the dense coefficients, whatever the layers between a neuron and the input."""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import cure_jax as cj
from cure_jax import graph as graphs
from cure_jax import rules
from cure_jax.bounds.folding import coefficients as forms
from cure_jax.bounds.folding import linear
from cure_jax.bounds.folding.free_lines import free_lines
from cure_jax.rules.local import moving_axes


def _weights(*shape: int, seed: int = 0) -> jax.Array:
    generator = np.random.default_rng((seed, *shape))
    return jnp.asarray(generator.normal(size=shape).astype(np.float32) / np.float32(np.sqrt(np.prod(shape[:-1]))))


def _conv(x: jax.Array, features: int, kernel=3, stride: int = 1, padding=1, **options) -> jax.Array:
    groups = options.get("feature_group_count", 1)
    sizes = (kernel, kernel) if isinstance(kernel, int) else kernel
    weights = _weights(*sizes, x.shape[-1] // groups, features)
    pads = [(padding, padding)] * 2 if isinstance(padding, int) else padding
    numbers = ("NHWC", "HWIO", "NHWC")
    y = lax.conv_general_dilated(x[None], weights, (stride, stride), pads, dimension_numbers=numbers, **options)[0]
    return y + _weights(features, seed=1).reshape(1, 1, -1)


def _relu_conv(x: jax.Array, *args, **options) -> jax.Array:
    return jax.nn.relu(_conv(x, *args, **options))


def _average(x: jax.Array, size, stride: int, padding: str = "VALID") -> jax.Array:
    sizes = (size, size) if isinstance(size, int) else size
    return lax.reduce_window(x, 0.0, lax.add, (*sizes, 1), (stride, stride, 1), padding) / float(np.prod(sizes))


def _residual(x: jax.Array) -> jax.Array:
    h = _relu_conv(x, 3)
    return _conv(jax.nn.relu(_conv(_relu_conv(h, 4), 3) + h), 2)


def _downsampling(x: jax.Array) -> jax.Array:
    h = _relu_conv(x, 3)
    shortcut = jnp.pad(h[::2, ::2], ((0, 0), (0, 0), (0, 1)))
    return _conv(jax.nn.relu(_conv(_relu_conv(h, 4, stride=2), 4) + shortcut), 2)


def _channels_first(x: jax.Array) -> jax.Array:
    y = _relu_conv(x, 3).transpose(2, 0, 1)[None]
    y = lax.conv_general_dilated(y, _weights(2, 3, 3, 3), (1, 2), "SAME")
    return y[0].transpose(1, 2, 0)


# Functions of an image [7, 6, 2] whose output is the neurons of a convolutional layer.
NETWORKS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "two": lambda x: _conv(_relu_conv(x, 3), 2),
    "strides": lambda x: _conv(_relu_conv(_relu_conv(x, 3, stride=2), 4), 2, stride=2),
    "uneven padding": lambda x: _conv(_relu_conv(x, 3, padding=[(2, 0), (0, 1)]), 2, padding=[(0, 2), (3, 1)]),
    "no padding": lambda x: _conv(_relu_conv(x, 3, padding="VALID"), 2, padding="VALID"),
    "same": lambda x: _conv(_relu_conv(x, 3, kernel=4, stride=2, padding="SAME"), 2, kernel=2, padding="SAME"),
    "dilated": lambda x: _conv(_relu_conv(x, 3, padding=2, rhs_dilation=(2, 1)), 2),
    "image dilated": lambda x: _conv(_relu_conv(x, 3, lhs_dilation=(2, 2)), 2),
    "grouped": lambda x: _conv(_relu_conv(x, 4), 4, feature_group_count=2),
    "normalized": lambda x: _conv(jax.nn.relu(_conv((x - 0.4) / 0.3, 3) * _weights(3).reshape(1, 1, -1)), 2),
    "residual": _residual,
    "downsampling": _downsampling,
    "average": lambda x: _conv(_average(_relu_conv(x, 3), 2, 2), 2),
    "average same": lambda x: _average(_relu_conv(x, 3), 3, 2, "SAME"),
    "shifted": lambda x: _conv(
        lax.reduce_window(_relu_conv(x, 3), 0.0, lax.add, (2, 2, 1), (1, 1, 1), ((0, 1), (0, 1), (1, -1))), 2
    ),
    "padded": lambda x: _conv(jnp.pad(_relu_conv(x, 3), ((1, 2), (0, 1), (0, 0)), constant_values=0.5), 2, padding=0),
    "concatenated": lambda x: _conv(jnp.concatenate([_relu_conv(x, 2), _relu_conv(x, 3, 5, padding=2)], -1), 2),
    "channels first": _channels_first,
    "maximum": lambda x: _conv(jnp.maximum(_conv(x, 3), _conv(x, 3, 5, padding=2)), 2),
    "pooled": lambda x: _conv(lax.reduce_window(_relu_conv(x, 3), -jnp.inf, lax.max, (2, 2, 1), (1, 1, 1), "SAME"), 2),
    "cropped": lambda x: _conv(_relu_conv(x, 3)[1:-1, 1:], 2),
    "flipped": lambda x: _conv(_relu_conv(x, 3)[::-1], 2),
    # Windows of the input that stand still along an axis, and are not the whole of it.
    "one channel": lambda x: _conv(_relu_conv(x[..., 1:], 3), 2),
    "branches": lambda x: _conv(jnp.concatenate([_relu_conv(part, 2) for part in jnp.split(x, 2, -1)], -1), 2),
    "along one axis": lambda x: _conv(jax.nn.relu(_average(_conv(x, 3), (1, 2), 1, "SAME")), 2),
    "separable": lambda x: _conv(
        _relu_conv(_conv(x, 3, (1, 3), padding=[(0, 0), (2, 0)]), 3, (3, 1), 1, [(1, 1), (0, 0)]), 2
    ),
}


# These have a layer that makes windows dense.
_DENSE = ("image dilated", "pooled", "flipped", "shifted")


def _relaxed(graph: graphs.Graph, generator: np.random.Generator) -> dict[int, rules.Relaxation]:
    """The relaxations of all nonlinear equations on random boxes."""
    relaxations = {}
    for equation in graph.equations:
        rule = rules.lookup(equation)
        if isinstance(rule, rules.Nonlinear):
            lowers = [jnp.asarray(generator.normal(size=node.shape), np.float32) for node in equation.bounded]
            widths = [jnp.asarray(generator.uniform(0, 2, size=node.shape), np.float32) for node in equation.bounded]
            boxes = [cj.Interval(lower, lower + width) for lower, width in zip(lowers, widths, strict=True)]
            relaxations[equation.output.index] = rule.relax(equation, boxes, None)
    return relaxations


@pytest.mark.parametrize("name", list(NETWORKS))
def test_windows_are_dense_coefficients(name):
    """The linear bound of every neuron of the last layer, computed in both forms."""
    graph = graphs.trace(NETWORKS[name], jnp.zeros((7, 6, 2)))
    target = graph.output
    relaxations = _relaxed(graph, np.random.default_rng(0))
    moving = moving_axes(graph, target)
    assert len(moving) == 2

    @jax.jit
    def both(indices: jax.Array) -> list[tuple[jax.Array, jax.Array]]:
        def bound(index: jax.Array, moving: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
            found = linear.backsubstitute(graph, target, forms.neuron(target, moving, index, -1.0), relaxations)
            return forms.dense(found.coefficients[0], graph.input.shape), found.offset

        return [jax.vmap(lambda index, moving=moving: bound(index, moving))(indices) for moving in (moving, ())]

    windows, dense = both(jnp.arange(np.prod(target.shape)))
    for window, whole in zip(windows, dense, strict=True):
        np.testing.assert_allclose(window, whole, atol=2e-5)


@pytest.mark.parametrize("name", ["residual", "maximum", "strides", "pooled"])
def test_free_lines_in_windows_are_those_of_the_whole(name):
    """With an alpha of its own for every neuron."""
    graph, generator = graphs.trace(NETWORKS[name], jnp.zeros((7, 6, 2))), np.random.default_rng(0)
    target, relaxations = graph.output, _relaxed(graph, generator)
    for equation in graph.equations:
        if isinstance(rules.lookup(equation), rules.Nonlinear):
            lowers = [jnp.asarray(generator.normal(size=node.shape), np.float32) for node in equation.bounded]
            lines = free_lines(equation, [cj.Interval(lower, lower + 1) for lower in lowers])
            if lines is not None:
                alpha = jnp.asarray(generator.uniform(size=lines.start.shape).astype(np.float32))
                relaxations[equation.output.index] = dataclasses.replace(lines, start=alpha)

    @functools.partial(jax.jit, static_argnums=1)
    def bound(index: jax.Array, moving: tuple[int, ...]) -> tuple[jax.Array, jax.Array, dict[int, jax.Array]]:
        found = linear.backsubstitute(graph, target, forms.neuron(target, moving, index, -1.0), relaxations)
        return forms.dense(found.coefficients[0], graph.input.shape), found.offset, found.alphas

    windows, dense = (bound(jnp.int32(17), moving) for moving in (moving_axes(graph, target), ()))
    np.testing.assert_allclose(windows[0], dense[0], atol=2e-5)
    np.testing.assert_allclose(windows[1], dense[1], atol=2e-5)
    sizes = [sum(alpha.size for alpha in alphas.values()) for *_, alphas in (windows, dense)]
    assert sizes[0] < sizes[1] or name == "pooled"


@pytest.mark.parametrize("name", [name for name in NETWORKS if name not in _DENSE])
def test_windows_stay_windows(name):
    """A rule that makes them dense without need would only be slow."""
    graph = graphs.trace(NETWORKS[name], jnp.zeros((32, 32, 2)))
    target = graph.output
    relaxations = _relaxed(graph, np.random.default_rng(0))
    kept = {}

    def bound(index: jax.Array) -> jax.Array:
        objective = forms.neuron(target, moving_axes(graph, target), index, 1.0)
        found = linear.backsubstitute(graph, target, objective, relaxations)
        kept.update(coefficients=found.coefficients[0], widest=found.widest)
        return found.offset

    jax.eval_shape(bound, jnp.int32(5))
    assert isinstance(kept["coefficients"], forms.Window)
    assert kept["widest"] < 1500


@pytest.mark.parametrize("p", [pytest.param(1.0, marks=pytest.mark.slow), 2.0, np.inf])
def test_crown_with_windows_is_crown_without(p, monkeypatch):
    f = NETWORKS["residual"]
    x = jnp.asarray(np.random.default_rng(3).uniform(size=(5, 4, 2)).astype(np.float32))
    region = cj.lp_ball(x, 0.3, float(p), within=(0.0, 1.0))
    windows = jax.jit(cj.crown(f))(region)
    monkeypatch.setattr(linear, "moving_axes", lambda graph, target: ())
    dense = jax.jit(cj.crown(f))(region)
    np.testing.assert_allclose(windows.lower, dense.lower, atol=2e-5)
    np.testing.assert_allclose(windows.upper, dense.upper, atol=2e-5)


def test_a_hull_is_looked_at_through_windows_too():
    """The bounds of a hull are the looser ones of its members, whatever form coefficients have."""
    x = jnp.asarray(np.random.default_rng(0).uniform(size=(7, 6, 2)).astype(np.float32))
    ball, box = cj.l1_ball(x, 0.9, (0.0, 1.0)), cj.linf_ball(x, 0.08, within=(0.0, 1.0))
    graph = graphs.trace(NETWORKS["two"], x)
    first = next(equation for equation in graph.equations if equation.name == "max")
    target = first.bounded[0]

    @jax.jit
    def bounds(region):
        return linear.bound_node(graph, target, region, {}, {})

    both, of_ball, of_box = bounds(cj.hull(ball, box)), bounds(ball), bounds(box)
    np.testing.assert_allclose(both.lower, np.minimum(of_ball.lower, of_box.lower), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(both.upper, np.maximum(of_ball.upper, of_box.upper), rtol=1e-5, atol=1e-6)
    assert np.any(of_ball.lower < of_box.lower) or np.any(of_box.lower < of_ball.lower)
