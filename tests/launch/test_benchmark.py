"""The benchmarks at tiny sizes: what they report, and that wrong results do not pass; nothing here is about speed."""

import contextlib
import json
import math
import stat
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cure_jax as cj
from cure_jax.commands import benchmark
from cure_jax.commands.benchmarks import domains, methods, projection, timing, train

BOUNDS = ("bounds", "--features", "2", "--strides", "2", "--size", "4", "--dense", "3", "--rounds", "2")
# Answers as a verifier would that bounds margins from far below at the radius 0.1, and from above at others.
VERIFIER = """
import json, sys
print("ready", flush=True)
for line in sys.stdin:
    eps = json.loads(line)["eps"]
    lower = [-1e6 if eps == 0.1 else 1e6] * 9
    print(json.dumps({"wall": 0.5, "cpu": 0.25, "lower": lower, "eps": eps}), flush=True)
"""


def run(tmp_path: Path, *arguments: str) -> tuple[int, dict]:
    path = tmp_path / "result.json"
    status = benchmark.main([*arguments, f"--json={path}"])
    return status, json.loads(path.read_text())


def verifier(tmp_path: Path, source: str) -> list[str]:
    """Flags of a verifier whose interpreter runs `source`, whatever it is asked to run."""
    (tmp_path / "verifier.py").write_text(source)
    interpreter = tmp_path / "python"
    interpreter.write_text(f"#!/bin/sh\nexec {sys.executable} {tmp_path}/verifier.py\n")
    interpreter.chmod(interpreter.stat().st_mode | stat.S_IXUSR)
    return [f"--peer_python={interpreter}", f"--auto_lirpa={tmp_path}"]


# Answers as PyTorch would that trains in half a second.
TRAINER = """
import json, sys
print("ready", flush=True)
for line in sys.stdin:
    assert json.loads(line)["channels"] in ("first", "last")
    print(json.dumps({"wall": 0.5, "cpu": 0.25, "loss": 2.0}), flush=True)
"""


def check_rows(report: dict, names: list[str]) -> None:
    assert [row["name"] for row in report["rows"]] == names
    for row in report["rows"]:
        assert all(math.isfinite(value) and value >= 0 for name, value in row.items() if name != "name")
        assert 0 < row["shortest"] <= row["median"]
    assert all(check["holds"] for check in report["checks"].values())


def test_bounds_report_times_bounds_and_a_table(tmp_path, capsys):
    status, result = run(tmp_path, *BOUNDS, "--eps", "0.01", "0.1")
    assert status == 0
    assert [report["facts"]["eps"] for report in result["reports"]] == [0.01, 0.1]
    for report in result["reports"]:
        check_rows(report, ["forward + backward", "ibp", "crown-ibp", "crown"])
        assert report["rows"][0]["ratio"] == report["rows"][0]["median_ratio"] == 1
    small, large = (np.array(report["facts"]["lower"]) for report in result["reports"])
    assert small.shape == (9,)
    assert np.all(large < small)
    assert {"rounds", "seed", "device", "cores", "load", "versions"} <= set(result)
    printed = capsys.readouterr().out
    assert "linf, eps 0.01, cut by [0, 1]" in printed
    assert "least sampled margin minus its lower bound" in printed
    assert "the programs alternating" in " ".join(printed.split())


METHODS = ("methods", "--networks", "digits/max", "--norms", "linf", "--images=2", "--methods", "ibp", "crown")


@pytest.mark.slow
def test_domains_are_timed_and_the_whole_is_below_an_attack(tmp_path, monkeypatch):
    arguments = ("domains", "--networks", "digits/max", "--norms", "l2", "--batch_size=9", "--steps=2")
    status, result = run(tmp_path, *arguments)
    assert status == 0
    (report,) = result["reports"]
    check_rows(report, ["crown, of a region", "a domain, 2 steps"])
    assert report["facts"]["domains_a_second"] == pytest.approx(1 / report["rows"][1]["shortest"])
    right = domains.bound_batch

    def wrong(*arguments, **options):
        found = right(*arguments, **options)
        return found._replace(bound=found.bound + 100)

    monkeypatch.setattr(domains, "bound_batch", wrong)
    assert run(tmp_path, *arguments)[0] == 1


def test_methods_report_what_each_proves(tmp_path, monkeypatch):
    status, result = run(tmp_path, *METHODS)
    assert status == 0
    (report,) = result["reports"]
    check_rows(report, ["ibp", "crown"])
    assert report["rows"][1]["ratio"] == 1
    assert report["title"] == "digits/max, linf 0.13, 2 images"
    ibp, crown = (report["facts"]["methods"][name]["mean_margin"] for name in ("ibp", "crown"))
    assert ibp < crown

    def wrong(f):
        return lambda region: jax.tree.map(lambda end: end + 100, cj.crown(f)(region))

    monkeypatch.setattr(methods, "METHODS", {**methods.METHODS, "ibp": wrong})
    assert run(tmp_path, *METHODS)[0] == 1


