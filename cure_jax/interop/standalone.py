"""Loads what `cure_jax.interop.export_certifier` wrote. A copy of this file lies beside each export.

Needs Python, numpy, jax and flatbuffers: no cure_jax, no flax, and not the code of the network.

    from load_certifier import load_certifier
    certifier = load_certifier("exported/digits")
    result = certifier(images, labels)  # images [n, height, width, channels] in [0, 1], labels [n]
    result["verified"]["l2"]            # [n]: proved for every perturbation of the l_2 ball

`metadata.json` names the radii, the method, the arithmetic, the versions, and the checksums of the other files.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

__all__ = ["Certifier", "load_certifier"]

_GREATEST_LABEL = np.iinfo(np.int32).max


@dataclasses.dataclass(frozen=True)
class Certifier:
    """A network together with the proof procedure, compiled on first use for each number of images.

    Attributes:
      metadata: what was exported, from `metadata.json`.
      weights: of the network, in the order of the program's arguments.
      program: `(weights, images, labels) -> verdicts`.
    """

    metadata: dict[str, Any]
    weights: tuple[jax.Array, ...]
    program: Callable[..., Any]

    def __call__(self, images: Any, labels: Any) -> dict[str, Any]:
        """Certifies a batch.

        Args:
          images: `[n, *x]`, n at least 1, floating, pixels in [0, 1], or uint8 (divided by 255).
          labels: `[n]`, class numbers from 0; one that is none of the network's is never verified.

        Returns:
          "correct": `[n]`, the prediction at the image is right; "verified" and "margin": by norm `[n]`, whether it is
          proved to be the label in the whole region, and the proved margin.

        Raises:
          ValueError: if the shapes are others, labels are not integers, or a pixel is not in [0, 1]: the radii are in
            this unit.
        """
        images, labels = np.asarray(images), np.asarray(labels)
        # As integers of Python, which have any number of bits: the program has 32, and 2^32 would come out as 0.
        numbers = labels.ravel().tolist()
        shape = tuple(self.metadata["example_shape"])
        fits = images.ndim > 0 and len(images) > 0 and images.shape[1:] == shape and labels.shape == images.shape[:1]
        if not fits or not all(type(number) is int for number in numbers):
            raise ValueError(
                f"Got images of shape {images.shape} and labels of shape {labels.shape}, type {labels.dtype}; expected "
                f"[n, {', '.join(map(str, shape))}] and n integers. Reshape them, and give labels as class numbers."
            )
        if images.dtype == np.uint8:
            images = images.astype(np.float32) / np.float32(255)
        if not (np.issubdtype(images.dtype, np.floating) and np.all((images >= 0) & (images <= 1))):
            raise ValueError(
                f"Got images of type {images.dtype} from {images.min(initial=1)} to {images.max(initial=0)}; expected "
                "floats in [0, 1] or uint8. Scale them, and leave normalisation by mean and std to the network."
            )
        labels = np.array([number if 0 <= number <= _GREATEST_LABEL else -1 for number in numbers], np.int32)
        with jax.enable_x64(True):
            return jax.device_get(self.program(self.weights, images.astype(self.metadata["arithmetic"]), labels))


def load_certifier(directory: str | os.PathLike) -> Certifier:
    """Loads an exported certifier.

    Args:
      directory: what `export_certifier` wrote.

    Raises:
      FileNotFoundError: if it is not one.
      ValueError: if a file is not the one that was exported, or the platform is not among those exported for.
      ModuleNotFoundError: without flatbuffers.
    """
    root = pathlib.Path(directory)
    if not (root / "metadata.json").exists():
        raise FileNotFoundError(f"There is no {root / 'metadata.json'}; expected an export. Correct the path.")
    metadata = json.loads((root / "metadata.json").read_text())
    for name, expected in metadata["sha256"].items():
        found = hashlib.sha256((root / name).read_bytes()).hexdigest()
        if found != expected:
            raise ValueError(f"{root / name} has the checksum {found}; expected {expected}. Copy or export it again.")
    if jax.default_backend() not in _backends(metadata["platforms"]):
        raise ValueError(
            f"{root} was exported for {metadata['platforms']}; this is {jax.default_backend()!r}. Export it again with "
            "this platform, or set JAX_PLATFORMS."
        )
    try:
        exported = jax.export.deserialize(bytearray((root / "certifier.bin").read_bytes()))
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "flatbuffers is not installed; exports are read with it: pip install flatbuffers"
        ) from error
    # The program knows the types; here and in each call 64 bits, if it has them, remain 64.
    with jax.enable_x64(True), np.load(root / "weights.npz") as archive:
        arguments = zip(metadata["weights"], exported.in_avals, strict=False)
        weights = tuple(_as_weight(archive[name], argument.dtype) for name, argument in arguments)
    return Certifier(metadata, weights, jax.jit(exported.call))


def _as_weight(array: np.ndarray, dtype: np.dtype) -> jax.Array:
    """Types that NumPy does not have itself, such as bfloat16, are stored as bits."""
    return jnp.asarray(array, dtype) if dtype.isbuiltin == 1 else jnp.asarray(array.view(dtype))


def _backends(platforms: list[str]) -> set[str]:
    """What `jax.default_backend` calls them."""
    return {"gpu" if name in ("cuda", "rocm") else name for name in platforms}
