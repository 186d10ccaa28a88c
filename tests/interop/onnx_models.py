"""Tiny ONNX models for tests: one operator at a time, and files to write them to."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from cure_jax import interop

F32 = np.float32


class Case(NamedTuple):
    """One operator on an input, with constants after it (or, by name, around it)."""

    operator: str
    shape: tuple[int, ...]
    attributes: dict[str, Any] = {}  # noqa: RUF012
    constants: tuple[Any, ...] = ()
    opset: int = 17
    low: float = -2.0
    high: float = 2.0
    outputs: int = 1
    # Whether onnx.reference computes it, in the way that the standard and onnxruntime do.
    reference: bool = True

    def model(self) -> onnx.ModelProto:
        names = ["x", *("" if c is None else f"c{i}" for i, c in enumerate(self.constants))]
        results = [f"y{i}" for i in range(self.outputs)]
        node = helper.make_node(self.operator, names, results, **self.attributes)
        weights = {f"c{i}": np.asarray(c) for i, c in enumerate(self.constants) if c is not None}
        nodes = [node]
        if self.outputs > 1:
            nodes.append(helper.make_node("Concat", results[::-1], ["y"], axis=1))
        return model(nodes, self.shape, weights, output="y" if self.outputs > 1 else "y0", opset=self.opset)


def model(
    nodes: Sequence[onnx.NodeProto],
    shape: Sequence[int | str | None],
    weights: dict[str, np.ndarray] | None = None,
    *,
    output: str = "y",
    opset: int = 17,
    element: int = TensorProto.FLOAT,
) -> onnx.ModelProto:
    graph = helper.make_graph(
        list(nodes),
        "test",
        [helper.make_tensor_value_info("x", element, shape)],
        [helper.make_tensor_value_info(output, element, None)],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in (weights or {}).items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    return onnx.shape_inference.infer_shapes(made, data_prop=True)


def written(made: onnx.ModelProto, path: Path) -> Path:
    path.write_bytes(made.SerializeToString())
    return path


def run(made: onnx.ModelProto | str | Path, x: np.ndarray) -> np.ndarray:
    """By onnxruntime, without optimisations, on one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    source = made.SerializeToString() if isinstance(made, onnx.ModelProto) else str(made)
    session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    weights = {value.name for value in session.get_overridable_initializers()}
    (name,) = (value.name for value in session.get_inputs() if value.name not in weights)
    return np.asarray(session.run(None, {name: x})[0])


