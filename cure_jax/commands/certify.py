"""Certifies and attacks a trained network on test images.

    cure-jax certify --workdir=runs/digits/scratch --method=crown

writes into the work directory: `certify.json` (fractions over the same images, where they come from, and the curves),
`certify.npz` (per-example verdicts, points of the attack), `certify_union.png` (how many are certified in which norms)
and, last of all, `certify.png` (certified accuracy against the radius). The test split is opened here and nowhere else;
tune with --split=validation, whose results go to `validation.json` and so on. The images are divided over all devices,
of several processes too. What lies beyond norms is certified beside them:

    cure-jax certify --workdir=DIR --config=digits:scratch --config.perturbations.rotation="(-10, 10)"
"""

import functools
import importlib.metadata
import json
import platform
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import flags

import cure_jax as cj
from cure_jax import distributed, perturbations, training
from cure_jax.certification import METHODS, DatasetAttack, DatasetCertificate, bound_method
from cure_jax.commands.parts import common, processes, provenance, settings
from cure_jax.report import examples, plots, style, summaries
from cure_jax.training.config import Config
from cure_jax.training.workdir import AnyPath, as_path, write_atomically, writing

flags.adopt_module_key_flags(processes)
_CONFIG = settings.define_config(settings.TRAINED_WITH)
_WORKDIR = flags.DEFINE_string("workdir", None, "Its work directory.")
_METHOD = flags.DEFINE_list(
    "method",
    ["crown"],
    f"How to bound: one of {', '.join(METHODS)}, or several, each for what those before it leave open.",
)
_ARITHMETIC = flags.DEFINE_enum(
    "arithmetic", "float32", ["float32", "float64", "outward"], "How bounds are rounded; outward: proven, on CPU."
)
_NUM_EXAMPLES = flags.DEFINE_integer("num_examples", 1000, "The first so many images; all if there are fewer.")
_SPLIT = flags.DEFINE_enum("split", "test", ["test", "validation"], "What to certify.")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 100, "Images at once.")
_TIMEOUT = flags.DEFINE_float(
    "timeout", None, "Seconds for the certificates at each radius; what is not proved then is left. One process only."
)
_ATTACK_STEPS = flags.DEFINE_integer("attack_steps", 40, "Steps of the attack; 3 restarts of 2 losses.")
_PERTURBATION_METHOD = flags.DEFINE_enum(
    "perturbation_method", "crown", ["ibp", "crown_ibp", "crown"], "How cells of config.perturbations are bounded."
)
_MAX_CELLS = flags.DEFINE_integer("max_cells", 2000, "Cells of an image and perturbation; then it is given up.")
_CURVE = flags.DEFINE_list("curve", ["0.25", "0.5", "0.75", "1.25", "1.5", "2"], "Radii of the plot, as multiples.")


def run() -> None:
    """Reads the command line, and does it."""
    common.run(main, required=["workdir"])


def main() -> None:
    """Certifies, attacks, writes."""
    # Before the work, not after it: pictures are drawn at the end.
    style.import_figure()
    is_first = processes.join()
    workdir, method = as_path(str(_WORKDIR.value)), _checked_method()
    fitted = training.load(workdir, config=_CONFIG.value)
    config = fitted.config
    split = common.load_split(config, _SPLIT.value)
    images, labels = split.images[: _NUM_EXAMPLES.value], split.labels[: _NUM_EXAMPLES.value]
    batch_size, mesh = _batches(len(images))
    shared = {"batch_size": batch_size, "mesh": mesh}
    prove = functools.partial(
        cj.certify_dataset,
        fitted.classifier,
        images,
        labels,
        method=method,
        arithmetic=_ARITHMETIC.value,
        timeout=_TIMEOUT.value,
        show_progress=True,
        **shared,
    )
    attack = functools.partial(
        cj.attack_dataset,
        fitted.classifier,
        images,
        labels,
        key=jax.random.key(0),
        steps=_ATTACK_STEPS.value,
        show_progress=True,
        **shared,
    )
    radii, start = {**config.radii, **config.reported}, time.monotonic()
    attacked, certificate = _attacked_and_certified(radii, prove, attack)
    seconds = time.monotonic() - start
    curves = {
        norm: _curve(norm, eps, prove, attack, certificate, attacked.survived[norm]) for norm, eps in radii.items()
    }
    beyond, more = _beyond(config, fitted.classifier, images, labels, shared)
    if not is_first:
        return
    shares, verdicts = _summary(config, certificate, attacked)
    verdicts |= more
    result = {
        **shares,
        "perturbed": beyond,
        "num_examples": len(images),
        "split_examples": len(split.images),
        "split": _SPLIT.value,
        "seconds": round(seconds, 2),
        "radii": dict(config.radii),
        "reported_radii": dict(config.reported),
        "method": certificate.method,
        **_provenance(workdir, int(fitted.state.step)),
        "config": config.to_dict(),
        "curve": {norm: curve._asdict() for norm, curve in curves.items()},
    }
    _write(
        workdir, "certify" if _SPLIT.value == "test" else _SPLIT.value, result, verdicts | {"labels": labels}, curves
    )
    print(f"{workdir}: {_in_one_line(result)} of {len(images)} images")


