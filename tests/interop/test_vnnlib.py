"""Properties in VNN-LIB: which sets they are, to which side they are rounded, and what is refused."""

import contextlib
import gzip
import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cure_jax import interop
from cure_jax.certification.specification import UnsafeSet

HEADER = """; two inputs, three outputs
(declare-const X_0 Real)
(declare-const X_1 Real)
(declare-const Y_0 Real) (declare-const Y_1 Real)
(declare-const Y_2 Real)
"""
BOX = """(assert (>= X_0 -1)) (assert (<= X_0 0.5))
(assert (>= X_1 2.5e-1))
(assert (<= X_1 1.))
"""


def read(text: str, path: Path, **options) -> tuple[UnsafeSet, ...]:
    file = path / "property.vnnlib"
    file.write_text(text)
    return interop.read_vnnlib(file, **options)


def rows(one: UnsafeSet) -> list[list[float]]:
    """Each with its offset."""
    return np.column_stack([one.weights, one.offsets]).tolist()


@pytest.mark.parametrize(
    ("assertion", "expected"),
    [
        ("(<= Y_0 Y_1)", [[1, -1, 0, 0]]),
        ("(>= Y_0 Y_1)", [[-1, 1, 0, 0]]),
        ("(<= Y_2 3)", [[0, 0, 1, -3]]),
        ("(>= Y_2 -0.5)", [[0, 0, -1, -0.5]]),
        ("(<= 0.5 Y_1)", [[0, -1, 0, 0.5]]),
        ("(>= (- Y_0 Y_1) (* 2 Y_2))", [[-1, 1, 2, 0]]),
        ("(<= (+ Y_0 (* (- 0.5) Y_1) 1 Y_0) (- 2))", [[2, -0.5, 0, 3]]),
        ("(<= (* (+ 1 1) (+ Y_0 Y_1) 0.5) 0)", [[1, 1, 0, 0]]),
        ("(and (<= Y_0 Y_1) (and (<= Y_2 1)))", [[1, -1, 0, 0], [0, 0, 1, -1]]),
    ],
)
def test_a_condition_of_outputs_is_a_row(assertion: str, expected, tmp_path):
    (one,) = read(f"{HEADER}{BOX}(assert {assertion})", tmp_path)
    assert rows(one) == expected
    assert (one.lower.tolist(), one.upper.tolist()) == ([-1, 0.25], [0.5, 1])


def test_alternatives_are_sets_in_the_order_of_the_file(tmp_path):
    text = """(assert (or (and (<= X_0 0) (>= X_0 -1)) (and (<= X_0 3) (>= X_0 2))))
    (assert (>= X_1 0)) (assert (<= X_1 1))
    (assert (or (<= Y_0 0) (and (<= Y_1 0) (or (<= Y_2 0) (<= Y_2 1)))))"""
    sets = read(HEADER + text, tmp_path)
    assert [one.lower.tolist() for one in sets] == [[-1, 0]] * 3 + [[2, 0]] * 3
    first, second, third = [[1, 0, 0, 0]], [[0, 1, 0, 0], [0, 0, 1, 0]], [[0, 1, 0, 0], [0, 0, 1, -1]]
    assert [rows(one) for one in sets] == [first, second, third] * 2


def test_combinations_with_an_empty_box_are_left_out(tmp_path):
    pieces = "(assert (or (<= X_0 0.25) (>= X_0 0.375)))"
    sets = read(f"{HEADER}{BOX}{pieces}{pieces}(assert (<= Y_0 0))", tmp_path)
    assert [(one.lower[0], one.upper[0]) for one in sets] == [(-1, 0.25), (0.375, 0.5)]


def test_bounds_may_be_scaled_and_the_tightest_counts(tmp_path):
    text = "(assert (<= (* -2 X_0) 1)) (assert (<= (+ X_0 1) 1.25)) (assert (<= X_0 7)) (assert (>= (* 4 X_1) 2))"
    (one,) = read(f"{HEADER}{BOX}{text}(assert (<= Y_0 0))", tmp_path)
    assert (one.lower.tolist(), one.upper.tolist()) == ([-0.5, 0.5], [0.25, 1])


@pytest.mark.parametrize(
    "number", ["0.1", "-0.1", "0.3", "1e-5", "123456789.123456789", "1e-400", "0.1000000000000000055"]
)
def test_what_is_no_float64_is_rounded_outward(number: str, tmp_path):
    text = f"(assert (>= X_0 {number})) (assert (<= X_0 {number})) (assert (>= X_1 0)) (assert (<= X_1 1))"
    (one,) = read(f"{HEADER}{text}(assert (<= Y_0 {number}))", tmp_path)
    exact = Fraction(number)
    lower, upper, offset = one.lower[0], one.upper[0], one.offsets[0]
    assert Fraction(lower) < exact < Fraction(upper)
    assert upper == math.nextafter(lower, math.inf)
    assert Fraction(offset) < -exact < Fraction(math.nextafter(offset, math.inf))


