"""From bounds to verdicts, for one example."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Integer

from cure_jax import pytrees
from cure_jax.certification.margins import margins
from cure_jax.certification.methods import bound_method
from cure_jax.regions import Region
from cure_jax.regions.region import check_region
from cure_jax.validation import as_class, check_logits, described, on_one_example

__all__ = ["Certificate", "UnionCertificate", "certify", "certify_union", "lower_margins", "proves"]


@pytrees.register
@dataclasses.dataclass(frozen=True)
class Certificate:
    """The verdict on one example and one region.

    Attributes:
      verified: the prediction is proved to be `label` on the whole region.
      margin: the least lower bound of `f(x)[label] - f(x)[j]` over the region and j; positive is necessary for
        `verified`. Not a number if the bounds are not.
    """

    verified: Bool[Array, "*batch"]
    margin: Float[Array, "*batch"]

    def __repr__(self) -> str:
        return f"Certificate({_shown(self.verified, self.margin)})"


@pytrees.register
@dataclasses.dataclass(frozen=True)
class UnionCertificate:
    """The verdicts on one example and several regions.

    Attributes:
      verified: proved on every region, i.e. on their union.
      norms: the certificate of each region.
    """

    verified: Bool[Array, "*batch"]
    norms: dict[str, Certificate]

    def __repr__(self) -> str:
        norms = "; ".join(f"{name}: {_shown(norm.verified, norm.margin)}" for name, norm in self.norms.items())
        return f"UnionCertificate({_shown(self.verified)}; {norms})"


def _shown(verified: Any, margin: Any = None) -> str:
    """Verdicts in a few words, however many there are; of traced ones the types."""
    if not isinstance(verified, jax.Array | np.ndarray) or isinstance(verified, jax.core.Tracer):
        return f"verified={verified}, margin={margin}"
    count = np.size(verified)
    if count == 1:
        least = "" if margin is None else f", margin {np.min(margin):.4g}"
        return f"{'verified' if np.all(verified) else 'not verified'}{least}"
    span = "" if margin is None or not count else f", margins {np.min(margin):.4g} to {np.max(margin):.4g}"
    return f"verified {np.sum(verified)} of {count}{span}"


def certify(
    f: Callable[[jax.Array], jax.Array],
    x: Float[ArrayLike, "*x"],
    label: Integer[ArrayLike, ""] | int,
    region: Region,
    method: str | Sequence[str] = "crown",
    *,
    arithmetic: str = "float32",
) -> Certificate:
    """Tries to prove that a classifier predicts `label` on a whole region around one example.

    Args:
      f: one example `[*x]` to logits `[classes]`.
      x: the example, pixels in [0, 1]; it must lie in `region`.
      label: the true class; it may be traced.
      region: from `linf_ball`, `l2_ball`, ...
      method: "ibp", "crown_ibp", "crown", "alpha_crown" (from cheap to tight); for balls of
        small p also "lipschitz", "box_ball", "sdp_crown", for l_1 balls "vertex_crown"; a tuple of names: for each
        margin the tightest of these; or "best": of those that suit the region.
      arithmetic: "float32", or "outward": bounds that account for the rounding of their own computation, for "ibp",
        "crown_ibp", "crown" and the "best" of these, on CPU. (`certify_dataset` has "float64" as well; around `certify`
        put `cure_jax.bounds.in_float64`.)

    Returns:
      The certificate. It is not verified if the label is out of range, anything is not finite, the prediction at `x`
      is wrong, or `x` lies outside of the region.

    Raises:
      TypeError: if `region` is none, `method` no name, or `f` returns no array.
      ValueError: for an unknown method or arithmetic, shapes of `x` and `region` that differ, several labels, or an
        `f` that does not return two logits or more.
      UnsupportedPrimitive: if `f` contains a primitive without a rule, or without one for this arithmetic.

    Soundness:
      `verified` implies that every point of the region is classified as `label` by the network in real arithmetic,
      up to float32 rounding of the bounds themselves (computed at the highest precision of the backend); with
      arithmetic="outward" without that exception, for the region that the arrays hold (a radius of 0.7 is
      0.699999988 in float32), and for the network whose constants are computed operation by operation: weights that `f`
      computes from others may come out differently where it is compiled, by far more than a rounding.

    Examples:
      >>> import jax.numpy as jnp, cure_jax as cj
      >>> x = jnp.array([0.8, 0.3])
      >>> (
      ...     bool(cj.certify(lambda x: x, x, 0, cj.linf_ball(x, 0.2)).verified),
      ...     bool(cj.certify(lambda x: x, x, 0, cj.linf_ball(x, 0.3)).verified),
      ... )
      (True, False)
    """
    lower, admissible = lower_margins(f, x, label, region, method, arithmetic)
    return Certificate(proves(lower) & admissible, jnp.min(lower))


def proves(lower: Any) -> Any:
    """Whether lower bounds of margins `[..., others]`, of NumPy or JAX, are all positive and finite."""
    return ((lower > 0) & (lower < math.inf)).all(axis=-1)


def lower_margins(  # noqa: PLR0913  (one argument for each thing that varies)
    f: Callable[[jax.Array], jax.Array],
    x: Float[ArrayLike, "*x"],
    label: Integer[ArrayLike, "..."] | int,
    region: Region,
    method: str | Sequence[str],
    arithmetic: str = "float32",
    against: Integer[Array, " rivals"] | None = None,
) -> tuple[Float[Array, " rivals"], Bool[Array, ""]]:
    """What a certificate is made of: lower bounds of the margins, and whether anything can be proved at all.

    Args:
      f: as for `certify`, and so are the others.
      x: the example.
      label: the true class.
      region: around the example.
      method: as for `certify`.
      arithmetic: as for `certify`.
      against: as for `margins`: which of them to bound.

    Returns:
      Lower bounds of these margins on the region, of all in the order of classes; and False where the label is out
      of range, something is not finite, the prediction at `x` is wrong or `x` lies outside of the region.
    """
    x, label = jnp.asarray(x), as_class(label)
    check_region(region, "certify")
    _check_shapes(x, label, region)
    with on_one_example(x.shape):
        logits = f(x)
    check_logits(logits)
    lower = bound_method(method, arithmetic)(margins(f, label, against))(region).lower
    valid = (label >= 0) & (label < logits.shape[0]) & (jnp.argmax(logits).astype(label.dtype) == label)
    finite = jnp.all(jnp.isfinite(x)) & jnp.all(jnp.isfinite(logits))
    return lower, valid & finite & region.contains(x)


def certify_union(
    f: Callable[[jax.Array], jax.Array],
    x: Float[ArrayLike, "*x"],
    label: Integer[ArrayLike, ""] | int,
    regions: Mapping[str, Region],
    method: str | Sequence[str] = "crown",
    *,
    arithmetic: str = "float32",
) -> UnionCertificate:
    """Certifies one example on several regions; the union is proved if each of them is.

    Args:
      f: one example `[*x]` to logits `[classes]`.
      x: the example.
      label: the true class.
      regions: by name, for example `{"linf": linf_ball(x, 0.1), "l2": l2_ball(x, 0.4)}`; at least one.
      method: as for `certify`.
      arithmetic: as for `certify`.

    Returns:
      The certificate of each region and their conjunction.

    Raises:
      TypeError: if `regions` are not regions by name, and as `certify`.
      ValueError: if `regions` is empty, and as `certify`.

    Soundness:
      As `certify`, for each region.
    """
    if not isinstance(regions, Mapping):
        raise TypeError(
            f"certify_union got {described(regions)} for regions; expected several by name. Write {{'linf': region}}, "
            "or call certify."
        )
    if not regions:
        raise ValueError("certify_union got no regions; expected at least one, e.g. {'linf': linf_ball(x, eps)}.")
    norms = {name: certify(f, x, label, region, method, arithmetic=arithmetic) for name, region in regions.items()}
    verified = jnp.all(jnp.stack([certificate.verified for certificate in norms.values()]))
    return UnionCertificate(verified, norms)


def _check_shapes(x: jax.Array, label: jax.Array, region: Region) -> None:
    expected = region.bounding_box().lower.shape
    if x.shape != expected:
        raise ValueError(
            f"The example and its region must have the same shape; got {x.shape} and {expected}. "
            "Build the region around this example, and use jax.vmap for batches."
        )
    if label.ndim:
        raise ValueError(f"Got labels of shape {label.shape}; expected one label. Use jax.vmap for batches.")
