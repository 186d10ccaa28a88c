"""Prepares TinyImageNet for training, from the standard archive or its folder.

    python launch/prepare_tiny_imagenet.py --source=tiny-imagenet-200.zip --data_dir=DIR

Afterwards `--config.data_dir=DIR` or TFDS_DATA_DIR=DIR finds it.
"""

from absl import flags

from cure_jax.commands.parts import common
from cure_jax.data import tiny_imagenet

_SOURCE = flags.DEFINE_string("source", None, "tiny-imagenet-200.zip, or the folder that it unpacks to.")
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Where prepared data sets lie.")


def main() -> None:
    """Prepares."""
    sizes = tiny_imagenet.prepare(str(_SOURCE.value), str(_DATA_DIR.value))
    print(f"{_DATA_DIR.value}/tiny_imagenet: " + ", ".join(f"{count} {name}" for name, count in sizes.items()))


if __name__ == "__main__":
    flags.mark_flags_as_required(["source", "data_dir"])
    common.run(main)
