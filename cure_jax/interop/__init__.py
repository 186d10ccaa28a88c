"""What goes into other systems and comes from them: StableHLO programs, ONNX, VNN-LIB, weights of PyTorch.

Regions and certificates also pass through `jax.export` of a function of your own (`cure_jax.pytrees`).
"""

import importlib
from typing import TYPE_CHECKING, Any

from cure_jax.interop.export import PLATFORMS, export_certifier
from cure_jax.interop.standalone import Certifier, load_certifier
from cure_jax.interop.torch_weights import load_torch_weights
from cure_jax.interop.vnnlib import read_vnnlib
from cure_jax.interop.vnnlib_writer import format_witness, write_vnnlib, write_witness

if TYPE_CHECKING:
    from cure_jax.interop.onnx.program import OnnxNetwork
    from cure_jax.interop.onnx.reader import load_onnx
    from cure_jax.interop.onnx.writer import save_onnx

__all__ = [
    "PLATFORMS",
    "Certifier",
    "OnnxNetwork",
    "export_certifier",
    "format_witness",
    "load_certifier",
    "load_onnx",
    "load_torch_weights",
    "read_vnnlib",
    "save_onnx",
    "write_vnnlib",
    "write_witness",
]

# Imported when they are first looked at: only these need onnx.
_WITH_ONNX = {"OnnxNetwork": "onnx.program", "load_onnx": "onnx.reader", "save_onnx": "onnx.writer"}


def __getattr__(name: str) -> Any:
    if name not in _WITH_ONNX:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(importlib.import_module(f"{__name__}.{_WITH_ONNX[name]}"), name)
    except ModuleNotFoundError as error:
        if error.name != "onnx":
            raise
        raise ImportError(
            f"onnx is not installed; cure_jax.interop.{name} needs it. Run: pip install 'cure-jax[onnx]'"
        ) from error