@pytest.mark.slow
def test_methods_that_optimise_see_what_a_cheap_one_leaves_open(tmp_path, monkeypatch):
    # With a method in the place of one that optimises, so that little is compiled.
    monkeypatch.setattr(methods, "METHODS", {**methods.METHODS, "sdp_crown": cj.crown})
    options = ("methods", "--networks", "digits/max", "--norms", "l2", "--methods", "ibp", "sdp_crown")
    status, result = run(tmp_path, *options, "--after=ibp")
    assert status == 0
    (report,) = result["reports"]
    check_rows(report, ["ibp", "sdp_crown", "sdp_crown after ibp"])
    facts = report["facts"]["methods"]
    assert facts["ibp"]["proved"] < facts["sdp_crown"]["proved"] <= facts["sdp_crown after ibp"]["proved"]

    # Bounds of other margins than those that are open prove less.
    monkeypatch.setattr(methods.cascade, "open_columns", lambda lower: np.argsort(-lower, axis=1)[:, :1])
    assert run(tmp_path, *options, "--after=ibp")[0] == 1


def test_bounds_looser_than_those_of_the_other_verifier_do_not_pass(tmp_path, capsys):
    status, result = run(tmp_path, *BOUNDS, "--eps", "0.1", "0.2", *verifier(tmp_path, VERIFIER))
    assert status == 1
    for eps, theirs, holds in ((0.1, -1e6, True), (0.2, 1e6, False)):
        ours, beside = (report for report in result["reports"] if report["facts"]["eps"] == eps)
        assert [row["name"] for row in beside["rows"]] == ["crown", "auto_LiRPA crown"]
        assert (beside["rows"][1]["shortest"], beside["rows"][1]["cpu"]) == (0.5, 0.25)
        (check,) = beside["checks"].values()
        assert check["holds"] == holds
        assert check["value"] == pytest.approx(min(ours["facts"]["lower"]) - theirs)
    assert capsys.readouterr().out.count("BAD") == 1


def test_bounds_that_a_sampled_input_breaks_do_not_pass(tmp_path, monkeypatch):
    def wrong(f, **_):
        return lambda region: cj.Interval(f(region.center) + 1.0, f(region.center) + 1.0)

    monkeypatch.setattr(cj, "crown", wrong)
    status, result = run(tmp_path, *BOUNDS, "--eps=0.01")
    assert status == 1
    (check,) = result["reports"][0]["checks"].values()
    assert check["value"] < 0
    assert not check["holds"]


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--auto_lirpa=somewhere"], "Only one of --auto_lirpa and --peer_python is given"),
        (["--strides", "1", "2"], "1 features but 2 strides"),
        (["--weights=missing.npz"], "missing.npz"),
    ],
)
def test_mistakes_end_in_one_sentence(capsys, flags, expected):
    with pytest.raises(SystemExit) as ended:
        benchmark.main([*BOUNDS, *flags])
    assert ended.value.code == 1
    (message,) = capsys.readouterr().err.strip().splitlines()
    assert message.startswith("error: ")
    assert expected in message


def test_a_verifier_that_cannot_run_is_named_with_its_last_words(tmp_path, capsys):
    flags = verifier(tmp_path, "raise SystemExit('ModuleNotFoundError: no torch here')")
    with pytest.raises(SystemExit):
        benchmark.main([*BOUNDS, *flags])
    message = capsys.readouterr().err
    assert "ended with status 1 instead of answering: ModuleNotFoundError: no torch here" in message


def test_weights_of_a_file_are_used_and_wrong_ones_named(tmp_path, capsys):
    shapes = {"Conv_0": (3, 3, 1, 2), "Dense_0": (8, 3), "Dense_1": (3, 10)}
    names = {f"{layer}/kernel": shape for layer, shape in shapes.items()}
    names |= {f"{layer}/bias": shape[-1:] for layer, shape in shapes.items()}
    weights = {name: np.zeros(shape, np.float32) for name, shape in names.items()}
    weights["Dense_1/bias"] = np.arange(10, dtype=np.float32)
    path = tmp_path / "weights.npz"
    np.savez(path, **weights, image=np.full((4, 4, 1), 0.5), label=9)
    _, result = run(tmp_path, *BOUNDS, f"--weights={path}")
    # Without kernels the margins are those of the last bias, whatever the input.
    np.testing.assert_allclose(result["reports"][0]["facts"]["lower"], 9 - np.arange(9.0))
    np.savez(path, **weights | {"Conv_0/bias": np.zeros(3, np.float32)})
    with pytest.raises(SystemExit):
        benchmark.main([*BOUNDS, f"--weights={path}"])
    assert "Conv_0/bias (2,)" in capsys.readouterr().err


