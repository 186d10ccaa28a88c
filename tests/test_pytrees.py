"""What certifying functions take and give passes through a user's own `jax.export`."""

import dataclasses
import math
import subprocess
import sys
from pathlib import Path

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

import cure_jax as cj
from cure_jax import bounds, pytrees
from tests import networks

ROOT = Path(__file__).resolve().parents[1]
PARAMS = networks.mlp_params(0)
POINT = np.array([0.3, 0.6], np.float32)
# What another process does with the file: it makes regions of its own and calls the program.
SCRIPT = """
import sys
import cure_jax as cj, jax, jax.export, numpy as np
program = jax.export.deserialize(bytearray(open(sys.argv[1], "rb").read()))
x = np.array([0.3, 0.6], np.float32)
hull = cj.hull(cj.linf_ball(x, 0.02), cj.lp_ball(x, 0.03, 1.5))
union, norms, box = program.call({"l2": cj.l2_ball(x, 0.05, (0.0, 1.0)), "hull": hull}, x, np.int32(sys.argv[3]))
assert isinstance(union, cj.UnionCertificate) and isinstance(union.norms["l2"], cj.Certificate)
assert isinstance(box, cj.Interval) and type(norms).__name__ == "BlockNorms"
np.savez(sys.argv[2], margin=union.norms["hull"].margin, verified=union.verified, upper=box.upper)
"""


def f(x: jax.Array) -> jax.Array:
    return networks.mlp(PARAMS, x)


def everything(regions, x, label):
    norms = cj.block_norms(f, x)
    return cj.certify_union(f, x, label, regions), norms, cj.lipschitz(f, norms=norms)(regions["l2"])


def test_a_program_of_regions_and_certificates_runs_in_another_process(tmp_path):
    hull = cj.hull(cj.linf_ball(POINT, 0.02), cj.lp_ball(POINT, 0.03, 1.5))
    arguments = ({"l2": cj.l2_ball(POINT, 0.05, (0.0, 1.0)), "hull": hull}, POINT, np.int32(np.argmax(f(POINT))))
    exported = jax.export.export(jax.jit(everything))(*arguments)
    (tmp_path / "program").write_bytes(exported.serialize())
    paths = [str(tmp_path / "program"), str(tmp_path / "found.npz"), str(arguments[2])]
    done = subprocess.run([sys.executable, "-c", SCRIPT, *paths], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found, (union, _, box) = np.load(tmp_path / "found.npz"), jax.jit(everything)(*arguments)
    assert found["verified"] == union.verified
    np.testing.assert_allclose(found["margin"], union.norms["hull"].margin, rtol=1e-5)
    np.testing.assert_allclose(found["upper"], box.upper, rtol=1e-5)


@pytest.mark.parametrize(
    "tree",
    [
        cj.linf_ball(POINT, 0.1),
        cj.lp_ball(POINT, 0.1, 1.1, (0.0, 1.0)),
        cj.hull(cj.l1_ball(POINT, 0.1), cj.l2_ball(POINT, 0.2)),
        cj.Interval(POINT, POINT),
        cj.Certificate(jnp.array(True), jnp.array(0.5)),
        cj.UnionCertificate(jnp.array(True), {"l2": cj.Certificate(jnp.array(True), jnp.array(0.5))}),
        bounds.BlockNorms((jnp.float32(1.0), jnp.float32(2.0)), (((2,), (8, 8)), ((8, 8), ()))),
    ],
    ids=lambda tree: type(tree).__name__,
)
def test_structures_are_written_and_read_as_they_are(tree):
    exported = jax.export.export(jax.jit(lambda tree: tree))(tree)
    read = jax.export.deserialize(exported.serialize())
    assert (read.in_tree, read.out_tree) == (exported.in_tree, exported.out_tree)
    assert jax.tree.structure(read.call(tree)) == jax.tree.structure(tree)


@dataclasses.dataclass(frozen=True)
class Tagged:
    value: jax.Array
    tag: object = dataclasses.field(metadata={"static": True})


def test_static_fields_keep_their_value():
    pytrees.register(Tagged)
    for tag in (math.inf, 1 / 3, 7, "name", None, ((1, (2,)), ())):
        exported = jax.export.export(jax.jit(lambda tree: tree))(Tagged(jnp.zeros(2), tag))
        assert jax.export.deserialize(exported.serialize()).call(Tagged(jnp.zeros(2), tag)).tag == tag
