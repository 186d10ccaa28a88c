"""Tutorials do what they show: every cell runs, and prints what was saved with it, numbers give or take."""

import contextlib
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest

DOCS = Path(__file__).parents[2] / "docs"
NOTEBOOKS = sorted(path.stem for path in (DOCS / "tutorials").glob("*.ipynb"))
SLOW = ("certify_your_function", "to_a_pod_and_back", "train_in_three_norms")
NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


@pytest.fixture(autouse=True)
def default_promotion() -> Iterator[None]:
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def assert_same_output(printed: str, saved: str) -> None:
    """Words are the same, whole numbers too; others within 0.1, as rounding and random numbers change with versions."""
    assert NUMBER.sub("#", printed) == NUMBER.sub("#", saved)
    for one, other in zip(NUMBER.findall(printed), NUMBER.findall(saved), strict=True):
        assert float(one) == pytest.approx(float(other), abs=0.1 if "." in other else 0.0), (printed, saved)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in NOTEBOOKS]
)
def test_a_notebook_prints_what_was_saved(name, tmp_path, monkeypatch):
    notebook = json.loads((DOCS / "tutorials" / f"{name}.ipynb").read_text())
    monkeypatch.chdir(tmp_path)
    session: dict[str, object] = {"__name__": "__main__"}
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert any(cell["outputs"] for cell in cells)
    for cell in cells:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile("".join(cell["source"]), f"{name}.ipynb", "exec"), session)
        saved = "".join("".join(output["text"]) for output in cell["outputs"])
        assert_same_output(printed.getvalue(), saved)


@pytest.mark.parametrize("wrong", ["proved 0.3\n", "broken 0.5\n", "proved 12 of 0.5\n"])
def test_another_output_is_noticed(wrong):
    assert_same_output("proved 0.54\n", "proved 0.5\n")
    with pytest.raises(AssertionError):
        assert_same_output(wrong, "proved 0.5\n")
