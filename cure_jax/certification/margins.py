"""The specification of classification, as a function transformation."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Integer

from cure_jax.validation import as_class, check_logits

__all__ = ["margins", "other_classes"]


def margins(
    f: Callable[[jax.Array], jax.Array],
    label: Integer[ArrayLike, ""] | int,
    against: Integer[ArrayLike, " rivals"] | None = None,
) -> Callable[[Float[Array, "*x"]], Float[Array, " rivals"]]:
    """Composes a classifier with its margins: `x -> f(x)[label] - f(x)[j]` for `j != label`, ascending.

    A classifier predicts `label` on a whole region if every margin is positive there, so a bound on margins is a
    certificate: `crown(margins(f, label))(region).lower > 0`. The composition matters: bounds of the difference are
    tighter than differences of bounds.

    Args:
      f: one example `[*x]` to logits `[classes]`.
      label: the class, in [0, classes), an integer of any dtype; it may be traced. One out of range selects no class
        and gives margins `-f(x)[j]`, which mean nothing: `certify` refuses it.
      against: `[rivals]`, the classes j, in any order and any of them several times; they may be traced. All others if
        left out. The label itself, and what is no class, have the margin 0, which is never proved positive.

    Returns:
      A function of one example, `[rivals]`; without `against`, `[classes - 1]`.

    Raises:
      TypeError: when it is called, if the label or `against` are no integers or `f` does not return an array.
      ValueError: when it is called, if `f` does not return `[classes]` with two classes or more, or `against` has not
        one axis.

    Examples:
      >>> import jax.numpy as jnp, cure_jax as cj
      >>> cj.margins(lambda x: x, 1)(jnp.array([3.0, 5.0, 4.0]))
      Array([2., 1.], dtype=float32)
      >>> cj.margins(lambda x: x, 1, against=jnp.array([2]))(jnp.array([3.0, 5.0, 4.0]))
      Array([1.], dtype=float32)
    """

    def differences(x: jax.Array) -> jax.Array:
        logits = f(x)
        check_logits(logits)
        classes = logits.shape[0]
        own = as_class(label)
        selection = jax.nn.one_hot(own, classes, dtype=logits.dtype)[None]
        if against is None:
            rivals = other_classes(own, classes)
        else:
            rivals = _checked(as_class(against))
            is_class = (rivals >= 0) & (rivals < classes)
            selection = jnp.where(is_class[:, None], selection, 0)
        selection = selection - jax.nn.one_hot(rivals, classes, dtype=logits.dtype)
        return jnp.dot(selection, logits, precision=jax.lax.Precision.HIGHEST)

    return differences


def other_classes(label: Integer[ArrayLike, ""] | int, classes: int) -> Integer[Array, " others"]:
    """All classes but the label, ascending: the order of margins."""
    others = jnp.arange(classes - 1, dtype=jnp.int32)
    return others + (others >= as_class(label)).astype(jnp.int32)


def _checked(against: Integer[Array, "..."]) -> Integer[Array, " rivals"]:
    if against.ndim != 1:
        raise ValueError(
            f"margins got against of shape {against.shape}; expected [rivals], the classes that the label is compared "
            "with, e.g. jnp.array([2])."
        )
    return against
