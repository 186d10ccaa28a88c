"""Constants of a network that every program computes alike: which network `arithmetic="outward"` is about.

A weight may be computed from parameters, v * s - 1000 * s. Compiled with the bounds, XLA computes it wherever it is
used, and fuses the product with the difference in one place and not in another: two values of one weight, which differ
by far more than a rounding where the difference cancels. Outward bounds would hold for neither.

So the network is the one whose constants are computed operation by operation, each rounded once, as JAX does outside of
`jax.jit`. Inside of it, the result of every operation is pinned, which gives the same bits. Operations that differ
between programs by a few units in the last place (division, roots, exponentials) may be followed by products only, so
that the constant is as near to that of the network (`rounding.SPARE`). What may differ by more is refused: sums and
products of matrices, and sums of what is only near.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.core
import jax.numpy as jnp

from cure_jax.bounds.rounding.primitives import MOVES
from cure_jax.graph import Graph, UnsupportedPrimitive, trace
from cure_jax.numerics import pinned
from cure_jax.regions import Region

__all__ = ["Reproducible", "traced"]

# How far, in units in the last place, a constant may be off.
_MOST = 4
# Computed alike wherever the operands are.
_EXACT = ("abs", "add", "add_any", "ceil", "clamp", "floor", "max", "min", "mul", "neg", "round", "sign", "sub")
_EXACT += ("copy_p", "reduce_max", "reduce_min", "stop_gradient")
# By how much, at most, two programs differ.
_NEAR = {"div": 2, "sqrt": 1, "rsqrt": 2, "square": 1, "integer_pow": 2}
_NEAR |= dict.fromkeys(("cbrt", "erf", "exp", "exp2", "expm1", "log", "log1p", "logistic", "pow", "tanh"), 2)
_OF_EXACT = dict.fromkeys((*MOVES, *_EXACT), 0) | _NEAR
# Of numbers that are near they make numbers that are as near, and one rounding more, or two.
_OF_NEAR = {
    **dict.fromkeys(MOVES, 0),
    "abs": 0,
    "max": 0,
    "min": 0,
    "neg": 0,
    "mul": 1,
    "div": 2,
    "sqrt": 1,
    "rsqrt": 2,
}


def traced(
    f: Callable[[jax.Array], jax.Array], region: Region, precision: jax.lax.PrecisionLike, arithmetic: str
) -> Graph:
    """The graph of a function on a region; with outward rounding, one whose constants every program computes alike."""
    constants = Reproducible() if arithmetic == "outward" else None
    return trace(f, region.bounding_box().lower, precision=precision, constants=constants)


class Reproducible:
    """Computes constants, one primitive at a time; for `graph.trace`."""

    def __init__(self) -> None:
        # Those that may be off, and by how much; kept here, so that no other array takes their identity.
        self._near: dict[int, tuple[jax.Array, int]] = {}

    def __call__(self, name: str, bind: Callable[..., Any], operands: Sequence[jax.Array], source: str) -> Any:
        """Applies a primitive.

        Raises:
          UnsupportedPrimitive: if its result may differ between programs by more than a few units in the last place.
        """
        result = bind(*operands)
        leaves = jax.tree.leaves(result)
        if not any(isinstance(leaf, jax.core.Tracer) for leaf in leaves):
            # Computed once and for all.
            return result
        off = max((self._near[id(operand)][1] for operand in operands if id(operand) in self._near), default=0)
        if not any(map(_is_float, leaves)):
            # A comparison of what is only near may come out either way.
            if off:
                raise _refused(name, source)
            return result
        grows = (_OF_NEAR if off else _OF_EXACT).get(name)
        if not any(map(_is_float, operands)):
            grows = 0
        if grows is None or off + grows > _MOST or len(leaves) != 1:
            raise _refused(name, source)
        result = jax.tree.map(pinned, result)
        if off + grows:
            (leaf,) = jax.tree.leaves(result)
            self._near[id(leaf)] = leaf, off + grows
        return result


def _is_float(x: Any) -> bool:
    return jnp.issubdtype(x.dtype, jnp.floating)


def _refused(name: str, source: str) -> UnsupportedPrimitive:
    return UnsupportedPrimitive(
        f"A constant of the network is computed by `{name}` under jax.jit, at {source}. Two programs may differ in it "
        "by more than arithmetic='outward' allows for. Compute it before: give the result as a parameter."
    )
