"""From an ONNX model to a program: what does not depend on the input is computed, the rest becomes steps."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import onnx
from onnx import TensorProto, defs, helper, numpy_helper, shape_inference
from onnx.reference import ReferenceEvaluator

from cure_jax.interop.onnx.file import described
from cure_jax.interop.onnx.operators import OPERATORS
from cure_jax.interop.onnx.program import Constant, OnnxNetwork, Program, Value, Weight
from cure_jax.interop.onnx.resize import attributes_of, interpolation
from cure_jax.interop.onnx.step import Step

__all__ = ["build"]

_MOST_ENTRIES = 2**27
# Shapes and sizes; larger constants say nothing about the shapes of results.
_MOST_ENTRIES_OF_SHAPES = 4096
_FLOATS = (TensorProto.FLOAT, TensorProto.DOUBLE)
# Of the shape of a value, not of its entries.
_SHAPES = ("Shape", "Size")
# These compute shapes and constants, and are not needed for what depends on the input.
_COMPUTED = {
    "And", "Ceil", "Constant", "ConstantOfShape", "DequantizeLinear", "Equal", "Floor", "Greater", "GreaterOrEqual",
    "Less", "LessOrEqual", "Mod", "Not", "Or", "Range", "ReduceProd", "Round", "ScatterND", "Shape", "Sign", "Size",
}  # fmt: skip


def build(model: onnx.ModelProto, name: str) -> OnnxNetwork:
    """Makes a network of a checked model.

    Raises:
      ValueError: if something in it is not supported; onnx and JAX raise other errors where it does not fit together.
    """
    builder = _Builder(model)
    for node in builder.nodes:
        builder.add(node)
    return builder.network(name)


class _Builder:
    """What is known of each tensor while the graph is walked through: its type, and its value if it is a constant."""

    def __init__(self, model: onnx.ModelProto):
        graph = model.graph
        self.imports = [opset for opset in model.opset_import if opset.domain in ("", "ai.onnx")]
        self.version = self.imports[0].version
        if graph.sparse_initializer:
            raise ValueError("Its weights are sparse tensors; expected dense ones. Export it again without them.")
        self.entries = 0
        self._count({tensor.name: tuple(tensor.dims) for tensor in graph.initializer})
        self.constants = {tensor.name: _array(tensor) for tensor in graph.initializer}
        self.input, self.output = _ends(graph, self.constants)
        self.element, (self.batched, shape) = _element(self.input), _input_shape(self.input)
        self._limit(self.input.name, shape)
        # Of what depends on the input: its shape, and its number among the values.
        self.shapes = {self.input.name: shape}
        self.values = {self.input.name: 0}
        self.weights: dict[str, int] = {}
        self.steps: list[Any] = []
        self.nodes = _needed(graph, self.output)
        self._check_operators()

    def _limit(self, name: str, shape: Sequence[int]) -> None:
        if math.prod(shape) > _MOST_ENTRIES or min(shape, default=0) < 0:
            raise ValueError(
                f"The tensor {name!r} has shape {tuple(shape)}; expected at most {_MOST_ENTRIES} entries. Is the model "
                "damaged?"
            )

    def _count(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Keeps all constants together within limits."""
        for name, shape in shapes.items():
            self._limit(name, shape)
            self.entries += math.prod(shape)
        if self.entries > 4 * _MOST_ENTRIES:
            raise ValueError(f"Its constants have more than {4 * _MOST_ENTRIES} entries. Is the model damaged?")

    def _check_operators(self) -> None:
        """All operators that are not supported, in one error."""
        dependent, unknown = {self.input.name}, set()
        for node in self.nodes:
            depends = any(name in dependent for name in node.input) and node.op_type not in _SHAPES
            known = node.op_type in OPERATORS if depends else node.op_type in _COMPUTED or node.op_type in OPERATORS
            if node.domain not in ("", "ai.onnx"):
                unknown.add(f"{node.domain}.{node.op_type}")
            elif not known:
                unknown.add(node.op_type)
            dependent.update(node.output if depends else ())
        if unknown:
            raise ValueError(
                f"It has operators that are not supported: {', '.join(sorted(unknown))}. Expected those of "
                "cure_jax.interop.onnx.operators.OPERATORS. Rewrite the model with these and export it again."
            )

    def add(self, node: onnx.NodeProto) -> None:
        """Computes the results of a node, or adds a step."""
        for name in node.input:
            if name and name not in self.shapes and name not in self.constants:
                raise ValueError(
                    f"{node.op_type} reads {name!r}, which nothing before it computes: nodes are out of order or in a "
                    "cycle. Export it again."
                )
        inferred = self._inferred(node)
        if node.op_type in _SHAPES and node.input[0] in self.shapes:
            self._fold(node, {node.input[0]: np.broadcast_to(np.float32(0), self.shapes[node.input[0]])})
        elif all(name in self.constants for name in node.input if name):
            self._count(inferred)
            self._fold(node, {name: self.constants[name] for name in node.input if name})
        else:
            self._step(node, inferred)

    def _inferred(self, node: onnx.NodeProto) -> dict[str, tuple[int, ...]]:
        """The shapes of the results, by ONNX's own rules."""
        types, data = {}, {}
        for name in node.input:
            if name in self.constants:
                array = self.constants[name]
                types[name] = helper.make_tensor_type_proto(helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
                if array.size <= _MOST_ENTRIES_OF_SHAPES:
                    data[name] = numpy_helper.from_array(array, name)
            elif name:
                types[name] = helper.make_tensor_type_proto(self.element, self.shapes[name])
        schema = defs.get_schema(node.op_type, self.version, "")
        with described(f"{node.op_type} of {node.output[0]!r} does not fit together"):
            inferred = shape_inference.infer_node_outputs(schema, node, types, data, opset_imports=self.imports)
        shapes = {}
        for name in filter(None, node.output):
            shape = _known_shape(inferred[name]) if name in inferred else None
            if shape is None:
                raise ValueError(
                    f"The shape of {name!r}, from {node.op_type}, depends on values. Simplify the model first."
                )
            self._limit(name, shape)
            shapes[name] = shape
        return shapes

    def _fold(self, node: onnx.NodeProto, inputs: Mapping[str, np.ndarray]) -> None:
        infos = [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
            for name, array in inputs.items()
        ]
        outputs = [onnx.ValueInfoProto(name=name) for name in node.output if name]
        graph = helper.make_graph([node], "constant", infos, outputs)
        results = ReferenceEvaluator(helper.make_model(graph, opset_imports=self.imports)).run(None, dict(inputs))
        self.constants.update(zip([output.name for output in outputs], map(np.asarray, results), strict=True))

    def _step(self, node: onnx.NodeProto, shapes: Mapping[str, tuple[int, ...]]) -> None:
        operands = self._operands(node, shapes)
        # The others are masks and indices; a node that reads one is told that nothing computes it.
        kept = list(shapes) if node.op_type == "Split" else list(shapes)[:1]
        for name in kept:
            self.values[name] = len(self.values)
            self.shapes[name] = shapes[name]
        attributes = tuple(sorted(attributes_of(node).items()))
        step = Step(node.op_type, self.version, attributes, tuple(shapes[name] for name in kept))
        self.steps.append((step, operands, tuple(self.values[name] for name in kept)))

    def _operands(
        self, node: onnx.NodeProto, shapes: Mapping[str, tuple[int, ...]]
    ) -> tuple[Value | Weight | Constant | None, ...]:
        operator, names = OPERATORS[node.op_type], list(node.input)
        if node.op_type == "BatchNormalization":
            names = self._scale_and_shift(node)
        if node.op_type in ("Resize", "Upsample"):
            before, after = self.shapes[names[0]], shapes[node.output[0]]
            parts = interpolation(node, self.version, before, after, self.constants)
            return (Value(self.values[names[0]]), *map(Constant.of, parts))
        operands = []
        for position, name in enumerate(names):
            array = self.constants.get(name)
            must_be_known = position in operator.static or (array is not None and array.dtype.kind != "f")
            if not name:
                operands.append(None)
            elif array is None and must_be_known:
                raise ValueError(f"{node.op_type} takes its operand {name!r} from the input; expected a constant.")
            elif array is None:
                operands.append(Value(self.values[name]))
            elif must_be_known:
                operands.append(Constant.of(array))
            else:
                operands.append(Weight(self.weights.setdefault(name, len(self.weights))))
        return tuple(operands)

    def _scale_and_shift(self, node: onnx.NodeProto) -> list[str]:
        """Adds constants: x * scale + shift is the normalisation by its stored statistics."""
        attributes = attributes_of(node)
        if attributes.get("training_mode", 0) or len([name for name in node.output if name]) > 1:
            raise ValueError(
                "BatchNormalization is in training mode; expected inference. Export it after model.eval()."
            )
        if any(name not in self.constants for name in node.input[1:]):
            raise ValueError("BatchNormalization takes its statistics from the input; expected constants.")
        scale, bias, mean, variance = (self.constants[name].astype(np.float64) for name in node.input[1:])
        dtype = self.constants[node.input[1]].dtype
        scale = scale / np.sqrt(variance + attributes.get("epsilon", 1e-5))
        names = [f"{node.output[0]}:{part}" for part in ("scale", "shift")]
        self.constants.update(zip(names, (scale.astype(dtype), (bias - mean * scale).astype(dtype)), strict=True))
        return [node.input[0], *names]

    def network(self, name: str) -> OnnxNetwork:
        """The network that ends with the output of the graph."""
        if self.output not in self.values:
            raise ValueError(f"The output {self.output!r} does not depend on the input. Is it the right model?")
        input_shape, output_shape = self.shapes[self.input.name], self.shapes[self.output]
        with jax.enable_x64(True):
            # In the types of the file, 64 bits among them.
            weights = tuple(jnp.asarray(self.constants[weight]) for weight in self.weights)
        program = Program(
            steps=tuple(self.steps),
            output=self.values[self.output],
            input_shape=input_shape[1:] if self.batched else input_shape,
            output_shape=output_shape[1:] if self.batched and output_shape[:1] == (1,) else output_shape,
            batched=self.batched,
            name=name,
        )
        return OnnxNetwork(weights, program)


def _array(tensor: onnx.TensorProto) -> np.ndarray:
    array = numpy_helper.to_array(tensor)
    if array.shape != tuple(tensor.dims):
        raise ValueError(f"The weight {tensor.name!r} has shape {array.shape}; expected {tuple(tensor.dims)}.")
    return array


def _ends(graph: onnx.GraphProto, constants: Mapping[str, np.ndarray]) -> tuple[onnx.ValueInfoProto, str]:
    """The input and the name of the output."""
    inputs = [value for value in graph.input if value.name not in constants]
    for kind, values in (("inputs", inputs), ("outputs", list(graph.output))):
        if len(values) != 1:
            raise ValueError(
                f"It has {len(values)} {kind} ({', '.join(value.name for value in values)}); expected one. "
                "Export the part of it that has one."
            )
    return inputs[0], graph.output[0].name


def _element(value: onnx.ValueInfoProto) -> int:
    element = value.type.tensor_type.elem_type
    if not value.type.HasField("tensor_type") or element not in _FLOATS:
        raise ValueError(f"The input {value.name!r} is no tensor of float32 or float64. Export the model in float32.")
    return element


def _input_shape(value: onnx.ValueInfoProto) -> tuple[bool, tuple[int, ...]]:
    """Whether the first axis is that of the batch, and the shape with a batch of 1."""
    _element(value)
    if not value.type.tensor_type.HasField("shape"):
        raise ValueError(f"The input {value.name!r} has no shape. Export the model with the shape of one example.")
    sizes: list[int | None] = [
        dim.dim_value if dim.HasField("dim_value") and dim.dim_value > 0 else None
        for dim in value.type.tensor_type.shape.dim
    ]
    batched = len(sizes) > 1 and sizes[0] in (1, None)
    if batched:
        sizes[0] = 1
    if any(size is None for size in sizes):
        names = [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        raise ValueError(
            f"The input {value.name!r} has shape {names}; expected sizes for all axes but that of the batch. Export "
            "the model with fixed sizes."
        )
    return batched, tuple(size for size in sizes if size is not None)


def _needed(graph: onnx.GraphProto, output: str) -> list[onnx.NodeProto]:
    """The nodes that the output depends on, in order."""
    wanted, kept = {output}, []
    for node in reversed(graph.node):
        if any(name in wanted for name in node.output):
            wanted.update(node.input)
            kept.append(node)
    return kept[::-1]


def _known_shape(type_: onnx.TypeProto) -> tuple[int, ...] | None:
    """The shape, None if some of it is unknown."""
    sizes = type_.tensor_type.shape.dim
    if not type_.tensor_type.HasField("shape") or not all(size.HasField("dim_value") for size in sizes):
        return None
    return tuple(size.dim_value for size in sizes)
