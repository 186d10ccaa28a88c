"""The README as a package index shows it, where paths of the repository lead nowhere (a build hook of hatchling)."""

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

_LINK = re.compile(r"(?P<bang>!?)\[(?P<text>[^\]]*)\]\((?P<path>(?![a-z]+:|#)[^)\s]+)\)")


class PackageReadme(MetadataHookInterface):
    """Gives the metadata its `readme`."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Called by hatchling."""
        source = metadata.get("urls", {}).get("Source")
        text = Path(self.root, "README.md").read_text()
        metadata["readme"] = {"content-type": "text/markdown", "text": packaged(text, source)}


def packaged(text: str, source: str | None) -> str:
    """Returns a README whose links do not depend on where it lies.

    Args:
      text: Markdown, with links to files of the repository.
      source: Address of the repository on GitHub. If None, links become their text, and pictures go.
    """

    def link(match: re.Match) -> str:
        if source is None:
            return "" if match["bang"] else match["text"]
        kind = "raw" if match["bang"] else "blob"
        return f"{match['bang']}[{match['text']}]({source.rstrip('/')}/{kind}/HEAD/{match['path']})"

    return _LINK.sub(link, text)
