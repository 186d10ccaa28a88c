"""The objective of cells: its worst logits hold for perturbed images, and on the ramp it begins at the clean loss."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cure_jax import data, models, perturbations, training
from cure_jax.training.checks import check
from cure_jax.training.names import identity
from cure_jax.training.objectives import Network, cells, cross_entropy, natural

KEY = jax.random.key(0)
BEYOND = {
    "rotation": perturbations.rotation(-8, 8),
    "patch": perturbations.patch(2),
    "rotation+contrast": perturbations.compose(perturbations.rotation(-3, 3), perturbations.contrast(0.9, 1.1)),
}


@pytest.fixture(scope="module")
def network():
    f = models.pretrained("digits/max").classifier
    return Network(f, f)


@pytest.fixture(scope="module")
def example():
    images, labels, _ = data.load("digits", "test")
    return jnp.asarray(images[0]), jnp.asarray(labels[0], jnp.int32)


@pytest.mark.parametrize("name", BEYOND)
def test_it_begins_at_the_clean_loss_and_bounds_perturbed_images_at_the_end(name, network, example):
    (x, label), perturbation = example, BEYOND[name]
    # So many that all cells are drawn.
    objective = cells(perturbation, count=6 * len(perturbation.cells(x.shape)))
    worst = jax.jit(lambda scale: objective(network, x, label, scale, KEY))
    clean = natural()(network, x, label, jnp.zeros(()), KEY)
    start, end = (cross_entropy(worst(jnp.asarray(scale)).logits, label) for scale in (0.0, 1.0))
    if name == "patch":
        np.testing.assert_allclose(start, cross_entropy(clean.logits, label), rtol=1e-4)
    assert start < end
    drawn = jax.vmap(lambda key: perturbation.sample(x, key))(jax.random.split(KEY, 200))
    losses = cross_entropy(jax.vmap(network.certified)(drawn), jnp.broadcast_to(label, (200,)))
    assert np.max(losses) <= end + 1e-4


def _config(**fields):
    config = training.default_config()
    config.perturbations.update({"rotation": (-8, 8)})
    config.losses = {"linf": {"kind": "small_box"}, "rotation": {"kind": "cells"}}
    config.update(fields)
    return config


def test_a_training_with_cells_reports_them_beside_the_norms():
    images, labels, _ = data.load("digits", "train")
    config = _config(epochs=1, ramp_end=1.0, milestones=(), natural_epochs=0.0, batch_size=64, scan_steps=2)
    model = models.create("mlp", 10, features=(16,))
    fitted = training.fit(model, (images[:256], labels[:256]), config)
    last = fitted.history[-1]
    assert 0 <= last["worst_accuracy/rotation"] <= 1
    assert np.isfinite(last["loss"])


@pytest.mark.parametrize(
    ("losses", "message"),
    [
        ({"shear": {"kind": "cells"}}, "Unknown norm 'shear'"),
        ({"rotation": {"kind": "ibp"}}, "cells for what perturbations has"),
        ({"linf": {"kind": "cells"}}, "cells for what perturbations has"),
        ({"rotation": {"kind": "cells", "count": 0}}, "at least 1"),
    ],
)
def test_says_what_is_wrong(losses, message):
    check(_config())
    with pytest.raises(ValueError, match=message):
        check(_config(losses=losses))


def test_the_range_that_is_trained_determines_a_run_and_what_is_only_certified_does_not():
    wider, reported = _config(), _config()
    wider.perturbations.rotation = (-9, 9)
    reported.perturbations.shear = (-0.1, 0.1)
    assert identity(reported.to_dict()) == identity(_config().to_dict()) != identity(wider.to_dict())
