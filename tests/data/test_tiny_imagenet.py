"""TinyImageNet from a small archive of the same layout, through the real tensorflow_datasets."""

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest

from cure_jax import data
from cure_jax.data import tiny_imagenet

pytest.importorskip("tensorflow_datasets")
image_module = pytest.importorskip("PIL.Image")

_WNIDS = ("n03", "n01", "n02")


def _jpeg(level: int) -> bytes:
    stream = io.BytesIO()
    image_module.fromarray(np.full((64, 64, 3), level, np.uint8)).save(stream, "JPEG")
    return stream.getvalue()


def _files() -> dict[str, bytes]:
    """Ten training images of each class, and four for validation, each of a grey that tells its label."""
    files = {"wnids.txt": "\n".join(_WNIDS).encode()}
    for wnid in _WNIDS:
        level = 60 * sorted(_WNIDS).index(wnid)
        files |= {f"train/{wnid}/images/{wnid}_{i}.JPEG": _jpeg(level) for i in range(10)}
        files[f"train/{wnid}/{wnid}_boxes.txt"] = b"not an image"
    lines = []
    for i, wnid in enumerate(("n02", "n01", "n03", "n02")):
        files[f"val/images/val_{i}.JPEG"] = _jpeg(60 * sorted(_WNIDS).index(wnid))
        lines.append(f"val_{i}.JPEG\t{wnid}\t0\t0\t62\t62")
    return {**files, "val/val_annotations.txt": "\n".join(lines).encode()}


def _archive(folder: Path) -> Path:
    path = folder / "tiny-imagenet-200.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in _files().items():
            archive.writestr(f"tiny-imagenet-200/{name}", content)
    return path


def _unpacked(folder: Path) -> Path:
    with zipfile.ZipFile(_archive(folder)) as archive:
        archive.extractall(folder)
    return folder / "tiny-imagenet-200"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("source", [_archive, _unpacked])
def test_images_and_labels_arrive(source, tmp_path: Path) -> None:
    assert tiny_imagenet.prepare(source(tmp_path), tmp_path / "tfds") == {"train": 30, "validation": 4}
    train, held_out, test = (
        data.load("tiny_imagenet", split, str(tmp_path / "tfds")) for split in ("train", "validation", "test")
    )
    assert (len(train.labels), len(held_out.labels), len(test.labels), train.num_classes) == (27, 3, 4, 3)
    for split in (train, held_out, test):
        assert split.images.shape[1:] == (64, 64, 3)
        np.testing.assert_allclose(split.images.mean(axis=(1, 2, 3)), 60 * split.labels, atol=2)
    np.testing.assert_array_equal(np.bincount(np.concatenate([train.labels, held_out.labels])), [10, 10, 10])
    np.testing.assert_array_equal(np.sort(test.labels), [0, 1, 1, 2])


def test_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"expected tiny-imagenet-200\.zip"):
        tiny_imagenet.prepare(tmp_path, tmp_path / "tfds")


def test_a_set_that_is_not_prepared_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"prepare_tiny_imagenet\.py --source=tiny-imagenet-200\.zip"):
        data.load("tiny_imagenet", "train", str(tmp_path))
