"""Properties that are no classification: boxes of inputs, and the outputs that must not be reached from them."""

import dataclasses

import numpy as np

__all__ = ["UnsafeSet"]


@dataclasses.dataclass(frozen=True)
class UnsafeSet:
    """Inputs of a box whose outputs satisfy all of some linear inequalities.

    An input x with lower <= x <= upper is a counterexample if weights @ f(x).ravel() + offsets <= 0 in every row: ties
    are unsafe. A property is a sequence of these sets; it holds if none of them has a counterexample.

    Attributes:
      lower: `[*x]`, the least input.
      upper: `[*x]`, the greatest.
      weights: `[rows, outputs]`.
      offsets: `[rows]`.

    Source: VNN-LIB, https://www.vnnlib.org, whose assertions are brought to this form.
    """

    lower: np.ndarray
    upper: np.ndarray
    weights: np.ndarray
    offsets: np.ndarray

    def __post_init__(self) -> None:
        if np.shape(self.lower) != np.shape(self.upper):
            raise ValueError(
                f"The box has ends of shapes {np.shape(self.lower)} and {np.shape(self.upper)}; expected one shape."
            )
        if np.ndim(self.weights) != 2 or np.shape(self.offsets) != np.shape(self.weights)[:1]:
            raise ValueError(
                f"weights has shape {np.shape(self.weights)} and offsets {np.shape(self.offsets)}; expected [rows, "
                "outputs] and [rows]."
            )
        if not (np.all(np.isfinite(self.weights)) and np.all(np.isfinite(self.offsets))):
            raise ValueError("weights or offsets hold what is no finite number; expected finite ones. Correct them.")
