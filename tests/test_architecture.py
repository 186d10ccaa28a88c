"""The house stands as drawn: imports point down, few files know JAX's internals, and the linters are content."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LINT_IMPORTS = "from importlinter.cli import lint_imports_command; lint_imports_command()"
# jax.extend.core and jax.interpreters describe jaxprs: only these files may depend on their shape.
JAXPR_READERS = {"cure_jax/convolution.py", "cure_jax/custom.py", "cure_jax/graph/recording.py", "cure_jax/numerics.py"}


def dotted_names(source: str) -> Iterator[str]:
    """Yields everything a file imports, and every `a.b.c` it mentions, as dotted names."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Attribute):
            yield ast.unparse(node)


def uses(source: str, *modules: str) -> list[str]:
    """Returns the dotted names in `source` that are one of `modules` or lie inside one."""
    return sorted({name for name in dotted_names(source) if f"{name}.".startswith(tuple(f"{m}." for m in modules))})


def offenders(*modules: str, allowed: set[str] = frozenset()) -> dict[str, list[str]]:
    """Maps each file of cure_jax outside `allowed` to the names from `modules` it uses."""
    paths = {path.relative_to(ROOT).as_posix(): path for path in (ROOT / "cure_jax").rglob("*.py")}
    found = {name: uses(path.read_text(), *modules) for name, path in paths.items() if name not in allowed}
    return {name: names for name, names in found.items() if names}


def check(*command: str) -> None:
    """Runs a Python program from the root of the project and fails with its output if it exits non-zero."""
    result = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True, check=False)
    if result.returncode:
        pytest.fail(f"{' '.join(command)}\n{result.stdout}{result.stderr}", pytrace=False)


@pytest.mark.parametrize(
    "source",
    [
        "import jax._src.core",
        "import jax._src as internals",
        "from jax import _src",
        "from jax._src import core",
        "from jax._src.core import Jaxpr",
        "import jax\njax._src.core.Jaxpr",
    ],
)
def test_a_use_of_internals_is_seen_however_it_is_written(source: str):
    assert uses(source, "jax._src")


@pytest.mark.parametrize("source", ["import jax", "from jax import numpy", "from . import _src", "jax_src = 1"])
def test_other_names_are_no_use_of_internals(source: str):
    assert not uses(source, "jax._src")


def test_nothing_imports_the_internals_of_jax():
    assert offenders("jax._src") == {}


def test_only_the_graph_and_primitives_of_our_own_read_jaxprs():
    assert offenders("jax.extend.core", "jax.interpreters", allowed=JAXPR_READERS) == {}


def test_the_library_does_not_import_what_is_built_on_it():
    # The commands are built on the settings.
    allowed = {"cure_jax/testing.py", "cure_jax/commands/completion.py", "cure_jax/commands/parts/settings.py"}
    assert offenders("configs", "launch", "tests", "chex", allowed=allowed) == {}


def test_imports_point_down():
    check("-c", LINT_IMPORTS, "--no-cache", "--no-logo")


def test_ruff_finds_nothing():
    check("-m", "ruff", "check", "--no-cache", "--quiet", ".")


def test_files_are_formatted():
    check("-m", "ruff", "format", "--check", "--no-cache", "--quiet", ".")


def test_types_are_consistent():
    check("-m", "pyright", "--pythonpath", sys.executable)
