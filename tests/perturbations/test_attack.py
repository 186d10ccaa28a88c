import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from cure_jax import perturbations

IMAGES = np.float32(np.random.default_rng(0).random((4, 5, 5, 1)))


def network(x):
    """Of class 1 where the upper left corner is bright."""
    return jnp.stack([jnp.float32(0.9), jnp.sum(x[:2, :2])])


def test_no_certificate_lies_above_the_attack():
    f, labels = Partial(network), np.array([1, 1, 1, 1])
    perturbation = perturbations.rotation(-40, 40)
    attack = perturbations.attack_geometric(f, IMAGES, labels, perturbation, key=jax.random.key(0), grid=20, steps=5)
    found = perturbations.certify_perturbation(f, IMAGES, labels, perturbation, method="ibp", batch_size=8)
    assert np.all(found.verified <= attack.survived)
    assert np.all(found.margin[found.verified] <= attack.margin[found.verified] + 1e-6)
    assert 0 < attack.survived.sum() < 4
    # Neither gives up on what the other decides.
    np.testing.assert_array_equal(found.verified, attack.survived)
    for x, theta, margin in zip(IMAGES, attack.parameters, attack.margin, strict=True):
        logits = network(perturbation.apply(jnp.asarray(x), jnp.asarray(theta)))
        assert float(logits[1] - logits[0]) == pytest.approx(float(margin), abs=1e-5)
        grid = jnp.linspace(-40, 40, 81)[:, None]
        values = jax.vmap(lambda t, x=x: network(perturbation.apply(jnp.asarray(x), t))[1] - 0.9)(grid)
        assert float(margin) <= float(values.min()) + 1e-2


def test_a_grid_of_nothing_is_refused():
    with pytest.raises(ValueError, match="grid"):
        perturbations.attack_geometric(
            network, IMAGES, np.zeros(4, int), perturbations.rotation(-1, 1), key=jax.random.key(0), grid=0
        )
