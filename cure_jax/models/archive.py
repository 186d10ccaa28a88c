"""Trained networks that come with the library: `pretrained("digits/max")`.

They lie in `pretrained/`, one `.npz` each: parameters and running averages in float32, as they were certified, by names
like `params.Dense_0.kernel`, and a few test images. `index.json` says of each where it comes from and what was
measured, and has the SHA-256 digest of its file. `launch/keep.py` writes both.
"""

import hashlib
import io
import json
import zipfile
from collections.abc import Mapping
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, NamedTuple

import flax.traverse_util
import jax.numpy as jnp
import ml_collections
import numpy as np

from cure_jax.models.fitted import Fitted
from cure_jax.models.registry import create, with_tuples

__all__ = ["Examples", "add", "pretrained", "pretrained_examples", "pretrained_index", "pretrained_names"]

DIRECTORY: Traversable = resources.files("cure_jax.models") / "pretrained"
_INDEX = "index.json"
_EXAMPLES = "examples"


class Examples(NamedTuple):
    """A few test images of a network's data set, whose certificates its index entry has under "examples".

    Attributes:
      images: as the data set gives them: uint8, or floats in [0, 1].
      labels: class numbers.
    """

    images: np.ndarray
    labels: np.ndarray


def pretrained(name: str) -> Fitted:
    """A trained network by name.

    Args:
      name: one of `pretrained_names()`.

    Returns:
      The network with the config of its training, whose `radii` it is to be certified at.

    Raises:
      ValueError: for an unknown name, or a file that is not the one that was kept.

    Examples:
      >>> fitted = pretrained("digits/max")
      >>> fitted.config.radii.to_dict(), fitted.classifier(jnp.zeros(fitted.example_shape)).shape
      ({'l2': 0.45, 'linf': 0.13}, (10,))
    """
    entry, arrays = _read(name)
    config: Any = ml_collections.ConfigDict(with_tuples(entry["config"]))
    model = create(config.model.name, entry["num_classes"], **config.model.options.to_dict())
    variables = {key: jnp.asarray(array) for key, array in arrays.items() if not key.startswith(f"{_EXAMPLES}.")}
    shape = arrays[f"{_EXAMPLES}.images"].shape[1:]
    return Fitted(model, config, flax.traverse_util.unflatten_dict(variables, sep="."), shape)


def pretrained_names() -> tuple[str, ...]:
    """Returns the names that `pretrained` knows."""
    return tuple(pretrained_index())


def pretrained_index() -> dict[str, dict[str, Any]]:
    """What is known of each network, by name: checksum, config, commit, seconds of training, and what was measured."""
    path = DIRECTORY / _INDEX
    return json.loads(path.read_text()) if path.is_file() else {}


def pretrained_examples(name: str) -> Examples:
    """The test images that were kept with a network.

    Args:
      name: one of `pretrained_names()`.

    Raises:
      ValueError: as `pretrained`.
    """
    _, arrays = _read(name)
    return Examples(*(arrays[f"{_EXAMPLES}.{field}"] for field in Examples._fields))


def add(directory: Path, name: str, variables: Mapping[str, Any], examples: Examples, facts: Mapping[str, Any]) -> Path:
    """Writes a network's file, then its entry; one of that name is replaced.

    Args:
      directory: where the index lies, or will.
      name: of the network, such as "digits/max".
      variables: parameters and running averages.
      examples: whose certificates `facts` has under "examples".
      facts: for the index: "config", "num_classes" and whatever else is known.

    Returns:
      The file.
    """
    directory.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, Any] = flax.traverse_util.flatten_dict(dict(variables), sep=".")
    arrays |= {f"{_EXAMPLES}.{field}": value for field, value in examples._asdict().items()}
    content = io.BytesIO()
    # As np.savez_compressed, but smaller: of rounded parameters by a quarter.
    with zipfile.ZipFile(content, "w", zipfile.ZIP_BZIP2) as file:
        for key, array in arrays.items():
            with file.open(f"{key}.npy", "w", force_zip64=True) as entry:
                np.lib.format.write_array(entry, np.asarray(array), allow_pickle=False)
    path, index = directory / f"{name.replace('/', '_')}.npz", directory / _INDEX
    path.write_bytes(content.getvalue())
    entries = json.loads(index.read_text()) if index.exists() else {}
    entries[name] = {"file": path.name, "sha256": hashlib.sha256(content.getvalue()).hexdigest(), **facts}
    index.write_text(_as_text(entries))
    return path


def _as_text(entries: Mapping[str, Mapping[str, Any]]) -> str:
    """JSON with a line for each field, so that a comparison of two versions shows what changed."""
    blocks = []
    for name, entry in sorted(entries.items()):
        fields = ",\n".join(f"  {json.dumps(field)}: {json.dumps(value)}" for field, value in entry.items())
        blocks.append(f" {json.dumps(name)}: {{\n{fields}\n }}")
    return "{\n" + ",\n".join(blocks) + "\n}\n"


def _read(name: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The entry of a network, and the arrays of its file."""
    entries = pretrained_index()
    if name not in entries:
        raise ValueError(f"Unknown network {name!r}; expected one of {', '.join(entries)}. Correct the name.")
    entry = entries[name]
    path = DIRECTORY / entry["file"]
    content = path.read_bytes() if path.is_file() else b""
    if (found := hashlib.sha256(content).hexdigest()) != entry["sha256"]:
        raise ValueError(
            f"{path} is damaged or missing: it has the checksum {found}; expected {entry['sha256']}. Install cure_jax "
            "again."
        )
    with np.load(io.BytesIO(content)) as archive:
        return entry, dict(archive)
