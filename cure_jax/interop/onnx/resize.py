"""Resizing images, as what it does to one axis: every mode of ONNX is linear and works axis by axis."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import numpy as np
import onnx
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

__all__ = ["attributes_of", "interpolation"]

# The weights of an axis are a matrix, its old size times its new one; the reference computes them one by one.
_MOST_WEIGHTS = 2**18
_OLDEST_RESIZE = 13


def attributes_of(node: onnx.NodeProto) -> dict[str, Any]:
    """The attributes as numbers, text and tuples of them, which can be compared.

    Raises:
      ValueError: if one is something else.
    """
    return {attribute.name: _plain(node, attribute) for attribute in node.attribute}


def _plain(node: onnx.NodeProto, attribute: onnx.AttributeProto) -> Any:
    value = helper.get_attribute_value(attribute)
    values = tuple(value) if isinstance(value, Sequence) and not isinstance(value, bytes | str) else (value,)
    values = tuple(item.decode() if isinstance(item, bytes) else item for item in values)
    if not all(isinstance(item, int | float | str) for item in values):
        raise ValueError(f"{node.op_type} has an attribute {attribute.name!r} that is neither numbers nor text.")
    return values[0] if isinstance(value, bytes | str | int | float) else values


def interpolation(
    node: onnx.NodeProto,
    version: int,
    before: Sequence[int],
    after: Sequence[int],
    constants: Mapping[str, np.ndarray],
) -> Iterator[np.ndarray]:
    """What a Resize or Upsample does to each axis, found by applying it to a matrix along its first axis.

    Args:
      node: the operator.
      version: of the operator set.
      before: the shape of its operand.
      after: the shape of its result.
      constants: by name.

    Yields:
      For each axis the numbers of the entries that are taken, `[result]`; or the weights with which they are summed,
      `[result, size]`; or nothing, `[0]`, if the axis stays as it is.

    Raises:
      ValueError: if it resizes in a way that is not supported.
    """
    attributes = attributes_of(node)
    nearest = attributes.get("mode", "nearest") == "nearest"
    if attributes.get("coordinate_transformation_mode") == "tf_crop_and_resize" or "axes" in attributes:
        raise ValueError(f"{node.op_type} with axes or with a region to crop is not supported. Resize all axes.")
    if attributes.get("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise ValueError(f"{node.op_type} that keeps the aspect ratio is not supported. Give the sizes themselves.")
    scales = _scales(node, version, attributes, constants)
    if scales is not None and len(scales) != len(before):
        raise ValueError(f"{node.op_type} has {len(scales)} scales for {len(before)} axes; expected one for each.")
    for axis, (size, result) in enumerate(zip(before, after, strict=True)):
        scale = None if scales is None else scales[axis]
        if size == result and scale in (None, 1):
            yield np.zeros(0, np.int64)
            continue
        _check_coordinates(node, attributes, size, result, scale)
        if (1 if nearest else size) * result > _MOST_WEIGHTS:
            raise ValueError(
                f"{node.op_type} from {size} to {result} entries is not supported: it has too many weights."
            )
        columns = np.arange(size, dtype=np.float32)[:, None] if nearest else np.eye(size, dtype=np.float32)
        weights = _resized(node, version, columns, result, scale)
        yield weights[:, 0].astype(np.int64) if nearest else weights


def _check_coordinates(
    node: onnx.NodeProto, attributes: Mapping[str, Any], size: int, result: int, scale: float | None
) -> None:
    """Refuses what onnx.reference, which computes the weights, and onnxruntime read as two different functions."""
    if size == result:
        raise ValueError(
            f"{node.op_type} by {scale:g} of an axis that keeps its {size} entries is not supported: runtimes differ "
            "in whether it changes them. Give the scale 1, or sizes instead of scales."
        )
    coordinates = attributes.get("coordinate_transformation_mode", "half_pixel")
    if coordinates in ("align_corners", "half_pixel_symmetric") and scale is not None and scale * size != result:
        raise ValueError(
            f"{node.op_type} by {scale:g} with {coordinates!r} is not supported where {size} entries become {result}: "
            "runtimes differ in what the last one is. Export it with sizes instead of scales."
        )
    if coordinates == "pytorch_half_pixel" and result == 1 < size:
        raise ValueError(f"{node.op_type} with {coordinates!r} to one entry is not supported. Use a mean instead.")


def _scales(
    node: onnx.NodeProto, version: int, attributes: Mapping[str, Any], constants: Mapping[str, np.ndarray]
) -> Sequence[float] | None:
    """The factor of each axis; None if sizes are given instead."""
    if "scales" in attributes:
        return attributes["scales"]
    # Between them came the region to crop.
    position = 2 if node.op_type == "Resize" and version >= 11 else 1
    name = node.input[position] if len(node.input) > position else ""
    if name and name not in constants:
        raise ValueError(f"{node.op_type} takes its scales from the input; expected constants.")
    return constants[name].tolist() if name and constants[name].size else None


def _resized(node: onnx.NodeProto, version: int, columns: np.ndarray, size: int, scale: float | None) -> np.ndarray:
    """The operator on the first axis of a matrix, by the reference implementation."""
    if scale is None:
        names, given = ["x", "", "", "sizes"], {"sizes": np.array([size, columns.shape[1]], np.int64)}
    else:
        names, given = ["x", "", "scales"], {"scales": np.array([scale, 1], np.float32)}
    resize = helper.make_node("Resize", names, ["y"])
    resize.attribute.extend(attribute for attribute in node.attribute if attribute.name != "scales")
    if version < 11:
        # Before there was a choice, coordinates were divided by the scale and rounded down.
        choice = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
        resize.attribute.extend(helper.make_attribute(name, value) for name, value in choice.items())
    inputs = {"x": columns, **given}
    infos = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        for name, array in inputs.items()
    ]
    graph = helper.make_graph([resize], "resize", infos, [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", max(version, _OLDEST_RESIZE))])
    (result,) = cast(list[np.ndarray], ReferenceEvaluator(model).run(None, inputs))
    if result.shape != (size, columns.shape[1]):
        raise ValueError(f"{node.op_type} gives {result.shape[0]} entries on an axis; expected {size}.")
    return result
