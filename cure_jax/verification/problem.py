"""What is to be proved: a network on a region, and what must not happen there."""

import dataclasses
import functools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from cure_jax.regions import Region

__all__ = [
    "Limits",
    "Problem",
    "Progress",
    "Specification",
    "all_rows",
    "of_class",
    "rounded_down",
    "values_of_points",
    "worst_values",
]


class Specification(NamedTuple):
    """Rows of which at least one must be positive at every input: `weights @ f(x).ravel() + offsets`.

    Of several specifications each must hold: they have a leading axis, and equally many rows.

    Attributes:
      weights: `[..., rows, outputs]`.
      offsets: `[..., rows]`.
    """

    weights: np.ndarray
    offsets: np.ndarray


def of_class(label: int, classes: int) -> Specification:
    """What says that a class wins: a specification of one row for each other class, ascending."""
    eye = np.eye(classes)
    weights = np.delete(eye[label] - eye, label, axis=0)[:, None]
    return Specification(weights, np.zeros(weights.shape[:2]))


@dataclasses.dataclass(frozen=True)
class Problem:
    """A network, a region and specifications, to be proved on all of the region.

    Attributes:
      f: the network, one example `[*x]` to any one array; what it holds as a `Partial` is traced.
      region: the set of inputs.
      specifications: `[specifications, ...]`, in float64.
      ends: of the box that `region` is, rounded outward, if it was given in float64; counterexamples must lie in it.
    """

    f: Partial
    region: Region
    specifications: Specification
    ends: tuple[np.ndarray, np.ndarray] | None = None

    @property
    def rounded(self) -> Specification:
        """The specifications in the dtype of the region, offsets rounded downward, weights to the nearest."""
        weights, offsets = self.specifications
        dtype = self.region.bounding_box().dtype
        return Specification(np.asarray(weights, dtype), rounded_down(np.asarray(offsets), dtype))


def rounded_down(values: np.ndarray, dtype: Any) -> np.ndarray:
    """The greatest numbers of a dtype that are not above the values."""
    near = np.asarray(values, dtype)
    above = near.astype(np.float64) > values
    return np.where(above, np.nextafter(near, np.asarray(-np.inf, dtype)), near)


@dataclasses.dataclass(frozen=True)
class Progress:
    """What a search tells of itself after each batch.

    Attributes:
      domains: bounded so far.
      open: yet to be proved.
      margin: the worst bound of these.
      seconds: since the start.
    """

    domains: int
    open: int
    margin: float
    seconds: float


@dataclasses.dataclass(frozen=True)
class Limits:
    """How long a search may go on. They are looked at between batches.

    Attributes:
      end: on the clock of `time.monotonic`.
      domains: at most so many are bounded.
      memory: bytes of domains that wait.
      tell: called after each batch.
    """

    end: float
    domains: int
    memory: int
    tell: Callable[[Progress], None] = lambda progress: None
    start: float = dataclasses.field(default_factory=time.monotonic)

    def exceeded(self, domains: int, waiting: int) -> str:
        """Which limit is exceeded, in words; empty if none is.

        Args:
          domains: bounded so far.
          waiting: bytes of those that wait.
        """
        if time.monotonic() >= self.end:
            return "the time is over"
        if domains >= self.domains:
            return f"{domains} domains were bounded, as many as allowed"
        if waiting > self.memory:
            return f"the domains that wait take {waiting / 2**20:.0f} MiB, more than allowed"
        return ""


def all_rows(f: Callable[[jax.Array], jax.Array], specifications: Specification, x: jax.Array) -> jax.Array:
    """The rows of all specifications at one input, `[specifications, rows]`."""
    output = f(x).ravel()
    weights = jnp.asarray(specifications.weights, output.dtype)
    rows = jnp.dot(weights, output, precision=jax.lax.Precision.HIGHEST)
    return rows + jnp.asarray(specifications.offsets, output.dtype)


def worst_values(f: Callable[[jax.Array], jax.Array], specifications: Specification, x: jax.Array) -> jax.Array:
    """The greatest row of each specification at one input, `[specifications]`; at most 0 where it is broken."""
    return jnp.max(all_rows(f, specifications, x), axis=-1)


@jax.jit
def values_of_points(f: Partial, specifications: Specification, points: jax.Array) -> jax.Array:
    """The same for many inputs, `[points, specifications]`."""
    return jax.vmap(functools.partial(worst_values, f, specifications))(points)
