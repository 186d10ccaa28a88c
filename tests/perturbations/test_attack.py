import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

import cure_jax as cj
from cure_jax import perturbations

IMAGES = np.float32(np.random.default_rng(0).random((4, 5, 5, 1)))


def network(x):
    """Of class 1 where the upper left corner is bright."""
    return jnp.stack([jnp.float32(0.9), jnp.sum(x[:2, :2])])


def test_no_certificate_lies_above_the_attack():
    f, labels = Partial(network), np.array([1, 1, 1, 1])
    perturbation = perturbations.rotation(-40, 40)
    attack = perturbations.attack_perturbation(f, IMAGES, labels, perturbation, key=jax.random.key(0))
    found = perturbations.certify_perturbation(f, IMAGES, labels, perturbation, method="ibp", batch_size=8)
    assert np.all(found.verified <= attack.survived)
    assert np.all(found.margin[found.verified] <= attack.margin[found.verified] + 1e-6)
    assert 0 < attack.survived.sum() < 4
    # Neither gives up on what the other decides.
    np.testing.assert_array_equal(found.verified, attack.survived)
    for x, point, margin in zip(IMAGES, attack.points, attack.margin, strict=True):
        logits = network(jnp.asarray(point))
        assert float(logits[1] - logits[0]) == pytest.approx(float(margin), abs=1e-5)
        grid = jnp.linspace(-40, 40, 81)[:, None]
        values = jax.vmap(lambda t, x=x: network(perturbation.apply(jnp.asarray(x), t))[1] - 0.9)(grid)
        assert float(margin) <= float(values.min()) + 1e-2


def test_a_grid_of_nothing_is_refused():
    with pytest.raises(ValueError, match="grid"):
        perturbations.geometric_attack(
            network, jnp.asarray(IMAGES[0]), 0, perturbations.rotation(-1, 1), key=jax.random.key(0), grid=0
        )


class Shifted:
    """Brightness as a user's own perturbation: no attack knows it."""

    def cells(self, shape):
        return np.array([[0.0]], np.float32)

    def split(self, cell, shape):
        return np.zeros((0, 1), np.float32)

    def inputs(self, x, cell):
        return perturbations.Inputs(cj.box(x - 0.2, x + 0.2), lambda image: image, x)

    def sample(self, x, key):
        return x + jax.random.uniform(key, (), x.dtype, -0.2, 0.2)


jax.tree_util.register_static(Shifted)


@pytest.mark.parametrize(
    "perturbation", [perturbations.patch(2), perturbations.pixels(2), Shifted()], ids=["patch", "pixels", "own"]
)
def test_every_perturbation_has_an_attack_that_stays_inside(perturbation):
    labels = np.array([1, 1, 1, 1])
    attack = perturbations.attack_perturbation(
        Partial(network), IMAGES, labels, perturbation, key=jax.random.key(0), batch_size=3
    )
    changed = np.sum(np.any(attack.points != IMAGES, axis=-1), axis=(1, 2))
    if not isinstance(perturbation, Shifted):
        assert np.all(changed <= {"Patch": 4, "Pixels": 2}[type(perturbation).__name__])
    # The corner has at most four pixels: darkened, it falls below the threshold where the sum was small.
    assert np.all(attack.margin < [network(jnp.asarray(x))[1] - 0.9 for x in IMAGES])
    right = [float(network(jnp.asarray(x))[1]) > 0.9 for x in attack.points]
    np.testing.assert_array_equal(attack.survived, right)
