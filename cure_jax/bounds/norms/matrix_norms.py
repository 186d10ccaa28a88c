"""Upper bounds on the 2-norm of matrices and of convolutions, by Gram iteration, with rounding errors carried along.

For any matrix |G|_2^2 = |G^T G|_2, so after t squarings the Frobenius norm gives |G|_2 <= |G_t|_F^(1/2^t): at most
k^(1/2^(t+1)) times too large for k x k, a factor of 1.008 on |A|_2 for G = A^T A, k = 2048 and 8 squarings.

Rounding. For y = W x with n terms in each sum, |fl(y) - y| <= gamma_n |W| |x| with gamma_n = n u / (1 - n u) and the
unit roundoff u (2^-24 in float32), in whatever order the terms are added; the gammas of a chain add up (Higham, Lemmas
3.1 and 3.3). So a computed Gram matrix is off by at most gamma |M|_1 |M|_inf in the 2-norm, M the product of the |W|
of the chain, and that is added. Not covered: Strassen's or Winograd's algorithms, or a lower precision than asked for.

Sources: Delattre et al., "Efficient Bound of Lipschitz Constant for Convolutional Layers by Gram Iteration", ICML 2023,
Theorem 1 and Section 4; Sedghi et al., "The Singular Values of Convolutional Layers", ICLR 2019, Theorem 6; Higham,
"Accuracy and Stability of Numerical Algorithms", 2nd ed., Chapter 3.
"""

import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from cure_jax import numerics
from cure_jax.graph import Equation

__all__ = ["convolution_norm", "gamma", "gram_root", "largest_eigenvalue", "norm_of_rows", "slack"]

_SQUARINGS = 8
# Frequencies are worked on in chunks of at most this many entries.
_CHUNK_ENTRIES = 2**24
# Sums whose rounding error may reach this share of them are not bounded.
_MOST_ROUNDING = 0.5


