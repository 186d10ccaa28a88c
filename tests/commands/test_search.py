"""What a search draws, shortens and keeps."""

import numpy as np
import pytest

from cure_jax import configs
from cure_jax.commands.parts import search

SPACE = "losses.l2.fraction=0.4..0.8,learning_rate=1e-3..5e-3:log,optimizer=adam|radam"


def _columns(trials):
    return [[word.partition("=")[2] for word in column] for column in zip(*trials, strict=True)]


def test_trials_fill_every_range_evenly():
    trials = search.draw(search.parse(SPACE), 8)
    fractions, rates, optimizers = _columns(trials)
    eighth = np.floor((np.array(fractions, float) - 0.4) / 0.05 + 1e-6)
    assert sorted(eighth) == list(range(8))
    logarithms = np.log(np.array(rates, float) / 1e-3) / np.log(5) * 8
    assert sorted(np.floor(logarithms)) == list(range(8))
    assert sorted(optimizers) == ["adam"] * 4 + ["radam"] * 4


def test_a_seed_draws_the_same_trials_again_and_another_seed_others():
    space = search.parse(SPACE)
    assert search.draw(space, 5, seed=3) == search.draw(space, 5, seed=3)
    assert search.draw(space, 5, seed=3) != search.draw(space, 5, seed=4)


def test_what_is_drawn_twice_counts_once():
    assert sorted(search.draw(search.parse("optimizer=adam|radam"), 7)) == [("optimizer=adam",), ("optimizer=radam",)]


def test_milestones_and_ramps_shrink_with_the_epochs():
    config = configs.load("digits:max").to_dict() | {"epochs": 24, "milestones": (18, 22), "ramp_end": 10.0}
    shorter = dict(word.split("=") for word in search.shortened(config, 0.5))
    assert (shorter["epochs"], shorter["milestones"], shorter["ramp_end"]) == ("12", "(9,11,)", "5")
    assert float(shorter["natural_epochs"]) == config["natural_epochs"] / 2
    assert search.shortened(config, 1.0) == ()


def test_milestones_at_an_end_are_left_out():
    config = {"epochs": 10, "milestones": (1, 8, 9), "projection": {"start_epoch": 4.0}}
    shorter = dict(word.split("=") for word in search.shortened(config, 0.3))
    assert shorter == {"epochs": "3", "milestones": "(2,)", "projection.start_epoch": "1.2"}


def test_the_better_half_survives_and_ties_go_to_the_next_number():
    scores = {"a": (0.3, 0.1), "b": (0.5, 0.1), "c": (0.3, 0.2), "d": (0.1, 0.9), "e": (0.3, 0.15)}
    assert search.better_half(scores) == ["b", "c", "e"]


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ("", "expected FIELD=LOW..HIGH"),
        ("optimizer", "expected FIELD=LOW..HIGH"),
        ("a=1..2,a=3..4", "names a twice"),
        ("a=1..x", "two numbers"),
        ("a=1..2..3", "two numbers"),
        ("a=2..1", "LOW < HIGH"),
        ("a=0..inf", "LOW < HIGH"),
        ("a=0..1:log", "LOW > 0"),
        ("a=1..2:exp", "nothing or :log"),
    ],
)
def test_says_what_is_wrong_with_a_space(space, message):
    with pytest.raises(ValueError, match=message):
        search.parse(space)


def test_no_trials_and_no_epochs_are_refused():
    with pytest.raises(ValueError, match="0 trials"):
        search.draw(search.parse("a=1..2"), 0)
    for share in (0.0, 1.5):
        with pytest.raises(ValueError, match="expected a share"):
            search.shortened({}, share)
