"""One operator of an ONNX network: its name, version and attributes, all static."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

__all__ = ["Operator", "Step", "integers"]

# Arrays of floats may be traced; constants that an operator must know are arrays of numpy.
Operand = Any


@dataclasses.dataclass(frozen=True)
class Step:
    """An operator with its attributes.

    Attributes:
      operator: its name.
      version: of the operator set.
      attributes: as pairs, lists as tuples.
      shapes: of its results.
    """

    operator: str
    version: int
    attributes: tuple[tuple[str, Any], ...]
    shapes: tuple[tuple[int, ...], ...]

    def get(self, name: str, default: Any = None) -> Any:
        """The value of an attribute."""
        return dict(self.attributes).get(name, default)

    def refused(self, reason: str) -> ValueError:
        """The error for a form of the operator that has no counterpart here."""
        return ValueError(
            f"The operator {self.operator} is not supported {reason}. Rewrite it in the model and export it again."
        )


@dataclasses.dataclass(frozen=True)
class Operator:
    """How an operator is computed.

    Attributes:
      apply: `(step, *operands) -> array`, or a tuple of arrays; operands that are left out are None.
      static: the positions of operands that must be constants, known when the operator is traced. Integers always are.
    """

    apply: Callable[..., jax.Array | tuple[jax.Array, ...]]
    static: tuple[int, ...] = ()


def integers(step: Step, operand: np.ndarray | None, name: str) -> tuple[int, ...] | None:
    """Integers that are an operand in newer versions, an attribute in older ones; None if they are neither."""
    if operand is None:
        return step.get(name)
    return tuple(int(value) for value in np.ravel(operand))
