"""Products, convolutions and pooling as operators of ONNX, which have channels before space."""

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from cure_jax.graph import Equation, Node
from cure_jax.interop.onnx.emission import Emission, refused

__all__ = ["EMITTERS"]


def _dot(emission: Emission, equation: Equation) -> str:
    """A MatMul where it is one, an Einsum otherwise."""
    (left_contracted, right_contracted), (left_batch, right_batch) = equation.params["dimension_numbers"]
    left, right = equation.operands
    plain = not left_batch and len(left_contracted) == 1
    if plain and len(right.shape) <= 2 and left_contracted[0] == len(left.shape) - 1:
        return emission.add(
            "MatMul", [emission.operand(equation, 0), _matrix(emission, equation, 1, right_contracted, 0)]
        )
    if plain and len(left.shape) <= 2 and len(right.shape) == 1:
        return emission.add(
            "MatMul", [_matrix(emission, equation, 0, left_contracted, -1), emission.operand(equation, 1)]
        )
    letters = iter("abcdefghijklmnopqrstuvwxyz")
    of_left = [next(letters) for _ in left.shape]
    of_right = [next(letters) for _ in right.shape]
    for one, other in zip((*left_batch, *left_contracted), (*right_batch, *right_contracted), strict=True):
        of_right[other] = of_left[one]
    free = [of_left[i] for i in range(len(left.shape)) if i not in (*left_batch, *left_contracted)]
    free += [of_right[i] for i in range(len(right.shape)) if i not in (*right_batch, *right_contracted)]
    result = "".join([of_left[i] for i in left_batch] + free)
    formula = f"{''.join(of_left)},{''.join(of_right)}->{result}"
    return emission.add("Einsum", emission.operands(equation), equation=formula)


def _matrix(emission: Emission, equation: Equation, position: int, contracted: Sequence[int], wanted: int) -> str:
    """An operand of at most two axes whose first (0) or last (-1) one is summed over."""
    operand = equation.operands[position]
    rank = len(operand.shape)
    if rank == 1 or contracted[0] == wanted % rank:
        return emission.operand(equation, position)
    if isinstance(operand, Node):
        return emission.transposed(emission.names[operand.index], (1, 0))
    return emission.constant(np.asarray(operand).T)


def _convolution(emission: Emission, equation: Equation) -> str:
    params = equation.params
    kernel = equation.operands[1]
    if isinstance(kernel, Node) or params["batch_group_count"] != 1:
        raise refused(equation, "its kernel depends on the input, or it has groups of examples")
    numbers = params["dimension_numbers"]
    weights = np.transpose(np.asarray(kernel), numbers.rhs_spec)
    x = emission.transposed(emission.operand(equation, 0), numbers.lhs_spec)
    if all(step == 1 for step in params["lhs_dilation"]):
        y = _plain_convolution(emission, equation, x, weights)
    else:
        y = _transposed_convolution(emission, equation, x, weights)
    return emission.transposed(y, np.argsort(numbers.out_spec).tolist())


def _plain_convolution(emission: Emission, equation: Equation, x: str, weights: np.ndarray) -> str:
    params = equation.params
    low, high = zip(*params["padding"], strict=True)
    if min(*low, *high) < 0:
        # Convolutions of ONNX do not crop; Pad does.
        x = emission.add("Pad", [x, emission.integers((0, 0, *low, 0, 0, *high)), emission.constant(0.0)])
        low = high = (0,) * len(low)
    return emission.add(
        "Conv",
        [x, emission.constant(weights)],
        strides=list(params["window_strides"]),
        dilations=list(params["rhs_dilation"]),
        pads=[*low, *high],
        group=params["feature_group_count"],
        kernel_shape=list(weights.shape[2:]),
    )


def _transposed_convolution(emission: Emission, equation: Equation, x: str, weights: np.ndarray) -> str:
    """Zeros between the pixels are the strides of ONNX's ConvTranspose, whose result is cut or padded to size here."""
    params, groups = equation.params, equation.params["feature_group_count"]
    if any(stride != 1 for stride in params["window_strides"]):
        raise refused(equation, "it has strides, and zeros between the pixels too")
    space, strides = weights.shape[2:], params["lhs_dilation"]
    extents = [(size - 1) * step + 1 for size, step in zip(space, params["rhs_dilation"], strict=True)]
    # Without any, it is padded by as much as its kernel reaches.
    low, high = (
        [pair[i] - extent + 1 for pair, extent in zip(params["padding"], extents, strict=True)] for i in (0, 1)
    )
    outputs, inputs = weights.shape[0] // groups, weights.shape[1]
    grouped = weights.reshape(groups, outputs, inputs, *space).swapaxes(1, 2)
    flipped = np.flip(grouped, tuple(range(3, 3 + len(space)))).reshape(groups * inputs, outputs, *space)
    y = emission.add(
        "ConvTranspose",
        [x, emission.constant(flipped)],
        strides=list(strides),
        dilations=list(params["rhs_dilation"]),
        group=groups,
        kernel_shape=list(space),
    )
    if any(low) or any(high):
        # Where there is more, the kernel sees zeros alone.
        y = emission.add("Pad", [y, emission.integers((0, 0, *low, 0, 0, *high)), emission.constant(0.0)])
    return y


def _pooling(pool: Callable[[Emission, str, dict], str]) -> Callable[[Emission, Equation], str]:
    """Axes without a window become examples, the others space."""

    def emit(emission: Emission, equation: Equation) -> str:
        params, (x,) = equation.params, equation.bounded
        names = ("window_dimensions", "window_strides", "padding", "base_dilation", "window_dilation")
        window, strides, padding, base, dilation = (tuple(params[name]) for name in names)
        rank = len(x.shape)
        space = [i for i in range(rank) if (window[i], strides[i], *padding[i]) != (1, 1, 0, 0)] or [rank - 1]
        if any(step != 1 for step in base) or min(min(pair) for pair in padding) < 0:
            raise refused(equation, "it has zeros between the entries, or negative padding")
        others = [i for i in range(rank) if i not in space]
        y = emission.transposed(emission.names[x.index], [*others, *space])
        y = emission.reshaped(y, (math.prod(x.shape[i] for i in others), 1, *(x.shape[i] for i in space)))
        attributes = {
            "kernel_shape": [window[i] for i in space],
            "strides": [strides[i] for i in space],
            "dilations": [dilation[i] for i in space],
            "pads": [padding[i][side] for side in (0, 1) for i in space],
        }
        y = pool(emission, y, attributes)
        shape = equation.output.shape
        y = emission.reshaped(y, [shape[i] for i in (*others, *space)])
        return emission.transposed(y, np.argsort([*others, *space]).tolist())

    return emit


def _maxima(emission: Emission, x: str, attributes: dict) -> str:
    return emission.add("MaxPool", [x], **attributes)


def _minima(emission: Emission, x: str, attributes: dict) -> str:
    return emission.add("Neg", [_maxima(emission, emission.add("Neg", [x]), attributes)])


def _sums(emission: Emission, x: str, attributes: dict) -> str:
    """A convolution with ones: an average would be rounded."""
    ones = np.ones((1, 1, *attributes["kernel_shape"]), np.float32)
    return emission.add("Conv", [x, emission.constant(ones)], **attributes)


EMITTERS: Mapping[str, Callable[[Emission, Equation], str]] = {
    "conv_general_dilated": _convolution,
    "dot_general": _dot,
    "reduce_window_max": _pooling(_maxima),
    "reduce_window_min": _pooling(_minima),
    "reduce_window_sum": _pooling(_sums),
}
