"""Networks from ONNX files and to them, beside onnxruntime and ONNX's reference implementation."""

import contextlib
import functools
import gzip
import os
import subprocess
import sys
from pathlib import Path

import flax.linen as nn
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
from tests import networks
from tests.interop.onnx_models import CASES, F32, Case, model, run, weights, written

TOLERANCE = 1e-4


def node(operator: str, inputs: str, outputs: str = "y", **attributes) -> onnx.NodeProto:
    """Operands and results as words."""
    return helper.make_node(operator, inputs.split(), outputs.split(), **attributes)


def load(made: onnx.ModelProto, path: Path, **options) -> interop.OnnxNetwork:
    return interop.load_onnx(written(made, path / "model.onnx"), **options)


def tiny() -> onnx.ModelProto:
    """A convolution, a shape that is computed, and a matrix."""
    nodes = [
        node("Conv", "x kernel bias", "a", pads=[1, 1, 1, 1]),
        node("Relu", "a", "b"),
        node("Shape", "b", "shape"),
        node("Gather", "shape zero", "batch"),
        node("Unsqueeze", "batch axes", "first"),
        node("Concat", "first rest", "target", axis=0),
        node("Reshape", "b target", "c"),
        node("Gemm", "c matrix", "y"),
    ]
    constants = {
        "kernel": weights(2, 1, 3, 3),
        "bias": weights(2),
        "zero": np.array(0, np.int64),
        "axes": np.array([0], np.int64),
        "rest": np.array([-1], np.int64),
        "matrix": weights(18, 3),
    }
    return model(nodes, (1, 1, 3, 3), constants)


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


def rules_of(name: str, apply) -> dict:
    return {**OPERATORS, name: type(OPERATORS[name])(apply)}


def constant_of_shape(*sizes: int) -> onnx.ModelProto:
    nodes = [node("ConstantOfShape", "size", "c"), node("Add", "x c")]
    return model(nodes, (1, 3), {"size": np.array(sizes, np.int64)})


def huge_weight() -> onnx.ModelProto:
    made = model([node("MatMul", "x w")], (1, 3), {"w": weights(3, 2)})
    made.graph.initializer[0].dims[:] = [2**20, 2**20]
    return made


def cycle() -> onnx.ModelProto:
    made = model([node("Relu", "x"), node("Relu", "a", "b")], (1, 3))
    made.graph.node[0].input[0] = "b"
    made.graph.node[1].input[0] = "y"
    return made


def several(inputs: int) -> onnx.ModelProto:
    made = model([node("Add", "x z")], (1, 3), {"z": weights(3)})
    if inputs == 2:
        del made.graph.initializer[:]
        made.graph.input.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, (3,)))
    else:
        made.graph.output.append(helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, 3)))
    return made


