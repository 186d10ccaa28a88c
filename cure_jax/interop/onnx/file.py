"""From a file to a checked ONNX model. Whatever is wrong with the file is one `ValueError` with its name."""

import gzip
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import google.protobuf.message
import onnx
from onnx import checker, external_data_helper, shape_inference

__all__ = ["described", "read_model"]

# What protobuf can hold.
_MOST_BYTES = 2**31 - 1
_OLDEST_OPSET = 7
# Of messages by onnx, some of which print whole nodes.
_LONGEST_REASON = 500
# What onnx and JAX raise where a model does not fit together.
_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    NotImplementedError,
    RuntimeError,
    TypeError,
    ValueError,
    checker.ValidationError,
    google.protobuf.message.Error,
    shape_inference.InferenceError,
)


@contextmanager
def described(what: str) -> Iterator[None]:
    """Turns errors about a model into one sentence that begins with `what`."""
    try:
        yield
    except _ERRORS as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise ValueError(f"{what}: {lines[0][:_LONGEST_REASON] if lines else type(error).__name__}") from error


def read_model(path: str | os.PathLike) -> onnx.ModelProto:
    """Reads a model, `.onnx` or `.onnx.gz`, with its external data.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if it is not a valid model.
    """
    path = Path(path)
    with described(f"{path} is not an ONNX model"):
        model = onnx.load_model_from_string(_contents(path))
    if not model.graph.node and not model.graph.output:
        raise ValueError(f"{path} is not an ONNX model: it has no graph. Correct the path, or export it again.")
    versions = [opset.version for opset in model.opset_import if opset.domain in ("", "ai.onnx")]
    if not versions or versions[0] < _OLDEST_OPSET:
        raise ValueError(
            f"{path} uses version {versions[0] if versions else 'none'} of ONNX's operators; expected {_OLDEST_OPSET} "
            "or newer. Export it again, or convert it with onnx.version_converter."
        )
    _load_external_data(model, path)
    for value in model.graph.output:
        # The checker wants their shapes, which nothing here needs.
        value.type.tensor_type.shape.SetInParent()
    with described(f"{path} is not a valid ONNX model"):
        checker.check_model(model)
    return model


def _contents(path: Path) -> bytes:
    contents = path.read_bytes()
    if path.suffix != ".gz":
        return contents
    try:
        with gzip.open(path) as stream:
            contents = stream.read(_MOST_BYTES + 1)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"the file is not a whole gzip archive ({error})") from error
    if len(contents) > _MOST_BYTES:
        raise ValueError("it unpacks to more than 2 GiB, which no ONNX file has")
    return contents


def _load_external_data(model: onnx.ModelProto, path: Path) -> None:
    """Weights in files of their own, beside the model."""
    tensors = [tensor for tensor in model.graph.initializer if external_data_helper.uses_external_data(tensor)]
    for tensor in tensors:
        what = f"{path} keeps the weight {tensor.name!r} in another file, which cannot be read"
        try:
            with described(what):
                external_data_helper.load_external_data_for_tensor(tensor, str(path.parent))
        except OSError as error:
            raise ValueError(f"{what}: {error}. Put the file beside the model.") from error
        tensor.data_location = onnx.TensorProto.DEFAULT
        del tensor.external_data[:]
