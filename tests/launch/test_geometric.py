import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cure_jax as cj
from cure_jax import perturbations
from cure_jax.regions import Interval
from launch.checks import geometric

IMAGE = jnp.asarray(np.float32(np.random.default_rng(0).random((6, 6, 1))))


def test_a_benchmark_or_a_call_is_a_perturbation():
    assert geometric.parsed("mnist_R(30)") == perturbations.rotation(-30, 30)
    assert geometric.parsed("rotation(-10, 10.5)") == perturbations.rotation(-10, 10.5)
    both = perturbations.compose(perturbations.scaling(0.9, 1.1), perturbations.translation((-1, 2), (-1, 2)))
    assert geometric.parsed("scaling(0.9, 1.1) + translation(-1, 2)") == both
    for wrong in (
        "rotation",
        "rotation(1)",
        "rotation(low, 3)",
        "__import__('os')",
        "blur(0, 1) - blur(0, 1)",
        "f(0, 1)",
    ):
        with pytest.raises(ValueError, match=r"expected one of mnist_R\(30\)"):
            geometric.parsed(wrong)


def test_the_published_bounds_refuse_what_they_are_not_made_for():
    whole = Interval(jnp.array([0.1, 0.1]), jnp.array([0.2, 0.2]))
    for text in ("brightness(0, 1) + rotation(0, 1)", "rotation(0, 1) + blur(0, 1)"):
        with pytest.raises(ValueError, match="movements of pixels, then colours; got "):
            geometric.pixel_box(geometric.parsed(text), IMAGE, whole)


def test_the_published_boxes_hold_and_are_wider():
    perturbation = perturbations.compose(perturbations.rotation(-10, 10), perturbations.brightness(-0.1, 0.1))
    low, high = jnp.array([2.0, 0.01]), jnp.array([2.1, 0.011])
    box = geometric.pixel_box(perturbation, IMAGE, Interval(low, high))
    region = cj.box(low, high)
    for key in jax.random.split(jax.random.key(0), 10):
        image = perturbation.apply(IMAGE, region.sample(key))
        assert bool(jnp.all((image >= box.lower - 1e-5) & (image <= box.upper + 1e-5)))
    own = cj.ibp(lambda theta: perturbation.apply(IMAGE, theta))(region)
    assert float(jnp.mean(box.upper - box.lower)) > 2 * float(jnp.mean(own.upper - own.lower))
    inputs = geometric.PublishedIntervals(perturbation).inputs(IMAGE, jnp.concatenate([low, high]))
    assert bool(inputs.region.contains(inputs.point))
