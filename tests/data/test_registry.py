import sys

import numpy as np
import pytest

from cure_jax import data
from cure_jax.data import digits


def test_digits_by_name():
    dataset = data.load("digits", "validation")
    images, labels = digits.load("validation")
    np.testing.assert_array_equal(dataset.images, images)
    np.testing.assert_array_equal(dataset.labels, labels)
    assert dataset.num_classes == 10


def test_digits_pass_validation():
    dataset = data.load("digits", "train")
    images, labels = data.validate(*dataset)
    assert images is dataset.images
    assert labels is dataset.labels


def test_unknown_name_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"'mnits'; expected one of \['digits', 'mnist', 'cifar10', 'tiny_imagenet'\]"):
        data.load("mnits", "train")


def test_digits_need_no_optional_package(monkeypatch):
    for package in ("sklearn", "tensorflow_datasets"):
        monkeypatch.setitem(sys.modules, package, None)
    assert len(data.load("digits", "test").labels) == 300


def test_a_data_set_is_described_as_it_is():
    assert data.describe("digits") == (data.load("digits", "test").images.shape[1:], 10)
    assert {len(data.describe(name)[0]) for name in data.names()} == {3}
    with pytest.raises(ValueError, match="Unknown data set 'mnits'"):
        data.describe("mnits")


@pytest.mark.parametrize(
    ("name", "channels"), [("digits", 1), ("mnist", 1), ("cifar10", 3), ("tfds:cifar10", 3), ("tfds:cifar10:3.0.2", 3)]
)
def test_normalization_has_one_positive_std_for_each_channel(name, channels):
    mean, std = data.normalization(name)
    assert len(mean) == len(std) == channels
    assert min(std) > 0
