"""Reads properties in VNN-LIB 1.0, the part of SMT-LIB that verifiers of networks take.

A file declares inputs X_0, X_1, ... and outputs Y_0, Y_1, ... and asserts linear inequalities of them, joined by `and`
and `or`. It describes counterexamples. Brought to disjunctive normal form, it is a sequence of `UnsafeSet`.

Numbers are exact fractions until they become float64, rounded to the side where the unsafe set is larger.
Source: https://www.vnnlib.org
"""

import gzip
import math
import os
import re
import zlib
from collections.abc import Iterator, Sequence
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cure_jax.certification.specification import UnsafeSet

__all__ = ["read_vnnlib"]

_TOKEN = re.compile(r"[()]|[^\s()]+")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_VARIABLE = re.compile(r"[XY]_(0|[1-9]\d{0,8})")
_MOST_BYTES = 2**28
_DEEPEST = 100
_MOST_SETS = 10_000
_MOST_CONDITIONS = 10_000_000
_LONGEST_NUMBER = 2000
_LARGEST_EXPONENT = 400
# Products of constants may have longer fractions than any decimal that is read.
_MOST_BITS = 2**14


class _Expression(NamedTuple):
    """Parentheses: their line, and the words and expressions between them."""

    line: int
    parts: list

    @property
    def head(self) -> str:
        first = self.parts[0] if self.parts else ""
        return first if isinstance(first, str) else "("


class _Condition(NamedTuple):
    """The sum of coefficient * variable, and of a constant, is at most 0."""

    line: int
    coefficients: dict[str, Fraction]
    constant: Fraction


class _Clause(NamedTuple):
    """Conditions on inputs and on outputs, all of which hold."""

    inputs: tuple[_Condition, ...]
    outputs: tuple[_Condition, ...]


def read_vnnlib(path: str | os.PathLike, shape: Sequence[int] | None = None) -> tuple[UnsafeSet, ...]:
    """Reads a property: the inputs and outputs that make a counterexample.

    Of SMT-LIB it takes `declare-const` of reals X_i and Y_i, and `assert` of `and`, `or`, `<=` and `>=` between linear
    expressions (`+`, `-`, `*` with constants). No condition may be of inputs and outputs, or of several inputs.

    Args:
      path: `.vnnlib`, or `.vnnlib.gz`.
      shape: of the network's input; None leaves the box flat, `[inputs]`.

    Returns:
      One set for each combination of alternatives, in the order of the file. Combinations with an empty box are left
      out. Strict `weights @ y + offsets <= 0` is the condition of each row; `(<= Y_0 Y_1)` gives weights 1 and -1.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: with the line, if the file is damaged; if it has other commands, operators or variables; if an input
        has no lower or upper bound, or the box is empty; if there is no condition on the outputs; if the inputs do not
        have `shape`; or if it is nested more than 100 deep or has more than 10,000 alternatives.

    Soundness:
      Every counterexample of the file is one of a set that is returned: a limit of the box or an offset that is no
      float64 is rounded outward, to the next float64 on the side where the set is larger. A coefficient of an output
      that is no float64 (0.1, but not 1 or -0.5) is rounded to the nearest one.
    """
    path = Path(path)
    try:
        expressions = list(_parse(_contents(path)))
        names = _declared([e for e in expressions if e.head == "declare-const"])
        clauses = _clauses(expressions, names)
        return _sets(clauses, names, shape)
    except _Refused as error:
        where = "" if error.line is None else f", line {error.line}"
        raise ValueError(f"{path}{where}: {error.reason}") from error


class _Refused(Exception):
    """What is wrong, and on which line."""

    def __init__(self, reason: str, line: int | None = None):
        super().__init__(reason)
        self.reason, self.line = reason, line


def _contents(path: Path) -> str:
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream:
            contents = stream.read(_MOST_BYTES + 1)
        text = contents.decode()
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise _Refused(f"it is not a whole gzip archive ({error}).") from error
    except UnicodeDecodeError as error:
        raise _Refused("it is not a text file in UTF-8.") from error
    if len(contents) > _MOST_BYTES:
        raise _Refused(f"it has more than {_MOST_BYTES} bytes.")
    return text