def test_convolution_reports_both_in_and_out_of_a_loop(tmp_path):
    status, result = run(
        tmp_path, "convolution", "--rounds=2", "--batch=2", "--size=6", "--features", "2", "--dense=3", "--steps=2"
    )
    assert status == 0
    (report,) = result["reports"]
    check_rows(report, ["cure_jax, no loop", "cure_jax, in scan", "lax, no loop", "lax, in scan"])


def test_projection_reports_both_and_their_difference(tmp_path):
    status, result = run(tmp_path, "projection", "--rounds=2", "--batch=4")
    assert status == 0
    (report,) = result["reports"]
    check_rows(report, ["bisection", "LpBall.project"])


def test_a_wrong_projection_does_not_pass(tmp_path, monkeypatch):
    monkeypatch.setattr(projection, "_bisected", lambda center, point, eps: jnp.clip(point, 0.0, 1.0))
    status, result = run(tmp_path, "projection", "--rounds=2", "--batch=4")
    assert status == 1
    assert not result["reports"][0]["checks"]["largest difference of a pixel"]["holds"]


def test_programs_take_turns_and_ratios_are_of_the_reference():
    order, clock = [], {"a": iter([9.0, 9.0, 2.0, 4.0]), "b": iter([8.0, 8.0, 6.0, 4.0])}

    def program(name: str) -> timing.Seconds:
        order.append(name)
        seconds = next(clock[name])
        return timing.Seconds(seconds, 2 * seconds)

    taken = timing.take_turns({name: lambda name=name: program(name) for name in clock}, rounds=2)
    assert order == ["a", "b"] * 4
    first, second = timing.rows(taken, "a")
    assert first == timing.Row("a", 9.0, 2.0, 3.0, 4.0, 1.0, 1.0, 1.0)
    # In the first round b takes three times as long as a, in the second as long as a.
    assert second == timing.Row("b", 8.0, 4.0, 5.0, 8.0, 2.0, 2.0, 2.0)


def test_short_functions_are_called_until_a_measurement_can_be_read():
    calls = []
    program = timing.in_process(lambda: calls.append(0), repeats=2)
    counts = []
    for _ in range(3):
        before = len(calls)
        assert program().wall > 0
        counts.append(len(calls) - before)
    assert counts[:2] == [1, 1]
    assert counts[2] > 1


def test_memory_is_measured_and_limited(tmp_path):
    small = ("memory", "--model=mlp", "--shape", "3", "3", "1", "--rounds", "1", "--method=ibp")
    status, result = run(tmp_path, *small)
    assert status == 0
    (report,) = result["reports"]
    check_rows(report, ["forward", "ibp"])
    assert 0.05 < report["facts"]["peak_gib"] < 10
    assert run(tmp_path, *small, "--limit_gib=0.01")[0] == 1


@pytest.mark.slow
@pytest.mark.parametrize(("loss", "beside"), [("ibp", 2), ("lipschitz", 0)])
def test_training_steps_are_timed_with_flags_without_and_beside_pytorch(tmp_path, loss, beside):
    peer, _ = verifier(tmp_path, TRAINER)
    tiny = ("--network=small", "--batch=2", "--steps=1", "--rounds=1")
    status, result = run(tmp_path, "train", *tiny, f"--loss={loss}", peer)
    assert status == 0
    (report,) = result["reports"]
    check_rows(report, ["cure_jax", "no flags", "torch, channels first", "torch, channels last"][: 2 + beside])
    assert all(row["shortest"] == 0.5 for row in report["rows"][2:])
    assert report["facts"]["cure_jax"]["loss"] == pytest.approx(report["facts"]["no flags"]["loss"], rel=1e-3)


def test_a_loss_that_the_flags_change_does_not_pass(tmp_path, monkeypatch):
    answers = iter([1.0, 1.1] * 3)

    @contextlib.contextmanager
    def started(*_):
        yield lambda request: {"wall": 1.0, "cpu": 1.0, "loss": next(answers)}

    monkeypatch.setattr(train.peer, "started", started)
    status, result = run(tmp_path, "train", "--loss=natural", "--rounds=1")
    assert status == 1
    (check,) = result["reports"][0]["checks"].values()
    assert check["value"] == pytest.approx(0.1 / 1.1)