@pytest.mark.parametrize("number", ["0.5", "-1", "+3", "0", "0.0", "1e3", "2.5E-1", "9007199254740993e0", ".25", "5."])
def test_what_is_a_float64_is_kept(number: str, tmp_path):
    text = f"(assert (>= X_0 {number})) (assert (<= X_0 {number})) (assert (>= X_1 0)) (assert (<= X_1 1))"
    (one,) = read(f"{HEADER}{text}(assert (<= Y_0 0))", tmp_path)
    exact = Fraction(number)
    if Fraction(float(number)) == exact:
        assert one.lower[0] == one.upper[0] == float(number)
    assert Fraction(one.lower[0]) <= exact <= Fraction(one.upper[0])


def test_the_box_takes_the_shape_of_the_network(tmp_path):
    (one,) = read(f"{HEADER}{BOX}(assert (<= Y_0 0))", tmp_path, shape=(1, 2, 1))
    assert one.lower.shape == one.upper.shape == (1, 2, 1)
    with pytest.raises(ValueError, match=r"has 2 inputs; expected those of an array of shape \(3,\)"):
        read(f"{HEADER}{BOX}(assert (<= Y_0 0))", tmp_path, shape=(3,))


REFUSED = {
    "no lower bound": ("(assert (<= X_0 1)) (assert (<= Y_0 0))", "line 2: the input X_0 has no lower bound"),
    "no upper bound": ("(assert (>= X_0 1)) (assert (<= Y_0 0))", "line 2: the input X_0 has no upper bound"),
    "contradiction": (
        f"{BOX}(assert (>= X_0 0.75)) (assert (<= Y_0 0))",
        "line 9: the bounds of X_0 contradict each other",
    ),
    "no outputs": (BOX, "no condition on the outputs"),
    "mixed": ("(assert (<= X_0 Y_0))", "line 6: a condition of inputs and outputs together"),
    "two inputs": ("(assert (<= X_0 X_1))", "line 6: a condition of several inputs"),
    "constants": ("(assert (<= 1 2))", "line 6: a condition without a variable"),
    "cancelled": ("(assert (<= Y_0 Y_0))", "line 6: a condition without a variable"),
    "unknown variable": ("\n(assert (<= X_7 1))", "line 7: 'X_7' is neither a number nor a declared variable"),
    "unknown operator": ("(assert (not (<= X_0 1)))", "line 6: expected and, or, <= or >=; found 'not'"),
    "strict": ("(assert (< X_0 1))", "line 6: expected and, or, <= or >=; found '<'"),
    "unknown command": (
        "(check-sat)",
        r"line 6: expected \(declare-const ...\) or \(assert \(...\)\); found \(check-sat",
    ),
    "empty command": ("()", "line 6: expected"),
    "product": ("(assert (<= (* Y_0 Y_1) 1))", "line 6: a product of variables"),
    "quotient": ("(assert (<= (/ Y_0 2) 1))", "line 6: expected a sum or product"),
    "three operands": ("(assert (<= Y_0 1 2))", "line 6: <= has 3 operands"),
    "no operands": ("(assert (and))", "line 6: expected conditions after 'and'"),
    "a word": ("(assert (or Y_0))", "line 6: expected conditions after 'or'"),
    "open": ("(assert (<= Y_0 1)", "line 6: this parenthesis is never closed"),
    "closed": (")", r"line 6: '\)' stands outside of any command"),
    "outside": ("X_0", "line 6: 'X_0' stands outside"),
    "other type": ("(declare-const Y_3 Int)", "line 6: expected .declare-const X_0 Real"),
    "other name": ("(declare-const Z_0 Real)", "line 6: expected .declare-const X_0 Real"),
    "declared again": ("(declare-const Y_0 Real)", "line 6: Y_0 is declared again; line 4 did so"),
    "gap": ("(declare-const X_5 Real)", "X_2 is not declared"),
    "infinite": ("(assert (<= X_0 inf))", "line 6: 'inf' is neither"),
    "large": ("(assert (<= X_0 1e309))", "line 6: the number 1e309 is beyond float64"),
    "very large": ("(assert (<= X_0 1e999999999))", "line 6: the number 1e999999999 is beyond float64"),
    "very small": ("(assert (<= X_0 1e-999999999))", "line 6: the number 1e-999999999 is beyond float64"),
    "long": (f"(assert (<= X_0 0.{'1' * 3000}))", "line 6: a number has more than 2000 characters"),
    "large product": (f"(assert (<= (* 1e300 1e300 Y_0) 1)){BOX}", "line 6: a coefficient is beyond float64"),
    "huge product": (f"(assert (<= (* {'1e300 ' * 100} Y_0) 1))", "line 6: a constant has too many digits"),
    "deep": ("(assert " + "(and " * 200, "line 6: parentheses are nested more than 100 deep"),
    "many": (
        "(assert (or " + "(<= Y_0 1) " * 9 + "))\n" + ("(assert (or " + "(<= Y_0 1) " * 9 + "))") * 11,
        "more than 10000 alternatives",
    ),
    "many inside": (
        "(assert (and " + ("(or " + "(<= Y_0 1) " * 9 + ")") * 11 + "))",
        "line 6: together there are more than 10000 alternatives",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_no_property_is_refused_with_its_line(what: str, tmp_path):
    text, sentence = REFUSED[what]
    with pytest.raises(ValueError, match=sentence) as error:
        read(HEADER + text, tmp_path)
    assert "\n" not in str(error.value)
    assert str(error.value).startswith(str(tmp_path))


@pytest.mark.parametrize("contents", [b"", b"\xff\xfe\x00", b"not a property"])
def test_a_file_that_is_none_is_refused(contents: bytes, tmp_path):
    for path in (tmp_path / "a.vnnlib", tmp_path / "a.vnnlib.gz"):
        path.write_bytes(contents)
        with pytest.raises(ValueError, match=r"a\.vnnlib"):
            interop.read_vnnlib(path)
    path.write_bytes(gzip.compress(HEADER.encode())[:-12])
    with pytest.raises(ValueError, match="not a whole gzip archive"):
        interop.read_vnnlib(path)
    with pytest.raises(FileNotFoundError):
        interop.read_vnnlib(tmp_path / "none.vnnlib")


def test_damaged_files_raise_nothing_but_value_errors(tmp_path, rng):
    text = f"{HEADER}{BOX}(assert (or (and (<= Y_0 Y_1) (<= (+ Y_0 (* 2.5e-1 Y_1)) 3)) (>= Y_2 -1)))".encode()
    path = tmp_path / "damaged.vnnlib"
    damaged = [text[:length] for length in range(len(text))]
    for _ in range(600):
        flipped = bytearray(text)
        for place in rng.integers(len(text), size=rng.integers(1, 4)):
            flipped[place] = rng.choice(list(b"()0123456789.eE-+*<>=XY_ \n;a\xff"))
        damaged.append(bytes(flipped))
    for one in damaged:
        path.write_bytes(one)
        with contextlib.suppress(ValueError):
            interop.read_vnnlib(path)


finite = st.floats(-1e6, 1e6) | st.sampled_from([0.0, 1.0, -1.0, 0.1, 1e-300, 5e-324, 1e300])


@st.composite
def properties(draw) -> tuple[UnsafeSet, ...]:
    inputs, outputs, same = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.booleans())
    sets, box = [], None
    for _ in range(draw(st.integers(1, 3))):
        ends = np.sort(
            np.array(draw(st.lists(finite, min_size=2 * inputs, max_size=2 * inputs))).reshape(2, inputs), axis=0
        )
        box = ends if box is None or not same else box
        count = draw(st.integers(1, 3))
        weights = np.array(draw(st.lists(finite, min_size=count * outputs, max_size=count * outputs)))
        weights = weights.reshape(count, outputs)
        weights[~weights.any(axis=1), 0] = 1
        sets.append(UnsafeSet(*box, weights, np.array(draw(st.lists(finite, min_size=count, max_size=count)))))
    return tuple(sets)


@settings(max_examples=60, deadline=None)
@given(properties(), st.sampled_from([".vnnlib", ".vnnlib.gz"]))
def test_what_is_written_is_read_as_the_same_sets(tmp_path_factory, sets, ending: str):
    path = tmp_path_factory.mktemp("written") / f"property{ending}"
    interop.write_vnnlib(path, sets)
    again = interop.read_vnnlib(path)
    assert len(again) == len(sets)
    for one, other in zip(again, sets, strict=True):
        for name in ("lower", "upper", "weights", "offsets"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"lower": np.array([2.0])}, "empty box"),
        ({"upper": np.array([np.inf])}, "not finite"),
        ({"weights": np.zeros((1, 2))}, "row without a weight"),
        ({"weights": np.zeros((0, 2)), "offsets": np.zeros(0)}, "no row"),
        ({"lower": np.zeros(2), "upper": np.zeros(2)}, "all of one size"),
    ],
)
def test_sets_without_a_form_are_not_written(change: dict, sentence: str, tmp_path):
    good = {"lower": np.zeros(1), "upper": np.ones(1), "weights": np.ones((1, 2)), "offsets": np.zeros(1)}
    with pytest.raises(ValueError, match=sentence):
        interop.write_vnnlib(tmp_path / "a.vnnlib", [UnsafeSet(**good), UnsafeSet(**{**good, **change})])
    with pytest.raises(ValueError, match="at least one set"):
        interop.write_vnnlib(tmp_path / "a.vnnlib", [])
    assert not (tmp_path / "a.vnnlib").exists()


def test_a_witness_has_the_form_of_the_competition(tmp_path):
    x, y = np.array([[0.1, -2]], np.float32), np.array([1e-30])
    text = "((X_0 0.10000000149011612)\n(X_1 -2.0)\n(Y_0 1e-30))"
    assert interop.format_witness(x, y) == text
    interop.write_witness(tmp_path / "result.txt", x, y)
    assert (tmp_path / "result.txt").read_text() == f"sat\n{text}\n"
