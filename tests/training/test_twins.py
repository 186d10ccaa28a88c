"""Linen modules, nnx modules and pairs of functions: the same training, checkpoints, certificates and files."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import chex
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from flax import nnx

import cure_jax as cj
from cure_jax.models import Fitted
from cure_jax.training import CheckpointError, WorkdirError, fit, load, loop, make_regions
from cure_jax.training.config import build_recipe
from cure_jax.training.loop import initial_state
from cure_jax.training.parallel import compile_steps
from tests.training import tiny, twins

_DATA = tiny.data(size=32)


def _quick(**fields: Any) -> ml_collections.ConfigDict:
    """IBP alone, which compiles fast, from the parameters that a network brings."""
    ibp = {
        "losses": {"linf": {"kind": "ibp"}},
        "warmup_regularizer": 0.0,
        "parallel": "jit",
        "initialization": "default",
    }
    return tiny.config(**{**ibp, **fields})


@functools.cache
def _initial(batch_norm: bool) -> dict[str, Any]:
    """What the training of the linen module begins with."""
    config, model = _quick(), twins.twin("linen", batch_norm, {})
    recipe = build_recipe(config, model, 2)
    return jax.device_get(jax.jit(lambda: initial_state(config, recipe, _DATA[0][:1]).variables)())


@functools.cache
def _trained(kind: str, batch_norm: bool, parallel: str = "jit") -> Fitted:
    return fit(twins.twin(kind, batch_norm, _initial(batch_norm)), _DATA, _quick(parallel=parallel))


@pytest.mark.parametrize(
    ("kind", "batch_norm", "parallel"),
    [
        ("nnx", False, "jit"),
        ("functions", False, "jit"),
        ("nnx", True, "jit"),
        # On eight devices: without a field `axis_name` in the nnx module.
        ("nnx", True, "shard_map"),
        ("functions", True, "shard_map"),
    ],
)
def test_twins_are_trained_alike(kind: str, batch_norm: bool, parallel: str) -> None:
    linen, other = _trained("linen", batch_norm), _trained(kind, batch_norm, parallel)
    assert len(linen.history) == 3
    chex.assert_trees_all_close(other.history, linen.history, rtol=1e-3, atol=1e-4)
    chex.assert_trees_all_close(other.variables, twins.as_twins(linen.variables), rtol=1e-3, atol=1e-4)
    moved = jax.tree.map(lambda old, new: float(np.max(np.abs(old - new))), _initial(batch_norm), linen.variables)
    assert min(jax.tree.leaves(moved)) > 5e-3
    image = jnp.asarray(_DATA[0][0])
    np.testing.assert_allclose(other.classifier(image), linen.classifier(image), rtol=1e-3, atol=1e-3)


def test_a_trained_nnx_network_is_an_nnx_module_and_the_one_that_came_is_as_it_was() -> None:
    module = twins.twin("nnx", True, _initial(True))
    before = jax.tree.map(np.array, nnx.to_pure_dict(nnx.state(module)))
    fitted = fit(module, _DATA, _quick())
    chex.assert_trees_all_equal(nnx.to_pure_dict(nnx.state(module)), before)
    assert not module.norm.use_running_average
    for trained in (fitted.model, fitted.as_nnx()):
        assert isinstance(trained, twins.NnxConvNet)
        assert trained is not module
        np.testing.assert_array_equal(trained.norm.mean[...], fitted.variables["batch_stats"]["norm"]["mean"])
        expected = jax.vmap(fitted.classifier)(jnp.asarray(_DATA[0]))
        np.testing.assert_allclose(trained(jnp.asarray(_DATA[0])), expected, rtol=1e-4, atol=1e-5)
        # It is trained on by itself.
        trained.train()
        trained(jnp.asarray(_DATA[0]))
        assert np.all(trained.norm.mean[...] != fitted.variables["batch_stats"]["norm"]["mean"])


class _Interrupted:
    """Ctrl-C in one of the compiled runs of steps, which are compiled once."""

    def __init__(self) -> None:
        self.run: Callable | None = None
        self.calls_left = -1

    def compile_steps(self, *args: Any) -> Callable:
        self.run = self.run or compile_steps(*args)
        return self

    def __call__(self, *args: Any) -> Any:
        self.calls_left -= 1
        if self.calls_left == 0:
            raise KeyboardInterrupt
        assert self.run is not None
        return self.run(*args)


def test_an_nnx_network_resumes_to_the_last_bit_and_is_loaded_into_another_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, steps = _quick(checkpoint_every=2), _Interrupted()
    monkeypatch.setattr(loop, "compile_steps", steps.compile_steps)
    undisturbed = fit(twins.twin("nnx", True, _initial(True)), _DATA, config)
    steps.calls_left = 3
    with pytest.raises(KeyboardInterrupt):
        fit(twins.twin("nnx", True, _initial(True)), _DATA, config, tmp_path)
    # A module with other parameters: those of the checkpoint count.
    other = twins.NnxConvNet(rngs=nnx.Rngs(11))
    resumed = fit(other, _DATA, config, tmp_path)
    assert [record["step"] for record in resumed.history] == [6]
    for state in ("params", "batch_stats", "opt_state"):
        chex.assert_trees_all_equal(getattr(resumed.state, state), getattr(undisturbed.state, state))

    loaded = load(tmp_path, other)
    chex.assert_trees_all_equal(loaded.variables, undisturbed.variables)
    assert isinstance(loaded.model, twins.NnxConvNet)
    np.testing.assert_array_equal(loaded.model.conv.kernel[...], undisturbed.variables["params"]["conv"]["kernel"])
    with pytest.raises(WorkdirError, match=r"the module that was trained was expected\. Pass it"):
        load(tmp_path)
    with pytest.raises(CheckpointError, match=r"another model"):
        load(tmp_path, twins.NnxMLP(rngs=nnx.Rngs(0)))
    # By the names of its leaves another kind of network fits.
    functions = load(tmp_path, twins.twin("functions", True, _initial(True)))
    chex.assert_trees_all_equal(functions.variables, undisturbed.variables)
    image = jnp.asarray(_DATA[0][0])
    np.testing.assert_allclose(functions.classifier(image), loaded.classifier(image), rtol=1e-4, atol=1e-5)


def test_nnx_networks_are_certified_attacked_verified_and_exported_as_linen_ones(tmp_path: Path) -> None:
    images, labels = tiny.data(size=12, seed=1)
    regions = make_regions({"linf": 0.05})
    linen, other = (_trained(kind, False).classifier for kind in ("linen", "nnx"))
    expected, found = (cj.certify_dataset(f, images, labels, regions, method="ibp") for f in (linen, other))
    np.testing.assert_allclose(found.margin["linf"], expected.margin["linf"], rtol=1e-3, atol=1e-3)
    assert 0 < found.verified["linf"].sum() < len(images)
    attack = cj.attack_dataset(other, images, labels, regions, key=jax.random.key(0), steps=2, restarts=1)
    assert np.all(attack.survived["linf"][found.verified["linf"]])

    index = int(np.argmax(found.verified["linf"]))
    image = jnp.asarray(images[index])
    verdict = cj.verify(other, image, int(labels[index]), regions["linf"](image), timeout=60.0)
    assert verdict.status.name == "VERIFIED"

    options: Any = {"method": "ibp", "platforms": ("cpu",)}
    directory = cj.interop.export_certifier(other, tiny.SHAPE, regions, tmp_path / "export", **options)
    certifier = cj.interop.load_certifier(directory)
    assert len(certifier.weights) == len(jax.tree.leaves(_trained("nnx", False).variables))
    exported = certifier(images, labels)
    np.testing.assert_array_equal(exported["verified"]["linf"], found.verified["linf"])
    np.testing.assert_allclose(exported["margin"]["linf"], found.margin["linf"], rtol=1e-3, atol=1e-4)


def test_batch_norm_of_nnx_is_certified_with_its_running_averages() -> None:
    images, labels = tiny.data(size=12, seed=1)
    regions = make_regions({"linf": 0.02})
    linen, other = (
        cj.certify_dataset(_trained(kind, True).classifier, images, labels, regions, method="ibp")
        for kind in ("linen", "nnx")
    )
    np.testing.assert_allclose(other.margin["linf"], linen.margin["linf"], rtol=1e-3, atol=1e-3)
    assert 0 < linen.verified["linf"].sum() < len(images)


class _WithDropout(nnx.Module):
    def __init__(self, rate: float) -> None:
        self.dropout, self.last = nnx.Dropout(rate, rngs=nnx.Rngs(0)), nnx.Linear(16, 3, rngs=nnx.Rngs(1))

    def __call__(self, images: jax.Array) -> jax.Array:
        return self.last(self.dropout(images.reshape(images.shape[0], -1)))


@pytest.mark.parametrize(
    ("model", "error", "message"),
    [
        (twins.NnxMLP, TypeError, r"The network is the class NnxMLP; expected .*Make a module of it: NnxMLP\("),
        (twins.mlp, TypeError, r"The network is the function mlp; expected .*init\(key, images\) -> params"),
        ({"params": {}}, TypeError, r"The network is a dict; expected .*the parameters of"),
        (_WithDropout(0.5), ValueError, r"Dropout at a rate of 0\.5; expected none.*Set the rate to 0"),
    ],
    ids=["class", "function", "dictionary", "Dropout"],
)
def test_what_cannot_be_trained_is_refused_and_claims_no_work_directory(
    model: Any, error: type[Exception], message: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        fit(model, _DATA, _quick(), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_dropout_that_drops_nothing_is_trained() -> None:
    fitted = fit(_WithDropout(0.0), _DATA, _quick(epochs=1, ramp_end=1.0, milestones=()))
    assert int(fitted.state.step) == 2
