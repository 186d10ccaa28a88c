"""A list of ONNX nodes that grows: names are given here, and constants are stored once."""

from collections.abc import Iterable, Sequence
from typing import Any, SupportsIndex

import numpy as np
import onnx
from onnx import helper

from cure_jax.graph import Equation, Node, UnsupportedPrimitive

__all__ = ["OPSET", "Emission", "refused"]

OPSET = 17


def refused(equation: Equation, reason: str) -> UnsupportedPrimitive:
    """The error for an equation that cannot be written, naming primitive and source line."""
    return UnsupportedPrimitive(
        f"The primitive `{equation.name}` at {equation.source} cannot be written to ONNX: {reason}. Rewrite this line."
    )


class Emission:
    """What has been written.

    Attributes:
      nodes: in order.
      constants: arrays by name.
      names: of the values of the graph, by index.
    """

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, np.ndarray] = {}
        self.names: dict[int, str] = {}
        self._known: dict[tuple[Any, ...], str] = {}

    def add(self, operator: str, inputs: Sequence[str], *, output: str = "", **attributes: Any) -> str:
        """Adds a node with one result, and returns its name."""
        name = output or f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, list(inputs), [name], **attributes))
        return name

    def constant(self, value: Any) -> str:
        """The name of a constant; floats become float32."""
        array = np.asarray(value)
        if array.dtype.kind == "f" or array.dtype.kind == "V":
            array = array.astype(np.float32)
        key = array.shape, array.dtype.str, array.tobytes()
        if key not in self._known:
            self._known[key] = f"c{len(self.constants)}"
            self.constants[self._known[key]] = array
        return self._known[key]

    def integers(self, values: Iterable[SupportsIndex]) -> str:
        """The name of a list of integers, such as a shape."""
        return self.constant(np.array([int(value) for value in values], np.int64))

    def operand(self, equation: Equation, position: int) -> str:
        """The name of an operand."""
        operand = equation.operands[position]
        return self.names[operand.index] if isinstance(operand, Node) else self.constant(operand)

    def operands(self, equation: Equation) -> list[str]:
        """The names of all operands."""
        return [self.operand(equation, position) for position in range(len(equation.operands))]

    def reshaped(self, name: str, shape: Iterable[SupportsIndex]) -> str:
        """A value in another shape."""
        return self.add("Reshape", [name, self.integers(shape)])

    def transposed(self, name: str, order: Sequence[int]) -> str:
        """A value with its axes in another order."""
        return name if list(order) == sorted(order) else self.add("Transpose", [name], perm=list(order))
