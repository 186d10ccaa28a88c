"""Prints every field of a config and every loss, as Markdown.

    python launch/reference.py > docs/config.md

What it prints is written in `cure_jax/training/fields.py` and `cure_jax/training/losses.py`.
"""

from cure_jax.commands.parts import common
from cure_jax.training import reference


def main() -> None:
    """Prints."""
    print(reference.markdown(), end="")


if __name__ == "__main__":
    common.run(main)
