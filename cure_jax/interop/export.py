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

from cure_jax.certification import certify
from cure_jax.interop import standalone
from cure_jax.regions import LpBall, Region

__all__ = ["PLATFORMS", "export_certifier"]

PLATFORMS = ("cpu", "cuda", "tpu")

Model = Callable[[jax.Array], jax.Array]


def export_certifier(  # noqa: PLR0913  (what is certified, and where it goes)
    f: Model,
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
      f: the network, one example to its logits. If it is a pytree, its arrays become the weights and everything else is
        compiled in: `jax.tree_util.Partial(apply, variables)`, as `Fitted.classifier` and
        `models.classifier(model, variables)` make it, or an `nnx.Module` of one example; of one of batches it is
        `models.classifier(module)`. Of any other callable, such as `lambda x: model(x[None])[0]`, all is compiled in:
        what it closes over are constants of the program.
      example_shape: of one image.
      regions: by name, as for `certify_dataset`. Radii are compiled in.
      directory: new or empty.
      method: as for `certify`.
      radii: by name, for `metadata.json`; those of balls are compared with the regions.
      platforms: to export for; none of them is needed now.

    Returns:
      The directory.

    Raises:
      FileExistsError: if there is something in the directory.
      ValueError: if there is no region, the method is unknown, a weight is of a type that cannot be exported, `f`
        changes when it is called, or `radii` says something else than the regions.
      ModuleNotFoundError: without flatbuffers.

    Soundness:
      That of `certify`: matrix products are written into the program at the highest precision. Keys of random numbers
      are weights too: what a network draws from them is the same in every call.
    """
    if not regions:
        raise ValueError("export_certifier got no regions; expected at least one, e.g. training.make_regions(radii).")
    directory = Path(directory)
    if directory.exists() and any(directory.iterdir()):
        raise FileExistsError(f"{directory} is not empty; expected a new directory. Choose another one, or remove it.")
    _check_radii(radii or {}, regions, jnp.zeros(tuple(example_shape)))
    weights, rebuild = _apart(f)
    # As `certify_dataset` has them: float64 where 64-bit types are on.
    image = jax.ShapeDtypeStruct(tuple(example_shape), jax.dtypes.canonicalize_dtype(np.float64))
    exported = _exported(_program(rebuild, dict(regions), method), tuple(weights.values()), image, platforms)
    program = _serialized(exported, weights)

    directory.mkdir(parents=True, exist_ok=True)
    (directory / "certifier.bin").write_bytes(program)
    stored = {name: _as_known_to_numpy(weight) for name, weight in weights.items()}
    np.savez(directory / "weights.npz", **stored)  # pyright: ignore[reportArgumentType]
    shutil.copyfile(standalone.__file__, directory / "load_certifier.py")
    metadata = {
        "example_shape": list(example_shape),
        "regions": list(regions),
        "radii": dict(radii or {}),
        "method": method,
        "arithmetic": image.dtype.name,
        "precision": "highest",
        "platforms": list(platforms),
        "versions": {name: importlib.metadata.version(name) for name in ("cure-jax", "jax", "jaxlib", "numpy")},
        "weights": list(weights),
        "dtypes": {name: weight.dtype.name for name, weight in weights.items()},
        "sha256": {name: _sha256(directory / name) for name in ("certifier.bin", "weights.npz")},
    }
    (directory / "metadata.json").write_text(json.dumps(metadata, indent=2) + "\n")
    return directory


def _check_radii(
    radii: Mapping[str, float], regions: Mapping[str, Callable[[jax.Array], Region]], x: jax.Array
) -> None:
    """Whoever reads the metadata takes it for what is proved."""
    if unknown := [name for name in radii if name not in regions]:
        raise ValueError(
            f"export_certifier got radii of {', '.join(unknown)}, but the regions are {', '.join(regions)}; expected "
            "names of regions. Leave out the others."
        )
    for name, radius in radii.items():
        region = regions[name](x)
        if isinstance(region, LpBall) and not np.allclose(region.radius, radius, rtol=1e-6, atol=0):
            smallest, largest = float(region.radius.min()), float(region.radius.max())
            raise ValueError(
                f"export_certifier got radii[{name!r}] = {radius:g}, but that region has radii from {smallest:g} to "
                f"{largest:g}; expected the same. Take both from one place, as training.make_regions(radii) does."
            )


def _apart(f: Model) -> tuple[dict[str, jax.Array], Callable[[Sequence[jax.Array]], Model]]:
    """The arrays of a network by name, keys of random numbers as their data, and what makes it of them again."""
    named, structure = jax.tree_util.tree_flatten_with_path(f)
    leaves = [leaf for _, leaf in named]
    places = [index for index, leaf in enumerate(leaves) if isinstance(leaf, jax.Array | np.ndarray | np.generic)]
    names = [f"{number:03d}{jax.tree_util.keystr(named[index][0])}" for number, index in enumerate(places)]

    def rebuild(weights: Sequence[jax.Array]) -> Model:
        whole = list(leaves)
        for index, weight in zip(places, weights, strict=True):
            whole[index] = weight
            if _is_key(leaves[index]):
                whole[index] = jax.random.wrap_key_data(weight, impl=jax.random.key_impl(leaves[index]))
        return jax.tree.unflatten(structure, whole)

    return {name: _as_weight(name, leaves[index]) for name, index in zip(names, places, strict=True)}, rebuild


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _as_weight(name: str, leaf: Any) -> jax.Array:
    try:
        return jnp.asarray(jax.random.key_data(leaf) if _is_key(leaf) else leaf)
    except (TypeError, jax.errors.JaxRuntimeError) as error:
        raise _refused([name], leaf.dtype) from error


def _refused(names: Sequence[str], dtype: Any) -> ValueError:
    return ValueError(
        f"The weights {', '.join(names)} are of the type {dtype}, which JAX cannot compute with or export; expected "
        "one such as float32, bfloat16 or int8. Convert them, and let the network do the rest."
    )


def _as_known_to_numpy(weight: jax.Array) -> np.ndarray:
    """The bits of what only ml_dtypes knows (bfloat16, float8, int4): an `.npz` would forget what they are."""
    array = np.asarray(weight)
    return array if array.dtype.isbuiltin == 1 else array.view(f"u{array.dtype.itemsize}")


def _program(
    rebuild: Callable[[Sequence[jax.Array]], Model], regions: dict[str, Callable[[jax.Array], Region]], method: str
) -> Callable[..., Any]:
    def certify_batch(weights: tuple[jax.Array, ...], images: jax.Array, labels: jax.Array) -> dict[str, Any]:
        f = rebuild(weights)

        def one(x: jax.Array, label: jax.Array) -> dict[str, Any]:
            certificates = {name: certify(f, x, label, region(x), method) for name, region in regions.items()}
            logits = f(x)
            return {
                "correct": (jnp.argmax(logits) == label) & jnp.all(jnp.isfinite(logits)),
                "verified": {name: certificate.verified for name, certificate in certificates.items()},
                "margin": {name: certificate.margin for name, certificate in certificates.items()},
            }

        return jax.vmap(one)(images, labels)

    return certify_batch


def _exported(
    function: Callable[..., Any], weights: Sequence[jax.Array], image: jax.ShapeDtypeStruct, platforms: Sequence[str]
) -> jax.export.Exported:
    # Here: flax takes long to import, and whoever exports one of its networks has done so.
    from flax.errors import TraceContextError

    (batch,) = jax.export.symbolic_shape("batch")
    arguments = (
        tuple(jax.ShapeDtypeStruct(weight.shape, weight.dtype, weak_type=weight.weak_type) for weight in weights),
        jax.ShapeDtypeStruct((batch, *image.shape), image.dtype),
        jax.ShapeDtypeStruct((batch,), np.int32),
    )
    try:
        return jax.export.export(jax.jit(function), platforms=tuple(platforms))(*arguments)
    except TraceContextError as error:
        raise ValueError(
            f"f changes when it is called ({str(error).partition(' (http')[0]}); expected a network in inference mode. "
            "Put Dropout and BatchNorm into it first: nnx_model.eval()."
        ) from error


def _serialized(exported: jax.export.Exported, weights: Mapping[str, jax.Array]) -> bytes:
    try:
        return bytes(exported.serialize())
    except KeyError as error:
        # Of a type that it has no name for.
        (dtype,) = error.args
        raise _refused([name for name, weight in weights.items() if weight.dtype == dtype], dtype) from error
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "flatbuffers is not installed; jax.export writes its files with it. Run: pip install 'cure-jax[export]'"
        ) from error


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