def weights(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(F32)


def _i(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


IMAGE = (1, 4, 7, 6)

CASES = {
    **{
        name.lower(): Case(name, (1, 3, 4))
        for name in (
            "Abs",
            "Exp",
            "Identity",
            "Neg",
            "Relu",
            "Sigmoid",
            "Tanh",
            "Erf",
            "Softplus",
            "Softsign",
            "Selu",
            "Celu",
            "HardSigmoid",
            "HardSwish",
        )
    },
    **{name.lower(): Case(name, (1, 3, 4), low=0.5) for name in ("Log", "Sqrt", "Reciprocal")},
    **{
        f"{name.lower()}-{kind}": Case(name, (1, 3, 4), {}, (constant,))
        for name in ("Add", "Sub", "Mul", "Div", "Max", "Min", "Sum", "Mean")
        for kind, constant in zip(
            ("same", "lower-rank", "higher-rank"), (weights(1, 3, 4), weights(3, 1), weights(2, 1, 3, 4)), strict=True
        )
        if not (name == "Div" and kind != "same")
    },
    "max-three": Case("Max", (1, 3, 4), {}, (weights(3, 1), weights(4))),
    "leakyrelu": Case("LeakyRelu", (1, 5), {"alpha": 0.2}),
    "leakyrelu-default": Case("LeakyRelu", (1, 5)),
    "prelu-scalar": Case("PRelu", (1, 5), {}, (F32([0.3]),)),
    "prelu-channels": Case("PRelu", IMAGE, {}, (F32([0.3, -0.2, 1.5, 0]).reshape(4, 1, 1),)),
    "elu": Case("Elu", (1, 5), {"alpha": 0.7}),
    "celu-alpha": Case("Celu", (1, 5), {"alpha": 0.7}),
    "selu-parameters": Case("Selu", (1, 5), {"alpha": 0.7, "gamma": 1.3}),
    "hardsigmoid-parameters": Case("HardSigmoid", (1, 5), {"alpha": 0.4, "beta": 0.3}),
    "mish": Case("Mish", (1, 5), opset=18),
    "gelu": Case("Gelu", (1, 5), opset=20),
    "gelu-tanh": Case("Gelu", (1, 5), {"approximate": "tanh"}, opset=20),
    "atan": Case("Atan", (1, 3, 4)),
    "cumsum": Case("CumSum", (1, 3, 4), {"reverse": 1}, (np.array(-1, np.int64),)),
    "clip": Case("Clip", (1, 5), {}, (F32(-0.5), F32(0.7))),
    "clip-below": Case("Clip", (1, 5), {}, (F32(-0.5),)),
    "clip-above": Case("Clip", (1, 5), {}, (None, F32(0.7))),
    "clip-nothing": Case("Clip", (1, 5)),
    "clip-attributes": Case("Clip", (1, 5), {"min": -0.5, "max": 0.7}, opset=9),
    "pow-square": Case("Pow", (1, 5), {}, (F32(2),)),
    "pow-cube": Case("Pow", (1, 5), {}, (F32([3]),)),
    "pow-root": Case("Pow", (1, 5), {}, (F32(0.5),), low=0.1),
    "pow-many": Case("Pow", (1, 3), {}, (F32([0.5, 2, 1.7]),), low=0.1),
    "cast": Case("Cast", (1, 5), {"to": TensorProto.FLOAT}),
    "dropout": Case("Dropout", (1, 5), {}, (F32(0.5),)),
    "dropout-old": Case("Dropout", (1, 5), {"ratio": 0.5}, opset=10),
    "softmax": Case("Softmax", (1, 3, 4), {"axis": 1}),
    "softmax-last": Case("Softmax", (1, 3, 4)),
    "softmax-old": Case("Softmax", (1, 3, 4), opset=11),
    "logsoftmax": Case("LogSoftmax", (1, 5)),
    "logsoftmax-old": Case("LogSoftmax", (1, 3, 4), {"axis": 2}, opset=9),
    "matmul": Case("MatMul", (1, 5), {}, (weights(5, 3),)),
    "matmul-vector": Case("MatMul", (5,), {}, (weights(5, 3),)),
    "matmul-vector-right": Case("MatMul", (1, 5), {}, (weights(5),)),
    "matmul-batched": Case("MatMul", (1, 2, 3, 5), {}, (weights(2, 5, 4),)),
    "gemm": Case("Gemm", (1, 5), {"transB": 1}, (weights(3, 5), weights(3))),
    "gemm-scaled": Case("Gemm", (1, 5), {"alpha": 0.5, "beta": 2.0}, (weights(5, 3), weights(1, 3))),
    "gemm-transposed": Case("Gemm", (5, 2), {"transA": 1}, (weights(5, 3),)),
    "einsum": Case("Einsum", (1, 3, 4), {"equation": "bij,jk->bki"}, (weights(4, 5),)),
    "batchnormalization": Case("BatchNormalization", IMAGE, {"epsilon": 1e-3}, (*weights(3, 4), F32([0.3, 1, 2, 0.1]))),
    "batchnormalization-flat": Case("BatchNormalization", (1, 4), {}, (*weights(3, 4), F32([0.3, 1, 2, 0.1]))),
    "layernormalization": Case("LayerNormalization", (1, 3, 4), {}, (weights(4), weights(4, seed=1))),
    "reducemean": Case("ReduceMean", IMAGE, {"axes": [2, 3], "keepdims": 0}),
    "reducemean-all": Case("ReduceMean", IMAGE),
    "reducemean-operand": Case("ReduceMean", IMAGE, {}, (_i(-1),), opset=18),
    "reducesum": Case("ReduceSum", IMAGE, {"keepdims": 0}, (_i(1, -1),)),
    "reducesum-attribute": Case("ReduceSum", IMAGE, {"axes": [1]}, opset=11),
    "reducesum-nothing": Case("ReduceSum", IMAGE, {"noop_with_empty_axes": 1}),
    "reducemax": Case("ReduceMax", IMAGE, {"axes": [1]}),
    "reducemin": Case("ReduceMin", IMAGE, {"axes": [-1], "keepdims": 0}),
    "flatten": Case("Flatten", IMAGE),
    "flatten-axis": Case("Flatten", IMAGE, {"axis": 2}),
    "flatten-negative": Case("Flatten", IMAGE, {"axis": -1}),
    "reshape": Case("Reshape", IMAGE, {}, (_i(1, -1, 6),)),
    "reshape-copies": Case("Reshape", IMAGE, {}, (_i(0, 0, -1),)),
    "transpose": Case("Transpose", IMAGE, {"perm": [0, 2, 3, 1]}),
    "transpose-reversed": Case("Transpose", (1, 2, 3)),
    "squeeze": Case("Squeeze", (1, 3, 1, 4), {}, (_i(2),)),
    "squeeze-all": Case("Squeeze", (1, 3, 1, 4)),
    "squeeze-attribute": Case("Squeeze", (1, 3, 1, 4), {"axes": [2]}, opset=11),
    "unsqueeze": Case("Unsqueeze", (1, 3), {}, (_i(1, -1),)),
    "unsqueeze-attribute": Case("Unsqueeze", (1, 3), {"axes": [0, 3]}, opset=11),
    "concat": Case("Concat", (1, 3, 4), {"axis": 1}, (weights(1, 2, 4),)),
    "concat-negative": Case("Concat", (1, 3, 4), {"axis": -1}, (weights(1, 3, 2), weights(1, 3, 1))),
    "expand": Case("Expand", (1, 3, 1), {}, (_i(2, 1, 3, 4),)),
    "tile": Case("Tile", (1, 3, 2), {}, (_i(1, 2, 3),)),
    "slice": Case("Slice", IMAGE, {}, (_i(1, 0), _i(5, 100), _i(2, 3), _i(2, 1))),
    "slice-negative": Case("Slice", IMAGE, {}, (_i(-1), _i(-(2**63)), _i(2), _i(-2))),
    "slice-defaults": Case("Slice", IMAGE, {}, (_i(0, 1), _i(1, -1))),
    "slice-attributes": Case("Slice", IMAGE, {"starts": [1, -3], "ends": [3, -1], "axes": [1, 2]}, opset=9),
    "gather": Case("Gather", (1, 5), {"axis": 1}, (_i(3, 0, 3),)),
    "gather-one": Case("Gather", IMAGE, {"axis": 2}, (np.array(-2, np.int64),)),
    "gather-even": Case("Gather", IMAGE, {"axis": 3}, (_i(5, 3, 1),)),
    "gather-matrix": Case("Gather", (1, 5), {"axis": 1}, (_i(4, 0, 1, 1).reshape(2, 2),)),
    "split": Case("Split", IMAGE, {"axis": 1}, (_i(1, 3),), outputs=2),
    "split-equal": Case("Split", IMAGE, {"axis": 1}, outputs=2),
    "split-attribute": Case("Split", IMAGE, {"axis": 1, "split": [1, 2, 1]}, opset=11, outputs=3),
    "split-number": Case("Split", (1, 5), {"axis": 1, "num_outputs": 2}, opset=18, outputs=2),
    "pad": Case("Pad", IMAGE, {}, (_i(0, 0, 1, 2, 0, 1, 0, 3), F32(0.5))),
    "pad-negative": Case("Pad", IMAGE, {}, (_i(0, 0, -1, 2, 0, 0, 1, -3),)),
    "pad-attributes": Case("Pad", IMAGE, {"pads": [0, 0, 1, 2, 0, 1, 0, 3], "value": 0.5}, opset=10),
    "pad-axes": Case("Pad", IMAGE, {}, (_i(1, 2), F32(0), _i(-1)), opset=18),
    "pad-reflect": Case("Pad", IMAGE, {"mode": "reflect"}, (_i(0, 0, 1, 2, 0, 0, 3, 1),)),
    "pad-edge": Case("Pad", IMAGE, {"mode": "edge"}, (_i(0, 0, 1, 2, 0, 0, 3, 1),)),
    "depthtospace": Case("DepthToSpace", (1, 8, 2, 3), {"blocksize": 2}),
    "depthtospace-crd": Case("DepthToSpace", (1, 8, 2, 3), {"blocksize": 2, "mode": "CRD"}),
    "spacetodepth": Case("SpaceToDepth", (1, 2, 4, 6), {"blocksize": 2}),
    "conv": Case("Conv", IMAGE, {"pads": [1, 0, 2, 1], "strides": [2, 1]}, (weights(3, 4, 3, 2), weights(3))),
    "conv-dilated": Case("Conv", IMAGE, {"dilations": [2, 1]}, (weights(3, 4, 3, 2),)),
    "conv-groups": Case("Conv", IMAGE, {"group": 2, "kernel_shape": [3, 3]}, (weights(6, 2, 3, 3), weights(6))),
    "conv-depthwise": Case("Conv", IMAGE, {"group": 4, "pads": [1, 1, 1, 1]}, (weights(4, 1, 3, 3),)),
    "conv-same-upper": Case("Conv", IMAGE, {"auto_pad": "SAME_UPPER", "strides": [2, 2]}, (weights(3, 4, 3, 2),)),
    "conv-same-lower": Case("Conv", IMAGE, {"auto_pad": "SAME_LOWER", "strides": [2, 2]}, (weights(3, 4, 3, 2),)),
    "conv-valid": Case("Conv", IMAGE, {"auto_pad": "VALID"}, (weights(3, 4, 3, 2),)),
    "conv-1d": Case("Conv", (1, 2, 8), {"strides": [2]}, (weights(3, 2, 3), weights(3))),
    "conv-3d": Case("Conv", (1, 2, 3, 4, 3), {}, (weights(2, 2, 2, 2, 2),)),
    "convtranspose": Case(
        "ConvTranspose", IMAGE, {"strides": [2, 1], "pads": [1, 0, 0, 1]}, (weights(4, 3, 3, 2), weights(3))
    ),
    "convtranspose-output-padding": Case(
        "ConvTranspose",
        IMAGE,
        {"strides": [2, 3], "output_padding": [1, 2], "pads": [1, 1, 1, 1]},
        (weights(4, 3, 3, 3),),
    ),
    "convtranspose-groups": Case(
        "ConvTranspose", IMAGE, {"group": 2, "strides": [2, 2]}, (weights(4, 3, 2, 2), weights(6))
    ),
    "convtranspose-dilated": Case("ConvTranspose", IMAGE, {"dilations": [2, 1]}, (weights(4, 3, 2, 2),)),
    "convtranspose-same-upper": Case(
        "ConvTranspose", IMAGE, {"auto_pad": "SAME_UPPER", "strides": [2, 2]}, (weights(4, 3, 3, 3),)
    ),
    "convtranspose-output-shape": Case(
        "ConvTranspose", IMAGE, {"output_shape": [14, 12], "strides": [2, 2]}, (weights(4, 3, 3, 3),)
    ),
    "convtranspose-1d": Case("ConvTranspose", (1, 2, 5), {"strides": [2]}, (weights(2, 3, 3),)),
    "maxpool": Case("MaxPool", IMAGE, {"kernel_shape": [3, 2], "strides": [2, 2], "pads": [1, 0, 1, 1]}),
    "maxpool-ceil": Case("MaxPool", IMAGE, {"kernel_shape": [2, 2], "strides": [2, 2], "ceil_mode": 1}),
    "maxpool-dilated": Case("MaxPool", IMAGE, {"kernel_shape": [2, 2], "dilations": [2, 3]}),
    "maxpool-same": Case("MaxPool", IMAGE, {"kernel_shape": [3, 3], "strides": [2, 2], "auto_pad": "SAME_UPPER"}),
    "maxpool-1d": Case("MaxPool", (1, 2, 7), {"kernel_shape": [2], "strides": [2]}),
    "averagepool": Case("AveragePool", IMAGE, {"kernel_shape": [3, 2], "strides": [2, 1]}),
    "averagepool-padded": Case("AveragePool", IMAGE, {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}),
    "averagepool-padding-counts": Case(
        "AveragePool", IMAGE, {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "count_include_pad": 1}
    ),
    "averagepool-ceil": Case("AveragePool", IMAGE, {"kernel_shape": [2, 4], "strides": [2, 3], "ceil_mode": 1}),
    "averagepool-same": Case(
        "AveragePool", IMAGE, {"kernel_shape": [2, 2], "strides": [2, 2], "auto_pad": "SAME_LOWER"}
    ),
    "averagepool-ceil-counts": Case(
        "AveragePool",
        IMAGE,
        {"kernel_shape": [3, 3], "strides": [3, 2], "pads": [1, 1, 1, 1], "ceil_mode": 1, "count_include_pad": 1},
        opset=19,
    ),
    "globalaveragepool": Case("GlobalAveragePool", IMAGE),
    "globalmaxpool": Case("GlobalMaxPool", IMAGE),
    "resize-scales": Case(
        "Resize",
        IMAGE,
        {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"},
        (None, F32([1, 1, 2, 2])),
    ),
    "resize-default": Case("Resize", IMAGE, {}, (None, F32([1, 1, 1.5, 2.5]))),
    "resize-sizes": Case("Resize", IMAGE, {"mode": "nearest"}, (None, None, _i(1, 4, 9, 4))),
    "resize-linear": Case("Resize", IMAGE, {"mode": "linear"}, (None, F32([1, 1, 2, 1.5]))),
    "resize-aligned": Case(
        "Resize",
        IMAGE,
        {"mode": "linear", "coordinate_transformation_mode": "align_corners"},
        (None, None, _i(1, 4, 5, 11)),
    ),
    "resize-cubic": Case("Resize", IMAGE, {"mode": "cubic"}, (None, None, _i(1, 4, 5, 9))),
    "resize-10": Case("Resize", IMAGE, {"mode": "nearest"}, (F32([1, 1, 2, 1.5]),), opset=10),
    "upsample": Case("Upsample", IMAGE, {"mode": "nearest"}, (F32([1, 1, 2, 3]),), opset=9),
    "upsample-attribute": Case("Upsample", IMAGE, {"mode": "nearest", "scales": [1.0, 1.0, 2.0, 3.0]}, opset=7),
}

# Where onnx.reference (1.23) raises, or takes one axis instead of several (softmax).
for _name in (
    "mean-higher-rank",
    "softmax-old",
    "pad-negative",
    "convtranspose-groups",
    "convtranspose-output-shape",
    "resize-10",
    "upsample-attribute",
):
    CASES[_name] = CASES[_name]._replace(reference=False)


def node(operator: str, inputs: str, outputs: str = "y", **attributes) -> onnx.NodeProto:
    """Operands and results as words."""
    return helper.make_node(operator, inputs.split(), outputs.split(), **attributes)


def load(made: onnx.ModelProto, path: Path, **options) -> interop.OnnxNetwork:
    return interop.load_onnx(written(made, path / "model.onnx"), **options)


def tiny() -> onnx.ModelProto:
    """A convolution, a shape that is computed, and a matrix."""
    nodes = [
        node("Conv", "x kernel bias", "a", pads=[1, 1, 1, 1]),
        node("Relu", "a", "b"),
        node("Shape", "b", "shape"),
        node("Gather", "shape zero", "batch"),
        node("Unsqueeze", "batch axes", "first"),
        node("Concat", "first rest", "target", axis=0),
        node("Reshape", "b target", "c"),
        node("Gemm", "c matrix", "y"),
    ]
    constants = {
        "kernel": weights(2, 1, 3, 3),
        "bias": weights(2),
        "zero": np.array(0, np.int64),
        "axes": np.array([0], np.int64),
        "rest": np.array([-1], np.int64),
        "matrix": weights(18, 3),
    }
    return model(nodes, (1, 1, 3, 3), constants)
