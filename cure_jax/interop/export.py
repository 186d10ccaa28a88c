"""A certifier as files that outlive this library: a StableHLO program, the weights, and what they are."""

import hashlib
import importlib.metadata
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from cure_jax.certification import certify
from cure_jax.interop import standalone
from cure_jax.regions import Region

__all__ = ["PLATFORMS", "export_certifier"]

PLATFORMS = ("cpu", "cuda", "tpu")


def export_certifier(  # noqa: PLR0913  (what is certified, and where it goes)
    f: Partial,
    example_shape: Sequence[int],
    regions: Mapping[str, Callable[[jax.Array], Region]],
    directory: str | os.PathLike,
    *,
    method: str = "crown",
    radii: Mapping[str, float] | None = None,
    platforms: Sequence[str] = PLATFORMS,
) -> Path:
    """Writes a compiled `certify` for any number of images, its weights apart.

    The directory then holds `certifier.bin` (StableHLO, by `jax.export`), `weights.npz`, `metadata.json` and
    `load_certifier.py`, which loads the others with jax and numpy alone. JAX reads such a program for six months after
    it was written; keep what it was made from as well.

    Args:
      f: the network, one example to its logits, as `jax.tree_util.Partial(apply, variables)`: `Fitted.classifier`, or
        `training.classifier(model, variables)`. Its arrays become the weights, everything else is compiled in.
      example_shape: of one image.
      regions: by name, as for `certify_dataset`. Radii are compiled in.
      directory: new or empty.
      method: as for `certify`.
      radii: by name, for `metadata.json`.
      platforms: to export for; none of them is needed now.

    Returns:
      The directory.

    Raises:
      FileExistsError: if there is something in the directory.
      ValueError: if there is no region, or the method is unknown.
      ModuleNotFoundError: without flatbuffers.

    Soundness:
      That of `certify`: matrix products are written into the program at the highest precision.
    """
    if not regions:
        raise ValueError("export_certifier got no regions; expected at least one, e.g. training.make_regions(radii).")
    directory = Path(directory)
    if directory.exists() and any(directory.iterdir()):
        raise FileExistsError(f"{directory} is not empty; expected a new directory. Choose another one, or remove it.")
    named, structure = jax.tree_util.tree_flatten_with_path(f)
    names = [f"{index:03d}{jax.tree_util.keystr(path)}" for index, (path, _) in enumerate(named)]
    weights = tuple(np.asarray(leaf) for _, leaf in named)
    program = _serialized(_program(structure, dict(regions), method), weights, tuple(example_shape), platforms)

    directory.mkdir(parents=True, exist_ok=True)
    (directory / "certifier.bin").write_bytes(program)
    np.savez(directory / "weights.npz", **dict(zip(names, weights, strict=True)))  # pyright: ignore[reportArgumentType]
    shutil.copyfile(standalone.__file__, directory / "load_certifier.py")
    metadata = {
        "example_shape": list(example_shape),
        "regions": list(regions),
        "radii": dict(radii or {}),
        "method": method,
        "arithmetic": "float32",
        "precision": "highest",
        "platforms": list(platforms),
        "versions": {name: importlib.metadata.version(name) for name in ("cure-jax", "jax", "jaxlib", "numpy")},
        "weights": names,
        "sha256": {name: _sha256(directory / name) for name in ("certifier.bin", "weights.npz")},
    }
    (directory / "metadata.json").write_text(json.dumps(metadata, indent=2) + "\n")
    return directory


def _program(structure: Any, regions: dict[str, Callable[[jax.Array], Region]], method: str) -> Callable[..., Any]:
    def certify_batch(weights: tuple[jax.Array, ...], images: jax.Array, labels: jax.Array) -> dict[str, Any]:
        f = jax.tree.unflatten(structure, weights)

        def one(x: jax.Array, label: jax.Array) -> dict[str, Any]:
            certificates = {name: certify(f, x, label, region(x), method) for name, region in regions.items()}
            return {
                "correct": jnp.argmax(f(x)) == label,
                "verified": {name: certificate.verified for name, certificate in certificates.items()},
                "margin": {name: certificate.margin for name, certificate in certificates.items()},
            }

        return jax.vmap(one)(images, labels)

    return certify_batch


def _serialized(
    function: Callable[..., Any], weights: tuple[np.ndarray, ...], shape: tuple[int, ...], platforms: Sequence[str]
) -> bytes:
    (batch,) = jax.export.symbolic_shape("batch")
    arguments = (
        tuple(jax.ShapeDtypeStruct(value.shape, value.dtype) for value in weights),
        jax.ShapeDtypeStruct((batch, *shape), np.float32),
        jax.ShapeDtypeStruct((batch,), np.int32),
    )
    exported = jax.export.export(jax.jit(function), platforms=tuple(platforms))(*arguments)
    try:
        return bytes(exported.serialize())
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "flatbuffers is not installed; jax.export writes its files with it. Run: pip install 'cure-jax[export]'"
        ) from error


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
