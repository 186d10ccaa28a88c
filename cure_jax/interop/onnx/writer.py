"""Functions of JAX as ONNX files: the equations that bounds are computed of, one by one, as operators of ONNX."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import onnx
from jaxtyping import Array, Float
from onnx import TensorProto, checker, helper

from cure_jax import graph
from cure_jax.interop.onnx.emission import OPSET, Emission, refused
from cure_jax.interop.onnx.emitters import EMITTERS

__all__ = ["save_onnx"]

_IR_VERSION = 8
_MOST_BYTES = 2**31 - 1


def save_onnx(
    f: Callable[[Float[Array, "*x"]], Float[Array, "*outputs"]],
    example_shape: Sequence[int],
    path: str | os.PathLike,
) -> None:
    """Writes a function of one example as an ONNX file, for other verifiers and runtimes.

    What is written are the equations that `cure_jax.graph.trace` finds, in float32; what `f` closes over becomes
    constants. Input and output have a first axis of size 1, `[1, *example_shape]` to `[1, *outputs]`, which
    `load_onnx` leaves out again. The file uses ONNX's own operators, version 17.

    Args:
      f: one example `[*example_shape]` to one array.
      example_shape: of one example.
      path: of the file to write.

    Raises:
      UnsupportedPrimitive: if the input goes through a primitive that cannot be written; it is named, with its line.
      ValueError: if the file would have more than 2 GiB, or `f` does not depend on its input.

    Examples:
      >>> import cure_jax as cj
      >>> cj.interop.save_onnx(lambda x: jax.nn.relu(x) + 1, (3,), "network.onnx")  # doctest: +SKIP
    """
    shape = tuple(example_shape)
    traced = graph.trace(f, jax.ShapeDtypeStruct(shape, jnp.float32))
    if not isinstance(traced.output, graph.Node):
        raise ValueError("f does not depend on its input, so there is no network to write. Is it the right function?")
    emission = Emission()
    emission.names[traced.input.index] = emission.reshaped("input", shape)
    for equation in traced.equations:
        emitter = EMITTERS.get(equation.name)
        if emitter is None:
            raise refused(equation, "ONNX has no operator for it, or none that is written here")
        emission.names[equation.output.index] = emitter(emission, equation)
    last = emission.names[traced.output.index]
    # The name of the result is that of the output.
    emission.add("Reshape", [last, emission.integers((1, *traced.output.shape))], output="output")
    _write(emission, (1, *shape), (1, *traced.output.shape), Path(path))


def _write(emission: Emission, input_shape: Sequence[int], output_shape: Sequence[int], path: Path) -> None:
    if sum(array.nbytes for array in emission.constants.values()) > _MOST_BYTES - 2**20:
        raise ValueError("The network has more than 2 GiB of constants, which no ONNX file holds. Divide it.")
    model = helper.make_model(
        helper.make_graph(
            emission.nodes,
            path.name.partition(".")[0] or "network",
            [helper.make_tensor_value_info("input", TensorProto.FLOAT, input_shape)],
            [helper.make_tensor_value_info("output", TensorProto.FLOAT, output_shape)],
            [onnx.numpy_helper.from_array(np.ascontiguousarray(a), name) for name, a in emission.constants.items()],
        ),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=_IR_VERSION,
        producer_name="cure_jax",
    )
    checker.check_model(model, full_check=True)
    path.write_bytes(model.SerializeToString())
