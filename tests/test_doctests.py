"""Every module imports, and the examples of its docstrings and of the READMEs do what they show.

Examples run as readers run them, with the promotion rules that JAX has by default.
"""

import doctest
import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest

ROOT = Path(__file__).resolve().parents[1]
MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in (ROOT / "cure_jax").rglob("*.py")
    # Each command has flags of the process; they have no examples, and __main__ runs.
    if "commands" not in path.parts and path.stem != "__main__"
)
# Exactly "python": a sketch that cannot run alone is marked ```python sketch, which is highlighted but not run.
PYTHON_BLOCK = re.compile(r"^```python[ ]*\n(.*?)^```[ ]*$", re.MULTILINE | re.DOTALL)
# Of docs/ the pages for newcomers; blocks of the others certify trained networks for minutes.
FOR_NEWCOMERS = ("docs/index.md", "docs/first_hour.md", "docs/interop.md", "docs/sharp_bits.md", "docs/api/testing.md")
# It trains two networks.
SLOW = ("docs/first_hour.md",)
READMES = [*ROOT.glob("README.md"), *(ROOT / "cure_jax").rglob("README.md")]
DOCUMENTS = sorted([*(path.relative_to(ROOT).as_posix() for path in READMES), *FOR_NEWCOMERS])


@pytest.fixture(autouse=True)
def default_promotion() -> Iterator[None]:
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def option_flags(config: pytest.Config) -> int:
    """Returns the flags that pyproject.toml gives to pytest, as doctest wants them."""
    flags = 0
    for name in config.getini("doctest_optionflags"):
        flags |= doctest.OPTIONFLAGS_BY_NAME[name]
    return flags


def run_examples(test: doctest.DocTest, flags: int) -> None:
    """Runs one docstring or block in the namespace `test.globs`; fails with doctest's own report."""
    report: list[str] = []
    failed, _ = doctest.DocTestRunner(optionflags=flags, verbose=False).run(test, out=report.append, clear_globs=False)
    assert not failed, "".join(report)


def run_document(text: str, name: str, flags: int) -> None:
    """Runs the Python blocks of a Markdown text in order, as one session that keeps its names."""
    session: dict[str, object] = {"__name__": "__main__"}
    for block in PYTHON_BLOCK.finditer(text):
        source, line = block.group(1), text.count("\n", 0, block.start(1))
        if ">>> " in source:
            test = doctest.DocTestParser().get_doctest(source, session, name, name, line)
            run_examples(test, flags)
            session = test.globs
        else:
            exec(compile("\n" * line + source, name, "exec"), session)


@pytest.mark.parametrize("module_name", MODULES)
def test_module_examples(module_name: str, request: pytest.FixtureRequest):
    module = importlib.import_module(module_name)
    for test in doctest.DocTestFinder(exclude_empty=True).find(module, module_name):
        run_examples(test, option_flags(request.config))


@pytest.mark.parametrize(
    "document", [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in DOCUMENTS]
)
def test_document_examples(
    document: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)  # some write files
    run_document((ROOT / document).read_text(), document, option_flags(request.config))


def test_blocks_share_one_session():
    run_document("```python\nx = 1\n```\nthen\n```python\n>>> x += 1\n>>> x\n2\n```\n", "doc", 0)


@pytest.mark.parametrize("block", ["```python\nassert 1 == 2\n```\n", "```python\n>>> 1 + 1\n3\n\n```\n"])
def test_a_wrong_example_fails(block: str):
    with pytest.raises(AssertionError):
        run_document(block, "doc", 0)


def test_a_sketch_is_not_run():
    run_document("```python sketch\nassert False\n```\n", "doc", 0)
