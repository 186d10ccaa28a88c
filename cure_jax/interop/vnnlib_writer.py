"""Writes properties in VNN-LIB 1.0, and counterexamples in the form of the competition."""

import gzip
import os
from collections.abc import Iterator, Sequence
from decimal import Decimal
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from cure_jax.certification.specification import UnsafeSet

__all__ = ["format_witness", "write_vnnlib", "write_witness"]


def write_vnnlib(path: str | os.PathLike, unsafe_sets: Sequence[UnsafeSet]) -> None:
    """Writes a property, which `read_vnnlib` reads back as the same sets.

    Numbers are written with all their digits (0.1 as 0.1000000000000000055511151231257827...): a shorter decimal is
    another number, and would be rounded outward again.

    Args:
      path: `.vnnlib`, or `.vnnlib.gz`.
      unsafe_sets: at least one, all with as many inputs and as many outputs.

    Raises:
      ValueError: if there is none, they differ in their numbers of inputs or outputs, a box is empty, a number is not
        finite, or a row has no weight, which VNN-LIB has no form for.
    """
    sets = tuple(unsafe_sets)
    sizes = {(np.size(one.lower), np.shape(one.weights)[1]) for one in sets}
    if len(sizes) != 1:
        raise ValueError(f"Got sets of {sorted(sizes)} inputs and outputs; expected at least one set, all of one size.")
    for one in sets:
        _check(one)
    ((inputs, outputs),) = sizes
    lines = [f"(declare-const X_{i} Real)" for i in range(inputs)]
    lines += [f"(declare-const Y_{i} Real)" for i in range(outputs)]
    boxes = [[*_box(one)] for one in sets]
    if all(box == boxes[0] for box in boxes):
        lines += [f"(assert {condition})" for condition in boxes[0]]
        boxes = [[] for _ in sets]
    alternatives = [[*box, *_rows(one)] for box, one in zip(boxes, sets, strict=True)]
    if len(sets) == 1:
        lines += [f"(assert {condition})" for condition in alternatives[0]]
    else:
        lines += ["(assert (or", *(f"  (and {' '.join(conditions)})" for conditions in alternatives), "))"]
    text = ("\n".join(lines) + "\n").encode()
    Path(path).write_bytes(gzip.compress(text, mtime=0) if Path(path).suffix == ".gz" else text)


def _check(one: UnsafeSet) -> None:
    arrays = (one.lower, one.upper, one.weights, one.offsets)
    if not all(np.all(np.isfinite(array)) for array in arrays) or np.any(np.asarray(one.lower) > np.asarray(one.upper)):
        raise ValueError("A set has a number that is not finite, or an empty box; expected lower <= upper, all finite.")
    if len(one.offsets) == 0 or not np.all(np.any(np.asarray(one.weights) != 0, axis=1)):
        raise ValueError("A set has no row, or a row without a weight; VNN-LIB has conditions of outputs alone.")


def _number(value: float | int | np.floating) -> str:
    """All digits."""
    return str(Decimal(float(value)))


def _box(one: UnsafeSet) -> Iterator[str]:
    for i, (lower, upper) in enumerate(zip(np.ravel(one.lower), np.ravel(one.upper), strict=True)):
        yield f"(>= X_{i} {_number(lower)})"
        yield f"(<= X_{i} {_number(upper)})"


def _rows(one: UnsafeSet) -> Iterator[str]:
    for weights, offset in zip(np.asarray(one.weights, np.float64), np.asarray(one.offsets, np.float64), strict=True):
        entries = [(f"Y_{i}", weights[i]) for i in np.flatnonzero(weights)]
        plus = [name for name, weight in entries if weight == 1]
        minus = [name for name, weight in entries if weight == -1]
        if len(plus) + len(minus) == len(entries) and len(plus) <= 1 and len(minus) <= 1 and offset * len(minus) == 0:
            # y_i - y_j <= 0, or y_i + offset <= 0.
            yield f"(<= {plus[0] if plus else _number(0.0)} {minus[0] if minus else _number(-offset)})"
        elif len(entries) == 1 and minus:
            yield f"(>= {minus[0]} {_number(offset)})"
        else:
            terms = " ".join(name if weight == 1 else f"(* {_number(weight)} {name})" for name, weight in entries)
            yield f"(<= (+ {terms} {_number(offset)}) {_number(0.0)})"


def format_witness(x: ArrayLike, y: ArrayLike) -> str:
    """A counterexample in the form of VNN-COMP.

    Args:
      x: the input, written as X_0, X_1, ... in the order of its memory.
      y: the outputs of the network for it.

    Returns:
      Text that holds the numbers exactly: read as float64 (or as the type of `x`), they are the same.

    Examples:
      >>> print(format_witness(np.array([0.5, -1.0]), np.array([2.0])))
      ((X_0 0.5)
      (X_1 -1.0)
      (Y_0 2.0))
    """
    names = [f"({letter}_{i} {float(v)!r})" for letter, a in (("X", x), ("Y", y)) for i, v in enumerate(np.ravel(a))]
    return f"({chr(10).join(names)})"


def write_witness(path: str | os.PathLike, x: ArrayLike, y: ArrayLike) -> None:
    """Writes the result file of VNN-COMP for a counterexample: `sat`, and `format_witness(x, y)` below it.

    Args:
      path: where to.
      x: the input.
      y: the outputs of the network for it.
    """
    Path(path).write_text(f"sat\n{format_witness(x, y)}\n")
