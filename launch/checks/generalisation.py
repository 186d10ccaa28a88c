"""What networks that were trained for norms keep beyond them: certified accuracy under what they never saw.

    python launch/checks/generalisation.py --networks=digits/linf,digits/l2,digits/max,digits/scratch --images=100

Prints a table in Markdown: for each perturbation and network the certified accuracy and, behind a slash, the accuracy
under attack. `--perturbations` are those of `config.perturbations`, as a dictionary.

    python launch/checks/generalisation.py --networks=digits/linf,digits/max --smoothing="{'gaussian': 0.12}"

puts randomised smoothing around the same networks instead, none of which was trained on noise. It prints certified
accuracy by radius, in the norm of each noise, and the mean certified radius; images that are misclassified, or of which
nothing is said, count with radius 0.
"""

import ast
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags

from cure_jax import data, models, perturbations, smoothing
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
# Pixels are multiples of 1/levels: smoothing is of images on this grid. 255 is that of all others.
_LEVELS = {"digits": 16}
# Not among those of the process: tests import several programs.
_OWN = flags.FlagValues()
_NETWORKS = flags.DEFINE_list("networks", None, "Names of cure_jax.models.pretrained_names().", flag_values=_OWN)
_PERTURBATIONS = flags.DEFINE_string(
    "perturbations", str(_BEYOND), "A dictionary, as config.perturbations has it.", flag_values=_OWN
)
_IMAGES = flags.DEFINE_integer("images", 100, "The first so many test images.", flag_values=_OWN)
_METHOD = flags.DEFINE_enum(
    "method", "crown_ibp", ["ibp", "crown_ibp", "crown"], "How cells are bounded.", flag_values=_OWN
)
_MAX_CELLS = flags.DEFINE_integer("max_cells", 300, "Of an image; then it is given up.", flag_values=_OWN)
_SMOOTHING = flags.DEFINE_string(
    "smoothing", "", "A dictionary from noises to their scales: smoothing, in place of perturbations.", flag_values=_OWN
)
_VIEWS = flags.DEFINE_integer("views", 10_000, "Of an image under noise, that estimate.", flag_values=_OWN)
_RADII = flags.DEFINE_list(
    "radii", ["0.12", "0.25", "0.35", "0.5", "0.75"], "Of smoothed classifiers, in pixels of [0, 1].", flag_values=_OWN
)
_ALPHA = flags.DEFINE_float("alpha", 0.001, "Probability that a smoothed certificate is wrong.", flag_values=_OWN)
_JSON = flags.DEFINE_string("json", None, "Where to keep the figures.", flag_values=_OWN)


def main() -> None:
    """Prints the table."""
    if _SMOOTHING.value:
        results = _smoothed(ast.literal_eval(_SMOOTHING.value))
    else:
        results = _perturbed(ast.literal_eval(str(_PERTURBATIONS.value)))
    if _JSON.value:
        Path(_JSON.value).write_text(json.dumps(results, indent=2))


def _perturbed(wanted: dict[str, Any]) -> dict[str, dict[str, Any]]:
    results: dict[str, dict[str, Any]] = {name: {} for name in wanted}
    for network in _networks():
        f, (images, labels) = models.pretrained(network).classifier, _images(network)
        for name, perturbation in perturbations.by_names(wanted).items():
            results[name][network] = _measured(f, images, labels, perturbation)
            print(f"{network}, {name}: {results[name][network]}", flush=True)
    _header("perturbation")
    for name, by_network in results.items():
        _row(f"`{name}` {wanted[name]}", [f"{x['certified']:.0%} / {x['attacked']:.0%}" for x in by_network.values()])
    return results


def _smoothed(wanted: dict[str, float]) -> dict[str, dict[str, Any]]:
    results: dict[str, dict[str, Any]] = {f"{noise} {scale}": {} for noise, scale in wanted.items()}
    for network in _networks():
        f, (images, labels) = models.pretrained(network).classifier, _images(network)
        levels = _LEVELS.get(models.pretrained_index()[network]["config"]["dataset"], 255)
        for (noise, scale), by_network in zip(wanted.items(), results.values(), strict=True):
            made, radii = smoothing.NOISES[noise](scale, levels=levels), [float(radius) for radius in _RADII.value]
            by_network[network] = smoothed(f, images, labels, made, radii, views=_VIEWS.value, alpha=_ALPHA.value)
            print(f"{network}, {noise}: {by_network[network]}", flush=True)
    _header("noise, norm | radius")
    for name, by_network in results.items():
        columns = list(by_network.values())
        norm = columns[0]["norm"]
        for i, radius in enumerate(columns[0]["radii"]):
            _row(f"`{name}`, {norm} | {radius:g}", [f"{found['certified'][i]:.0%}" for found in columns])
        _row(f"`{name}`, {norm} | mean", [f"{found['mean radius']:.3f}" for found in columns])
    return results


def smoothed(  # noqa: PLR0913  (what an experiment is made of)
    f: Any,
    images: np.ndarray,
    labels: np.ndarray,
    noise: smoothing.AdditiveNoise,
    radii: Sequence[float],
    *,
    views: int,
    alpha: float,
) -> dict[str, Any]:
    """What the smoothed classifier of a network keeps, by radius.

    Args:
      f: one image to logits; that it was trained on noise is not asked.
      images: on the grid of the noise.
      labels: their classes.
      noise: `cure_jax.smoothing.gaussian`, `laplace` or `uniform`.
      radii: those that no image could be certified at with so many views are left out.
      views: of each image, that estimate.
      alpha: of each image, the probability that its certificate is wrong.

    Returns:
      `radii`, 0 first, and the certified accuracy at each; the mean radius, 0 for errors; the share of abstentions.
    """
    start, options = time.monotonic(), {"n": views, "alpha": alpha, "samples_at_once": 25}
    found = smoothing.certify_dataset(f, images, labels, noise, jax.random.key(0), **options)
    # All views of an image of the right class: their least probability is alpha^(1/views).
    largest = float(noise.radius(np.array(alpha ** (1 / views))))
    return {
        "norm": noise.norm,
        **found.curve(noise.norm, (0.0, *(radius for radius in radii if radius <= largest))),
        "mean radius": float(np.where(found.correct, found.certificate.radius, 0.0).mean()),
        "abstained": float(found.certificate.abstained.mean()),
        "seconds": round(time.monotonic() - start, 1),
    }


def _networks() -> list[str]:
    return _NETWORKS.value or []


def _header(first: str) -> None:
    columns = [*(f" {name} " for name in first.split(" | ")), *(f" {network} " for network in _networks())]
    print("\n|" + "|".join(columns) + "|")
    print("|" + " --- |" * len(first.split(" | ")) + " ---: |" * len(_networks()))


def _row(name: str, cells: list[str]) -> None:
    print(f"| {name} | " + " | ".join(cells) + " |")


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
