"""Training that learns the logits of a teacher: it needs one, which fits, and then no label."""

import re

import chex
import jax
import numpy as np
import pytest

from cure_jax.training import fit
from tests.training import tiny

_MLP = tiny.TinyMLP()
_IMAGES, _LABELS = tiny.data(size=64)
_DISTILLED = {"linf": {"kind": "distilled", "alpha": 0.0, "fraction": 0.2}}
_FIELDS = {"warmup_regularizer": 0.0, "parallel": "jit", "milestones": ()}


def test_a_network_learns_from_the_teacher_what_no_label_says() -> None:
    lessons = {**_FIELDS, "epochs": 20, "learning_rate": 0.05}
    known = fit(_MLP, (_IMAGES, _LABELS), tiny.config(**lessons, losses={"linf": {"kind": "ibp"}}))
    config = tiny.config(**lessons, losses=_DISTILLED, natural_epochs=0.0, natural_ramp_epochs=0.0)
    wrong = np.zeros_like(_LABELS)
    pupil = fit(_MLP, (_IMAGES, wrong), config, teacher=known.classifier)
    images, labels = tiny.data(size=64, seed=1)
    says = [np.argmax(jax.vmap(network.classifier)(images), axis=1) for network in (known, pupil)]
    assert np.mean(says[0] == labels) > 0.95
    assert np.mean(says[1] == says[0]) > 0.95
    chex.assert_tree_all_finite(pupil.variables)


@pytest.mark.parametrize(
    ("teacher", "expected"),
    [
        (None, "the teacher is missing; expected fit(..., teacher=f)"),
        (lambda image: image[0, 0], "gives (1,) for one image; expected logits (3,)"),
        (lambda image: image @ np.zeros((7, 3)), "refuses an image of shape (4, 4, 1)"),
    ],
    ids=["none", "other classes", "other images"],
)
def test_a_teacher_that_does_not_fit_is_refused_before_anything_is_trained(teacher: object, expected: str) -> None:
    with pytest.raises(ValueError, match=re.escape(expected)):
        fit(_MLP, (_IMAGES, _LABELS), tiny.config(**_FIELDS, losses=_DISTILLED), teacher=teacher)