MALFORMED = {
    "wrong sizes of a product": (
        lambda: model([node("MatMul", "x w")], (1, 4), {"w": weights(3, 2)}),
        "ncompatible dim",
    ),
    "wrong size of a shape": (lambda: model([node("Reshape", "x s")], (1, 4), {"s": np.array([3])}), "Reshape|reshape"),
    "wrong broadcast": (lambda: model([node("Add", "x w")], (1, 4), {"w": weights(3)}), "ncompatible dim"),
    "cycle": (cycle, "topologically sorted|cycle"),
    "two inputs": (lambda: several(2), "2 inputs"),
    "two outputs": (lambda: several(1), "2 outputs"),
    "unknown size": (lambda: model([node("Relu", "x")], (1, "width")), "'width'.*fixed sizes"),
    "unknown sizes": (lambda: model([node("Relu", "x")], ("N",)), "'N'.*fixed sizes"),
    "integers": (lambda: model([node("Abs", "x")], (1, 3), element=TensorProto.INT64), "no tensor of float32"),
    "huge constant": (lambda: constant_of_shape(2**40), r"1099511627776.*at most 134217728 entries"),
    "huge constants": (lambda: constant_of_shape(2**20, 2**20), "at most 134217728 entries"),
    "negative constant": (lambda: constant_of_shape(-5), "ConstantOfShape"),
    "huge weight": (huge_weight, "too small for the declared shape|at most 134217728 entries"),
    "huge input": (lambda: model([node("Relu", "x")], (1, 2**40)), "at most 134217728 entries"),
    "huge result": (
        lambda: model([node("Expand", "x s")], (1, 1), {"s": np.array([2**20, 2**20])}),
        "at most 134217728 entries",
    ),
    "unknown operators": (
        lambda: model([node("Sin", "x", "a"), node("Sign", "a", "b"), node("NonZero", "b", "y")], (1, 3)),
        "not supported: NonZero, Sign, Sin. Expected those of",
    ),
    "training": (
        lambda: model(
            [node("BatchNormalization", "x a b c d", "y p q", training_mode=1)],
            (1, 3),
            dict(zip("abcd", weights(4, 3), strict=True)),
        ),
        "training mode",
    ),
    "dropout in training": (
        lambda: model([node("Dropout", "x r t")], (1, 3), {"r": F32(0.5), "t": np.array(True)}),
        "Dropout is not supported in training mode",
    ),
    "indices of a pool": (
        lambda: model([node("MaxPool", "x", "m i", kernel_shape=[2]), node("Cast", "i", "y", to=1)], (1, 1, 4)),
        "reads 'i', which nothing before it computes",
    ),
    "old operators": (lambda: model([node("Relu", "x")], (1, 3), opset=6), "uses version 6.*expected 7"),
    "constant": (lambda: model([node("Relu", "w")], (1, 3), {"w": weights(3)}), "does not depend on the input"),
    "strides of zero": (
        lambda: model([node("Conv", "x w", strides=[1, 1])], (1, 1, 3, 3), {"w": weights(1, 1, 2, 2)}),
        "strides",
    ),
    "a cast to integers": (lambda: model([node("Cast", "x", "a", to=7), node("Cast", "a", "y", to=1)], (1, 3)), "Cast"),
    "a shape from the input": (
        lambda: model([node("Cast", "x", "a", to=7), node("Reshape", "x a", "y")], (1, 3)),
        "Cast|depends on values|must be 1D",
    ),
}


@pytest.mark.parametrize("what", MALFORMED)
def test_a_model_that_cannot_be_read_is_refused_in_one_sentence(what: str, tmp_path):
    make, sentence = MALFORMED[what]
    made = make()
    if what == "strides of zero":
        made.graph.node[0].attribute[0].ints[:] = [0, 0]
    with pytest.raises(ValueError, match=sentence) as error:
        load(made, tmp_path)
    assert "\n" not in str(error.value)
    assert str(tmp_path) in str(error.value)


@pytest.mark.parametrize(
    ("name", "contents"),
    [
        ("a.onnx", b""),
        ("a.onnx", b"This is a text."),
        ("a.onnx", tiny().SerializeToString()[:-40]),
        ("a.onnx.gz", tiny().SerializeToString()),
        ("a.onnx.gz", gzip.compress(tiny().SerializeToString())[:-20]),
        ("a.onnx", gzip.compress(tiny().SerializeToString())),
    ],
)
def test_a_file_that_is_no_model_is_refused(name: str, contents: bytes, tmp_path):
    (tmp_path / name).write_bytes(contents)
    with pytest.raises(ValueError, match=r"is not a.* ONNX model"):
        interop.load_onnx(tmp_path / name)


def test_a_missing_file_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError):
        interop.load_onnx(tmp_path / "none.onnx")


def test_damaged_files_raise_nothing_but_value_errors(tmp_path, rng):
    contents = tiny().SerializeToString()
    path = tmp_path / "damaged.onnx"
    damaged = [contents[:length] for length in range(0, len(contents), 23)]
    for _ in range(250):
        flipped = bytearray(contents)
        for place in rng.integers(len(contents), size=rng.integers(1, 4)):
            flipped[place] ^= 1 << rng.integers(8)
        damaged.append(bytes(flipped))
    for one in damaged:
        path.write_bytes(one)
        with contextlib.suppress(ValueError):
            interop.load_onnx(path, check=False)


def _attention(x: jax.Array) -> jax.Array:
    """Products of what depends on the input: batched, and with both operands."""
    queries, keys = x @ jnp.asarray(weights(4, 4)), x @ jnp.asarray(weights(4, 4, seed=1))
    return jax.nn.softmax(queries @ keys.T) @ x


def _pooled(x: jax.Array) -> jax.Array:
    x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (2, 3, 1), (1, 2, 1), ((0, 1), (1, 1), (0, 0)))
    return jax.lax.reduce_window(x, 0.0, jax.lax.add, (2, 2, 1), (1, 1, 1), "VALID", window_dilation=(1, 1, 1))


