"""Certifies and attacks a trained network on test images.

    python launch/certify.py --config=configs/digits.py:scratch --workdir=runs/digits/scratch --method=crown

writes into the work directory: `certify.json` (fractions over the same images, where they come from, and the curves),
`certify.npz` (per-example verdicts), `certify_union.png` (how many are certified in which norms) and, last of all,
`certify.png` (certified accuracy against the radius). The test split is opened here and nowhere else; tune with
--split=validation, whose results go to `validation.json` and so on. The images are divided over all devices, of several
processes too (launch/README.md).
"""

import functools
import importlib.metadata
import json
import platform
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags
from ml_collections import config_flags

import cure_jax as cj
from cure_jax import distributed, training
from cure_jax.certification import METHODS, DatasetCertificate, bound_method
from cure_jax.report import examples, plots, style
from cure_jax.training.workdir import AnyPath, as_path, write_atomically
from launch.parts import common, processes, provenance

_CONFIG = config_flags.DEFINE_config_file("config", None, "The config that the network was trained with.")
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
_ATTACK_STEPS = flags.DEFINE_integer("attack_steps", 40, "Steps of the attack; 3 restarts of 2 losses.")
_CURVE = flags.DEFINE_list("curve", ["0.25", "0.5", "0.75", "1.25", "1.5", "2"], "Radii of the plot, as multiples.")


def main() -> None:
    """Certifies, attacks, writes."""
    # Before the work, not after it: pictures are drawn at the end.
    style.import_figure()
    is_first = processes.join()
    config, workdir = _CONFIG.value, as_path(str(_WORKDIR.value))
    arithmetic = _ARITHMETIC.value
    method = _METHOD.value[0] if len(_METHOD.value) == 1 else tuple(_METHOD.value)
    bound_method(method, arithmetic if arithmetic == "outward" else "float32")
    if _NUM_EXAMPLES.value < 1:
        raise ValueError(f"num_examples is {_NUM_EXAMPLES.value}; expected at least 1. Leave it out for 1000.")
    split = common.load_split(config, _SPLIT.value)
    images, labels = split.images[: _NUM_EXAMPLES.value], split.labels[: _NUM_EXAMPLES.value]
    model = common.create_model(config, split.num_classes)
    fitted = training.restore(model, images[:1], config, workdir)

    start = time.monotonic()
    batch_size, mesh = _batches(len(images))
    prove = functools.partial(
        cj.certify_dataset,
        fitted.classifier,
        images,
        labels,
        method=method,
        arithmetic=arithmetic,
        batch_size=batch_size,
        mesh=mesh,
        show_progress=True,
    )
    attack = functools.partial(
        cj.attack_dataset,
        fitted.classifier,
        images,
        labels,
        key=jax.random.key(0),
        steps=_ATTACK_STEPS.value,
        batch_size=batch_size,
        mesh=mesh,
    )
    radii, reported = dict(config.radii), dict(config.reported)
    regions = training.make_regions({**radii, **reported})
    attacked = attack(regions)
    certificate = prove(regions, attack=attacked)
    seconds = time.monotonic() - start
    curves = {
        norm: _curve(norm, eps, prove, attack, certificate, attacked.survived[norm])
        for norm, eps in {**radii, **reported}.items()
    }
    if not is_first:
        return
    on_disk = isinstance(workdir, Path)

    union = np.all(np.stack([certificate.verified[norm] for norm in radii]), axis=0)
    attacked_union = np.all(np.stack([attacked.survived[norm] for norm in radii]), axis=0)
    result = {
        "clean": _share(certificate.correct),
        "certified": {norm: _share(certificate.verified[norm]) for norm in radii},
        "union": _share(union),
        "empirical": {norm: _share(attacked.survived[norm]) for norm in radii} | {"union": _share(attacked_union)},
        "reported": {norm: _share(certificate.verified[norm]) for norm in reported},
        "reported_empirical": {norm: _share(attacked.survived[norm]) for norm in reported},
        "num_examples": len(images),
        "split_examples": len(split.images),
        "split": _SPLIT.value,
        "seconds": round(seconds, 2),
        "radii": radii,
        "reported_radii": reported,
        "method": certificate.method,
        "step": int(fitted.state.step),
        "arithmetic": arithmetic,
        "checkpoint_sha256": provenance.checkpoint_sha256(workdir, int(fitted.state.step)) if on_disk else None,
        "commit": provenance.commit(),
        "training_seconds": provenance.training_seconds(workdir) if on_disk else None,
        **_environment(),
        "devices": jax.device_count(),
        "processes": jax.process_count(),
        "config": config.to_dict(),
    }
    name = "certify" if _SPLIT.value == "test" else _SPLIT.value
    verdicts = {f"verified.{norm}": value for norm, value in certificate.verified.items()}
    verdicts |= {f"margin.{norm}": value for norm, value in certificate.margin.items()}
    verdicts |= {f"survived.{norm}": value for norm, value in attacked.survived.items()}
    verdicts |= {"correct": certificate.correct, "union": union, "labels": labels}
    parts = ("radii", "certified", "attacked")
    result["curve"] = {norm: dict(zip(parts, curve, strict=True)) for norm, curve in curves.items()}
    _write(workdir, name, result, verdicts, curves)
    shares = ", ".join(f"certified {norm} {share:.1%}" for norm, share in result["certified"].items())
    print(f"{workdir}: clean {result['clean']:.1%}, {shares}, union {result['union']:.1%} of {len(images)} images")


def _write(workdir: AnyPath, name: str, result: dict[str, Any], verdicts: dict[str, Any], curves: dict) -> None:
    """The files; the picture comes last: where it is, nothing is missing."""
    (workdir / f"{name}.png").unlink(missing_ok=True)
    radii, method = result["radii"], result["config"]["name"] or result["config"]["dataset"]
    # First here: not everything can write into a bucket.
    with tempfile.TemporaryDirectory() as directory:
        here = Path(directory)
        np.savez_compressed(here / f"{name}.npz", **verdicts)
        examples.union_diagram(here / f"{name}_union.png", {method: [verdicts]}, union=[*radii])
        plots.certified_against_radius(here / f"{name}.png", curves, training_radii=radii)
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
) -> tuple[list[float], list[float], list[float]]:
    """Radii, certified and surviving fractions; the radius 0 is the clean accuracy."""
    radii, certified, standing = [0.0, eps], [_share(certificate.correct), _share(certificate.verified[norm])], []
    standing = [_share(certificate.correct), _share(survived)]
    for factor in map(float, _CURVE.value):
        region = training.make_regions({norm: factor * eps})
        attacked = attack(region)
        radii.append(factor * eps)
        certified.append(_share(prove(region, attack=attacked).verified[norm]))
        standing.append(_share(attacked.survived[norm]))
    order = np.argsort(radii)
    return tuple([float(values[i]) for i in order] for values in (radii, certified, standing))  # pyright: ignore


def _environment() -> dict[str, Any]:
    """How the numbers were computed: what a certificate itself cannot know."""
    device = jax.devices()[0]
    return {
        "precision": "highest",
        "backend": jax.default_backend(),
        "device": device.device_kind,
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in ("cure-jax", "jax", "jaxlib", "flax", "optax")},
        },
    }


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "workdir"])
    common.run(main)
