"""What only calls that are not compiled show: closures that change, labels of every dtype, parameters of activations.

One function is bounded again and again, while its weights, its activation and its label change between the calls. Its
points are found with NumPy in float64: the extreme points of a ball are a formula.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.tree_util import Partial

import cure_jax as cj
from cure_jax.certification.certificate import proves
from cure_jax.certification.methods import bound_method
from cure_jax.regions import Region, lp_ball
from launch.checks.hunting_grounds import PIXELS
from launch.checks.weak_points import TOLERANCE, smallest_margin

__all__ = ["ACTIVATIONS", "LABELS", "Changing"]

METHODS = ("ibp", "crown_ibp", "crown", "lipschitz")
# More than 8 bits count.
CLASSES = 300
WIDTH = 8

# By name: a function of x and a parameter, and parameters; those of `jax.nn` are recognised by their names. Negative
# and tiny ones are odd, but callers may have them.
ACTIVATIONS: Mapping[str, tuple[Callable[..., jax.Array], Sequence[Any]]] = {
    "relu": (lambda x, _: jax.nn.relu(x), (0.0,)),
    "elu": (jax.nn.elu, (-2.0, -0.5, 0.0, 1e-3, 0.3, 1.0, 4.0)),
    "celu": (jax.nn.celu, (-1.5, -0.2, 0.05, 0.3, 1.0, 4.0)),
    "leaky_relu": (jax.nn.leaky_relu, (-1.5, -0.1, 0.0, 0.5, 1.0, 2.5)),
    "power": (lambda x, e: x**e, (0.0, 1.0, 2.0, 3.0, 4.0, -1.0, -2.0, 0.5)),
    "power of positive": (lambda x, e: (jax.nn.softplus(x) + 0.1) ** e, (-2.5, -1.0, -0.5, 0.3, 1.5, 2.0, 3.7)),
    "clip": (lambda x, high: jnp.clip(x, -0.5, high), (-1.0, -0.5, 0.0, 1.0, 1e30)),
    "pieces": (lambda x, slope: jnp.where(x > slope, slope * x, 0.5 - x), (-2.0, -1.0, 0.0, 0.5, 3.0)),
    "other": (
        lambda x, which: OTHERS[int(which) % len(OTHERS)](x),
        tuple(range(22)),
    ),
}
OTHERS = (
    jax.nn.relu6, jax.nn.hard_tanh, jax.nn.hard_silu, jax.nn.silu, jax.nn.gelu, jax.nn.mish, jax.nn.selu,
    jax.nn.soft_sign, jax.nn.softplus, jax.nn.sparse_plus, jnp.tanh, jnp.abs, jnp.sin, jnp.cos, jnp.sort, jnp.cumprod,
    lambda x: jnp.logaddexp(x, x[::-1]),
    lambda x: lax.fori_loop(0, 3, lambda i, y: jnp.abs(y - i.astype(y.dtype)), x),
    lambda x: jnp.where(x > 0, jnp.tanh(x), x / 2),
    lambda x: x.at[::2].set(jnp.exp2(x[1::2])),
    lambda x: x + jax.ops.segment_sum(x, jnp.arange(WIDTH) % 3, WIDTH),
    lambda x: lax.conv_general_dilated(x.reshape(1, 1, -1), x[:3].reshape(1, 1, -1), (1,), "SAME").ravel(),
)  # fmt: skip
# Ways to write a number, of the host and of the device.
_HOST = (np.int8, np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.int64, np.uint64)
_DEVICE = (jnp.int8, jnp.uint8, jnp.int16, jnp.uint16, jnp.int32, jnp.uint32)
LABELS: Sequence[Callable[[int], Any]] = (int, *_HOST, *_DEVICE)
# No class, but one in fewer bits.
_NO_CLASSES = (-1, CLASSES, 256 + CLASSES, 65536 + 3, 2**32 + 3)


class Changing:
    """One function for all calls, and bounds of it that were made once."""

    def __init__(self) -> None:
        self._weights: Sequence[np.ndarray] = ()
        self._activation: Callable[[jax.Array], jax.Array] = jax.nn.relu
        self._label: Any = 0
        self._calls = 0
        margins = lambda x: cj.margins(self._logits, self._label)(x)  # noqa: E731
        self._bounds = {name: bound_method(name)(margins) for name in (*METHODS, "vertex_crown")}

    def examine(
        self, images: np.ndarray, radii: np.ndarray, rng: np.random.Generator
    ) -> tuple[Partial, dict[str, Any]]:
        """Changes everything, bounds the margins around each image, and looks for smaller ones.

        Args:
          images: `[n, *x]`.
          radii: `[n]`.
          rng: the randomness.

        Returns:
          The function as it is now, and what `soundness` enters in its table.
        """
        label, self._calls = self._change(rng), self._calls + 1
        p = float(rng.choice([1.0, 2.0, math.inf, rng.integers(101, 300) / 100], p=[0.25, 0.1, 0.15, 0.5]))
        within = PIXELS if rng.random() < 0.7 else None
        known = 0 <= label < CLASSES
        make = lambda eps, x: lp_ball(x, eps, p, within)  # noqa: E731
        names = (*METHODS, *(("vertex_crown",) if p == 1 else ()))
        one = self._again if known and self._calls % 3 else self._certified
        # Compiled anew in every call, in less time than the single operations take.
        every = jax.jit(
            jax.vmap(lambda eps, x: {name: one(name, make(eps, x), x) for name in names}),
            compiler_options={"xla_backend_optimization_level": 0},
        )
        bounds = jax.device_get(every(radii, images))
        if not known:
            # Its margins mean nothing, and nothing may be certified.
            nothing = jnp.full(len(images), jnp.nan)
            bounds = {name: cj.Certificate(bound.verified, nothing) for name, bound in bounds.items()}
        found = self._attacked(images, radii, label, p, within, rng)
        f = Partial(lambda weights, x: _logits(weights, self._activation, x), self._weights)
        return f, {"bounds": bounds, **found}

    def _logits(self, x: jax.Array) -> jax.Array:
        return _logits(self._weights, self._activation, x)

    def _change(self, rng: np.random.Generator) -> int:
        """The network and the label of the next call; returns the label as it is."""
        functions = list(ACTIVATIONS.values())
        function, parameters = functions[self._calls % len(functions)]
        parameter = parameters[int(rng.integers(len(parameters)))]
        written = jnp.float32(parameter) if function is not functions[-1][0] and rng.random() < 0.5 else parameter
        self._activation = lambda x: function(x, written)
        write = LABELS[int(rng.integers(len(LABELS)))]
        most = 2**63 - 1 if write is int else int(np.iinfo(write(0).dtype).max)
        label = int(rng.integers(min(CLASSES, most + 1)))
        odd = [number for number in _NO_CLASSES if number <= most and (number >= 0 or write in (int, np.int64))]
        if odd and rng.random() < 0.2:
            label = odd[int(rng.integers(len(odd)))]
        self._label = write(label)
        self._weights = _drawn_weights(label % CLASSES, rng)
        return label

    def _again(self, name: str, region: Region, x: jax.Array) -> cj.Certificate:
        """By the bound that was made once."""
        del x
        lower = self._bounds[name](region).lower
        return cj.Certificate(proves(lower), jnp.min(lower))

    def _certified(self, name: str, region: Region, x: jax.Array) -> cj.Certificate:
        return cj.certify(self._logits, x, self._label, region, name)

    def _attacked(
        self, images: np.ndarray, radii: np.ndarray, label: int, p: float, within: Any, rng: np.random.Generator
    ) -> dict[str, Any]:
        """The point of each region that is the hardest for a bound."""
        margin = lambda x: smallest_margin(self._logits, x, min(label, CLASSES))  # noqa: E731
        margins = jax.jit(jax.vmap(jax.vmap(margin)))
        slope = jax.jit(jax.vmap(jax.grad(lambda x: margin(x)[0])))
        scale = np.asarray(margins(images[:, None])[1])[:, 0]
        best, points = images, images[:, None]
        for _ in range(3):
            slopes = np.nan_to_num(np.asarray(slope(best), np.float64), posinf=0, neginf=0)
            points = np.concatenate([points, ball_points(images, radii, p, within, -slopes, rng)], axis=1)
            values, sizes = (np.asarray(x) for x in margins(points))
            allowed = TOLERANCE * np.maximum(np.maximum(sizes, scale[:, None]), 1)
            worst = np.argmin(np.where(np.isfinite(sizes) & np.isfinite(values), values + allowed, np.inf), axis=1)[
                :, None
            ]
            at = lambda x: np.take_along_axis(x, worst, axis=1)[:, 0]  # noqa: E731,B023
            best = points[np.arange(len(points)), worst[:, 0]]
        return {
            "margin": at(values), "point": best, "allowed": at(allowed), "scale": scale,
            "label": np.full(len(images), label), "points": np.full(len(images), points.shape[1]),
        }  # fmt: skip


def ball_points(
    images: np.ndarray, radii: np.ndarray, p: float, within: Any, slopes: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Points of balls cut by a box: farthest along the slopes and some other directions, and on the way there.

    Args:
      images: `[n, *x]`.
      radii: `[n]`.
      p: the norm.
      within: limits of the pixels, or None.
      slopes: `[n, *x]`.
      rng: the randomness.

    Returns:
      Points, `[n, points, *x]`, of the dtype of the images.
    """
    n, center, radius = len(images), images.reshape(len(images), 1, -1).astype(np.float64), radii[:, None, None]
    normal = rng.normal(size=(n, 8, center.shape[-1]))
    flat = slopes.reshape(n, 1, -1)
    a = np.concatenate([flat, flat + 0.1 * np.abs(flat) * normal[:, :4], normal, np.sign(normal), normal**5], axis=1)
    low, high = (-math.inf, math.inf) if within is None else within
    # What cannot move must not cost anything.
    a = np.where(np.where(a > 0, center >= high, center <= low), 0, a)
    largest = np.max(np.abs(a), axis=-1, keepdims=True)
    size = np.abs(a) / np.where(largest > 0, largest, 1)
    if p == 1:
        # The same pixels as in the largest entry, in equal parts.
        offset = (size == 1) / np.maximum(np.sum(size == 1, axis=-1, keepdims=True), 1)
    else:
        offset = np.sign(size) if p == math.inf else size ** (1 / (p - 1))
        norm = np.max(offset, axis=-1, keepdims=True) if p == math.inf else np.linalg.norm(offset, p, -1, keepdims=True)
        offset = offset / np.where(norm > 0, norm, 1)
    way = np.ones((1, a.shape[1], 1))
    way[:, -4:] = rng.random((1, 4, 1))
    points = np.clip(center + way * radius.astype(np.float64) * np.sign(a) * offset, low, high)
    return points.reshape(n, -1, *images.shape[1:]).astype(images.dtype)


def _drawn_weights(label: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Of two hidden layers, so that the label has a chance. Half of the time the second one has weights of one sign."""
    scale = rng.choice([0.3, 1.0, 3.0])
    first, second = scale * rng.normal(size=(64, WIDTH)) / 8, rng.normal(size=(WIDTH, WIDTH)) / math.sqrt(WIDTH)
    second = -np.abs(second) if rng.random() < 0.5 else second
    last, offset = rng.normal(size=(WIDTH, CLASSES)) / 2, rng.normal(size=CLASSES)
    offset[label] += rng.uniform(0, 8)
    weights = [first, rng.normal(size=WIDTH), second, 1 + rng.normal(size=WIDTH), last, offset]
    return [value.astype(np.float32) for value in weights]


def _logits(weights: Sequence[np.ndarray], activation: Callable[[jax.Array], jax.Array], x: jax.Array) -> jax.Array:
    first, first_offset, second, second_offset, last, last_offset = weights
    hidden = activation(x.ravel() @ first + first_offset)
    hidden = jax.nn.relu(hidden @ second + second_offset)
    return hidden @ last + last_offset
