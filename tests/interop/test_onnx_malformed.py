"""ONNX files that cannot be read: one sentence each, no crash, no runaway memory."""

import contextlib
import gzip

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from cure_jax import interop
from tests.interop.onnx_models import F32, load, model, node, tiny, weights


def constant_of_shape(*sizes: int) -> onnx.ModelProto:
    nodes = [node("ConstantOfShape", "size", "c"), node("Add", "x c")]
    return model(nodes, (1, 3), {"size": np.array(sizes, np.int64)})


def huge_weight() -> onnx.ModelProto:
    made = model([node("MatMul", "x w")], (1, 3), {"w": weights(3, 2)})
    made.graph.initializer[0].dims[:] = [2**20, 2**20]
    return made


def cycle() -> onnx.ModelProto:
    made = model([node("Relu", "x"), node("Relu", "a", "b")], (1, 3))
    made.graph.node[0].input[0] = "b"
    made.graph.node[1].input[0] = "y"
    return made


def several(inputs: int) -> onnx.ModelProto:
    made = model([node("Add", "x z")], (1, 3), {"z": weights(3)})
    if inputs == 2:
        del made.graph.initializer[:]
        made.graph.input.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, (3,)))
    else:
        made.graph.output.append(helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, 3)))
    return made


MALFORMED = {
    "wrong sizes of a product": (
        lambda: model([node("MatMul", "x w")], (1, 4), {"w": weights(3, 2)}),
        "ncompatible dim",
    ),
    "wrong size of a shape": (lambda: model([node("Reshape", "x s")], (1, 4), {"s": np.array([3])}), "Reshape|reshape"),
    "wrong broadcast": (lambda: model([node("Add", "x w")], (1, 4), {"w": weights(3)}), "ncompatible dim"),
    "cycle": (cycle, "topologically sorted|cycle"),
    "two inputs": (lambda: several(2), "2 inputs"),
    "two outputs": (lambda: several(1), "2 outputs"),
    "unknown size": (lambda: model([node("Relu", "x")], (1, "width")), "'width'.*fixed sizes"),
    "unknown sizes": (lambda: model([node("Relu", "x")], ("N",)), "'N'.*fixed sizes"),
    "integers": (lambda: model([node("Abs", "x")], (1, 3), element=TensorProto.INT64), "no tensor of float32"),
    "huge constant": (lambda: constant_of_shape(2**40), r"1099511627776.*at most 134217728 entries"),
    "huge constants": (lambda: constant_of_shape(2**20, 2**20), "at most 134217728 entries"),
    "negative constant": (lambda: constant_of_shape(-5), "ConstantOfShape"),
    "huge weight": (huge_weight, "too small for the declared shape|at most 134217728 entries"),
    "huge input": (lambda: model([node("Relu", "x")], (1, 2**40)), "at most 134217728 entries"),
    "huge result": (
        lambda: model([node("Expand", "x s")], (1, 1), {"s": np.array([2**20, 2**20])}),
        "at most 134217728 entries",
    ),
    "unknown operators": (
        lambda: model([node("Sin", "x", "a"), node("Sign", "a", "b"), node("NonZero", "b", "y")], (1, 3)),
        "not supported: NonZero, Sign, Sin. Expected those of",
    ),
    "training": (
        lambda: model(
            [node("BatchNormalization", "x a b c d", "y p q", training_mode=1)],
            (1, 3),
            dict(zip("abcd", weights(4, 3), strict=True)),
        ),
        "training mode",
    ),
    "dropout in training": (
        lambda: model([node("Dropout", "x r t")], (1, 3), {"r": F32(0.5), "t": np.array(True)}),
        "Dropout is not supported in training mode",
    ),
    "indices of a pool": (
        lambda: model([node("MaxPool", "x", "m i", kernel_shape=[2]), node("Cast", "i", "y", to=1)], (1, 1, 4)),
        "reads 'i', which nothing before it computes",
    ),
    "old operators": (lambda: model([node("Relu", "x")], (1, 3), opset=6), "uses version 6.*expected 7"),
    "constant": (lambda: model([node("Relu", "w")], (1, 3), {"w": weights(3)}), "does not depend on the input"),
    "strides of zero": (
        lambda: model([node("Conv", "x w", strides=[1, 1])], (1, 1, 3, 3), {"w": weights(1, 1, 2, 2)}),
        "strides",
    ),
    "a cast to integers": (lambda: model([node("Cast", "x", "a", to=7), node("Cast", "a", "y", to=1)], (1, 3)), "Cast"),
    "a shape from the input": (
        lambda: model([node("Cast", "x", "a", to=7), node("Reshape", "x a", "y")], (1, 3)),
        "Cast|depends on values|must be 1D",
    ),
}


@pytest.mark.parametrize("what", MALFORMED)
def test_a_model_that_cannot_be_read_is_refused_in_one_sentence(what: str, tmp_path):
    make, sentence = MALFORMED[what]
    made = make()
    if what == "strides of zero":
        made.graph.node[0].attribute[0].ints[:] = [0, 0]
    with pytest.raises(ValueError, match=sentence) as error:
        load(made, tmp_path)
    assert "\n" not in str(error.value)
    assert str(tmp_path) in str(error.value)


@pytest.mark.parametrize(
    ("name", "contents"),
    [
        ("a.onnx", b""),
        ("a.onnx", b"This is a text."),
        ("a.onnx", tiny().SerializeToString()[:-40]),
        ("a.onnx.gz", tiny().SerializeToString()),
        ("a.onnx.gz", gzip.compress(tiny().SerializeToString())[:-20]),
        ("a.onnx", gzip.compress(tiny().SerializeToString())),
    ],
)
def test_a_file_that_is_no_model_is_refused(name: str, contents: bytes, tmp_path):
    (tmp_path / name).write_bytes(contents)
    with pytest.raises(ValueError, match=r"is not a.* ONNX model"):
        interop.load_onnx(tmp_path / name)


def test_a_missing_file_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError):
        interop.load_onnx(tmp_path / "none.onnx")


def test_damaged_files_raise_nothing_but_value_errors(tmp_path, rng):
    contents = tiny().SerializeToString()
    path = tmp_path / "damaged.onnx"
    damaged = [contents[:length] for length in range(0, len(contents), 23)]
    for _ in range(250):
        flipped = bytearray(contents)
        for place in rng.integers(len(contents), size=rng.integers(1, 4)):
            flipped[place] ^= 1 << rng.integers(8)
        damaged.append(bytes(flipped))
    for one in damaged:
        path.write_bytes(one)
        with contextlib.suppress(ValueError):
            interop.load_onnx(path, check=False)
