"""ONNX files as functions of JAX, which the bounds of this library can be applied to."""

import os
from pathlib import Path
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
import onnx
from onnx import version_converter
from onnx.reference import ReferenceEvaluator

from cure_jax.interop.onnx.builder import build
from cure_jax.interop.onnx.file import described, read_model
from cure_jax.interop.onnx.program import OnnxNetwork

__all__ = ["OnnxNetwork", "load_onnx"]

_CHECKED_INPUTS = 3
# Of each output: float32 computed in another order. No output counts as smaller than that share of the largest.
_TOLERANCE = 1e-4
_SMALL = 1e-2
_MODERN = 17


def load_onnx(path: str | os.PathLike, *, check: bool = True) -> OnnxNetwork:
    """Reads a network from an ONNX file as a function of one example, for `crown`, `ibp` and all others.

    The first axis of the network's input is taken for the batch, and left out, if there are others after it and its
    size is 1 or not given: `[1, 3, 32, 32]` gives a function of `[3, 32, 32]`, and `[1]` or `[5, 3]` one of `[1]` or
    `[5, 3]`. The first axis of the output is left out too if that of the input was and its size is 1. All other sizes
    have to be given. Axes are in the order of the file (channels before space).

    Shapes and constants are computed now, by ONNX's own reference implementation, and the statistics of
    BatchNormalization become one factor and one summand for each channel (computed in float64). What remains are matrix
    products, convolutions, pooling and activations in the primitives that have bound rules.

    Args:
      path: `.onnx` or `.onnx.gz`; weights in other files lie beside it.
      check: compare with the reference implementation on three random inputs.

    Returns:
      The network, with `input_shape`, `output_shape` and `name`; a pytree of its weights.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if the file is damaged or no valid model; if the network has several inputs or outputs, axes of
        unknown size, or tensors of more than 2^27 entries; if it has operators that are not supported (all are named),
        or in a form that is not; or if `check` finds another function than the reference implementation.

    Soundness:
      Bounds hold for the function that is returned. Its weights are those of the file, but those of BatchNormalization,
      which are rounded once; weights in float64 are rounded for examples in float32. Other programs that run the file
      round in another order.

    Examples:
      >>> import cure_jax as cj
      >>> f = cj.interop.load_onnx("network.onnx")  # doctest: +SKIP
      >>> cj.crown(f)(cj.linf_ball(x, 0.01))  # doctest: +SKIP
    """
    path = Path(path)
    model = read_model(path)
    name = path.name.removesuffix(".gz").removesuffix(".onnx")
    with described(str(path)):
        network = build(model, name)
        _check_shape(network)
    if check:
        _compare(network, model, path)
    return network


def _check_shape(network: OnnxNetwork) -> None:
    """Traces the network once: what does not fit together is found now."""
    jax.eval_shape(network, jax.ShapeDtypeStruct(network.input_shape, jnp.float32))


def _compare(network: OnnxNetwork, model: onnx.ModelProto, path: Path) -> None:
    with described(f"{path} cannot be run by onnx.reference for comparison (check=False leaves that out)"):
        reference = ReferenceEvaluator(_modern(model))
        weights = {tensor.name for tensor in model.graph.initializer}
        (given,) = (value for value in model.graph.input if value.name not in weights)
        dtype = onnx.helper.tensor_dtype_to_np_dtype(given.type.tensor_type.elem_type)
        rng = np.random.default_rng(0)
        batch = (1,) * network.program.batched
        inputs = rng.uniform(-1, 1, (_CHECKED_INPUTS, *network.input_shape)).astype(dtype)
        expected = [_run(reference, given.name, x.reshape(batch + x.shape)) for x in inputs]
    # Each output by its own size, over the inputs; of small ones beside large ones rounding leaves less.
    sizes = np.max([np.where(np.isfinite(outputs), np.abs(outputs), 0) for outputs in expected], axis=0).ravel()
    tolerance = _TOLERANCE * np.maximum(sizes, _SMALL * sizes.max(initial=0))
    for x, outputs in zip(inputs, expected, strict=True):
        found = np.asarray(_applied(network, jnp.asarray(x, jnp.float32)))
        same = outputs.size == found.size
        if not same or not _close(found.ravel(), outputs.ravel(), tolerance):
            raise ValueError(
                f"{path} was read as another function than onnx.reference computes: for one input {_shortened(found)} "
                f"instead of {_shortened(outputs)}, with a tolerance of {tolerance.min(initial=np.inf):.1g}. Please "
                "report this; check=False returns the function all the same."
            )


def _close(found: np.ndarray, outputs: np.ndarray, tolerance: np.ndarray) -> bool:
    with np.errstate(invalid="ignore"):
        near = np.abs(found - outputs) <= tolerance
    return bool(np.all(near | (found == outputs) | (np.isnan(found) & np.isnan(outputs))))


def _modern(model: onnx.ModelProto) -> onnx.ModelProto:
    """In newer operators: of the older ones, the reference has several wrong (BatchNormalization, Softmax)."""
    if model.opset_import[0].version >= _MODERN:
        return model
    try:
        return version_converter.convert_version(model, _MODERN)
    except (RuntimeError, version_converter.ConvertError):
        return model


@jax.jit
def _applied(network: OnnxNetwork, x: jax.Array) -> jax.Array:
    """Compiled once for each architecture."""
    return network(x)


def _run(reference: ReferenceEvaluator, name: str, x: np.ndarray) -> np.ndarray:
    (outputs,) = cast(list[np.ndarray], reference.run(None, {name: x}))
    return np.asarray(outputs)


def _shortened(values: np.ndarray) -> str:
    return np.array2string(values.ravel(), threshold=6, edgeitems=2, precision=4)
