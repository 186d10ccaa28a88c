"""Turns links to files of the repository into links of the site, or into plain names where the site has no such page.

The documents are read in the repository too, where `../launch/README.md` is a link that works.
"""

import posixpath
import re
from typing import Any

from sphinx.application import Sphinx

# Files that the site has under another name, by their path in the repository.
_PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "cure_jax/README.md": "house.md",
    "launch/README.md": "launchers.md",
}
_LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(([^)#\s]+)(#[^)\s]*)?\)")


def setup(app: Sphinx) -> dict[str, Any]:
    """Called by Sphinx."""
    app.connect("source-read", _source)
    app.connect("include-read", _included)
    return {"parallel_read_safe": True}


def rewritten(text: str, path: str, document: str) -> str:
    """Returns a text of the repository as the site has it.

    Args:
      text: Markdown.
      path: Of its file, from the root of the repository.
      document: Of the page that shows it, from docs/.
    """

    def link(match: re.Match) -> str:
        shown, target, anchor = match[1], match[2], match[3] or ""
        if "://" in target or target.startswith("mailto:"):
            return match[0]
        found = posixpath.normpath(posixpath.join(posixpath.dirname(path), target))
        if found.startswith("docs/"):
            page = found.removeprefix("docs/")
        elif found in _PAGES:
            page = _PAGES[found]
        else:
            return shown if "`" in shown else f"`{found}`"
        return f"[{shown}]({posixpath.relpath(page, posixpath.dirname(document) or '.')}{anchor})"

    return _LINK.sub(link, text)


def _source(app: Sphinx, document: str, content: list[str]) -> None:
    if str(app.env.doc2path(document)).endswith(".md"):
        content[0] = rewritten(content[0], f"docs/{document}.md", document)


def _included(app: Sphinx, relative_path: Any, document: str, content: list[str]) -> None:
    path = posixpath.normpath(posixpath.join("docs", str(relative_path)))
    content[0] = rewritten(content[0], path, document)
