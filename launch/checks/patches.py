"""Certifies networks against patches and few changed pixels, attacks them, and shows both.

    python launch/checks/patches.py --networks=mnist_cpu/max,mnist_cpu/linf --workdir=runs/patches

prints a table: of the first --images test images, the share that is classified rightly, that is proved for every patch
of each size (at every position, of any content) and for every choice of so many pixels, and that an attack does not
break; how many cells were bounded, and the seconds. DIR/patches.json has the same figures, DIR/NETWORK.png an image
under each perturbation. Ends with exit status 1 if an attack breaks what is proved.
"""

import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from jax.tree_util import Partial

import cure_jax as cj
from cure_jax import data, models
from cure_jax.certification import bound_method
from cure_jax.commands.parts import common
from cure_jax.perturbations import certify_perturbation, patch, patch_attack, pixel_attack
from cure_jax.report import Perturbed, perturbed_images

# Not among those of the process: tests import several programs.
_OWN = flags.FlagValues()
_NETWORKS = flags.DEFINE_list("networks", None, "Names of networks that come with the library.", flag_values=_OWN)
_WORKDIR = flags.DEFINE_string("workdir", None, "Where patches.json and the pictures go.", flag_values=_OWN)
_IMAGES = flags.DEFINE_integer(
    "images", 100, "How many test images to certify and to attack.", lower_bound=1, flag_values=_OWN
)
_PATCHES = flags.DEFINE_list("patches", ["2", "5"], "Sides of square patches.", flag_values=_OWN)
_PIXELS = flags.DEFINE_list("pixels", ["1", "2"], "How many pixels may change.", flag_values=_OWN)
_PATCH_METHODS = flags.DEFINE_list(
    "patch_methods",
    ["ibp", "crown_ibp", "crown"],
    "What proves patches: the first super-windows, all single positions.",
    flag_values=_OWN,
)
_PIXEL_METHODS = flags.DEFINE_list(
    "pixel_methods",
    ["ibp", "crown_ibp", "vertex_crown"],
    "What proves changed pixels, from cheap to tight.",
    flag_values=_OWN,
)
_TIMEOUT = flags.DEFINE_float("timeout", 300.0, "Seconds to certify one perturbation of one network.", flag_values=_OWN)

STRIDE = 3
BATCH_SIZE, ATTACK_STEPS = 64, 10


class Threat(NamedTuple):
    """A perturbation, what proves it, what attacks it, and its lower bounds on one image.

    Attributes:
      name: of the perturbation.
      certify: from the network, images and labels to what is proved, `[images]`, and how many cells were bounded.
      attack: from the network, an image, its label and a key to the worst point found.
      lower: from the network, an image and its label to lower bounds of the margins.
    """

    name: str
    certify: Callable[[Partial, np.ndarray, np.ndarray], tuple[np.ndarray, int]]
    attack: Callable[[Partial, jax.Array, jax.Array, jax.Array], jax.Array]
    lower: Callable[[Partial, jax.Array, jax.Array], jax.Array]