def largest_eigenvalue(gram: jax.Array) -> jax.Array:
    """An upper bound on the 2-norm of square matrices, by Gram iteration with the rounding errors carried along.

    With c = sqrt(|G|_1 |G|_inf) and H = G / c, so that |H|_2 and the norm of |H| are at most 1:

        |G|_2 <= c (|H|_2 + u),    |H|_2^2 <= |fl(H^T H)|_2 + gamma_k min(1, |H|_F^2)

    Args:
      gram: `[..., k, k]`, for instance A^T A; need not be symmetric.

    Returns:
      `[...]`; for A^T A a bound on the square of |A|_2.
    """
    size, unit = gram.shape[-1], float(jnp.finfo(gram.dtype).eps) / 2
    tiny = float(jnp.finfo(gram.dtype).tiny)

    def square(matrix: jax.Array, _: None) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        scale = _schur(matrix)
        matrix = matrix / jnp.where(scale > 0, scale, 1)[..., None, None]
        noise = gamma(size, gram.dtype) * jnp.minimum(1 + 4 * unit, jnp.square(_frobenius(matrix)))
        # What underflows in the products is at most `tiny` for each term.
        return _product(matrix.mT, matrix), (scale, noise + size * size * tiny)

    def before_squaring(largest: jax.Array, step: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        scale, noise = step
        return scale * (numerics.root(largest + noise) + 2 * unit) * (1 + slack(gram.dtype)), None

    # Loops, not steps one behind the other: XLA would compile each of those several times.
    final, steps = lax.scan(square, gram, length=_SQUARINGS)
    return lax.scan(before_squaring, jnp.minimum(_frobenius(final), _schur(final)), steps, reverse=True)[0]


def gram_root(gram: jax.Array, terms: int) -> jax.Array:
    """An upper bound on |A|_2 from computed Gram matrices of A, in units in which the norm of M is at most 1.

    Args:
      gram: `[..., k, k]`, A^T A or A A^T.
      terms: of its rounding error, gamma_terms |M|^2.
    """
    error = gamma(terms, gram.dtype) * (1 + slack(gram.dtype))
    return numerics.root(largest_eigenvalue(gram) + error) * (1 + slack(gram.dtype))


def norm_of_rows(matrix: jax.Array, terms: int) -> jax.Array:
    """An upper bound on |A|_2 from the computed A, `[m, n]` with few rows, in units in which that of M is at most 1.

    Sums over n are taken in about sqrt(n) parts of as many terms: their error is gamma of 2 sqrt(n), not of n.

    Args:
      matrix: A.
      terms: of its own rounding error, gamma_terms M for each entry.
    """
    rows, columns = matrix.shape
    part = 2 ** math.ceil(math.log2(max(columns, 1)) / 2)
    count = -(-columns // part)
    parts = jnp.pad(matrix, ((0, 0), (0, count * part - columns))).reshape(rows, count, part).transpose(1, 0, 2)

    def add(total: jax.Array, entries: jax.Array) -> tuple[jax.Array, None]:
        return total + _product(entries, entries.T), None

    gram, _ = lax.scan(add, jnp.zeros((rows, rows), matrix.dtype), parts)
    return gram_root(gram, 2 * terms + part + count)


def _schur(matrix: jax.Array) -> jax.Array:
    """sqrt(|A|_1 |A|_inf) of `[..., m, n]`."""
    size = jnp.abs(matrix)
    rows, columns = jnp.max(jnp.sum(size, axis=-1), axis=-1), jnp.max(jnp.sum(size, axis=-2), axis=-1)
    return numerics.root(rows) * numerics.root(columns) * (1 + gamma(sum(matrix.shape[-2:]), matrix.dtype))


def _frobenius(matrix: jax.Array) -> jax.Array:
    entries = math.prod(matrix.shape[-2:])
    if entries * float(jnp.finfo(matrix.dtype).eps) / 2 >= _MOST_ROUNDING:
        return jnp.full(matrix.shape[:-2], jnp.inf, matrix.dtype)
    return numerics.root(jnp.sum(jnp.square(matrix), axis=(-2, -1))) * (1 + gamma(entries, matrix.dtype))


def _product(*operands: Any) -> jax.Array:
    """`jnp.matmul`, or `jnp.einsum` if a form comes first, at the highest precision of the backend."""
    function = jnp.einsum if isinstance(operands[0], str) else jnp.matmul
    return function(*operands, precision=lax.Precision.HIGHEST)


def convolution_norm(equation: Equation, scale: jax.Array) -> jax.Array:
    """An upper bound on the 2-norm of a convolution followed by a factor for each output.

    Zero padding of ANY kind (SAME, VALID, explicit, also more than the kernel is wide) and strides only select entries
    of the full convolution of the image with the kernel. An image of n pixels has that same full convolution on a torus
    of N >= n + k - 1 pixels (k the size of the dilated kernel), where nothing wraps around onto itself: so the norm is
    at most that of the circular convolution. With stride s and N divisible by s, output frequency f sees the s
    frequencies f + a N / s, each with weight 1 / sqrt(s); phases, and with them the offset, cancel. Dilating the image
    by zeros keeps its norm.

    Args:
      equation: `conv_general_dilated` with one bounded operand, the image, and `batch_group_count` 1.
      scale: `[*output]`, at least 0; its largest value for each channel is used.

    Soundness:
      As `operator_norm`; circular padding is not zero padding and does not reach this primitive.
    """
    params, numbers = equation.params, equation.params["dimension_numbers"]
    channels = jnp.max(scale.transpose(numbers.out_spec), axis=(0, *range(2, scale.ndim)))
    kernel = jnp.asarray(equation.operands[1]).transpose(numbers.rhs_spec)
    kernel = kernel * channels.reshape(-1, *(1,) * (scale.ndim - 1))
    sizes, strides = kernel.shape[2:], params["window_strides"]
    image = [equation.bounded[0].shape[axis] for axis in numbers.lhs_spec[2:]]
    spread = [
        (n - 1) * d + 1 + (k - 1) * r
        for n, d, k, r in zip(image, params["lhs_dilation"], sizes, params["rhs_dilation"], strict=True)
    ]
    torus = [-(-n // s) * s for n, s in zip(spread, strides, strict=True)]
    angles = _angles(torus, strides, sizes, params["rhs_dilation"])
    groups = params["feature_group_count"]
    blocks = kernel.reshape(groups, kernel.shape[0] // groups, kernel.shape[1], -1)
    return jnp.max(jax.vmap(functools.partial(_symbol_norm, angles, groups))(blocks))


def _symbol_norm(angles: np.ndarray, groups: int, kernel: jax.Array) -> jax.Array:
    """The largest norm of the matrices B(f) = [sum_q w_q exp(i angle(f, a, q)) for each a] / sqrt(number of a).

    Complex matrices C + iS are the real ones [[C, -S], [S, C]], with the same norm.

    Args:
      angles: `[frequencies, aliases, taps]`.
      groups: of channels, over which this is vmapped.
      kernel: `[output channels, input channels, taps]`.
    """
    outputs, inputs, taps = kernel.shape
    aliases, dtype = angles.shape[1], kernel.dtype
    # |B| is at most [[T, T], [T, T]] with T = sum_q |w_q|: twice the norm of T, and everything is in units of that.
    total = _schur(jnp.sum(jnp.abs(kernel), axis=2)) * (1 + gamma(taps, dtype))
    unit = numerics.unit_of(2 * total)
    kernel = kernel / unit
    form = "aoi,aoj->ij" if aliases == 1 and inputs < outputs else "aoi,api->op"

    def gram_norm(table: tuple[jax.Array, jax.Array]) -> jax.Array:
        cosine, sine = (_product("aq,oiq->aoi", part, kernel) for part in table)
        above, below = jnp.concatenate([cosine, -sine], axis=2), jnp.concatenate([sine, cosine], axis=2)
        matrix = jnp.concatenate([above, below], axis=1)
        # Sums over taps, twice; over aliases and channels; sines, cosines, units, the division: by rounding alone.
        return gram_root(_product(form, matrix, matrix) / aliases, 2 * taps + 2 * aliases * max(outputs, inputs) + 8)

    tables = jnp.asarray(np.cos(angles), dtype), jnp.asarray(np.sin(angles), dtype)
    chunk = max(1, _CHUNK_ENTRIES // (16 * aliases * outputs * inputs * groups))
    norm = unit * jnp.max(lax.map(gram_norm, tables, batch_size=chunk))
    # Beyond the largest unit the error of rounding is not known.
    return jnp.where(2 * total > unit, jnp.inf, norm)


def _angles(torus: Sequence[int], strides: Sequence[int], sizes: Sequence[int], dilations: Sequence[int]) -> np.ndarray:
    """The angles of all frequencies up to sign: `[frequencies, aliases, taps]`, reduced to [0, 2 pi) exactly."""
    coarse = [n // s for n, s in zip(torus, strides, strict=True)]
    frequencies = np.array(list(itertools.product(*map(range, coarse))), np.int64)
    # A real kernel has conjugate symbols, of equal norm, at opposite frequencies.
    opposite = [tuple(-f % n for f, n in zip(row, coarse, strict=True)) for row in frequencies.tolist()]
    frequencies = frequencies[[tuple(row) <= other for row, other in zip(frequencies.tolist(), opposite, strict=True)]]
    aliases = np.array(list(itertools.product(*map(range, strides))), np.int64) * coarse
    taps = np.array(list(itertools.product(*map(range, sizes))), np.int64) * np.asarray(dilations)
    turns = (frequencies[:, None, None] + aliases[None, :, None]) * taps[None, None]
    return 2 * np.pi * np.sum(turns % torus / np.asarray(torus), axis=-1)


def gamma(terms: int, dtype: jnp.dtype) -> float:
    """The relative rounding error of a sum of that many products, n u / (1 - n u)."""
    unit = float(jnp.finfo(dtype).eps) / 2
    if terms * unit >= _MOST_ROUNDING:
        raise ValueError(
            f"The rounding error of a sum of {terms} terms cannot be bounded in {dtype}; expected fewer than "
            f"{int(_MOST_ROUNDING / unit)} terms. Use float64 (jax.enable_x64), or a smaller network."
        )
    return terms * unit / (1 - terms * unit)


def slack(dtype: jnp.dtype) -> float:
    """More than the relative rounding error of a few operations on scalars."""
    return 8 * float(jnp.finfo(dtype).eps)
