"""The site is built without a warning, has every public name, and its links lead somewhere."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import cure_jax as cj

DOCS = Path(__file__).parents[2] / "docs"
BUILDERS = ("sphinx", "myst_nb", "furo")
needs_sphinx = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in BUILDERS),
    reason=f"{', '.join(BUILDERS)} build the site: pip install 'cure-jax[docs]'",
)


def module(name: str) -> ModuleType:
    """A file of docs/, which is no package."""
    path = DOCS / f"{name}.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


@needs_sphinx
def test_the_site_is_built_without_a_warning(tmp_path):
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", str(DOCS), str(tmp_path / "site")]
    done = subprocess.run(
        [*command, "-d", str(tmp_path / "trees")],
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    reference = "".join(page.read_text() for page in (tmp_path / "site" / "api").glob("*.html"))
    for name in cj.__all__:
        assert re.search(rf'id="cure_jax\.(\w+\.)*{name}"', reference), name
    tutorials = sorted(path.stem for path in (tmp_path / "site" / "tutorials").glob("*.html"))
    assert tutorials == sorted(path.stem for path in (DOCS / "tutorials").glob("*.ipynb"))


@needs_sphinx
def test_a_public_name_that_is_missing_is_named(monkeypatch):
    check = module("extensions/public_names")
    names = check.public_names()
    assert {"cure_jax.crown", "cure_jax.training.fit", "cure_jax.testing.assert_rule_sound"} <= names

    class Environment:
        def get_domain(self, name):
            assert name == "py"
            return type("Domain", (), {"objects": names - {"cure_jax.crown", "cure_jax.bounds.crown"}})()

    import sphinx.errors

    with pytest.raises(sphinx.errors.ExtensionError, match=r"lacks .* cure_jax\.crown"):
        check._check(None, Environment())
    # A name of the room where the function is defined will do.
    names -= {"cure_jax.ibp"}
    assert check._resolved("cure_jax.ibp") is check._resolved("cure_jax.bounds.ibp")


@needs_sphinx
def test_links_of_the_repository_become_links_of_the_site():
    rewritten = module("extensions/repository_links").rewritten
    text = "[a](../launch/README.md) [b](results.md#x) [c](../tests/run.sh) ![d](figures/e.png) [f](https://g.org)"
    expected = "[a](launchers.md) [b](results.md#x) `tests/run.sh` ![d](figures/e.png) [f](https://g.org)"
    assert rewritten(text, "docs/bounds.md", "bounds") == expected
    assert rewritten("[a](docs/bounds.md)", "README.md", "api/index") == "[a](../bounds.md)"


def test_the_readme_of_a_package_has_links_that_work():
    pytest.importorskip("hatchling")
    packaged = module("package_readme").packaged
    readme = (DOCS.parent / "README.md").read_text()
    there = packaged(readme, "https://example.org/a/b/")
    assert "![" in there
    assert "](https://example.org/a/b/raw/HEAD/docs/figures/digits_methods.png)" in there
    assert "](https://example.org/a/b/blob/HEAD/docs/results.md)" in there
    for text in (there, packaged(readme, None)):
        assert all(target.startswith(("http", "#")) for target in re.findall(r"\]\(([^)\s]+)\)", text))


def test_files_that_documents_link_to_are_there():
    documents = [*DOCS.glob("*.md"), *DOCS.parent.glob("*.md"), *DOCS.parent.glob("*/README.md")]
    for document in documents:
        for target in re.findall(r"\[[^\]]*\]\(([^)#\s]+)(?:#[^)]*)?\)", document.read_text()):
            assert "://" in target or (document.parent / target).exists(), (document.name, target)
