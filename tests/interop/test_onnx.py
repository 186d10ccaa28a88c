"""Networks from ONNX files, beside onnxruntime and ONNX's reference implementation."""

import gzip
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import pytest
from jax.tree_util import Partial
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

import cure_jax as cj
from cure_jax import graph, interop, rules
from cure_jax.interop.onnx.operators import OPERATORS
from tests.interop.onnx_models import CASES, F32, Case, load, model, node, run, tiny, weights, written

TOLERANCE = 1e-4


def rules_of(name: str, apply) -> dict:
    return {**OPERATORS, name: type(OPERATORS[name])(apply)}


@pytest.mark.parametrize("name", CASES)
def test_an_operator_is_what_onnx_says_has_bounds_and_can_be_written(name: str, tmp_path, rng):
    case: Case = CASES[name]
    made = case.model()
    x = rng.uniform(case.low, case.high, case.shape).astype(F32)
    expected = run(made, x)
    if case.reference:
        (reference,) = ReferenceEvaluator(made).run(None, {"x": x})
        np.testing.assert_allclose(reference, expected, atol=TOLERANCE)
    f = load(made, tmp_path, check=False)

    found = f(jnp.asarray(x.reshape(f.input_shape)))

    np.testing.assert_allclose(found, expected.reshape(f.output_shape), atol=TOLERANCE)
    traced = graph.trace(f, jax.ShapeDtypeStruct(f.input_shape, jnp.float32))
    assert all(rules.lookup(equation) for equation in traced.equations)
    interop.save_onnx(f, f.input_shape, tmp_path / "again.onnx")
    again = run(tmp_path / "again.onnx", x.reshape(1, *f.input_shape))
    np.testing.assert_allclose(again[0], found, atol=TOLERANCE)


def test_every_operator_has_a_case():
    assert set(OPERATORS) - {case.operator for case in CASES.values()} <= {"Where"}


def test_constants_choose_where(tmp_path, rng):
    nodes = [node("Where", "choice x other")]
    made = model(nodes, (1, 3), {"choice": np.array([[True, False, True], [False] * 3]), "other": weights(3)})
    x = rng.normal(size=(1, 3)).astype(F32)
    np.testing.assert_allclose(load(made, tmp_path)(x[0]), run(made, x))


@pytest.mark.parametrize("method", [cj.ibp, cj.crown])
def test_bounds_hold_the_outputs_of_a_ball(method, tmp_path, rng):
    f = load(tiny(), tmp_path)
    x = jnp.asarray(rng.uniform(size=f.input_shape), jnp.float32)
    bounds = jax.jit(lambda f, x: method(f)(cj.linf_ball(x, 0.1)))(f, x)
    points = x[None] + rng.uniform(-0.1, 0.1, (200, *f.input_shape)).astype(F32)
    outputs = jax.vmap(f)(points)
    assert np.all((outputs >= bounds.lower[None] - 1e-5) & (outputs <= bounds.upper[None] + 1e-5))
    assert np.all(np.isfinite(bounds.lower) & np.isfinite(bounds.upper))


def test_a_residual_network_of_pytorchs_operators_is_read(tmp_path, rng):
    """BatchNorm, a residual sum, pooling, constants as nodes, initializers as inputs, an opset of its time."""
    nodes = [
        node("Conv", "x k1", "a", pads=[1, 1, 1, 1]),
        node("BatchNormalization", "a s b m v", "n"),
        node("Relu", "n", "r"),
        node("Conv", "r k2", "c", pads=[1, 1, 1, 1]),
        node("Add", "c r", "d"),
        node("MaxPool", "d", "p", kernel_shape=[2, 2], strides=[2, 2]),
        node("GlobalAveragePool", "p", "g"),
        node("Constant", "", "shape", value=numpy_helper.from_array(np.array([-1, 3], np.int64))),
        node("Reshape", "g shape", "flat"),
        node("LogSoftmax", "flat", "y", axis=1),
    ]
    constants = dict(zip("sbm", weights(3, 3), strict=True)) | {
        "v": F32([1, 2, 3]),
        "k1": weights(3, 2, 3, 3),
        "k2": weights(3, 3, 3, 3),
    }
    made = model(nodes, ("N", 2, 6, 6), constants, opset=9)
    made.graph.input.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, array.shape) for name, array in constants.items()
    )
    f = load(made, tmp_path)
    x = rng.uniform(size=(2, 6, 6)).astype(F32)
    assert (f.input_shape, f.output_shape, f.name) == ((2, 6, 6), (3,), "model")
    np.testing.assert_allclose(f(x), run(made, x[None])[0], atol=TOLERANCE)
    bounds = jax.jit(lambda f, x: cj.ibp(f)(cj.linf_ball(x, 0.01)))(f, x)
    assert np.all(np.isfinite(bounds.lower) & np.isfinite(bounds.upper))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ((1, 3), (3,)),
        (("N", 3), (3,)),
        ((None, 3), (3,)),
        ((1,), (1,)),
        ((3,), (3,)),
        ((2, 3), (2, 3)),
        ((1, 1, 3), (1, 3)),
    ],
)
def test_the_axis_of_the_batch_is_left_out(given, expected, tmp_path):
    f = load(model([node("Relu", "x")], given), tmp_path)
    assert f.input_shape == f.output_shape == expected
    assert f(jnp.ones(expected)).shape == expected


