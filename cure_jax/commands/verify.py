"""Decides properties completely: proved, or a counterexample, or the reason why it is neither.

    cure-jax verify --workdir=runs/digits/max --num_examples=100 --timeout=30
    cure-jax verify --network=net.onnx --property=prop.vnnlib --timeout=116 --state=prop.state.npz

The first form takes the test images of a trained network, in the norms of its config: `verify.json` (fractions) and
`verify.npz` (verdicts, margins and counterexamples of each image) go into the work directory. Images that were decided
on their own are kept in `verify_parts.jsonl`, with which an interrupted command goes on.

The second form takes a network and a property of the verification competition, VNN-COMP; both may end in .gz. Its first
line is `unsat` (proved), `sat` (there is a counterexample, which follows), `unknown`, `timeout`, or `error` with exit
status 1. A counterexample must be one in onnxruntime too, where that is installed. With `--state` a search that was
interrupted, or ran out of time, goes on where it was.
"""

import importlib.util
import json
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

import cure_jax as cj
from cure_jax import interop, training
from cure_jax.certification import UnsafeSet
from cure_jax.commands.parts import common, provenance, settings
from cure_jax.commands.parts.known_verdicts import KnownVerdicts
from cure_jax.training.workdir import write_atomically
from cure_jax.verification import DatasetVerdicts, Status

_CONFIG = settings.define_config(settings.TRAINED_WITH)
_WORKDIR = flags.DEFINE_string("workdir", None, "A finished work directory.")
_NUM_EXAMPLES = flags.DEFINE_integer("num_examples", 100, "The first so many images; all if there are fewer.")
_SPLIT = flags.DEFINE_enum("split", "test", ["test", "validation"], "What to verify.")
_NETWORK = flags.DEFINE_string("network", None, "An ONNX file.")
_PROPERTY = flags.DEFINE_string("property", None, "A VNN-LIB file.")
_TIMEOUT = flags.DEFINE_float("timeout", 30.0, "Seconds: for each image and norm, or for the property.")
_METHOD = flags.DEFINE_string("method", "best", "Bounds of all images, before any is searched; several by commas.")
_STATE = flags.DEFINE_string("state", None, "A file for the state of the search for a property: goes on from there.")

_WORDS = {Status.VERIFIED: "unsat", Status.FALSIFIED: "sat", Status.UNKNOWN: "unknown", Status.TIMEOUT: "timeout"}


def run() -> None:
    """Reads the command line, and does it."""
    common.run(main)


def main() -> None:
    """Verifies images or one property."""
    start = time.monotonic()
    if _WORKDIR.value and not (_NETWORK.value or _PROPERTY.value):
        verify_images(Path(_WORKDIR.value))
    elif _NETWORK.value and _PROPERTY.value and not _WORKDIR.value:
        try:
            verify_property(_NETWORK.value, _PROPERTY.value, start)
        except Exception:
            print("error", flush=True)
            raise
    else:
        raise ValueError("Expected --workdir, or --network together with --property. Give one of the two forms.")


def verify_property(network: str, path: str, start: float) -> None:
    """Prints the verdict in the words of the competition, and a counterexample in its form."""
    f = interop.load_onnx(network)
    unsafe_sets = interop.read_vnnlib(path, f.input_shape)
    left = max(_TIMEOUT.value - (time.monotonic() - start), 1e-3)
    verdict = cj.verify_property(f, unsafe_sets, left, state_file=_STATE.value)
    status = verdict.status
    if verdict.witness is None:
        print(_WORDS[status], flush=True)
    else:
        x = np.asarray(verdict.witness, np.float32)
        y = _in_onnxruntime(network, x) if importlib.util.find_spec("onnxruntime") else np.asarray(f(jnp.asarray(x)))
        if any(_breaks(unsafe, verdict.witness, y) for unsafe in unsafe_sets):
            print(_WORDS[status], flush=True)
            print(interop.format_witness(verdict.witness, y))
        else:
            status = Status.UNKNOWN
            print(_WORDS[status], flush=True)
            print("The counterexample is none in onnxruntime.", file=sys.stderr)
    print(f"{status.value}: {verdict.reason}; {verdict.domains} domains, {verdict.seconds:.1f} s", file=sys.stderr)


def _in_onnxruntime(network: str, x: np.ndarray) -> np.ndarray:
    import onnxruntime

    from cure_jax.interop.onnx.file import read_model

    model = read_model(network).SerializeToString()
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    (entry,) = session.get_inputs()
    shape = [size if isinstance(size, int) and size > 0 else 1 for size in entry.shape]
    return np.asarray(session.run(None, {entry.name: x.reshape(shape)})[0]).ravel()


def _breaks(unsafe: UnsafeSet, x: np.ndarray, y: np.ndarray) -> bool:
    inside = np.all((unsafe.lower <= x) & (x <= unsafe.upper))
    return bool(inside and np.all(unsafe.weights @ np.asarray(y, np.float64).ravel() + unsafe.offsets <= 0))


def verify_images(workdir: Path) -> None:
    """Verifies the images of a split, and writes what was found."""
    fitted = training.load(workdir, config=_CONFIG.value)
    config = fitted.config
    split = common.load_split(config, _SPLIT.value)
    images, labels = split.images[: _NUM_EXAMPLES.value], split.labels[: _NUM_EXAMPLES.value]
    step = int(fitted.state.step)
    origin = {
        "step": step,
        "checkpoint_sha256": provenance.checkpoint_sha256(workdir, step),
        "round_to": config.round_to,
    }
    asked = {
        "timeout": _TIMEOUT.value,
        "split": _SPLIT.value,
        "data_dir": config.data_dir,
        "radii": config.radii.to_dict(),
    }
    parts = KnownVerdicts(workdir / f"{_name()}_parts.jsonl", {**origin, **asked, "commit": provenance.commit()})
    found = cj.verify_dataset(
        fitted.classifier,
        images,
        labels,
        training.make_regions(config.radii),
        timeout=_TIMEOUT.value,
        method=_METHOD.value.split(","),
        batch_size=min(100, len(images)),
        known=parts.known,
        tell=parts.tell,
        show_progress=True,
    )
    result = {
        **summary(found),
        "radii": dict(config.radii),
        "split": _SPLIT.value,
        "num_examples": len(images),
        "timeout": _TIMEOUT.value,
        **origin,
        "commit": provenance.commit(),
        "device": jax.devices()[0].platform,
    }
    arrays = {
        f"{field}.{norm}": value
        for field in ("status", "witness", "margin", "domains")
        for norm, value in getattr(found, field).items()
    }
    np.savez_compressed(workdir / f"{_name()}.npz", **arrays, labels=labels)
    write_atomically(workdir / f"{_name()}.json", json.dumps(result, indent=2) + "\n")
    verdicts = ", ".join(f"{norm} {shares}" for norm, shares in result["status"].items())
    print(f"{workdir}: union {result['union']:.1%}, undecided {result['undecided']:.1%} of {len(images)}; {verdicts}")


def _name() -> str:
    return "verify" if _SPLIT.value == "test" else "verify_validation"


def summary(found: DatasetVerdicts) -> dict[str, Any]:
    """Fractions over all images."""
    status = {
        norm: {kind.value: float(np.mean(values == kind.value)) for kind in Status}
        for norm, values in found.status.items()
    }
    union, undecided = float(np.mean(found.union)), float(np.mean(found.undecided))
    return {"status": status, "union": union, "undecided": undecided}
