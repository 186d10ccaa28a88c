"""Keeps a trained network for good: its parameters go into the library, what was measured into the index.

    python launch/train.py --config=digits:max --workdir=runs/digits/max
    python launch/certify.py --workdir=runs/digits/max --method=best
    python launch/keep.py --workdir=runs/digits/max --name=digits/max

    python launch/keep.py --table

Then `cj.models.pretrained("digits/max")` has it, and the last command shows what was measured of all of them. Kept are
the parameters as they were certified, in float32, so that the figures of certify.json are those of this very network;
and the first ten test images with what --method proves of them, which the tests prove again. A network of the same name
is replaced. Where room is short, certify with `--config.round_to=bfloat16`: rounded parameters take less than half.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags

import cure_jax as cj
from cure_jax import models, report, training
from cure_jax.commands.parts import common, provenance
from cure_jax.models import archive
from cure_jax.training.config import from_fields
from cure_jax.training.names import with_new_names

_WORKDIR = flags.DEFINE_string("workdir", None, "A finished work directory, with certify.json.")
_NAME = flags.DEFINE_string("name", None, "What the network is called, such as digits/max.")
_METHOD = flags.DEFINE_string("method", "crown", "What proves the ten images, here and in the tests: a quick one.")
_COMMIT = flags.DEFINE_string("commit", None, "That the network was trained at, if it was certified at another one.")
_SECONDS = flags.DEFINE_float("training_seconds", None, "That the training took, if the work directory does not say.")
_DIRECTORY = flags.DEFINE_string("directory", str(archive.DIRECTORY), "Where index and files lie.")

_TABLE = flags.DEFINE_bool("table", False, "Keeps nothing; prints the index as Markdown, a table for each setting.")

_EXAMPLES = 10
_MAX_BYTES = 10_000_000
# Of certify.json.
_MEASURED = (
    "clean", "certified", "union", "empirical", "reported", "reported_empirical", "num_examples", "method",
    "arithmetic", "seconds", "step", "checkpoint_sha256", "device", "versions",
)  # fmt: skip


def main() -> None:
    """Keeps a network, or shows those that are kept."""
    if _TABLE.value:
        print(table(json.loads((Path(str(_DIRECTORY.value)) / "index.json").read_text())))
    elif _WORKDIR.value is None or _NAME.value is None:
        raise ValueError("--workdir and --name are missing; expected both of a network to keep, or --table.")
    else:
        keep(Path(_WORKDIR.value), _NAME.value)


def table(index: Mapping[str, Mapping[str, Any]]) -> str:
    """What was measured of the networks of an index, in Markdown, a table for each setting."""
    settings: dict[str, list[dict[str, Any]]] = {}
    for name, entry in index.items():
        config = entry["config"]
        row = {**entry, "name": name, "radii": config["radii"], "reported_radii": config["reported"]}
        settings.setdefault(config["setting"], []).append(row)
    columns = ("training", "checkpoint", "commit")
    tables = (report.markdown(rows, label=lambda row: str(row["name"]), columns=columns) for rows in settings.values())
    return "\n\n".join(tables)


def keep(workdir: Path, name: str) -> None:
    """Checks that everything belongs together, certifies a few images, writes."""
    if not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)*", name):
        raise ValueError(f"name is {name!r}; expected words with slashes between them, as in digits/max. Correct it.")
    result = _certification(workdir)
    fitted = training.load(workdir, config=from_fields(result["config"]))
    _check_same_network(workdir, result, int(fitted.state.step))
    split = common.load_split(fitted.config, "test")
    examples = archive.Examples(split.images[:_EXAMPLES], split.labels[:_EXAMPLES])
    certificates = _certificates(fitted, examples)
    with np.load(workdir / "certify.npz") as verdicts:
        if list(verdicts["correct"][:_EXAMPLES]) != certificates["correct"][: len(verdicts["correct"])]:
            raise ValueError(
                f"{workdir} was certified on other images than the first {_EXAMPLES} of the test split; expected the "
                "same data. Set data_dir, or certify again."
            )
    facts = {
        # Where its data lay is nobody else's business.
        "config": {**with_new_names(result["config"]), "data_dir": ""},
        "num_classes": split.num_classes,
        "commit": _COMMIT.value or result["commit"],
        "training_seconds": _SECONDS.value or result["training_seconds"],
        **{field: result[field] for field in _MEASURED},
        "examples": certificates,
    }
    directory = Path(str(_DIRECTORY.value))
    path = archive.add(directory, name, fitted.variables, examples, facts)
    total = sum(file.stat().st_size for file in directory.glob("*.npz"))
    print(f"{path}: {name}, {path.stat().st_size / 1e6:.2f} MB of {total / 1e6:.2f} MB in all")
    if total > _MAX_BYTES:
        raise ValueError(f"{directory} has {total} bytes; expected at most {_MAX_BYTES}. Keep fewer or smaller ones.")


def _certification(workdir: Path) -> dict[str, Any]:
    path = workdir / "certify.json"
    if not path.exists():
        raise FileNotFoundError(
            f"There is no {path}; a certified network was expected. Run launch/certify.py --workdir={workdir} first"
        )
    return json.loads(path.read_text())


def _check_same_network(workdir: Path, result: dict[str, Any], step: int) -> None:
    found = {"step": step, "checkpoint_sha256": provenance.checkpoint_sha256(workdir, step)}
    if wrong := [field for field, value in found.items() if result[field] != value]:
        raise ValueError(
            f"{workdir / 'certify.json'} has {wrong[0]} {result[wrong[0]]}, its newest checkpoint {found[wrong[0]]}; "
            "expected the same network. Certify it again."
        )


def _certificates(fitted: models.Fitted, examples: archive.Examples) -> dict[str, Any]:
    """What is proved of a few images, at the radii of the config."""
    regions = training.make_regions({**fitted.config.radii, **fitted.config.reported})
    found = cj.certify_dataset(
        fitted.classifier, *examples, regions, method=_METHOD.value, batch_size=len(examples.labels)
    )
    return {
        "method": _METHOD.value,
        "backend": jax.default_backend(),
        "correct": found.correct.tolist(),
        "verified": {norm: verdicts.tolist() for norm, verdicts in found.verified.items()},
        "margin": {norm: [round(float(value), 6) for value in margins] for norm, margins in found.margin.items()},
    }


if __name__ == "__main__":
    common.run(main)
