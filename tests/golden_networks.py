"""The reference networks of tests/golden as plain JAX functions of one example."""

import functools
import json
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import cure_jax as cj

GOLDEN = Path(__file__).parent / "golden"
NAMES = ("mlp_digits_s0", "conv_digits_s0", "deep_digits_s0", "resnet_digits_s0")
BALLS = {"linf": functools.partial(cj.linf_ball, within=(0.0, 1.0)), "l2": cj.l2_ball, "l1": cj.l1_ball}

Classifier = Callable[[jax.Array], jax.Array]


def load(name: str, directory: Path = GOLDEN) -> tuple[Classifier, dict[str, np.ndarray]]:
    """A network, and everything its file holds."""
    arrays = dict(np.load(directory / f"{name}.npz"))
    layers = [tuple(layer) for layer in json.loads(str(arrays["spec"]))]
    params = [_params(arrays, index) for index in range(len(layers))]

    def f(x: jax.Array) -> jax.Array:
        saved = x
        for (kind, *options), values in zip(layers, params, strict=True):
            if kind == "save":
                saved = x
            elif kind == "add":
                x = x + saved
            else:
                x = _LAYERS[kind](x, values, *options)
        return x

    return f, arrays


def _params(arrays: dict[str, np.ndarray], index: int) -> dict[str, jax.Array]:
    prefix = f"param.{index}."
    return {key.removeprefix(prefix): jnp.asarray(value) for key, value in arrays.items() if key.startswith(prefix)}


def _along_last(vector: jax.Array, x: jax.Array) -> jax.Array:
    return vector.reshape((1,) * (x.ndim - 1) + (-1,))


def _conv(x: jax.Array, p: dict[str, jax.Array], out: int, kernel: int, stride: int, padding: int) -> jax.Array:
    del out, kernel
    numbers = ("NHWC", "HWIO", "NHWC")
    pads = [(padding, padding)] * 2
    y = lax.conv_general_dilated(x[None], p["kernel"], (stride, stride), pads, dimension_numbers=numbers)[0]
    return y + _along_last(p["bias"], y)


def _avg(x: jax.Array, p: dict[str, jax.Array], k: int) -> jax.Array:
    del p
    return lax.reduce_window(x, 0.0, lax.add, (k, k, 1), (k, k, 1), "VALID") / (k * k)


_LAYERS: dict[str, Callable[..., jax.Array]] = {
    "conv": _conv,
    "avg": _avg,
    "dense": lambda x, p, out: x @ p["kernel"] + p["bias"],
    "relu": lambda x, p: jax.nn.relu(x),
    "flatten": lambda x, p: x.reshape(-1),
    "bn": lambda x, p: x * _along_last(p["scale"], x) + _along_last(p["shift"], x),
}