class _Network(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.BatchNorm(use_running_average=True)(nn.Conv(4, (3, 3), strides=2)(x)))
        x = nn.ConvTranspose(4, (3, 3), strides=(2, 2))(x)
        x = x + nn.Conv(4, (3, 3), feature_group_count=2)(x)
        x = nn.max_pool(x, (2, 2), (1, 1), "SAME")
        x = jax.lax.reduce_window(x, 0.0, jax.lax.add, (1, 2, 2, 1), (1, 2, 2, 1), "VALID") / 4
        return nn.Dense(3)(nn.LayerNorm()(x).reshape(len(x), -1))


@functools.cache
def _variables():
    with jax.ensure_compile_time_eval():
        return jax.jit(_Network().init)(jax.random.key(0), jnp.zeros((1, 6, 6, 2)))


def _flax(x: jax.Array) -> jax.Array:
    return _Network().apply(_variables(), x[None])[0]


FUNCTIONS = {
    "relu": ((3,), jax.nn.relu),
    "activations": (
        (3, 4),
        lambda x: sum(
            g(x)
            for g in (
                jax.nn.gelu,
                jax.nn.silu,
                jax.nn.softplus,
                jax.nn.elu,
                jax.nn.selu,
                jax.nn.celu,
                jax.nn.relu6,
                jnp.tanh,
                jax.nn.hard_tanh,
                jax.nn.hard_silu,
                jax.nn.mish,
                jax.nn.leaky_relu,
                jax.nn.soft_sign,
                jax.nn.sigmoid,
                lambda x: jax.nn.gelu(x, approximate=False),
                lambda x: jax.nn.leaky_relu(x, 0.3),
                jnp.arctan,
                jnp.exp2,
                lambda x: jnp.clip(x, 0, 1),
                lambda x: jax.lax.clamp(-0.5, x, 0.7),
                jnp.abs,
                jnp.square,
                jax.lax.erf,
            )
        ),
    ),
    "powers": (
        (4,),
        lambda x: jnp.sqrt(x**2 + 1) + x**3 + 1 / (x**2 + 1) + jax.lax.rsqrt(x**2 + 2) + (x**2 + 1) ** 1.7,
    ),
    "attention": ((3, 4), _attention),
    "pooling": ((5, 7, 2), _pooled),
    "einsum": ((2, 3, 4), lambda x: jnp.einsum("ijk,jkl->il", x, weights(3, 4, 5))),
    "left matrix": ((4,), lambda x: jnp.asarray(weights(3, 4)) @ x),
    "moves": (
        (3, 4),
        lambda x: jnp.concatenate(
            [x[::-1, 1:3].ravel(), jnp.tile(x[0], 2), x.T[1], x[:, jnp.array([3, 1, 1])].ravel()]
        ),
    ),
    "sums": ((3, 4), lambda x: jnp.cumsum(x, 1) + jnp.sum(x, 0)[None] + jnp.max(x, 1, keepdims=True) - jnp.min(x)),
    "padding": ((3, 4), lambda x: jnp.pad(x, ((1, 0), (2, 1)), constant_values=0.5)[1:, :-1]),
    "choices": (
        (3,),
        lambda x: jnp.where(jnp.array([True, False, True]), x, -x) + jnp.maximum(x, jnp.array([-1.0, 0, 1])),
    ),
    "residual": ((2,), functools.partial(networks.residual, networks.residual_params(0))),
    "flax": ((6, 6, 2), _flax),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_are_written_and_read_back(name: str, tmp_path, rng):
    shape, f = FUNCTIONS[name]
    path = tmp_path / "f.onnx"
    interop.save_onnx(f, shape, path)
    g = interop.load_onnx(path, check=False)
    x = rng.normal(size=shape).astype(F32)
    expected, found = jax.jit(lambda x: (f(x), g(x)))(x)
    np.testing.assert_allclose(run(path, x[None])[0], expected, atol=TOLERANCE)
    np.testing.assert_allclose(found, expected, atol=TOLERANCE)


def test_what_cannot_be_written_is_named_with_its_line(tmp_path):
    with pytest.raises(cj.UnsupportedPrimitive, match=r"`sin` at .*test_onnx.py.* cannot be written to ONNX"):
        interop.save_onnx(lambda x: jnp.sin(x), (3,), tmp_path / "f.onnx")
    with pytest.raises(ValueError, match="does not depend on its input"):
        interop.save_onnx(lambda x: jnp.ones(3), (3,), tmp_path / "f.onnx")
    assert not (tmp_path / "f.onnx").exists()


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
