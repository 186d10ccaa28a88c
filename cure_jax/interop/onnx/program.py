"""An ONNX network as a function of JAX: weights that are arrays, and steps that are static.

A step is one operator. Its operands are values (the input, or results of earlier steps), weights, or constants that the
operator must know when it is traced, such as the shape of a Reshape.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from cure_jax.interop.onnx import operators
from cure_jax.interop.onnx.step import Step

__all__ = ["Constant", "OnnxNetwork", "Program", "Value", "Weight"]


@dataclasses.dataclass(frozen=True)
class Value:
    """The input (index 0), or what a step computed."""

    index: int


@dataclasses.dataclass(frozen=True)
class Weight:
    """One of the network's weights."""

    index: int


@dataclasses.dataclass(frozen=True)
class Constant:
    """An array that is compared by value."""

    shape: tuple[int, ...]
    dtype: str
    data: bytes

    @classmethod
    def of(cls, array: np.ndarray) -> "Constant":
        """Wraps an array."""
        return cls(array.shape, array.dtype.str, array.tobytes())

    @property
    def array(self) -> np.ndarray:
        """The array."""
        return np.frombuffer(self.data, self.dtype).reshape(self.shape)


@dataclasses.dataclass(frozen=True)
class Program:
    """What a network computes, but for its weights. Networks of one architecture have equal programs.

    Attributes:
      steps: each with its operands (None for one that is left out) and the indices of its results.
      output: the index of the value that is returned.
      input_shape: of one example.
      output_shape: of what is returned.
      batched: whether the file has an axis of size 1 before that of the example.
      name: for people; it does not count in comparisons.
    """

    steps: tuple[tuple[Step, tuple[Value | Weight | Constant | None, ...], tuple[int, ...]], ...]
    output: int
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    batched: bool
    name: str = dataclasses.field(compare=False)


@dataclasses.dataclass(frozen=True, eq=False)
class OnnxNetwork:
    """A network read from an ONNX file: a function of one example `[*input_shape]` to `[*output_shape]`.

    A pytree whose leaves are the weights: `jax.jit(lambda f, x: crown(f)(linf_ball(x, eps)))` compiles once for all
    networks of one architecture. Where a `jax.tree_util.Partial` is asked for, give `Partial(OnnxNetwork.__call__, f)`.

    Attributes:
      weights: in the types of the file.
      program: what is done with them.
    """

    weights: tuple[jax.Array, ...]
    program: Program = dataclasses.field(metadata={"static": True})

    @property
    def name(self) -> str:
        """Of the file, without its ending."""
        return self.program.name

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Of one example."""
        return self.program.input_shape

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Of the outputs for one example."""
        return self.program.output_shape

    def __call__(self, x: Float[Array | np.ndarray, "*x"]) -> Float[Array, "*outputs"]:
        """Applies the network to one example, in the precision of the example (float32 or float64).

        Args:
          x: `[*input_shape]`.

        Raises:
          ValueError: if `x` has another shape.
        """
        program, x = self.program, jnp.asarray(x)
        if jnp.shape(x) != program.input_shape:
            raise ValueError(
                f"{program.name} got an input of shape {jnp.shape(x)}; expected one example of shape "
                f"{program.input_shape}. {_advice(jnp.shape(x), program.input_shape)}"
            )
        values = {0: jnp.reshape(x, (1, *program.input_shape)) if program.batched else x}

        def read(operand: Value | Weight | Constant | None) -> Any:
            if isinstance(operand, Value):
                return values[operand.index]
            if isinstance(operand, Weight):
                return self.weights[operand.index].astype(x.dtype)
            return None if operand is None else operand.array

        for step, operands, outputs in program.steps:
            results = operators.OPERATORS[step.operator].apply(step, *map(read, operands))
            results = results if isinstance(results, tuple) else (results,)
            values.update(zip(outputs, results, strict=True))
        return jnp.reshape(values[program.output], program.output_shape)


jax.tree_util.register_dataclass(OnnxNetwork)


def _advice(given: tuple[int, ...], expected: tuple[int, ...]) -> str:
    """What to do about an example of another shape."""
    if len(given) == 3 and (given[2], *given[:2]) == expected:
        return "The channels come first in this network: transpose images, images.transpose(0, 3, 1, 2)."
    if given[1:] == expected:
        return "Give it one example, and batch with jax.vmap."
    return "Reshape it, and batch with jax.vmap."
