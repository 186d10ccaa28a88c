"""TinyImageNet for TensorFlow Datasets, whose catalogue does not have it: a prepared copy from the standard archive.

The archive is `tiny-imagenet-200.zip` of Stanford's CS231N (http://cs231n.stanford.edu/tiny-imagenet-200.zip), or the
folder that it unpacks to. The JPEG bytes are stored as they are; neither TensorFlow nor the network is needed.
"""

import os
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cure_jax.data.tfds import import_tfds

__all__ = ["prepare"]

FOLDER = "tiny-imagenet-200"


def prepare(source: str | os.PathLike, data_dir: str | os.PathLike) -> dict[str, int]:
    """Writes the TFDS copy `tiny_imagenet` in the `array_record` format.

    Splits are `train` and `validation`; the test images of the archive have no labels. Labels number the WordNet ids in
    sorted order.

    Args:
      source: `tiny-imagenet-200.zip`, the folder of that name, or the folder that holds it.
      data_dir: where prepared sets lie; a copy that is there already is kept.

    Returns:
      Number of images by split.

    Raises:
      FileNotFoundError: `source` is not TinyImageNet.
      ModuleNotFoundError: tensorflow_datasets is not installed.
    """
    root = _root(Path(source))
    builder = _builder_class(import_tfds(), root)(data_dir=os.fspath(data_dir), file_format="array_record")
    builder.download_and_prepare()
    return {name: split.num_examples for name, split in builder.info.splits.items()}


def _root(source: Path) -> Path | zipfile.Path:
    """Folder and archive are read in the same way."""
    if source.suffix == ".zip" and source.is_file():
        root = zipfile.Path(source, f"{FOLDER}/")
    else:
        root = source if source.name == FOLDER else source / FOLDER
    if not (root / "wnids.txt").is_file():
        raise FileNotFoundError(
            f"There is no {FOLDER}/wnids.txt in {source}; expected {FOLDER}.zip or the folder that it unpacks to. "
            f"Download it from http://cs231n.stanford.edu/{FOLDER}.zip."
        )
    return root


def _builder_class(tfds: Any, root: Path | zipfile.Path) -> Any:
    wnids = sorted((root / "wnids.txt").read_text().split())

    class TinyImagenet(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # pyright: ignore
        """TinyImageNet: 200 classes of ImageNet at 64x64 pixels."""

        name = "tiny_imagenet"
        VERSION = tfds.core.Version("1.0.0")

        def _info(self) -> Any:
            image = tfds.features.Image(shape=(64, 64, 3), encoding_format="jpeg")
            features = {"image": image, "label": tfds.features.ClassLabel(names=wnids)}
            return tfds.core.DatasetInfo(
                builder=self,
                description="200 classes of ImageNet at 64x64 pixels (Stanford CS231N).",
                features=tfds.features.FeaturesDict(features),
                supervised_keys=("image", "label"),
                homepage=f"http://cs231n.stanford.edu/{FOLDER}.zip",
            )

        def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
            del dl_manager
            return {"train": _examples(_train_images(root, wnids)), "validation": _examples(_validation_images(root))}

        def _generate_examples(self) -> Any:
            raise NotImplementedError  # the splits have generators of their own

    return TinyImagenet


def _examples(images: Iterator[tuple[Any, str]]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path, wnid in images:
        yield path.name, {"image": path.read_bytes(), "label": wnid}


def _train_images(root: Path | zipfile.Path, wnids: list[str]) -> Iterator[tuple[Any, str]]:
    for wnid in wnids:
        folder = root / "train" / wnid / "images"
        for path in sorted(folder.iterdir(), key=lambda path: path.name):
            yield path, wnid


def _validation_images(root: Path | zipfile.Path) -> Iterator[tuple[Any, str]]:
    for line in (root / "val" / "val_annotations.txt").read_text().splitlines():
        name, wnid = line.split("\t")[:2]
        yield root / "val" / "images" / name, wnid
