"""The reference of configs: complete, and the same in help, in the command line and in the documents."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cure_jax import training
from cure_jax.training import reference
from cure_jax.training.checks import warn
from cure_jax.training.collapse import watch_for_collapse
from cure_jax.training.config import default_config, objective_of
from cure_jax.training.fields import FIELDS
from cure_jax.training.losses import LOSSES
from cure_jax.training.names import RENAMED, is_known, with_new_names
from tests.training import tiny

ROOT = Path(__file__).parents[2]


def test_the_document_is_what_the_tables_print() -> None:
    assert (ROOT / "docs" / "config.md").read_text() == reference.markdown(), (
        "print it again: python launch/reference.py > docs/config.md"
    )


def test_help_and_the_document_have_every_field_and_loss_and_each_says_what_it_is_and_when_to_use_it() -> None:
    shown, document = training.default_config.__doc__ or "", reference.markdown()
    for path, field in FIELDS.items():
        assert f"\n  {path} = {field.default!r}" in shown
        assert f"| `{path}` | `{field.default!r}` | {field.unit} |" in document
        assert field.meaning.endswith((".", ")"))
        assert field.use, path
    for kind, loss in LOSSES.items():
        assert f"\n  {kind}" in shown
        assert f"### `{kind}`" in document
        assert loss.meaning
        assert loss.use
        assert all(field.meaning and field.use for field in loss.fields.values())


@pytest.mark.parametrize("kind", LOSSES)
def test_every_loss_can_be_made_of_its_fields(kind: str) -> None:
    fields = {name: field.default for name, field in LOSSES[kind].fields.items()}
    name = "rotation" if kind == "cells" else "l2"
    config = tiny.config(losses={name: {"kind": kind, **fields}})
    config.perturbations.rotation = (-5, 5)
    assert callable(objective_of(config, name, config.losses[name]))


def test_old_names_are_of_no_field_and_become_new_ones() -> None:
    assert not any(is_known(old) for old in RENAMED)
    assert all(new in FIELDS for new in RENAMED.values())
    assert with_new_names({"l1": 1e-6, "epochs": 2}) == {"l1_penalty": 1e-6, "epochs": 2}


def test_a_default_config_does_not_share_its_dictionaries_with_the_next() -> None:
    first = default_config()
    first.radii.linf = 0.7
    first.losses.linf.ratio = 0.9
    assert (default_config().radii.linf, default_config().losses.linf.ratio) == (0.1, 0.4)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"ramp_end": 4.0}, "The radius is reached at epoch 4 (ramp_end), but the training ends after 3"),
        ({"milestones": (2, 3)}, "The learning rate falls at [3] (milestones), but the training ends after 3"),
        ({"radii.linf": 8.0}, "config.radii.linf is 8, but no two images of shape (4, 4, 2)"),
        ({"radii.l2": 6.0}, "are further apart than 5.65685 in l2"),
        ({"reported": {"l1": 32.0}}, "config.reported.l1 is 32,"),
        ({"checkpoint_every": 3}, "checkpoint_every 3 is no multiple of scan_steps 2"),
    ],
    ids=str,
)
def test_what_is_rarely_meant_is_said(fields: dict[str, Any], message: str, caplog: pytest.LogCaptureFixture) -> None:
    warn(tiny.config(), (4, 4, 2), 2)
    assert not caplog.messages
    warn(tiny.config(**fields), (4, 4, 2), 2)
    assert [message in said for said in caplog.messages] == [True]


def test_milestones_that_are_not_used_may_lie_anywhere(caplog: pytest.LogCaptureFixture) -> None:
    warn(tiny.config(milestones=(2, 3), learning_rate_decay="cosine"), (4, 4, 2), 2)
    assert not caplog.messages


def _record(scale: float, accuracy: float) -> dict[str, float | int]:
    return {"step": 7, "radius_scale": scale, "accuracy": accuracy}


def test_a_collapse_is_told_once_and_only_at_the_full_radius(caplog: pytest.LogCaptureFixture) -> None:
    labels = np.array([0, 0, 0, 1, 2])
    for records in ([(0.5, 0.6), (1.0, 0.6)], [(1.0, 0.9), (1.0, 0.7)]):
        watch_for_collapse(labels)([_record(*record) for record in records])
    assert not caplog.messages
    watch = watch_for_collapse(labels)
    for _ in range(2):
        watch([_record(1.0, 0.61), _record(1.0, 0.61)])
    assert len(caplog.messages) == 1
    assert "collapsed: at step 7, at the full radius, 61.0 % " in caplog.messages[0]
    assert "would have 60.0 %" in caplog.messages[0]


def test_fit_says_that_a_training_has_collapsed(caplog: pytest.LogCaptureFixture) -> None:
    # At this radius the box of an image holds all others.
    fields = {"radii": {"linf": 0.9}, "losses": {"linf": {"kind": "ibp"}}, "learning_rate": 0.1, "epochs": 20}
    with caplog.at_level(logging.WARNING):
        training.fit(tiny.TinyMLP(), tiny.data(), tiny.config(parallel="jit", **fields))
    assert sum("has collapsed" in message for message in caplog.messages) == 1
