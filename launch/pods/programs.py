"""What XLA says of a program that it compiled for a TPU: cycles, reductions between chips, and what costs most."""

import re
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

__all__ = ["Cost", "cost"]

_HEAD = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*\{$")
_OPERATION = re.compile(r"^\s+(?:ROOT )?%?[\w.-]+ = (?P<type>.*?) (?P<name>[a-z][\w-]*)\(")
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_CALLED = re.compile(
    r"(condition|body|to_apply|branch_computations|true_computation|false_computation)=(\{[^}]*\}|%?[\w.-]+)"
)
_ARRAY = re.compile(r"\b(?:pred|[sufbc]\w*?(\d+))\[([\d,]*)\]")
_SOURCE = re.compile(r'op_name="([^"]*)"')


class Cost(NamedTuple):
    """What one run of a program costs a chip.

    Attributes:
      cycles: by XLA's cost model, without waiting for other chips.
      reductions: bytes of each sum over the chips, as often as it is run.
      costliest: cycles by what the operation is in the JAX program, the most expensive first.
    """

    cycles: int
    reductions: tuple[int, ...]
    costliest: tuple[tuple[str, int], ...]


class _Operation(NamedTuple):
    name: str
    line: str
    bytes: int


def cost(text: str) -> Cost:
    """Reads the text of an optimised program.

    A loop counts as often as it runs, where its limit is a constant, and once otherwise; of a conditional the most
    expensive branch counts.

    Args:
      text: `jax.stages.Compiled.as_text()` of a program for a TPU.
    """
    computations, entry = _computations(text)
    found = _Walk(computations).run(entry)
    totals: dict[str, int] = {}
    for source, cycles in found.sources:
        totals[source] = totals.get(source, 0) + cycles
    ordered = sorted(totals.items(), key=lambda item: -item[1])
    return Cost(found.cycles, tuple(found.reductions), tuple(ordered))


def _computations(text: str) -> tuple[dict[str, list[_Operation]], str]:
    computations: dict[str, list[_Operation]] = {}
    entry, current = "", None
    for line in text.splitlines():
        if head := _HEAD.match(line):
            current = computations.setdefault(head[2], [])
            entry = head[2] if head[1] else entry
        elif current is not None and (operation := _OPERATION.match(line)):
            current.append(_Operation(operation["name"], line, _bytes(operation["type"])))
    if not entry:
        raise ValueError("The text has no ENTRY computation; expected Compiled.as_text() of a program.")
    return computations, entry


def _bytes(types: str) -> int:
    sizes = (
        int(bits or 8) * int(np.prod([int(size) for size in shape.split(",") if size], dtype=np.int64))
        for bits, shape in _ARRAY.findall(types)
    )
    return sum(sizes) // 8


class _Found(NamedTuple):
    cycles: int
    reductions: list[int]
    sources: list[tuple[str, int]]

    def times(self, count: int) -> "_Found":
        return _Found(
            self.cycles * count, self.reductions * count, [(source, cycles * count) for source, cycles in self.sources]
        )


class _Walk:
    """Adds up the operations of a computation and of all that it calls."""

    def __init__(self, computations: dict[str, list[_Operation]]):
        self.computations = computations
        self.known: dict[str, _Found] = {}

    def run(self, name: str) -> _Found:
        if name not in self.known:
            parts = [part for operation in self.computations.get(name, []) for part in self._parts(operation)]
            self.known[name] = _Found(
                sum(part.cycles for part in parts),
                [size for part in parts for size in part.reductions],
                [source for part in parts for source in part.sources],
            )
        return self.known[name]

    def _parts(self, operation: _Operation) -> Iterator[_Found]:
        called = {key: re.findall(r"[\w.-]+", names) for key, names in _CALLED.findall(operation.line)}
        if operation.name == "while":
            (condition,), (body,) = called["condition"], called["body"]
            yield self.run(body).times(self._trips(condition))
        elif operation.name == "conditional":
            branches = [name for key in called if key != "to_apply" for name in called[key]]
            yield max(map(self.run, branches), key=lambda found: (found.cycles, sum(found.reductions)))
        elif operation.name == "call":
            yield self.run(called["to_apply"][0])
        if cycles := _CYCLES.search(operation.line):
            source = _SOURCE.search(operation.line)
            yield _Found(int(cycles[1]), [], [(source[1] if source else operation.name, int(cycles[1]))])
        if operation.name in ("all-reduce", "all-reduce-start"):
            yield _Found(0, [operation.bytes], [])

    def _trips(self, condition: str) -> int:
        """How often a loop runs: the one constant that its counter is compared with."""
        limits = {
            int(limit)
            for operation in self.computations.get(condition, [])
            for limit in re.findall(r"s32\[\]\S* constant\((\d+)\)", operation.line)
        }
        return limits.pop() if len(limits) == 1 else 1