def main() -> None:
    """Certifies, attacks, prints and draws; exits with 1 if something was broken."""
    workdir = Path(str(_WORKDIR.value))
    workdir.mkdir(parents=True, exist_ok=True)
    threats = [*(_patch(int(side)) for side in _PATCHES.value), *(_pixels(int(k)) for k in _PIXELS.value)]
    rows = []
    print("| network | perturbation | correct | certified | under attack | cells | seconds | attack seconds |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for name in _NETWORKS.value or ():
        for row in _measured(name, threats, workdir):
            rows.append(row)
            print(_line(row), flush=True)
            (workdir / "patches.json").write_text(json.dumps(rows, indent=2) + "\n")
    if broken := sum(row["broken"] for row in rows):
        sys.exit(f"error: {broken} examples are proved and broken: a bound, or an attack, is wrong.")


def _line(row: dict[str, Any]) -> str:
    shares = [f"{100 * row[part]:.0f}" for part in ("correct", "certified", "attacked")]
    seconds = [f"{row[part]:.0f}" for part in ("seconds", "attack_seconds")]
    return f"| {' | '.join([row['network'], row['threat'], *shares, str(row['cells']), *seconds])} |"


def _measured(name: str, threats: list[Threat], workdir: Path) -> Iterator[dict[str, Any]]:
    network = models.pretrained(name)
    images, labels, classes = data.load(network.config.dataset, "test")
    images, labels = data.validate(images[: _IMAGES.value], labels[: _IMAGES.value], classes)
    f, pictures = network.classifier, []
    correct = np.asarray(jnp.argmax(jax.vmap(f)(jnp.asarray(images)), axis=-1)) == labels
    shown = int(np.flatnonzero(correct)[0])
    for threat in threats:
        start = time.monotonic()
        verified, cells = threat.certify(f, images, labels)
        certified_at = time.monotonic()
        points = _attacked(threat, f, images, labels)
        right = np.asarray(jnp.argmax(jax.vmap(f)(jnp.asarray(points)), axis=-1)) == labels
        pictures.append(_picture(threat, f, images[shown], labels[shown], points[shown]))
        yield {
            "network": name, "threat": threat.name, "images": len(images), "correct": float(correct.mean()),
            "certified": float(verified.mean()), "attacked": float((correct & right).mean()), "cells": cells,
            "broken": int(np.sum(verified & ~right)), "seconds": round(certified_at - start, 1),
            "attack_seconds": round(time.monotonic() - certified_at, 1),
        }  # fmt: skip
    perturbed_images(
        workdir / f"{name.replace('/', '_')}.png", pictures, int(labels[shown]), title=f"{name}, test image {shown}"
    )


def _attacked(threat: Threat, f: Partial, images: np.ndarray, labels: np.ndarray) -> np.ndarray:
    keys = jax.random.split(jax.random.key(0), len(images))
    return np.stack([threat.attack(f, *example) for example in zip(images, labels, keys, strict=True)])


def _picture(threat: Threat, f: Partial, image: np.ndarray, label: np.ndarray, worst: np.ndarray) -> Perturbed:
    x, margins = jnp.asarray(image), cj.margins(f, jnp.asarray(label))
    lower = threat.lower(f, x, jnp.asarray(label))
    return Perturbed(threat.name, image, worst, *map(np.asarray, (lower, margins(x), margins(jnp.asarray(worst)))))


def _patch(side: int) -> Threat:
    window, single = patch(side, stride=STRIDE), patch(side, stride=1)

    def certify(f: Partial, images: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, int]:
        cheap, *last_resort = _PATCH_METHODS.value
        options = {"last_resort": last_resort, "batch_size": BATCH_SIZE, "timeout": _TIMEOUT.value}
        found = certify_perturbation(f, images, labels, window, method=cheap, **options)
        return found.verified, int(found.cells.sum())

    @jax.jit
    def attack(f: Partial, x: jax.Array, label: jax.Array, key: jax.Array) -> jax.Array:
        return patch_attack(f, x, label, window, key=key, steps=ATTACK_STEPS)

    @jax.jit
    def lower(f: Partial, x: jax.Array, label: jax.Array) -> jax.Array:
        bound = cj.crown(cj.margins(f, label), "ibp")
        cells = jnp.asarray(single.cells(x.shape))
        return jnp.min(
            jax.lax.map(lambda cell: bound(single.inputs(x, cell).region).lower, cells, batch_size=32), axis=0
        )

    return Threat(f"{side} x {side} patch", certify, attack, lower)


def _pixels(k: int) -> Threat:
    def region(x: jax.Array) -> cj.L0Ball:
        return cj.l0_ball(x, k)

    def certify(f: Partial, images: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, int]:
        options = {"method": tuple(_PIXEL_METHODS.value), "batch_size": 10, "timeout": _TIMEOUT.value}
        found = cj.certify_dataset(f, images, labels, {"l0": Partial(region)}, **options)
        return found.verified["l0"], len(images)

    @jax.jit
    def attack(f: Partial, x: jax.Array, label: jax.Array, key: jax.Array) -> jax.Array:
        del key
        return pixel_attack(f, x, label, region(x))

    @jax.jit
    def lower(f: Partial, x: jax.Array, label: jax.Array) -> jax.Array:
        return bound_method(_PIXEL_METHODS.value)(cj.margins(f, label))(region(x)).lower

    return Threat(f"{k} pixel{'s' if k > 1 else ''}", certify, attack, lower)


if __name__ == "__main__":
    flags.FLAGS.append_flag_values(_OWN)
    _OWN.mark_as_parsed()
    flags.mark_flags_as_required(["networks", "workdir"])
    common.run(main)
