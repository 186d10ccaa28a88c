"""A search that is interrupted goes on, and ends as an undisturbed one."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

import cure_jax as cj
from cure_jax.certification.batches import as_pytree
from cure_jax.verification import Options, Status, saved, verify, verify_property
from cure_jax.verification.problem import Problem, of_class
from tests.networks import random_mlp

ACTIVATIONS = Options(batch_size=4, steps=1, branching="activations", attack_steps=5, attack_restarts=1)
INPUTS = Options(boxes=2, branching="inputs", attack_steps=5, attack_restarts=1)


class Killed(Exception):
    """What ends a search in the middle."""


def hard(options, ball):
    """A network, an example, its label and a region that takes many batches."""
    inputs = 2 if options is INPUTS else 6
    f, x = random_mlp(8, (inputs, 16, 16, 3)), jnp.full(inputs, 0.5)
    return as_arguments(f), x, int(jnp.argmax(f(x))), ball(x)


def as_arguments(f):
    return f if isinstance(f, Partial) else Partial(f)


CASES = {
    "activations, linf": (ACTIVATIONS, lambda x: cj.linf_ball(x, 0.158)),
    "activations, l2": (ACTIVATIONS, lambda x: cj.l2_ball(x, 0.29)),
    "inputs": (INPUTS, lambda x: cj.linf_ball(x, 0.21)),
}


@pytest.mark.parametrize("case", CASES)
def test_a_search_that_is_killed_goes_on_and_ends_alike(case, tmp_path, monkeypatch):
    monkeypatch.setattr(saved, "_INTERVAL", 0.0)
    options, ball = CASES[case]
    question, path = hard(options, ball), tmp_path / "state.npz"
    whole = verify(*question, 600.0, options=options)
    assert whole.status is Status.VERIFIED
    batch_size = options.boxes if options is INPUTS else options.batch_size
    assert whole.domains > 3 * batch_size

    def killer(batches):
        def tell(progress):
            nonlocal batches
            batches -= 1
            if batches == 0:
                raise Killed

        return tell

    kills = 0
    while True:
        try:
            ended = verify(*question, 600.0, options=options, progress=killer(3 + kills), state_file=path)
            break
        except Killed:
            kills += 1
            assert path.exists()
            assert kills < 50
    assert kills >= 1
    assert (ended.status, ended.domains) == (whole.status, whole.domains)
    np.testing.assert_allclose(ended.margin, whole.margin, rtol=1e-5)
    assert not path.exists()


def test_several_boxes_have_a_file_each(tmp_path):
    f, x, label, _ = hard(*CASES["inputs"])
    rows = np.eye(3)[label] - np.eye(3)[[j for j in range(3) if j != label]]
    sets = [
        cj.certification.UnsafeSet(np.asarray(x) - radius, np.asarray(x) + radius, row[None], np.zeros(1))
        for radius in (0.205, 0.21)
        for row in rows
    ]
    few = dataclasses.replace(INPUTS, max_domains=3)
    first = verify_property(f, sets, 600.0, options=few, state_file=tmp_path / "state")
    assert first.status is Status.TIMEOUT
    assert {path.name for path in tmp_path.iterdir()} == {"state.0", "state.1"}
    whole = verify_property(f, sets, 600.0, options=INPUTS)
    ended = verify_property(f, sets, 600.0, options=INPUTS, state_file=tmp_path / "state")
    assert (ended.status, ended.domains) == (whole.status, whole.domains)
    assert not list(tmp_path.iterdir())


def test_the_state_of_another_search_and_a_damaged_one_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(saved, "_INTERVAL", 0.0)
    f, x, label, region = hard(*CASES["activations, linf"])
    path, few = tmp_path / "state.npz", dataclasses.replace(ACTIVATIONS, max_domains=16)
    assert verify(f, x, label, region, 600.0, options=few, state_file=path).status is Status.TIMEOUT
    content = path.read_bytes()
    with pytest.raises(ValueError, match=r"state of another search.*Delete it, or name another file"):
        verify(f, x, label, cj.linf_ball(x, 0.15), 600.0, options=few, state_file=path)
    other = jax.tree.map(lambda leaf: leaf * 1.01, f)
    with pytest.raises(ValueError, match="state of another search"):
        verify(other, x, label, region, 600.0, options=few, state_file=path)
    for damaged in (content[: len(content) // 2], b"", b"no archive"):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"no state of a search.*Delete it to start anew"):
            verify(f, x, label, region, 600.0, options=few, state_file=path)
    with pytest.raises(FileNotFoundError):
        verify(f, x, label, region, 600.0, options=few, state_file=tmp_path / "missing" / "state.npz")


def test_a_state_belongs_to_one_norm_and_to_the_weights_that_a_function_holds():
    x = jnp.full(4, 0.5)

    def question(f, region):
        return saved._question(Problem(as_pytree(f), region, of_class(0, 3)), "activations")

    def holding(scale):
        weights = scale * jnp.arange(12.0).reshape(3, 4)
        inner = jax.jit(lambda x: jnp.dot(weights, x, precision="highest"))
        return lambda x: jax.nn.relu(inner(x))

    regions = [*(ball(x, 0.1) for ball in (cj.l1_ball, cj.l2_ball, cj.linf_ball)), cj.l0_ball(x, 1), cj.l0_ball(x, 2)]
    questions = [question(holding(1.0), region) for region in regions]
    assert len(set(questions)) == len(regions)
    assert question(holding(1.0), regions[0]) == questions[0]
    assert question(holding(2.0), regions[0]) != questions[0]
