"""Sines and functions of pieces against themselves in float64: lines hold on boxes of every size, for every alpha."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cure_jax import graph as graphs
from cure_jax import rules
from cure_jax.regions import Interval

COUNT = 300


class Function(NamedTuple):
    """A function, itself in float64, and points where it is not smooth."""

    function: Callable[[jax.Array], jax.Array]
    exact: Callable[[np.ndarray], np.ndarray]
    kinks: tuple[float, ...] = ()


# Numbers that float32 holds exactly.
FUNCTIONS = {
    "sin": Function(jnp.sin, np.sin),
    "cos": Function(jnp.cos, np.cos),
    "convex": Function(lambda x: jnp.where(x > 0, 2 * x, 0.5 * x), lambda x: np.where(x > 0, 2 * x, 0.5 * x), (0.0,)),
    "concave": Function(
        lambda x: jnp.where(x < 0.5, 2 * x, 1.5 - x), lambda x: np.where(x < 0.5, 2 * x, 1.5 - x), (0.5,)
    ),
    "apart": Function(lambda x: jnp.where(x >= -1, x / 4, x + 3), lambda x: np.where(x >= -1, x / 4, x + 3), (-1.0,)),
    "step": Function(lambda x: jnp.where(x >= 0.25, 1.0, 0.0), lambda x: np.where(x >= 0.25, 1.0, 0.0), (0.25,)),
    "flat": Function(lambda x: jnp.where(x > 1, 0.0, x - 2), lambda x: np.where(x > 1, 0.0, x - 2), (1.0,)),
}


def boxes(seed: int) -> Interval:
    """Of widths from 0 and the smallest numbers to beyond all periods, near 0 and far away, many of them at a kink."""
    generator = np.random.default_rng(seed)
    scales = [0.0, 1e-40, 1e-6, 1e-3, 0.3, 1.0, 1.0, 1.0, 3.0, 3.0, 10.0, 300.0, 1e30]
    center = generator.normal(size=COUNT) * generator.choice(scales, size=COUNT)
    width = np.abs(generator.normal(size=COUNT)) * generator.choice(scales, size=COUNT)
    lower, upper = (np.float32(end) for end in (center - width, center + width))
    lower[:40] = generator.choice([0.0, 0.5, -1.0, 0.25, 1.0], size=40)
    return Interval(jnp.asarray(lower), jnp.asarray(np.maximum(lower, upper)))


def points(box: Interval, kinks: tuple[float, ...], count: int = 301) -> np.ndarray:
    """A dense grid, and kinks and turns from both sides: `[points, boxes]`."""
    lower, upper = (np.asarray(end, np.float64) for end in (box.lower, box.upper))
    shares = np.linspace(0, 1, count)[:, None]
    near = [np.full(COUNT, kink + shift) for kink in kinks for shift in (-1e-9, 0.0, 1e-9)]
    turns = [np.full(COUNT, k * np.pi / 2) for k in range(-8, 9)]
    inside = np.clip(np.stack([*near, *turns]), lower, upper)
    return np.clip(np.concatenate([lower + shares * (upper - lower), inside]), lower, upper)


@functools.cache
def bounded(name: str) -> Callable[..., Any]:
    graph = graphs.trace(FUNCTIONS[name].function, jnp.zeros(COUNT))
    (equation,) = graph.equations
    rule = rules.lookup(equation)

    @jax.jit
    def bounds(box: Interval, alpha: jax.Array) -> tuple[Interval, list[jax.Array]]:
        lower, upper = rule.relax(equation, [box], alpha)
        return rule.interval(equation, box), [lower.slopes[0], lower.intercept, upper.slopes[0], upper.intercept]

    return bounds


@pytest.mark.parametrize("name", list(FUNCTIONS))
def test_lines_and_intervals_hold_everywhere(name):
    function = FUNCTIONS[name]
    for seed in range(3):
        box = boxes(seed)
        at = points(box, function.kinks)
        values = function.exact(at)
        # Sums and products of pieces are rounded, like those of any other straight function; sines have room for it.
        room = 0 if name in ("sin", "cos") else 1e-6 * (1 + np.max(np.abs(at) + np.abs(values), axis=0))
        for alpha in (0.0, 0.3, 0.5, 1.0):
            image, lines = bounded(name)(box, jnp.full(COUNT, alpha))
            slope, intercept, above, top = (np.asarray(line, np.float64) for line in lines)
            assert np.all(values >= np.asarray(image.lower, np.float64) - room)
            assert np.all(values <= np.asarray(image.upper, np.float64) + room)
            assert np.all(slope * at + intercept <= values + room)
            assert np.all(above * at + top >= values - room)


@pytest.mark.parametrize("name", list(FUNCTIONS))
def test_bounds_are_tight(name):
    """Intervals are the image, points are exact, and no line is far from the hull in the middle."""
    function = FUNCTIONS[name]
    center = np.linspace(-4, 4, COUNT)
    for radius in (0.0, 0.05, 0.7, 2.0):
        ends = np.float32(center - radius), np.float32(center + radius)
        box = Interval(*map(jnp.asarray, ends))
        at = points(box, function.kinks)
        values = function.exact(at)
        image, lines = bounded(name)(box, jnp.full(COUNT, 0.5))
        slope, intercept, above, top = (np.asarray(line, np.float64) for line in lines)
        np.testing.assert_allclose(image.lower, values.min(0), atol=1e-4)
        np.testing.assert_allclose(image.upper, values.max(0), atol=1e-4)
        gap = np.max((above - slope) * at + top - intercept, axis=0)
        spread = values.max(0) - values.min(0)
        # Where pieces are apart, lines between the two best ones may be steep.
        if name not in ("apart", "step", "flat"):
            assert np.all(gap <= 2 * spread + 1e-4)
        if radius == 0.05 and name in ("sin", "cos"):
            assert np.all(gap <= 0.01)


@pytest.mark.parametrize("name", list(FUNCTIONS))
def test_derivatives_are_finite(name):
    def total(lower: jax.Array, upper: jax.Array, alpha: jax.Array) -> jax.Array:
        image, lines = bounded(name)(Interval(lower, upper), alpha)
        return sum(jnp.sum(jnp.where(jnp.isfinite(a), a, 0)) for a in (image.lower, image.upper, *lines))

    box = boxes(5)
    derivative = jax.jit(jax.grad(total, argnums=(0, 1, 2)))
    for alpha in (0.0, 0.5, 1.0):
        found = derivative(jnp.clip(box.lower, -1e12, 1e12), jnp.clip(box.upper, -1e12, 1e12), jnp.full(COUNT, alpha))
        assert all(jnp.all(jnp.isfinite(part)) for part in found)


@pytest.mark.parametrize("name", list(FUNCTIONS))
def test_infinite_boxes_and_those_of_no_numbers_promise_nothing_more(name):
    function = FUNCTIONS[name]
    for lower, upper in ((-jnp.inf, jnp.inf), (-jnp.inf, 0.3), (0.1, jnp.inf), (jnp.nan, jnp.nan), (jnp.nan, 0.5)):
        box = Interval(jnp.full(COUNT, lower), jnp.full(COUNT, upper))
        image, (slope, intercept, above, top) = bounded(name)(box, jnp.full(COUNT, 0.3))
        at = np.linspace(max(-50, np.nan_to_num(lower, nan=-50)), min(50, np.nan_to_num(upper, nan=50)), COUNT)
        values = function.exact(at)
        assert not np.any(values < np.asarray(image.lower) - 1e-5)
        assert not np.any(values > np.asarray(image.upper) + 1e-5)
        assert not np.any(np.asarray(slope) * at + np.asarray(intercept) > values + 1e-4)
        assert not np.any(np.asarray(above) * at + np.asarray(top) < values - 1e-4)


def test_what_is_not_known_may_have_any_place():
    """Not a number: nothing is known of one entry, so it may be the least or the greatest."""
    (equation,) = graphs.trace(jnp.sort, jnp.zeros(3)).equations
    rule = rules.lookup(equation)
    box = Interval(jnp.array([jnp.nan, 1.0, 3.0]), jnp.array([jnp.nan, 2.0, 4.0]))
    image = rule.interval(equation, box)
    np.testing.assert_array_equal(image.lower, [-np.inf, 1.0, 3.0])
    np.testing.assert_array_equal(image.upper, [2.0, 4.0, np.inf])
    lower, upper = rule.relax(equation, [box], None)
    for line in (lower, upper):
        assert all(jnp.all(line.pull(jnp.eye(3)[i])[0] == 0) for i in range(3))


def test_pieces_that_do_not_meet_have_no_lipschitz_constant():
    for name, expected in (("convex", 2.0), ("concave", 2.0), ("apart", np.inf), ("step", np.inf), ("flat", np.inf)):
        (equation,) = graphs.trace(FUNCTIONS[name].function, jnp.zeros(COUNT)).equations
        assert float(rules.lookup(equation).lipschitz(equation)) == expected
