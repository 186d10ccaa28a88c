"""Loops and branches written out: what `graph` records of `scan`, `while` and `cond`.

A loop whose length is known while it is traced becomes its steps, one after the other; of a branch whose index is known
the branch itself. An index that does not depend on the input, but is known only when the program runs (a parameter
under `jax.jit`), selects among the results of all branches. Whatever depends on the input decides nothing.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

__all__ = ["CONTROL_FLOW", "Recorder", "Refused"]

# Steps are recorded one by one, so a loop without an end would never be recorded.
_MOST_STEPS = 10_000


class Refused(Exception):
    """A loop or a branch that cannot be written out, and why."""


class Recorder(NamedTuple):
    """What the equations of a loop are given to.

    Attributes:
      run: `(closed jaxpr, operands) -> results`.
      record: `(function, operands) -> results`, of a function of arrays that returns a list.
      number: an operand -> its value; None where it is known only when the program runs.
      depends: an operand -> whether it depends on the input.
    """

    run: Callable[[Any, Sequence[Any]], list[Any]]
    record: Callable[[Callable[..., list[jax.Array]], Sequence[Any]], list[Any]]
    number: Callable[[Any], int | None]
    depends: Callable[[Any], bool]


def _scan(recorder: Recorder, params: Mapping[str, Any], operands: Sequence[Any], types: Sequence[Any]) -> list[Any]:
    first, last = params["num_consts"], params["num_consts"] + params["num_carry"]
    constants, carry, columns = operands[:first], list(operands[first:last]), operands[last:]
    steps, rows = _counted(params["length"]), []
    for index in reversed(steps) if params["reverse"] else steps:
        entry = functools.partial(lax.index_in_dim, index=index, keepdims=False)
        entries = [recorder.record(lambda x, entry=entry: [entry(x)], [column])[0] for column in columns]
        results = recorder.run(params["jaxpr"], [*constants, *carry, *entries])
        carry, row = results[: len(carry)], results[len(carry) :]
        rows.append(row)
    if not rows:
        return [*carry, *(jnp.zeros(kind.shape, kind.dtype) for kind in types[len(carry) :])]
    rows = rows[::-1] if params["reverse"] else rows
    stack: Callable[..., list[jax.Array]] = lambda *entries: [jnp.stack(entries)]  # noqa: E731
    return [*carry, *(recorder.record(stack, column)[0] for column in zip(*rows, strict=True))]


def _counted(length: int) -> range:
    if length > _MOST_STEPS:
        raise Refused(f"it has {length} steps, of which at most {_MOST_STEPS} are written out")
    return range(length)


def _while(recorder: Recorder, params: Mapping[str, Any], operands: Sequence[Any], types: Sequence[Any]) -> list[Any]:
    del types
    first, last = params["cond_nconsts"], params["cond_nconsts"] + params["body_nconsts"]
    for_condition, for_body, carry = operands[:first], operands[first:last], list(operands[last:])
    for _ in range(_MOST_STEPS):
        (condition,) = recorder.run(params["cond_jaxpr"], [*for_condition, *carry])
        if recorder.depends(condition):
            raise Refused("how often it runs depends on the input")
        goes_on = recorder.number(condition)
        if goes_on is None:
            raise Refused("how often it runs is not known while it is traced; make that a number of Python")
        if not goes_on:
            return carry
        carry = recorder.run(params["body_jaxpr"], [*for_body, *carry])
    raise Refused(f"it runs more than {_MOST_STEPS} times")


def _cond(recorder: Recorder, params: Mapping[str, Any], operands: Sequence[Any], types: Sequence[Any]) -> list[Any]:
    del types
    index, *others = operands
    if recorder.depends(index):
        raise Refused(
            "which branch it takes depends on the input; use jnp.where, jnp.maximum or cure_jax.custom_bounds"
        )
    branches, known = params["branches"], recorder.number(index)
    most = len(branches) - 1
    if known is not None or not most:
        return recorder.run(branches[min(max(known or 0, 0), most)], others)
    results = [recorder.run(branch, others) for branch in branches]

    def select(index: jax.Array, *cases: jax.Array) -> list[jax.Array]:
        # XLA takes an index that is out of range for the nearest one.
        return [lax.select_n(jnp.clip(index.astype(jnp.int32), 0, most), *cases)]

    return [recorder.record(select, [index, *cases])[0] for cases in zip(*results, strict=True)]


# By primitive: `(recorder, its parameters, its operands, shapes and types of its results) -> results`.
CONTROL_FLOW: Mapping[str, Callable[[Recorder, Mapping[str, Any], Sequence[Any], Sequence[Any]], list[Any]]] = {
    "cond": _cond,
    "scan": _scan,
    "while": _while,
}
