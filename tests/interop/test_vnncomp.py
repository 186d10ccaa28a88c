"""Networks and properties of the verification competition, where they lie beside the repository."""

import functools
import gzip
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import pytest

import cure_jax as cj
from cure_jax import interop
from cure_jax.certification.specification import UnsafeSet
from tests.interop.onnx_models import run

ROOT = Path(os.environ.get("CURE_JAX_VNNCOMP", Path(__file__).resolve().parents[3] / "shared" / "vnncomp"))
NETWORKS = sorted(ROOT.glob("*/*.onnx*"))
PROPERTIES = sorted(ROOT.glob("*/*.vnnlib*"))
# How many sets a property of a benchmark has; other files of it have one.
SETS = {"cifar10_resnet": 9, "mnistfc": 9, "oval21": 9}

pytestmark = pytest.mark.skipif(
    not NETWORKS, reason=f"{ROOT} has no networks; CURE_JAX_VNNCOMP names the folder with those of VNN-COMP 2021"
)


@functools.cache
def properties(path: Path) -> tuple[UnsafeSet, ...]:
    return interop.read_vnnlib(path)


@jax.jit
def _bounds(f: interop.OnnxNetwork, lower: jax.Array, upper: jax.Array) -> tuple[cj.Interval, jax.Array]:
    center, radius = (lower + upper) / 2, (upper - lower) / 2
    return cj.ibp(f)(cj.linf_ball(center, radius)), f(center)


@pytest.mark.parametrize("path", NETWORKS, ids=lambda path: path.name)
def test_a_network_is_that_of_onnxruntime_and_has_bounds(path: Path, rng):
    f = interop.load_onnx(path, check=False)
    property_ = next(found for found in PROPERTIES if found.parent == path.parent and _fits(found, f))
    one = properties(property_)[0]
    lower, upper = (jnp.asarray(end.reshape(f.input_shape), jnp.float32) for end in (one.lower, one.upper))
    bounds, outputs = _bounds(f, lower, upper)
    contents = path.read_bytes()
    model = onnx.load_model_from_string(gzip.decompress(contents) if path.suffix == ".gz" else contents)
    shape = (1,) * f.program.batched + f.input_shape
    expected = run(model, np.asarray((lower + upper) / 2).reshape(shape)).reshape(f.output_shape)
    np.testing.assert_allclose(outputs, expected, atol=1e-4 * max(1, np.abs(expected).max()))
    assert np.all(np.isfinite(bounds.lower) & np.isfinite(bounds.upper))
    assert np.all((bounds.lower <= outputs) & (outputs <= bounds.upper))


def _fits(path: Path, f: interop.OnnxNetwork) -> bool:
    return properties(path)[0].lower.size == np.prod(f.input_shape)


@pytest.mark.parametrize("path", PROPERTIES, ids=lambda path: path.name)
def test_a_property_is_read(path: Path):
    sets = properties(path)
    assert len(sets) == SETS.get(path.parent.name, len(sets))
    assert all(np.all(one.lower <= one.upper) for one in sets)


def test_properties_of_acas_xu_have_the_sets_that_they_describe():
    names = {f"prop_{i}.vnnlib": count for i, count in {1: 1, 2: 1, 3: 1, 4: 1, 5: 4, 6: 8, 10: 4}.items()}
    found = {path.name.removesuffix(".gz"): len(properties(path)) for path in PROPERTIES if "acasxu" in path.parts}
    assert found == names or not found
