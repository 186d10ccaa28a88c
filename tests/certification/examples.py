"""A small network, images of which three are misclassified, and balls around them: some are proved, some are not."""

import jax
import jax.numpy as jnp
import numpy as np

import cure_jax as cj
from tests import networks

REGIONS = {
    "linf": lambda x: cj.linf_ball(x, 0.05, within=(0.0, 1.0)),
    "l2": lambda x: cj.l2_ball(x, 0.08, within=(0.0, 1.0)),
}
F = networks.random_mlp(3)
IMAGES = np.random.default_rng(0).uniform(size=(21, 2)).astype(np.float32)
LABELS = np.array(jnp.argmax(jax.vmap(F)(IMAGES), axis=1))
LABELS[:3] = (LABELS[:3] + 1) % 3
