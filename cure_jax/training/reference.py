"""The reference of configs, made of the tables `fields` and `losses`: as text for help, as Markdown for documents."""

import textwrap
from collections.abc import Iterator, Mapping

from cure_jax.training.fields import SECTIONS, Field
from cure_jax.training.losses import LOSSES, Loss
from cure_jax.training.names import RENAMED

__all__ = ["markdown", "text"]

_WIDTH = 100
_ALL_LOSSES = "Losses: config.losses.NORM = {'kind': KIND, FIELD: VALUE, ...}"


def text(width: int = _WIDTH) -> str:
    """The reference for a terminal: what `help(training.default_config)` and `launch/train.py --help` show.

    Args:
      width: characters of a line.
    """
    return "\n".join(_text_lines(width))


def _text_lines(width: int) -> Iterator[str]:
    for heading, fields in SECTIONS.items():
        yield f"{heading}:"
        for path, field in fields.items():
            yield from _entry(f"{path} = {field.default!r}", field, width, "  ")
        yield ""
    yield f"{_ALL_LOSSES}:"
    for kind, loss in LOSSES.items():
        yield f"  {kind}{_for_norms(loss)}"
        yield from _wrapped(loss.meaning, width, "      ")
        yield from _wrapped(f"Use: {loss.use}", width, "      ")
        if loss.source:
            yield from _wrapped(f"Source: {loss.source}", width, "      ")
        for name, field in loss.fields.items():
            yield from _entry(f"{name} = {field.default!r}", field, width, "      ")


def _entry(head: str, field: Field, width: int, indent: str) -> Iterator[str]:
    yield indent + head + (f"  [{field.unit}]" if field.unit else "")
    for said in (field.meaning, f"Use: {field.use}" * bool(field.use), f"Source: {field.source}" * bool(field.source)):
        yield from _wrapped(said, width, indent + "    ")


def _wrapped(said: str, width: int, indent: str) -> list[str]:
    return textwrap.wrap(said, width, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)


def markdown() -> str:
    """The reference as a document: docs/config.md is what this returns."""
    return "\n".join(_markdown_lines())


def _markdown_lines() -> Iterator[str]:
    yield "# Every field of a config"
    yield ""
    yield (
        "Printed by `python launch/reference.py` from `cure_jax/training/fields.py` and `losses.py`; change it there, "
        "and print it again."
    )
    yield (
        "`help(cure_jax.training.default_config)` and `python launch/train.py --help` say the same. See also "
        "[which loss, which method, how long](choosing.md)."
    )
    yield ""
    yield (
        "In Python a field is `config.alignment.weight = 0.5`, on the command line `--config.alignment.weight=0.5`. "
        "Epochs are counted from 0 and may be fractions where the default is one."
    )
    for heading, fields in SECTIONS.items():
        yield from _table(f"## {heading}", "field", fields)
    yield ""
    yield "## Losses"
    yield ""
    example = {"l2": {"kind": "lipschitz", "fraction": 0.5}}
    yield f"`{_ALL_LOSSES.partition(': ')[2]}`, for example `config.losses = {example}`."
    for kind, loss in LOSSES.items():
        yield ""
        yield f"### `{kind}`{_for_norms(loss)}"
        yield ""
        yield f"{loss.meaning} **Use:** {loss.use}" + (f" **Source:** {loss.source}." if loss.source else "")
        if loss.fields:
            yield from _table("", f"field of `{kind}`", loss.fields)
    yield from _renamed()


def _table(title: str, first: str, fields: Mapping[str, Field]) -> Iterator[str]:
    if title:
        yield from ("", title)
    yield from ("", f"| {first} | default | unit | meaning | use | source |", "| --- | --- | --- | --- | --- | --- |")
    for path, field in fields.items():
        cells = (f"`{path}`", f"`{field.default!r}`", field.unit, field.meaning, field.use, field.source)
        yield "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"


def _renamed() -> Iterator[str]:
    yield from ("", "## Fields that had another name", "")
    yield "Work directories and results with the old names load and resume; anything else is told the new name."
    yield from ("", "| then | now |", "| --- | --- |")
    yield from (f"| `{old}` | `{new}` |" for old, new in RENAMED.items())
    yield ""


def _for_norms(loss: Loss) -> str:
    return f" ({', '.join(loss.norms)} only)" if loss.norms else ""
