"""The bound of a domain holds for any multipliers, and is never looser on a part than on the whole."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cure_jax as cj
from cure_jax.certification.batches import as_pytree
from cure_jax.regions import Interval
from cure_jax.verification.problem import Specification
from cure_jax.verification.roots import _reached, narrowed, root_bounds, traced
from cure_jax.verification.split_bound import Multipliers, Network, branching, first, least, maximise
from cure_jax.verification.steps import narrowed_batch
from tests.networks import NETWORKS

REGIONS = {
    "linf": lambda x: cj.linf_ball(x, 0.3),
    "l2": lambda x: cj.l2_ball(x, 0.4, (0.0, 1.0)),
    "box": lambda x: cj.box(x - jnp.float32(0.25), x + jnp.float32(0.25)),
}
SPECIFICATION = Specification(np.float32([[1, -1, 0], [1, 0, -1]]), np.float32([0.1, -0.2]))


def operands(graph, x):
    """What every neuron that can be split sees, less its kink, `[neurons]`."""
    values, found = {graph.input.index: x}, []
    for equation in graph.equations:
        values[equation.output.index] = equation.evaluate(*(values[node.index] for node in equation.bounded))
        if equation in branching(graph):
            (constant,) = equation.constants if equation.name != "abs" else (jnp.zeros(()),)
            found.append((values[equation.bounded[0].index] - constant).ravel())
    return jnp.concatenate(found)


@functools.partial(jax.jit, static_argnames="count")
def bounds_and_values(f, region, key, count=40):
    """Bounds for random sides and multipliers, `[count]`, and the least value of a sample on those sides."""
    root = root_bounds(f, region)
    network = Network(traced(f, region), region, root)
    specification = jax.tree.map(jnp.asarray, SPECIFICATION)
    points = jax.vmap(region.sample)(jax.random.split(key, 3000))
    seen = jnp.sign(jax.vmap(functools.partial(operands, network.graph))(points)).astype(jnp.int8)
    rows = jax.vmap(lambda x: jnp.max(specification.weights @ f(x) + specification.offsets))(points)

    def one(key):
        keys = jax.random.split(key, 6)
        of = jax.random.randint(keys[0], (), 0, len(points))
        sides = jnp.where(jax.random.bernoulli(keys[1], 0.3, seen[of].shape), seen[of], 0)
        spread = jnp.exp(2 * jax.random.normal(keys[2]))
        multipliers = Multipliers(
            0.5 + spread * jax.random.normal(keys[3], sides.shape),
            spread * jax.random.normal(keys[4], sides.shape),
            2 * jax.random.normal(keys[5], (len(network.layers),)),
            spread * jax.random.normal(keys[2], (2,)),
        )
        there = jnp.all((sides[None] == 0) | (sides[None] == seen), axis=1)
        lowest = jnp.min(jnp.where(there, rows, jnp.inf))
        found = maximise(network, specification, sides, first(network, specification), 3)
        return least(network, specification, sides, multipliers)[0], found.bound, lowest

    return jax.vmap(one)(jax.random.split(key, count))


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        pytest.param(name, kind, marks=[pytest.mark.slow] if (name, kind) == ("residual", "l2") else [])
        for name in ("mlp", "residual")
        for kind in REGIONS
    ],
)
def test_any_multipliers_are_sound_on_any_sides(name, kind):
    apply, make = NETWORKS[name]
    f, x = as_pytree(jax.tree_util.Partial(apply, make(0))), jnp.array([0.4, 0.6])
    random, optimised, values = map(np.asarray, bounds_and_values(f, REGIONS[kind](x), jax.random.key(1)))
    assert np.all(np.isfinite(random))
    for bound in (random, optimised):
        assert np.all(bound <= values + 1e-4 * (1 + np.abs(values)))
    assert np.mean(values - optimised) < np.mean(values - random)


@functools.partial(jax.jit, static_argnames="count")
def narrowed_and_seen(f, region, key, count=30):
    """Boxes of random parts, `[count, neurons]`, and the ends of a sample there."""
    root = root_bounds(f, region)
    graph = traced(f, region)
    network = Network(graph, region, root)
    kinks = jnp.concatenate([layer.kink.ravel() for layer in network.layers.values()])
    seen = jax.vmap(functools.partial(operands, graph))(jax.vmap(region.sample)(jax.random.split(key, 5000)))
    signs = lambda values: jnp.sign(values).astype(jnp.int8)  # noqa: E731

    def one(key):
        keys = jax.random.split(key)
        row = seen[jax.random.randint(keys[0], (), 0, len(seen))]
        sides = jnp.where(jax.random.bernoulli(keys[1], 0.4, row.shape), signs(row), 0)
        found = narrowed(graph, region, root, root.joined_boxes(), sides)
        there = jnp.all((sides[None] == 0) | (sides[None] == signs(seen)), axis=1)[:, None]
        lowest = jnp.min(jnp.where(there, seen, jnp.inf), axis=0) + kinks
        highest = jnp.max(jnp.where(there, seen, -jnp.inf), axis=0) + kinks
        return found.joined_boxes(), lowest, highest

    return (*jax.vmap(one)(jax.random.split(key, count)), root.joined_boxes())


@pytest.mark.parametrize("name", ["mlp", "residual"])
@pytest.mark.parametrize("kind", REGIONS)
def test_boxes_of_a_part_hold_what_its_neurons_see(name, kind):
    apply, make = NETWORKS[name]
    f, x = as_pytree(jax.tree_util.Partial(apply, make(0))), jnp.array([0.4, 0.6])
    boxes, lowest, highest, whole = narrowed_and_seen(f, REGIONS[kind](x), jax.random.key(2))
    assert np.all(boxes.lower <= lowest + 1e-5)
    assert np.all(boxes.upper >= highest - 1e-5)
    assert np.all(boxes.lower >= whole.lower[None])
    assert np.all(boxes.upper <= whole.upper[None])
    width = np.mean(boxes.upper - boxes.lower)
    assert width < 0.95 * np.mean(whole.upper - whole.lower)


def test_a_part_is_never_looser_with_the_same_multipliers():
    """With slopes that do not depend on the sides: a smaller box has a greater minimum."""
    apply, make = NETWORKS["mlp"]
    f, region = as_pytree(jax.tree_util.Partial(apply, make(1))), REGIONS["linf"](jnp.array([0.4, 0.6]))

    @jax.jit
    def gains(key):
        network = Network(traced(f, region), region, root_bounds(f, region))
        specification = jax.tree.map(jnp.asarray, SPECIFICATION)
        whole = jnp.zeros(sum(layer.box.lower.size for layer in network.layers.values()), jnp.int8)
        found = maximise(network, specification, whole, first(network, specification), 5)

        def gain(neuron, side):
            part = maximise(network, specification, whole.at[neuron].set(side), found.multipliers, 15)
            return part.bound - found.bound

        neurons = jnp.arange(len(whole))
        return jnp.stack([jax.vmap(lambda i, side=side: gain(i, side))(neurons) for side in (1, -1)])

    # The optimiser starts the part from its own piece, which may cost a little; the search keeps the greater bound.
    assert float(jnp.min(gains(jax.random.key(0)))) > -0.05


def _convolutional(weights, x):
    """Two convolutions 3x3 with stride 2 on 11x11, and a dense layer."""
    convolution = functools.partial(
        jax.lax.conv_general_dilated,
        window_strides=(2, 2),
        padding="VALID",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=jax.lax.Precision.HIGHEST,
    )
    hidden = jax.nn.relu(convolution(x[None], weights[0]))
    hidden = jax.nn.relu(convolution(hidden, weights[1]))
    return jnp.dot(jax.nn.relu(jnp.dot(hidden.ravel(), weights[2])), weights[3])


def test_what_no_cut_reaches_keeps_its_bounds():
    """Bounding everything anew changes nothing else."""
    shapes = ((3, 3, 1, 2), (3, 3, 2, 3), (12, 5), (5, 3))
    rng = np.random.default_rng(0)
    weights = [jnp.asarray(rng.normal(size=shape) / np.sqrt(np.prod(shape[:-1])), jnp.float32) for shape in shapes]
    f, region = as_pytree(jax.tree_util.Partial(_convolutional, weights)), cj.linf_ball(jnp.full((11, 11, 1), 0.5), 0.4)
    root = jax.jit(root_bounds)(f, region)
    graph, known = traced(f, region), root.joined_boxes()
    ends = np.cumsum([box.lower.size for box in root.boxes])
    free = np.flatnonzero((known.lower < 0) & (known.upper > 0))
    unknown = Interval(jnp.full_like(known.lower, -jnp.inf), jnp.full_like(known.upper, jnp.inf))
    # A neuron of each layer.
    sides = np.zeros((3, *known.lower.shape), np.int8)
    sides[range(3), [free[0], free[free >= ends[0]][0], free[free >= ends[1]][0]]] = 1
    boxes = [jax.tree.map(lambda end: jnp.stack([end] * 3), box) for box in (known, unknown)]
    some, all_anew = (narrowed_batch(f, region, root, box, sides) for box in boxes)
    # As accelerators do it.
    together = narrowed_batch(f, region, root, boxes[0], sides, at_once=2)
    for other in (all_anew, together):
        np.testing.assert_allclose(some.boxes.lower, other.boxes.lower, atol=1e-5)
        np.testing.assert_allclose(some.boxes.upper, other.boxes.upper, atol=1e-5)
    assert np.any(np.asarray(some.boxes.lower) > np.asarray(known.lower), axis=1).all()
    network = Network(graph, region, root)
    cut = {index: jnp.zeros(layer.box.shape, bool) for index, layer in network.layers.items()}
    first_layer = next(iter(cut))
    cut[first_layer] = cut[first_layer].at[0, 0, 0, 1].set(True)
    reached = [np.asarray(entries) for entries in _reached(graph, cut)]
    # A corner of the first layer is seen by one window of the second, in all of its channels.
    assert [entries.sum() for entries in reached] == [0, 3, 5]
    assert reached[1].size == 12
