"""configs/pod.py: any setting with a big batch; what counts examples stays, what counts steps shrinks."""

import jax
import pytest

from cure_jax.configs import digits, pod
from cure_jax.training.checks import check
from cure_jax.training.config import build_recipe
from cure_jax.training.names import identity
from tests.training import tiny


def test_a_big_batch_keeps_epochs_and_scales_the_rest() -> None:
    base, big = digits.get_config("max"), pod.get_config("digits:max@512")
    check(big)
    assert (base.batch_size, big.batch_size) == (128, 512)
    assert big.learning_rate == pytest.approx(2 * base.learning_rate)
    assert big.warmup_epochs == base.natural_epochs == 1.0
    assert (big.scan_steps, big.checkpoint_every) == (base.scan_steps // 4, base.checkpoint_every // 4)
    changed = {name for name in base if base[name] != big[name]}
    assert changed == {"batch_size", "learning_rate", "warmup_epochs", "scan_steps", "checkpoint_every"}
    assert pod.get_config().batch_size == pod.get_config("mnist_small:scratch").batch_size == pod.BATCH
    assert pod.get_config("digits:l2").name == "l2"


def test_the_learning_rate_warms_up_during_its_epochs() -> None:
    config = tiny.config(warmup_epochs=2.0, milestones=(), learning_rate=0.5)
    recipe = build_recipe(config, tiny.TinyMLP(), 4)
    parameters = {"w": 0.0}
    state, sizes = recipe.optimizer.init(parameters), []
    with jax.numpy_dtype_promotion("standard"):
        for _ in range(12):
            update, state = recipe.optimizer.update({"w": 1.0}, state, parameters)
            sizes.append(-float(update["w"]))
    assert sizes == pytest.approx([0.5 * min(1, (step + 1) / 8) for step in range(12)], rel=1e-4)


def test_a_work_directory_from_before_warm_up_can_be_resumed() -> None:
    assert "warmup_epochs" not in identity(tiny.config())
    assert identity(tiny.config(warmup_epochs=2.0))["warmup_epochs"] == 2.0
    assert "profile_steps" not in identity(tiny.config(profile_steps=(1, 2)))


@pytest.mark.parametrize(
    ("spelling", "message"),
    [
        ("mnits:scratch", r"Unknown setting 'mnits'.*SETTING:METHOD"),
        ("pod:scratch", r"Unknown setting 'pod'"),
        ("digits:scratch@big", r"batch of .* is 'big'; expected a number"),
        ("digits:srcatch", r"Unknown method 'srcatch'"),
    ],
)
def test_mistakes_are_named(spelling: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pod.get_config(spelling)


@pytest.mark.parametrize("span", [(5,), (5, 2), (-1, 2), (1, 2, 3)])
def test_a_span_to_profile_is_two_steps(span: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"config\.profile_steps is .*expected \(\), or the first and the last step"):
        check(tiny.config(profile_steps=span))
