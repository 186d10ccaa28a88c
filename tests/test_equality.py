"""Functions as keys of compiled programs: equal for equal values, and for nothing else."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cure_jax.equality import ByValue


@dataclasses.dataclass(frozen=True)
class _Shift:
    by: Any

    def __call__(self, x: Any) -> Any:
        return x + self.by

    def other(self, x: Any) -> Any:
        return x - self.by


def _wrapped(by: Any) -> list[ByValue]:
    shift = _Shift(by)
    return [ByValue(function) for function in (shift, _Shift(shift), shift.other, functools.partial(shift, by=by))]


@pytest.mark.parametrize(
    "make",
    [
        lambda: np.arange(3.0),
        lambda: jnp.arange(3),
        lambda: {"a": [np.zeros(2), "text", None], "b": (1, np.float32(2))},
        lambda: jax.random.key(3),
        lambda: jnp.array([jnp.nan]),
        lambda: float("nan"),
        lambda: jnp.zeros(0),
    ],
)
def test_equal_values_are_equal(make: Any) -> None:
    for first, second in zip(_wrapped(make()), _wrapped(make()), strict=True):
        assert first == second
        assert hash(first) == hash(second)


_ALIKE = [
    (np.arange(3.0), np.arange(3.0) + 1),
    (np.ones(1), np.ones(())),
    (np.ones((1, 1)), np.ones(1)),
    (np.ones(2, np.float32), np.ones(2)),
    (np.ones(2), jnp.ones(2)),
    (jnp.float32(0.0), jnp.float32(-0.0)),
    (0.0, -0.0),
    (1, True),
    (1, 1.0),
    (jax.random.key(0), jax.random.key(1)),
    ([np.zeros(1)], (np.zeros(1),)),
    ({1}, {1}),
    (np.array([None]), np.array([None])),
]


@pytest.mark.parametrize(("one", "other"), _ALIKE)
def test_values_that_are_alike_are_not_equal(one: Any, other: Any) -> None:
    assert all(first != second for first, second in zip(_wrapped(one), _wrapped(other), strict=True))
    assert ByValue(_Shift(one)) != _Shift(one)


def test_functions_are_themselves() -> None:
    shift = _Shift(1)
    assert ByValue(shift) != ByValue(shift.other)
    assert ByValue(jnp.sin) == ByValue(jnp.sin) != ByValue(jnp.cos)


def test_an_array_that_is_changed_in_place_is_another_one() -> None:
    array = np.zeros(2)
    before = ByValue(_Shift(array))
    np.testing.assert_array_equal(before(1.0), [1.0, 1.0])
    array[0] = 5.0
    assert before != ByValue(_Shift(array))
    with pytest.raises(ValueError, match=r"_Shift holds an array that was changed.*Wrap it again"):
        before(1.0)


class _Plain:
    def __init__(self, held: Any) -> None:
        self.held = held

    def __call__(self, x: Any) -> Any:
        return x + self.held


@dataclasses.dataclass
class _Loose:
    """With an attribute that is no field."""

    known: int = 0

    def __call__(self, x: Any) -> Any:
        return x + self.held


class _Shared:
    held = np.zeros(2)

    def __call__(self, x: Any) -> Any:
        return x + self.held


_GLOBAL = np.zeros(2)


def _of_its_module(x: Any) -> Any:
    return _by_another(x)


def _by_another(x: Any) -> Any:
    return x + _GLOBAL


def _loose(array: np.ndarray) -> _Loose:
    loose = _Loose()
    loose.held = array
    return loose


def _enclosing(array: np.ndarray) -> Any:
    def inner(x: Any) -> Any:
        return x + array

    return lambda x: inner(x)


_HOLDERS = {
    "an object": _Plain,
    "its method": lambda array: _Plain(array).__call__,
    "an attribute that is no field": _loose,
    "a class": lambda array: _Shared(),
    "a function that encloses it": _enclosing,
    "a default": lambda array: lambda x, held=array: x + held,
    "a name of the module": lambda array: _of_its_module,
    "an object in what is enclosed": lambda array: _enclosing(_Plain(array)),
}


@pytest.mark.parametrize("how", _HOLDERS)
def test_what_is_held_in_any_way_counts(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    array = np.zeros(2)
    monkeypatch.setattr(_Shared, "held", array)
    monkeypatch.setitem(globals(), "_GLOBAL", array)
    function = _HOLDERS[how](array)
    before = ByValue(function)
    assert before == ByValue(function)
    array[0] = 5.0
    assert before != ByValue(function)
    with pytest.raises(ValueError, match="Wrap it again"):
        before(1.0)
    array[0] = 0.0
    assert before == ByValue(function)


def test_attributes_that_are_no_fields_tell_objects_apart() -> None:
    same, other = _loose(np.zeros(2)), _loose(np.ones(2))
    assert ByValue(_loose(np.zeros(2))) == ByValue(same) != ByValue(other)


def test_a_function_may_count_its_calls_and_is_another_one_then() -> None:
    calls: list[int] = []

    def counted(x: Any) -> Any:
        calls.append(1)
        return x

    wrapped = ByValue(counted)
    assert wrapped == ByValue(counted)
    assert [wrapped(1.0), wrapped(1.0)] == [1.0, 1.0]
    assert wrapped != ByValue(counted)


def test_functions_that_call_themselves_have_a_key() -> None:
    def power(x: Any, n: int) -> Any:
        return x * power(x, n - 1) if n else 1.0

    assert ByValue(power) == ByValue(power)
    assert ByValue(power)(2.0, 3) == 8.0


def test_keys_are_compared_while_others_trace() -> None:
    keys = [jax.random.key(seed) for seed in (3, 3, 4)]

    @jax.jit
    def function(x: jax.Array) -> jax.Array:
        first, equal, other = (ByValue(_Shift(key)) for key in keys)
        assert first == equal != other
        return x

    np.testing.assert_array_equal(function(jnp.ones(2)), [1.0, 1.0])


def test_traced_arrays_are_themselves() -> None:
    @jax.jit
    def function(x: jax.Array) -> jax.Array:
        assert ByValue(_Shift(x)) == ByValue(_Shift(x)) != ByValue(_Shift(x + 1))
        return ByValue(_Shift(x))(x)

    np.testing.assert_array_equal(function(jnp.ones(2)), [2.0, 2.0])
