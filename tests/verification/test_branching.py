"""Splits are chosen by what they gain."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

import cure_jax as cj
from cure_jax.certification.batches import as_pytree
from cure_jax.verification.branching import Rates, worth
from cure_jax.verification.problem import Specification
from cure_jax.verification.roots import narrowed, root_bounds, traced
from cure_jax.verification.split_bound import Network, free_of, least
from cure_jax.verification.steps import Batch, bound_batch, first_multipliers, whole_batch
from tests.networks import random_mlp

SPECIFICATIONS = Specification(np.float32([[[1, -1, 0]], [[1, 0, -1]]]), np.float32([[-0.3], [-0.4]]))


def batch_of_whole(root, starts):
    which = np.arange(2, dtype=np.int32)
    return Batch(which, jnp.zeros(starts.share.shape, jnp.int8), whole_batch(root, 2).boxes, starts)


def test_candidates_are_the_best_of_their_layers():
    f, region = as_pytree(random_mlp(3, (4, 12, 12, 3))), cj.linf_ball(jnp.array([0.4, 0.6, 0.1, 0.3]), 0.3)
    specifications = jax.tree.map(jnp.asarray, SPECIFICATIONS)
    root = root_bounds(f, region)
    domains = batch_of_whole(root, first_multipliers(f, region, root, specifications))
    step = bound_batch(f, region, root, specifications, domains, whole_batch(root, 2), steps=5, tried=24)
    network = Network(traced(f, region), region, root)
    free = np.asarray(free_of(network))
    assert free.sum() > 6
    one = functools.partial(jax.tree.map, lambda leaf: leaf[1])

    def half(neuron, side, *, again):
        sides = jnp.zeros(24, jnp.int8).at[neuron].set(side)
        start = one(step.multipliers)
        start = start._replace(beta=start.beta.at[neuron].set(0))
        inside = narrowed(network.graph, region, root, root.joined_boxes(), sides) if again else root
        value = least(Network(network.graph, region, inside), one(specifications), sides, start)[0]
        return jnp.minimum(value, 0)

    for layer, part in enumerate((slice(0, 12), slice(12, 24))):
        trials = {
            i: worth(half(i, 1, again=False), half(i, -1, again=False)) for i in range(part.start, part.stop) if free[i]
        }
        chosen = int(step.candidates.neurons[1, layer])
        assert trials[chosen] >= max(trials.values()) - 1e-5
    # A split of the first layer gains more where the second is bounded anew.
    neuron = int(step.candidates.neurons[1, 0])
    assert half(neuron, 1, again=True) > half(neuron, 1, again=False) + 1e-3


def test_rates_learn_which_layer_gains_for_what_it_is_off_by():
    rates = Rates(np.zeros((2, 3)))
    slack = np.array([[1.0, 2.0, 4.0], [1.0, 2.0, -1.0]])
    rates.learn(np.array([[3.0, 2.0, 0.4], [3.0, 2.0, np.nan]]), slack)
    np.testing.assert_allclose(rates.gains(np.array([1.0, 1.0, 10.0])), [3.0, 1.0, 1.0])
    assert rates.gains(np.array([1.0, 2.5, -1.0])).tolist() == [3.0, 2.5, -1.0]
    again = Rates(rates.sums)
    np.testing.assert_array_equal(again.gains(slack), rates.gains(slack))