def _parse(text: str) -> Iterator[_Expression]:
    """The expressions of the file; parentheses are counted, not recursed into."""
    open_: list[_Expression] = []
    for number, line in enumerate(text.split("\n"), start=1):
        for token in _TOKEN.findall(line.partition(";")[0]):
            if token == "(":
                if len(open_) == _DEEPEST:
                    raise _Refused(f"parentheses are nested more than {_DEEPEST} deep.", number)
                open_.append(_Expression(number, []))
            elif not open_:
                raise _Refused(f"{token[:40]!r} stands outside of any command.", number)
            elif token == ")":
                closed = open_.pop()
                if open_:
                    open_[-1].parts.append(closed)
                else:
                    yield closed
            else:
                open_[-1].parts.append(token)
    if open_:
        raise _Refused("this parenthesis is never closed; is the file cut off?", open_[0].line)


def _declared(expressions: Sequence[_Expression]) -> dict[str, int]:
    """The line of each variable."""
    lines: dict[str, int] = {}
    for line, parts in expressions:
        name = parts[1] if len(parts) == 3 and isinstance(parts[1], str) else ""
        if len(parts) != 3 or parts[2] != "Real" or not _VARIABLE.fullmatch(name):
            raise _Refused("expected (declare-const X_0 Real), an input X_i or an output Y_i.", line)
        if name in lines:
            raise _Refused(f"{name} is declared again; line {lines[name]} did so.", line)
        lines[name] = line
    for kind, what in (("X", "inputs"), ("Y", "outputs")):
        numbers = [int(name[2:]) for name in lines if name[0] == kind]
        missing = next((i for i in range(len(numbers)) if f"{kind}_{i}" not in lines), None)
        if not numbers or missing is not None:
            raise _Refused(f"{what} {kind}_0 to {kind}_n are expected; {kind}_{missing or 0} is not declared.")
    return lines


def _clauses(expressions: Sequence[_Expression], names: dict[str, int]) -> list[_Clause]:
    """All assertions together: the alternatives, each of conditions that all hold."""
    plain, branching = [], []
    for expression in expressions:
        line, parts = expression
        if expression.head == "declare-const":
            continue
        if expression.head != "assert" or len(parts) != 2 or isinstance(parts[1], str):
            raise _Refused(f"expected (declare-const ...) or (assert (...)); found ({expression.head[:40]} ...).", line)
        alternatives = _alternatives(parts[1], names)
        (plain if len(alternatives) == 1 else branching).append(alternatives)
    result = [_joined([alternative for (alternative,) in plain])]
    for alternatives in branching:
        result = _combined(result, alternatives, None)
    return result


def _alternatives(expression: _Expression, names: dict[str, int]) -> list[_Clause]:
    """The disjunctive normal form of an assertion."""
    line, parts = expression
    if expression.head in ("<=", ">="):
        return [_clause(_condition(expression, names))]
    if expression.head not in ("and", "or"):
        raise _Refused(f"expected and, or, <= or >=; found {expression.head[:40]!r}.", line)
    if len(parts) == 1 or any(isinstance(part, str) for part in parts[1:]):
        raise _Refused(f"expected conditions after {expression.head!r}.", line)
    inner = [_alternatives(part, names) for part in parts[1:]]
    if expression.head == "or":
        if sum(map(len, inner)) > _MOST_SETS:
            raise _Refused(f"there are more than {_MOST_SETS} alternatives.", line)
        return [clause for alternatives in inner for clause in alternatives]
    result = [_joined([alternatives[0] for alternatives in inner if len(alternatives) == 1])]
    for alternatives in inner:
        if len(alternatives) > 1:
            result = _combined(result, alternatives, line)
    return result


