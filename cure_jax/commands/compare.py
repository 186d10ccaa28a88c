"""Compares what each method proves of a trained network, and what the pixel box is worth.

    cure-jax compare --workdir=runs/digits/scratch --num_examples=300

For every norm of the config (or those of --norms): certified share and seconds of each method, on the ball cut by the
pixel box and (with --whole) on the whole ball; attacks bound all of them from above. Writes `compare.json` and
`compare.md` into the work directory and prints the table. Seconds include compilation; --split=validation leaves the
test images alone.
"""

import functools
import json
import math
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags
from jax.tree_util import Partial

import cure_jax as cj
from cure_jax import training
from cure_jax.certification import METHODS, bound_method
from cure_jax.commands.parts import common, settings
from cure_jax.training.config import norm_exponent
from cure_jax.training.workdir import write_atomically

_CONFIG = settings.define_config(settings.TRAINED_WITH)
_WORKDIR = flags.DEFINE_string("workdir", None, "Its work directory.")
_METHODS = flags.DEFINE_list("methods", list(METHODS), "Methods, in the order of the rows.")
_WHOLE = flags.DEFINE_list("whole", ["crown"], "Methods that are tried on the whole ball too; none for l_inf.")
_NORMS = flags.DEFINE_list("norms", None, "Of those of the config; all if left out.")
_NUM_EXAMPLES = flags.DEFINE_integer("num_examples", 100, "The first so many images.")
_SPLIT = flags.DEFINE_enum("split", "test", ["test", "validation"], "What to certify.")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 100, "Images at once.")
_ATTACK_STEPS = flags.DEFINE_integer("attack_steps", 40, "Steps of the attack; 3 restarts of 2 losses.")


def run() -> None:
    """Reads the command line, and does it."""
    common.run(main, required=["workdir"])


def main() -> None:
    """Certifies with every method, attacks, writes."""
    workdir = Path(str(_WORKDIR.value))
    for method in {*_METHODS.value, *_WHOLE.value}:
        bound_method(method)
    fitted = training.load(workdir, config=_CONFIG.value)
    classifier, config = fitted.classifier, fitted.config
    split = common.load_split(config, _SPLIT.value)
    images, labels = split.images[: _NUM_EXAMPLES.value], split.labels[: _NUM_EXAMPLES.value]
    radii = {**dict(config.radii), **dict(config.reported)}
    if unknown := sorted({*(_NORMS.value or ())} - {*radii}):
        raise ValueError(f"norms names {', '.join(unknown)}; expected some of {', '.join(radii)}. Correct it.")
    radii = {norm: eps for norm, eps in radii.items() if _NORMS.value is None or norm in _NORMS.value}
    regions = training.make_regions(radii)
    whole = {norm: Partial(_WholeBall(norm_exponent(norm)), eps) for norm, eps in radii.items() if norm != "linf"}

    rows: list[dict[str, Any]] = []
    for method in _METHODS.value:
        rows.append(_row(method, classifier, images, labels, regions))
        if method in _WHOLE.value and whole:
            rows.append(_row(method, classifier, images, labels, whole, suffix=", whole ball"))
    rows.append(_attacked(classifier, images, labels, regions))
    table = _markdown(rows, radii)
    result = {"rows": rows, "radii": radii, "num_examples": len(images), "split": _SPLIT.value}
    write_atomically(workdir / "compare.json", json.dumps(result, indent=2) + "\n")
    write_atomically(workdir / "compare.md", table)
    print(table)


class _WholeBall:
    """The ball of a norm without the pixel box; equal for equal norms, so that compiled functions are found again."""

    def __init__(self, p: float):
        self.p = p

    def __call__(self, eps: jax.Array | float, x: jax.Array) -> cj.LpBall:
        return cj.lp_ball(x, eps, self.p)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _WholeBall) and self.p == other.p

    def __hash__(self) -> int:
        return hash((_WholeBall, self.p))


def _row(
    method: str, classifier: Any, images: np.ndarray, labels: np.ndarray, regions: dict[str, Any], suffix: str = ""
) -> dict[str, Any]:
    prove = functools.partial(cj.certify_dataset, classifier, images, labels, method=method)
    row: dict[str, Any] = {"method": method + suffix, "certified": {}, "margin": {}, "seconds": {}}
    for norm, region in regions.items():
        start = time.monotonic()
        found = prove({norm: region}, batch_size=min(_BATCH_SIZE.value, len(images)))
        row["seconds"][norm] = time.monotonic() - start
        row["certified"][norm] = float(found.verified[norm].mean())
        row["margin"][norm] = float(np.mean(found.margin[norm][found.correct]))
    print(f"{row['method']}: {row['certified']}", flush=True)
    return row


def _attacked(classifier: Any, images: np.ndarray, labels: np.ndarray, regions: dict[str, Any]) -> dict[str, Any]:
    row: dict[str, Any] = {"method": "attack (upper bound)", "certified": {}, "margin": {}, "seconds": {}}
    for norm, region in regions.items():
        start = time.monotonic()
        key, batch = jax.random.key(0), min(_BATCH_SIZE.value, len(images))
        found = cj.attack_dataset(
            classifier, images, labels, {norm: region}, key=key, steps=_ATTACK_STEPS.value, batch_size=batch
        )
        row["seconds"][norm] = time.monotonic() - start
        row["certified"][norm] = float(found.survived[norm].mean())
    return row


def _markdown(rows: list[dict[str, Any]], radii: dict[str, float]) -> str:
    columns = [f"{norm} {eps:g} | mean margin | seconds" for norm, eps in radii.items()]
    lines = ["| method | " + " | ".join(columns) + " |", "| :--- |" + " ---: | ---: | ---: |" * len(radii)]
    for row in rows:
        cells = []
        for norm in radii:
            share, seconds = row["certified"].get(norm), row["seconds"].get(norm)
            margin = row["margin"].get(norm, math.nan)
            shown = "-" if not math.isfinite(margin) else f"{margin:.3g}"
            cells.append("- | - | -" if share is None else f"{100 * share:.1f} | {shown} | {seconds:.1f}")
        lines.append(f"| {row['method']} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"
