"""What networks that were trained for norms keep beyond them: certified accuracy under what they never saw.

    python launch/checks/generalisation.py --networks=digits/linf,digits/l2,digits/max,digits/scratch --images=100

Prints a table in Markdown: for each perturbation and network the certified accuracy and, behind a slash, the accuracy
under attack. `--perturbations` are those of `config.perturbations`, as a dictionary.
"""

import ast
import json
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags

from cure_jax import data, models, perturbations
from cure_jax.commands.parts import common
from cure_jax.validation import validate

_BEYOND = {
    "rotation": (-10, 10),
    "translation": (-0.5, 0.5),
    "scaling": (0.9, 1.1),
    "shear": (-0.1, 0.1),
    "contrast": (0.7, 1.3),
    "brightness": (-0.1, 0.1),
    "blur": (0, 0.5),
    "rotation+contrast": ((-5, 5), (0.9, 1.1)),
    "scaling+shear": ((0.95, 1.05), (-0.05, 0.05)),
    "patch": 1,
}
# Not among those of the process: tests import several programs.
_OWN = flags.FlagValues()
_NETWORKS = flags.DEFINE_list("networks", None, "Names of cure_jax.models.pretrained_names().", flag_values=_OWN)
_PERTURBATIONS = flags.DEFINE_string(
    "perturbations", str(_BEYOND), "A dictionary, as config.perturbations has it.", flag_values=_OWN
)
_IMAGES = flags.DEFINE_integer("images", 100, "The first so many test images.", flag_values=_OWN)
_METHOD = flags.DEFINE_enum("method", "ibp", ["ibp", "crown_ibp", "crown"], "How cells are bounded.", flag_values=_OWN)
_MAX_CELLS = flags.DEFINE_integer("max_cells", 300, "Of an image; then it is given up.", flag_values=_OWN)
_JSON = flags.DEFINE_string("json", None, "Where to keep the figures.", flag_values=_OWN)


def main() -> None:
    """Prints the table."""
    wanted = ast.literal_eval(str(_PERTURBATIONS.value))
    results: dict[str, dict[str, Any]] = {name: {} for name in wanted}
    networks = _NETWORKS.value or []
    for network in networks:
        f, (images, labels) = models.pretrained(network).classifier, _images(network)
        for name, perturbation in perturbations.by_names(wanted).items():
            results[name][network] = _measured(f, images, labels, perturbation)
            print(f"{network}, {name}: {results[name][network]}", flush=True)
    print("\n| perturbation | " + " | ".join(networks) + " |")
    print("| --- |" + " ---: |" * len(networks))
    for name, by_network in results.items():
        cells = (f"{found['certified']:.0%} / {found['attacked']:.0%}" for found in by_network.values())
        print(f"| `{name}` {wanted[name]} | " + " | ".join(cells) + " |")
    if _JSON.value:
        Path(_JSON.value).write_text(json.dumps(results, indent=2))


def _images(network: str) -> tuple[np.ndarray, np.ndarray]:
    dataset = models.pretrained_index()[network]["config"]["dataset"]
    images, labels, classes = data.load(dataset, "test")
    return validate(images[: _IMAGES.value], labels[: _IMAGES.value], classes)


def _measured(f: Any, images: np.ndarray, labels: np.ndarray, perturbation: Any) -> dict[str, float]:
    start, options = time.monotonic(), {"method": _METHOD.value, "max_cells": _MAX_CELLS.value}
    found = perturbations.certify_perturbation(f, images, labels, perturbation, **options)
    attack = perturbations.attack_perturbation(f, images, labels, perturbation, key=jax.random.key(0))
    if np.any(broken := found.verified & ~attack.survived):
        raise AssertionError(
            f"Images {np.flatnonzero(broken)} are proved and broken: a bound, or the attack, is wrong."
        )
    return {
        "certified": float(found.verified.mean()),
        "attacked": float(attack.survived.mean()),
        "given up": float(found.unfinished.mean()),
        "cells": float(found.cells.mean()),
        "seconds": round(time.monotonic() - start, 1),
    }


if __name__ == "__main__":
    flags.FLAGS.append_flag_values(_OWN)
    _OWN.mark_as_parsed()
    flags.mark_flags_as_required(["networks"])
    common.run(main)
