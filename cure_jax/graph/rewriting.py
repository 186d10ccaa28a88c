"""Primitives that `graph` records as others, which have rules: what they compute, as functions of JAX."""

import itertools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

__all__ = ["REWRITTEN"]


def _split(params: Mapping[str, Any]) -> Callable[..., list[jax.Array]]:
    """Each result is a slice."""
    ends = list(itertools.accumulate(params["sizes"]))
    pairs = [(int(end - size), int(end)) for end, size in zip(ends, params["sizes"], strict=True)]
    return lambda x: [lax.slice_in_dim(x, start, end, axis=params["axis"]) for start, end in pairs]


def _reduce_prod(params: Mapping[str, Any]) -> Callable[..., list[jax.Array]]:
    """Pairs of entries, pairs of pairs, and so on."""

    def product(x: jax.Array) -> list[jax.Array]:
        axes = tuple(params["axes"])
        kept = [i for i in range(x.ndim) if i not in axes]
        x = lax.transpose(x, (*axes, *kept))
        x = lax.reshape(x, (math.prod(x.shape[: len(axes)]), *x.shape[len(axes) :]))
        while x.shape[0] > 1:
            half = x.shape[0] // 2
            pairs = lax.slice_in_dim(x, 0, half) * lax.slice_in_dim(x, half, 2 * half)
            odd = x.shape[0] > 2 * half
            x = lax.concatenate([pairs, lax.slice_in_dim(x, 2 * half, None)], 0) if odd else pairs
        return [lax.squeeze(x, (0,)) if x.shape[0] else jnp.ones(x.shape[1:], x.dtype)]

    return product


def _cumulative(operation: Callable[..., jax.Array]) -> Callable[..., Callable[..., list[jax.Array]]]:
    """Each entry, and the result of all before it."""

    def of_parameters(params: Mapping[str, Any]) -> Callable[..., list[jax.Array]]:
        def cumulative(x: jax.Array) -> list[jax.Array]:
            entries = jnp.split(x, x.shape[params["axis"]], params["axis"]) if x.size else [x]
            found = list(itertools.accumulate(entries[::-1] if params["reverse"] else entries, operation))
            return [lax.concatenate(found[::-1] if params["reverse"] else found, params["axis"])]

        return cumulative

    return of_parameters


def _pow(params: Mapping[str, Any]) -> Callable[..., list[jax.Array]]:
    del params
    return lambda base, exponent: [lax.exp(exponent * lax.log(base))]


# `(parameters of the primitive) -> function` of all its operands.
REWRITTEN: Mapping[str, Callable[[Mapping[str, Any]], Callable[..., list[jax.Array]]]] = {
    "split": _split,
    "reduce_prod": _reduce_prod,
    "cummax": _cumulative(jnp.maximum),
    "cummin": _cumulative(jnp.minimum),
    "cumprod": _cumulative(jnp.multiply),
    "pow": _pow,
}
