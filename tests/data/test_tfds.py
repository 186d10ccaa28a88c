"""The reader of TensorFlow Datasets, against a stand-in for the package: the real one is an extra."""

import sys
import types

import numpy as np
import pytest

from cure_jax import data


class _NotFoundError(Exception):
    pass


class _Source:
    def __init__(self, start, stop):
        self.numbers = range(start, stop)

    def __len__(self):
        return len(self.numbers)

    def __getitems__(self, positions):
        numbers = [self.numbers[position] for position in positions]
        return [{"image": np.full((2, 2, 1), n % 256, np.uint8), "label": n % 7} for n in numbers]


class _Builder:
    def __init__(self, splits, *, prepared=True, shape=(2, 2, 1)):
        features = {"image": types.SimpleNamespace(shape=shape), "label": types.SimpleNamespace(num_classes=7)}
        sizes = {name: types.SimpleNamespace(num_examples=size) for name, size in splits.items()}
        self.info = types.SimpleNamespace(features=features, splits=sizes)
        self.data_path = "/folder/set/1.0.0"
        self.is_prepared = lambda: prepared

    def as_data_source(self, split):
        name, _, bounds = split.rstrip("]").partition("[")
        start, _, stop = bounds.partition(":")
        return _Source(int(start or 0), int(stop or self.info.splits[name].num_examples))


@pytest.fixture
def tfds(monkeypatch):
    module = types.ModuleType("tensorflow_datasets")
    module.core = types.SimpleNamespace(DatasetNotFoundError=_NotFoundError)
    module.builders = {}

    def builder(name, *, data_dir):
        module.data_dir = data_dir
        if name not in module.builders:
            raise _NotFoundError(name)
        return module.builders[name]

    module.builder = builder
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", module)
    return module


def test_a_set_is_described_without_reading_it(tfds):
    tfds.builders["three"] = _Builder({}, shape=(2, 3, 1))
    assert data.describe("tfds:three", "/folder") == ((2, 3, 1), 7)
    assert tfds.data_dir == "/folder"
    tfds.builders["three"] = _Builder({}, shape=(None, 3, 1))
    with pytest.raises(ValueError, match="'image' of fixed size"):
        data.describe("tfds:three")


@pytest.mark.parametrize(
    ("split", "numbers"), [("train", range(9000)), ("validation", range(9000, 10000)), ("test", range(500))]
)
def test_validation_is_the_last_tenth_of_train(tfds, split, numbers):
    tfds.builders["cifar10"] = _Builder({"train": 10_000, "test": 500})
    images, labels, num_classes = data.load("cifar10", split, "folder")
    assert (images.dtype, labels.dtype, num_classes) == (np.uint8, np.int32, 7)
    np.testing.assert_array_equal(labels, np.array(numbers) % 7)
    np.testing.assert_array_equal(images[:, 1, 0, 0], np.array(numbers) % 256)
    assert tfds.data_dir == "folder"


@pytest.mark.parametrize("name", ["mnist", "tfds:mnist", "tfds:mnist:3.0.1", "tfds:mnist/default:3.0.1"])
def test_mnist_holds_out_ten_thousand(tfds, name):
    tfds.builders[name.removeprefix("tfds:")] = _Builder({"train": 12_000, "test": 5})
    assert len(data.load(name, "train").labels) == 2_000
    assert len(data.load(name, "validation").labels) == 10_000


def test_without_test_labels_the_validation_split_is_the_test(tfds):
    tfds.builders["other"] = _Builder({"train": 100, "validation": 30})
    assert len(data.load("tfds:other", "test").labels) == 30
    assert len(data.load("tfds:other", "validation").labels) == 10


def test_an_unprepared_set_comes_with_the_command(tfds):
    tfds.builders["mnist"] = _Builder({"train": 100}, prepared=False)
    command = r"tfds\.builder\('mnist', data_dir='here', file_format='array_record'\)\.download_and_prepare\(\)"
    with pytest.raises(FileNotFoundError, match=rf"not prepared in /folder/set/1\.0\.0.*{command}"):
        data.load("mnist", "test", "here")


def test_a_set_outside_the_catalogue_is_named(tfds):
    with pytest.raises(FileNotFoundError, match="'nothing' is neither in the TFDS catalogue nor prepared in here"):
        data.load("tfds:nothing", "test", "here")


def test_images_of_many_sizes_are_refused(tfds):
    tfds.builders["large"] = _Builder({"train": 100}, shape=(None, None, 3))
    with pytest.raises(ValueError, match="expected an 'image' of fixed size"):
        data.load("tfds:large", "train")


def test_unknown_split_lists_the_known_ones(tfds):
    with pytest.raises(ValueError, match=r"mnist has no split 'dev'; expected one of \['train', 'validation', 'test'"):
        data.load("mnist", "dev")


def test_a_missing_package_comes_with_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'cure-jax\[data\]'"):
        data.load("mnist", "test")