def _beyond(
    config: Config, f: Any, images: np.ndarray, labels: np.ndarray, shared: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """What `config.perturbations` asks for: fractions, and the verdicts behind them."""
    shares, verdicts = {}, {}
    for name, perturbation in perturbations.by_names(config.perturbations.to_dict()).items():
        start = time.monotonic()
        attacked = perturbations.attack_perturbation(f, images, labels, perturbation, key=jax.random.key(0), **shared)
        found = perturbations.certify_perturbation(
            f,
            images,
            labels,
            perturbation,
            method=_PERTURBATION_METHOD.value,
            max_cells=_MAX_CELLS.value,
            timeout=_TIMEOUT.value,
            show_progress=True,
            **shared,
        )
        shares[name] = {
            "range": config.perturbations[name],
            "certified": _share(found.verified),
            "empirical": _share(attacked.survived),
            "unfinished": _share(found.unfinished),
            "cells": float(np.mean(found.cells)),
            "seconds": round(time.monotonic() - start, 2),
        }
        verdicts |= {f"verified.{name}": found.verified, f"survived.{name}": attacked.survived}
        verdicts |= {f"margin.{name}": found.margin, f"point.{name}": attacked.points}
    return shares, verdicts


class _Curve(NamedTuple):
    """Fractions of the images against the radius, which grows."""

    radii: list[float]
    certified: list[float]
    attacked: list[float]


def _checked_method() -> str | tuple[str, ...]:
    """How to bound; raises before anything is loaded if there is no such way."""
    method = _METHOD.value[0] if len(_METHOD.value) == 1 else tuple(_METHOD.value)
    bound_method(method, _ARITHMETIC.value if _ARITHMETIC.value == "outward" else "float32")
    if _NUM_EXAMPLES.value < 1:
        raise ValueError(f"num_examples is {_NUM_EXAMPLES.value}; expected at least 1. Leave it out for 1000.")
    return method


def _attacked_and_certified(
    radii: Mapping[str, float], prove: Any, attack: Any
) -> tuple[DatasetAttack, DatasetCertificate]:
    regions = training.make_regions(radii)
    attacked = attack(regions)
    return attacked, prove(regions, attack=attacked)


def _summary(
    config: Config, certificate: DatasetCertificate, attacked: DatasetAttack
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Fractions over the same images, and the verdicts behind them."""
    verified, survived = certificate.verified, attacked.survived
    union = np.all(np.stack([verified[norm] for norm in config.radii]), axis=0)
    standing = np.all(np.stack([survived[norm] for norm in config.radii]), axis=0)
    shares = {
        "clean": _share(certificate.correct),
        "certified": {norm: _share(verified[norm]) for norm in config.radii},
        "union": _share(union),
        "empirical": {norm: _share(survived[norm]) for norm in config.radii} | {"union": _share(standing)},
        "reported": {norm: _share(verified[norm]) for norm in config.reported},
        "reported_empirical": {norm: _share(survived[norm]) for norm in config.reported},
        # For lack of time; empty without --timeout.
        "unfinished": {norm: _share(where) for norm, where in certificate.unfinished.items()},
    }
    verdicts = {f"verified.{norm}": value for norm, value in verified.items()}
    verdicts |= {f"margin.{norm}": value for norm, value in certificate.margin.items()}
    verdicts |= {f"unfinished.{norm}": value for norm, value in certificate.unfinished.items()}
    verdicts |= {f"survived.{norm}": value for norm, value in survived.items()}
    verdicts |= {f"point.{norm}": value for norm, value in attacked.points.items()}
    return shares, verdicts | {"correct": certificate.correct, "union": union}


def _in_one_line(result: Mapping[str, Any]) -> str:
    """All fractions that are certified; norms that are no part of the union come after it."""
    union, beside = (
        ", ".join(f"certified {norm} {share:.1%}" for norm, share in result[kind].items())
        for kind in ("certified", "reported")
    )
    shares = f"clean {result['clean']:.1%}, {union}, union {result['union']:.1%}"
    beyond = ", ".join(f"{name} {found['certified']:.1%}" for name, found in result["perturbed"].items())
    return shares + f", reported: {beside}" * bool(beside) + f", beyond: {beyond}" * bool(beyond)


def _write(workdir: AnyPath, name: str, result: dict[str, Any], verdicts: dict[str, Any], curves: dict) -> None:
    """The files; the picture comes last: where it is, nothing is missing."""
    radii, method = result["radii"], result["config"]["name"] or result["config"]["dataset"]
    title = summaries.headline([result])
    # First here: not everything can write into a bucket.
    with writing("The results", workdir), tempfile.TemporaryDirectory() as directory:
        here = Path(directory)
        (workdir / f"{name}.png").unlink(missing_ok=True)
        np.savez_compressed(here / f"{name}.npz", **verdicts)
        examples.union_diagram(here / f"{name}_union.png", {method: [verdicts]}, union=[*radii], title=title)
        plots.certified_against_radius(here / f"{name}.png", curves, training_radii=radii, title=title)
        write_atomically(workdir / f"{name}.json", json.dumps(result, indent=2) + "\n")
        for ending in (".npz", "_union.png", ".png"):
            (workdir / f"{name}{ending}").write_bytes((here / f"{name}{ending}").read_bytes())


def _batches(num_examples: int) -> tuple[int, jax.sharding.Mesh | None]:
    """Images at once, and the devices over which they are divided: all there are."""
    batch_size, devices = min(_BATCH_SIZE.value, num_examples), jax.device_count()
    if devices == 1:
        return batch_size, None
    return -(-batch_size // devices) * devices, distributed.mesh_of_all()


def _share(verdicts: np.ndarray) -> float:
    return float(np.mean(verdicts))


def _curve(
    norm: str, eps: float, prove: Any, attack: Any, certificate: DatasetCertificate, survived: np.ndarray
) -> _Curve:
    """Of one norm, at multiples of its radius; at 0 it is the clean accuracy."""
    clean = _share(certificate.correct)
    points = [(0.0, clean, clean), (eps, _share(certificate.verified[norm]), _share(survived))]
    for factor in map(float, _CURVE.value):
        radii = {norm: factor * eps}
        attacked, proved = _attacked_and_certified(radii, prove, attack)
        points.append((radii[norm], _share(proved.verified[norm]), _share(attacked.survived[norm])))
    return _Curve(*(list(values) for values in zip(*sorted(points), strict=True)))


def _provenance(workdir: AnyPath, step: int) -> dict[str, Any]:
    """Where the numbers come from and how they were computed: what a certificate itself cannot know."""
    device, here = jax.devices()[0], workdir if isinstance(workdir, Path) else None
    return {
        "step": step,
        "arithmetic": _ARITHMETIC.value,
        "checkpoint_sha256": here and provenance.checkpoint_sha256(here, step),
        "commit": provenance.commit(),
        "training_seconds": here and provenance.training_seconds(here),
        "precision": "highest",
        "backend": jax.default_backend(),
        "device": device.device_kind,
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in ("cure-jax", "jax", "jaxlib", "flax", "optax")},
        },
        "devices": jax.device_count(),
        "processes": jax.process_count(),
    }
