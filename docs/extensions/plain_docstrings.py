"""Docstrings are plain text: | and * are mathematics there, and no markup of reStructuredText."""

import re
from typing import Any

from sphinx.application import Sphinx

# What stays as it is: bullets, code, links, and the names of *args and **options.
_KEPT = re.compile(r"(^\s*\* |``.*?``|`[^`]*`_?|^\s*\*{1,2}\w+:|^\s*>>>.*|^\s*\.\.\. .*)")


def setup(app: Sphinx) -> dict[str, Any]:
    """Called by Sphinx."""
    # Before napoleon, which writes markup of its own.
    app.connect("autodoc-process-docstring", _escape, priority=400)
    return {"parallel_read_safe": True}


def _escape(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    del app, what, name, obj, options
    examples = False
    for index, line in enumerate(lines):
        # An example goes on until an empty line.
        examples = (examples and bool(line.strip())) or line.lstrip().startswith(">>>")
        if not examples:
            parts = _KEPT.split(line)
            parts[::2] = [re.sub(r"([|*])", r"\\\1", part) for part in parts[::2]]
            lines[index] = "".join(parts)
