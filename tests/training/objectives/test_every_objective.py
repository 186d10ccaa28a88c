"""Nothing breaks while the radius is 0, and gradients flow through the certified network alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from cure_jax import smoothing
from cure_jax.training import objectives
from cure_jax.training.objectives import Objective
from tests.networks import mlp, mlp_params
from tests.training.objectives.one_example import FOUR_PIXELS, KEY, ball_of, network_of

_EVERY_OBJECTIVE: dict[str, Objective] = {
    "natural": objectives.natural(),
    "lipschitz": objectives.lipschitz(0.1),
    "adversarial": objectives.adversarial(ball_of(np.inf), 0.1, steps=2),
    "box": objectives.box(ball_of(np.inf), 0.1),
    "small_box": objectives.small_box(ball_of(np.inf), 0.1, ratio=0.4, steps=2),
    "small_box, l2": objectives.small_box(ball_of(2.0), 0.1, ratio=0.4, steps=2),
    "dual_norm, l2": objectives.dual_norm(ball_of(2.0), 0.1),
    "dual_norm, l1": objectives.dual_norm(ball_of(1.0), 0.1),
    "noisy": objectives.noisy(smoothing.gaussian(0.2), samples=2, consistency=1.0),
}


@pytest.mark.parametrize("name", _EVERY_OBJECTIVE)
def test_gradients_are_finite_at_every_scale_and_flow_through_the_certified_network_alone(name: str) -> None:
    objective = _EVERY_OBJECTIVE[name]
    assert isinstance(objective, objectives.Objective)

    def loss(certified: list, attacked: list, scale: jax.Array) -> jax.Array:
        f, g = (Partial(mlp, params) for params in (certified, attacked))
        network = network_of(f, g, lipschitz=1.0 - jnp.eye(2))
        worst = objective(network, FOUR_PIXELS, jnp.int32(1), scale, KEY)
        assert worst.logits.shape == (2,)
        return jnp.sum(worst.logits * jnp.array([1.0, 3.0])) + jnp.sum(worst.logits**2)

    params = mlp_params(2, (4, 5, 2))
    gradient = jax.jit(jax.grad(loss, argnums=(0, 1)))
    for scale in (0.0, 1.0):
        certified, attacked = gradient(params, params, jnp.float32(scale))
        assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(certified))
        assert any(np.any(leaf != 0) for leaf in jax.tree.leaves(certified))
        assert all(np.all(leaf == 0) for leaf in jax.tree.leaves(attacked))
