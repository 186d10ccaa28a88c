"""Image classification data sets of TensorFlow Datasets, read without TensorFlow.

Prepared copies in the `array_record` format are read through `as_data_source`. Preparing one needs TensorFlow and
the network once; reading needs neither. The package is imported on first use (extra `data`).
"""

import re
from types import ModuleType
from typing import Any

import numpy as np
from jaxtyping import Int32, UInt8

SPLITS = ("train", "validation", "test")
HELD_OUT = {"mnist": 10_000}
_CHUNK = 4096


def load(
    name: str, split: str, *, data_dir: str | None = None
) -> tuple[UInt8[np.ndarray, "n height width channels"], Int32[np.ndarray, "n"], int]:
    """Loads one split of a TensorFlow Datasets image classification set into memory.

    The last 10 % of the train split are held out as "validation" (MNIST: the last 10000), so that nothing is ever
    tuned on the test split. A set without labelled test images is tested on its own validation split.

    Args:
      name: Name in the TFDS catalogue, or of a prepared copy in data_dir, with or without config and version.
      split: "train", "validation" or "test".
      data_dir: Folder of the prepared copies; None for TFDS's default ($TFDS_DATA_DIR or ~/tensorflow_datasets).

    Returns:
      Images as uint8, labels, and the number of classes.

    Raises:
      ModuleNotFoundError: tensorflow_datasets is not installed.
      FileNotFoundError: The set is not prepared in data_dir; for a set of the catalogue the message has the command
        that does it.
      ValueError: The split is unknown, or the set has no equally large labelled images.
    """
    if split not in SPLITS:
        raise ValueError(f"{name} has no split {split!r}; expected one of {list(SPLITS)}. Choose one of these.")
    builder = _prepared_builder(import_tfds(), name, data_dir)
    shape, num_classes = _described(builder, name)
    source = builder.as_data_source(split=_slice(builder.info.splits, name, split))
    return *_read(source, shape), num_classes


def describe(name: str, *, data_dir: str | None = None) -> tuple[tuple[int, ...], int]:
    """The shape of an image and the number of classes.

    Args:
      name: As for `load`.
      data_dir: As for `load`.

    Raises:
      ModuleNotFoundError, FileNotFoundError, ValueError: As `load`.
    """
    return _described(_prepared_builder(import_tfds(), name, data_dir), name)


def _described(builder: Any, name: str) -> tuple[tuple[int, ...], int]:
    features = builder.info.features
    if not {"image", "label"} <= set(features) or None in features["image"].shape:
        raise ValueError(
            f"The TFDS set {name!r} has the features {dict(features)}; expected an 'image' of fixed size and a "
            "'label'. Resize such images yourself and pass the arrays instead of a name."
        )
    return features["image"].shape, features["label"].num_classes


def import_tfds() -> ModuleType:
    """The package, if it is installed.

    Raises:
      ModuleNotFoundError: with the command that installs it.
    """
    try:
        import tensorflow_datasets
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "tensorflow_datasets is not installed; data sets other than 'digits' are read with it. "
            "Run: pip install 'cure-jax[data]'"
        ) from error
    return tensorflow_datasets


def _prepared_builder(tfds: ModuleType, name: str, data_dir: str | None) -> Any:
    try:
        builder = tfds.builder(name, data_dir=data_dir)
    except tfds.core.DatasetNotFoundError as error:
        if name == "tiny_imagenet":
            raise FileNotFoundError(
                f"TinyImageNet is not prepared in {data_dir or 'the default folder'}, and not in the TFDS catalogue. "
                "Prepare it from tiny-imagenet-200.zip: python launch/prepare_tiny_imagenet.py "
                f"--source=tiny-imagenet-200.zip --data_dir={data_dir or '~/tensorflow_datasets'}"
            ) from error
        raise FileNotFoundError(
            f"The TFDS set {name!r} is neither in the TFDS catalogue nor prepared in "
            f"{data_dir or 'the default folder'}; expected one or the other. Check data_dir and the name "
            "(tensorflow_datasets.list_builders()), or put a copy prepared elsewhere there."
        ) from error
    if builder.is_prepared():
        return builder
    folder = "" if data_dir is None else f"data_dir={str(data_dir)!r}, "
    raise FileNotFoundError(
        f"The TFDS set {name!r} is not prepared in {builder.data_path}; expected a copy in the array_record format. "
        "Check data_dir, or prepare the set (once, needs network and TensorFlow): "
        "pip install tensorflow-datasets tensorflow && "
        f'python -c "import tensorflow_datasets as tfds; '
        f"tfds.builder({name!r}, {folder}file_format='array_record').download_and_prepare()\""
    )


def without_version(name: str) -> str:
    """The name of a data set alone, of `name/config:version`."""
    return re.split("[/:]", name)[0]


def _slice(splits: Any, name: str, split: str) -> str:
    if split == "test":
        return "test" if "test" in splits else "validation"
    total = splits["train"].num_examples
    kept = total - HELD_OUT.get(without_version(name), total // 10)
    return f"train[:{kept}]" if split == "train" else f"train[{kept}:]"


def _read(source: Any, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    images = np.empty((len(source), *shape), np.uint8)
    labels = np.empty(len(source), np.int32)
    for start in range(0, len(source), _CHUNK):
        stop = min(start + _CHUNK, len(source))
        # One call for many records is about three times faster than one call for each.
        examples = source.__getitems__(range(start, stop))
        images[start:stop] = [example["image"] for example in examples]
        labels[start:stop] = [example["label"] for example in examples]
    return images, labels
