import pytest

from cure_jax import models


def test_names_of_the_papers():
    assert models.create("cnn7_narrow", 10) == models.CNN7(num_classes=10, width=32, dense=216)
    assert models.create("cnn7_wide", 200) == models.CNN7(num_classes=200, width=96, dense=512)
    assert models.create("conv_medium", 10) == models.ConvNet(num_classes=10, dense=(1000,))


def test_lists_become_tuples_so_that_networks_are_hashable():
    model = models.create("conv_small", 10, convs=[[8, 3, 1], [8, 3, 2]], mean=[0.5])
    assert model.convs == ((8, 3, 1), (8, 3, 2))
    assert hash(model) == hash(models.create("conv_small", 10, convs=((8, 3, 1), (8, 3, 2)), mean=(0.5,)))


def test_unknown_name_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"'cnn8'; expected one of \['mlp', .*'cnn7_narrow'.*'resnet'\]"):
        models.create("cnn8", 10)


@pytest.mark.parametrize("name", ["cnn7", "cnn7_narrow", "mlp"])
def test_unknown_field_lists_the_known_ones(name):
    with pytest.raises(TypeError, match=r"got the fields \['widht'\]; expected some of \['.*'mean', 'std'"):
        models.create(name, 10, widht=3)


def test_flax_internals_are_no_fields():
    with pytest.raises(TypeError, match=r"\['parent'\]"):
        models.create("mlp", 10, parent=None)


def test_one_class_is_refused():
    with pytest.raises(ValueError, match="num_classes 1; expected at least 2"):
        models.create("mlp", 1)