def test_networks_of_one_architecture_are_compiled_once(tmp_path):
    traced = []

    @jax.jit
    def apply(f, x):
        traced.append(f)
        return f(x)

    for seed in range(3):
        nodes = [node("MatMul", f"x w{seed}", "h"), node("Relu", "h")]
        f = interop.load_onnx(
            written(model(nodes, (1, 4), {f"w{seed}": weights(4, 2, seed=seed)}), tmp_path / f"{seed}.onnx")
        )
        np.testing.assert_allclose(apply(f, jnp.ones(4)), f(jnp.ones(4)))
    assert len(traced) == 1
    assert len(jax.tree.leaves(f)) == 1
    np.testing.assert_allclose(Partial(interop.OnnxNetwork.__call__, f)(jnp.ones(4)), f(jnp.ones(4)))


def test_weights_keep_the_precision_of_the_file(tmp_path):
    made = model([node("MatMul", "x w")], (1, 1), {"w": np.array([[1 / 3]])}, element=TensorProto.DOUBLE)
    f = load(made, tmp_path)
    assert f(jnp.ones(1)).dtype == jnp.float32
    with jax.enable_x64(True):
        assert float(f(jnp.ones(1, jnp.float64))[0]) == 1 / 3


def test_gzip_and_weights_beside_the_model(tmp_path):
    made = tiny()
    (tmp_path / "a.onnx.gz").write_bytes(gzip.compress(made.SerializeToString()))
    onnx.save(made, tmp_path / "b.onnx", save_as_external_data=True, size_threshold=0, location="b.data")
    first, second = interop.load_onnx(tmp_path / "a.onnx.gz"), interop.load_onnx(tmp_path / "b.onnx")
    assert (first.name, second.name) == ("a", "b")
    x = jnp.ones(first.input_shape)
    np.testing.assert_array_equal(first(x), second(x))
    (tmp_path / "b.data").unlink()
    with pytest.raises(ValueError, match="keeps the weight 'kernel' in another file"):
        interop.load_onnx(tmp_path / "b.onnx")


def test_an_input_of_another_shape_is_refused(tmp_path):
    f = load(tiny(), tmp_path)
    with pytest.raises(ValueError, match=r"shape \(3, 3\); expected one example of shape \(1, 3, 3\)"):
        f(jnp.ones((3, 3)))
    # Reshaping would mix the channels.
    with pytest.raises(ValueError, match=r"transpose images, images\.transpose\(0, 3, 1, 2\)"):
        f(jnp.ones((3, 3, 1)))
    with pytest.raises(ValueError, match="Give it one example"):
        f(jnp.ones((5, 1, 3, 3)))


def test_another_function_than_the_reference_is_refused(tmp_path, monkeypatch):
    """The check can fail: ReLU that is none."""
    planted = rules_of("Relu", lambda step, x: x)
    monkeypatch.setattr("cure_jax.interop.onnx.operators.OPERATORS", planted)
    # Of a size that no other test has: the network is compiled anew.
    made = model([node("Relu", "x")], (1, 23))
    with pytest.raises(ValueError, match=r"another function than onnx\.reference"):
        load(made, tmp_path)
    assert load(made, tmp_path, check=False).output_shape == (23,)


def test_a_network_with_small_outputs_is_checked_as_well(tmp_path, monkeypatch):
    monkeypatch.setattr("cure_jax.interop.onnx.operators.OPERATORS", rules_of("Relu", lambda step, x: x))
    made = model([node("Relu", "x", "a"), node("Mul", "a small")], (1, 29), {"small": F32(1e-6)})
    with pytest.raises(ValueError, match=r"another function than onnx\.reference"):
        load(made, tmp_path)


_ALIGNED = {"mode": "linear", "coordinate_transformation_mode": "align_corners"}


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        (Case("Resize", (1, 1, 4, 5), _ALIGNED, (None, F32([1, 1, 1, 1.5]))), "where 5 entries become 7"),
        (Case("Resize", (1, 1, 4, 5), {"mode": "linear"}, (None, F32([1, 1, 1.2, 1]))), "keeps its 4 entries"),
        (Case("Upsample", (1, 1, 4, 5), {"mode": "linear"}, (F32([1, 1, 1.1, 1]),), opset=9), "keeps its 4 entries"),
        (
            Case("Resize", (1, 1, 4, 5), {"coordinate_transformation_mode": "pytorch_half_pixel", "mode": "cubic"},
                 (None, None, np.array([1, 1, 4, 1]))),
            "to one entry",
        ),
        (
            Case("ConvTranspose", (1, 1, 2, 3), {"strides": [1, 3], "output_shape": [2, 11], "auto_pad": "SAME_UPPER"},
                 (np.ones((1, 1, 1, 3), F32),)),
            "to 11 entries",
        ),
        (
            Case("MaxPool", (1, 1, 4, 4), {"kernel_shape": [1, 1], "strides": [1, 3], "pads": [0, 0, 0, 2],
                                           "ceil_mode": 1}),
            "lies wholly in the padding",
        ),
    ],
    ids=lambda value: value.operator if isinstance(value, Case) else "",
)  # fmt: skip
def test_what_runtimes_read_in_different_ways_is_refused(case, expected, tmp_path):
    with pytest.raises(ValueError, match=expected):
        load(case.model(), tmp_path, check=False)


def test_importing_the_room_does_not_need_onnx():
    script = """
import sys
sys.modules["onnx"] = None
from cure_jax import interop
interop.read_vnnlib, interop.load_certifier
try:
    interop.load_onnx
except ImportError as error:
    print(error)
"""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=environment)
    assert "onnx is not installed" in result.stdout
    assert "pip install 'cure-jax[onnx]'" in result.stdout