def _combined(first: list[_Clause], second: list[_Clause], line: int | None) -> list[_Clause]:
    """Every one of the first with every one of the second."""
    conditions = sum(len(c.inputs) + len(c.outputs) for c in first) * len(second)
    conditions += sum(len(c.inputs) + len(c.outputs) for c in second) * len(first)
    if len(first) * len(second) > _MOST_SETS or conditions > _MOST_CONDITIONS:
        raise _Refused(f"together there are more than {_MOST_SETS} alternatives, or too long ones.", line)
    return [_joined([one, other]) for one in first for other in second]


def _joined(clauses: Sequence[_Clause]) -> _Clause:
    return _Clause(_together([clause.inputs for clause in clauses]), _together([clause.outputs for clause in clauses]))


def _together(parts: Sequence[tuple[_Condition, ...]]) -> tuple[_Condition, ...]:
    """All conditions; the same tuple where only one part has any, so that alternatives share their box."""
    filled = [part for part in parts if part]
    return filled[0] if len(filled) == 1 else tuple(condition for part in filled for condition in part)


def _clause(condition: _Condition) -> _Clause:
    kinds = {name[0] for name in condition.coefficients}
    if kinds == {"Y"}:
        return _Clause((), (condition,))
    if not kinds:
        raise _Refused("a condition without a variable (or whose variables cancel).", condition.line)
    if kinds == {"X", "Y"}:
        raise _Refused("a condition of inputs and outputs together, which no unsafe set can hold.", condition.line)
    if len(condition.coefficients) > 1:
        raise _Refused("a condition of several inputs; expected bounds of single ones.", condition.line)
    return _Clause((condition,), ())


def _condition(expression: _Expression, names: dict[str, int]) -> _Condition:
    """One side minus the other, at most 0."""
    line, parts = expression
    if len(parts) != 3:
        raise _Refused(f"{expression.head} has {len(parts) - 1} operands; expected two.", line)
    left, right = (_linear(part, names, line) for part in parts[1:])
    if expression.head == ">=":
        left, right = right, left
    total = _sum([left, {name: -value for name, value in right.items()}], line)
    constant = total.pop("", Fraction(0))
    return _Condition(line, {name: value for name, value in total.items() if value}, constant)


# Coefficients by name of variable, and the constant by the empty name.
_Linear = dict[str, Fraction]


def _linear(part: str | _Expression, names: dict[str, int], line: int) -> _Linear:
    if isinstance(part, str):
        if part in names:
            return {part: Fraction(1)}
        if _NUMBER.fullmatch(part):
            return {"": _number(part, line)}
        raise _Refused(f"{part[:40]!r} is neither a number nor a declared variable.", line)
    operands = [_linear(operand, names, part.line) for operand in part.parts[1:]]
    if part.head not in ("+", "-", "*") or not operands:
        raise _Refused(f"expected a sum or product; found ({part.head[:40]} ...).", part.line)
    if part.head == "*":
        return _product(operands, part.line)
    if part.head == "-":
        signs = [-1] if len(operands) == 1 else [1] + [-1] * (len(operands) - 1)
        operands = [{n: sign * v for n, v in operand.items()} for sign, operand in zip(signs, operands, strict=True)]
    return _sum(operands, part.line)


def _sum(operands: Sequence[_Linear], line: int) -> _Linear:
    total: _Linear = {}
    for operand in operands:
        for name, value in operand.items():
            total[name] = _small(total[name] + value, line) if name in total else value
    return total


def _product(operands: Sequence[_Linear], line: int) -> _Linear:
    result: _Linear = {"": Fraction(1)}
    for operand in operands:
        one, other = (result, operand) if set(result) == {""} else (operand, result)
        if set(one) != {""}:
            raise _Refused("a product of variables; expected linear conditions.", line)
        result = {name: _small(one[""] * value, line) for name, value in other.items()}
    return result


def _small(value: Fraction, line: int) -> Fraction:
    if max(value.numerator.bit_length(), value.denominator.bit_length()) > _MOST_BITS:
        raise _Refused("a constant has too many digits.", line)
    return value


def _number(word: str, line: int) -> Fraction:
    if len(word) > _LONGEST_NUMBER:
        raise _Refused(f"a number has more than {_LONGEST_NUMBER} characters.", line)
    exponent = re.split("[eE]", word)[1:]
    # Before anything is computed: 1e999999999 has as many digits.
    if exponent and (len(exponent[0]) > 6 or abs(int(exponent[0])) > _LARGEST_EXPONENT + _LONGEST_NUMBER):
        raise _Refused(f"the number {word[:40]} is beyond float64.", line)
    value = Fraction(Decimal(word))
    if abs(value) > Fraction(float(np.finfo(np.float64).max)):
        raise _Refused(f"the number {word[:40]} is beyond float64.", line)
    return value


def _below(value: Fraction, line: int) -> float:
    """The greatest float64 that is not above the value."""
    try:
        nearest = float(value)
    except OverflowError as error:
        raise _Refused("a bound is beyond float64.", line) from error
    return nearest if nearest <= value else math.nextafter(nearest, -math.inf)


def _above(value: Fraction, line: int) -> float:
    return -_below(-value, line)


def _sets(clauses: Sequence[_Clause], names: dict[str, int], shape: Sequence[int] | None) -> tuple[UnsafeSet, ...]:
    inputs, outputs = (sum(name[0] == kind for name in names) for kind in "XY")
    shape = (inputs,) if shape is None else tuple(shape)
    if math.prod(shape) != inputs:
        raise _Refused(f"it has {inputs} inputs; expected those of an array of shape {shape}.")
    if len({id(clause.inputs) for clause in clauses}) * inputs > _MOST_CONDITIONS:
        raise _Refused(f"it has too many alternatives ({len(clauses)}) for {inputs} inputs.")
    # By identity: they are long, and the clauses keep them.
    boxes: dict[int, tuple[np.ndarray, np.ndarray] | _Refused] = {}
    sets, empty = [], None
    for clause in clauses:
        key = id(clause.inputs)
        if key not in boxes:
            boxes[key] = _box(clause.inputs, names, inputs)
        box = boxes[key]
        if isinstance(box, _Refused):
            empty = empty or box
            continue
        if not clause.outputs:
            raise _Refused("there is no condition on the outputs.")
        lower, upper = (end.reshape(shape) for end in box)
        sets.append(UnsafeSet(lower, upper, *_rows(clause.outputs, outputs)))
    if not sets:
        raise empty or _Refused("there is no alternative.")
    return tuple(sets)


def _box(
    conditions: Sequence[_Condition], names: dict[str, int], inputs: int
) -> tuple[np.ndarray, np.ndarray] | _Refused:
    """The bounds of all inputs, rounded outward; where they contradict each other, what to say."""
    ends: list[dict[int, tuple[Fraction, int]]] = [{}, {}]
    for line, coefficients, constant in conditions:
        ((name, factor),) = coefficients.items()
        limit, index, side = -constant / factor, int(name[2:]), int(factor > 0)
        known = ends[side].get(index)
        if known is None or (limit < known[0] if side else limit > known[0]):
            ends[side][index] = limit, line
    lower, upper = np.zeros((2, inputs))
    for i in range(inputs):
        for side, word in enumerate(("lower", "upper")):
            if i not in ends[side]:
                raise _Refused(f"the input X_{i} has no {word} bound.", names[f"X_{i}"])
        (low, first), (high, second) = ends[0][i], ends[1][i]
        if low > high:
            return _Refused(
                f"the bounds of X_{i} contradict each other (see line {min(first, second)}).", max(first, second)
            )
        lower[i], upper[i] = _below(low, first), _above(high, second)
    return lower, upper


def _rows(conditions: Sequence[_Condition], outputs: int) -> tuple[np.ndarray, np.ndarray]:
    weights, offsets = np.zeros((len(conditions), outputs)), np.zeros(len(conditions))
    for row, (line, coefficients, constant) in enumerate(conditions):
        for name, value in coefficients.items():
            weights[row, int(name[2:])] = _nearest(value, line)
        offsets[row] = _below(constant, line)
    return weights, offsets


def _nearest(value: Fraction, line: int) -> float:
    try:
        return float(value)
    except OverflowError as error:
        raise _Refused("a coefficient is beyond float64.", line) from error
