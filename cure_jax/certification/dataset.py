"""Verdicts on many examples: a host loop around jitted one-example functions."""

import functools
import logging
from collections.abc import Mapping, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from cure_jax import distributed
from cure_jax.bounds import in_float64
from cure_jax.certification import cascade
from cure_jax.certification.attack_dataset import DatasetAttack
from cure_jax.certification.batches import (
    Batches,
    MakeRegion,
    Model,
    as_pytree,
    check_divides,
    checked,
    classified_right,
    divided,
    own_radii,
    shown,
)
from cure_jax.certification.certificate import lower_margins, proves
from cure_jax.certification.dataset_certificate import DatasetCertificate
from cure_jax.certification.methods import OPTIMISED, bound_method, tried
from cure_jax.regions import LpBall, Region
from cure_jax.validation import reaches_all

__all__ = ["DatasetCertificate", "certify_dataset"]

_LOGGER = logging.getLogger(__name__)

# Of each example, so many margins in a whole batch of a method that optimises; fewer examples where there are more.
_MARGINS = 10


def certify_dataset(  # noqa: PLR0913  (the options of a long-running job)
    f: Model,
    images: np.ndarray,
    labels: np.ndarray,
    regions: Mapping[str, MakeRegion],
    *,
    radii: Mapping[str, np.ndarray] | None = None,
    attack: DatasetAttack | None = None,
    method: str | Sequence[str] = "crown",
    arithmetic: str = "float32",
    batch_size: int = 100,
    mesh: Mesh | None = None,
    timeout: float | int | None = None,
    show_progress: bool | None = None,
) -> DatasetCertificate:
    """Certifies many examples in several norms.

    Args:
      f: one example `[*x]` to logits `[classes]`. Wrapped as `jax.tree_util.Partial(apply, variables)`, with `apply` a
        pure function, it is compiled once for all variables, and for all `apply` that hold equal values; any other
        callable is compiled anew in every call.
      images: `[examples, *x]`, pixels in [0, 1].
      labels: `[examples]`, integers in [0, classes).
      regions: by norm, a function from an example to its region, `{"l2": lambda x: l2_ball(x, 0.5, (0.0, 1.0))}`; as
        a `Partial` of a pure function whose radius is an argument, it is compiled once for all radii.
      radii: by norm, radii of the examples themselves, in pixel units: `[examples]` or, for a radius per pixel,
        `[examples, *x]`. The region of such a norm is made of an example and its radius,
        `{"l2": lambda x, eps: l2_ball(x, eps, (0.0, 1.0))}`, those of other norms of the example alone.
      attack: of the same examples and regions, from `attack_dataset`. Of several methods, or "best", only the first is
        tried on what was broken: the others would take their time for nothing. What was broken is not verified; if a
        bound says otherwise, one of the two is wrong, and a warning names the examples.
      method: as for `certify`. "best" tries the cheap ones first and tighter ones on what they leave undecided, and
        keeps the tightest bound of each margin; so do several names, "best" among them or not, in the order in which
        they are given. What is undecided are examples, and for the methods that optimise (`alpha_crown`, `sdp_crown`,
        `vertex_crown`) single margins of them: the least one first, and where some method proves that one the
        others, those of 1, 4, 16, ... classes, a program each.
      arithmetic: as for `certify`, or "float64": the network, converted exactly, and its bounds in float64, for every
        method (`cure_jax.bounds.in_float64`).
      batch_size: examples at once; bounds its memory. With a mesh, a multiple of its number of devices.
      mesh: a one-dimensional mesh over whose devices, of one process or several, each batch is divided
        (`cure_jax.distributed.mesh_of_all`). Each process calls with the same arguments and gets all verdicts.
      timeout: seconds for all norms and methods, compilation included; looked at between batches, so that the last one
        may end later. After the first method of each norm, what proves most in a second comes next, as measured.
        What is left is given up: it is not verified, `unfinished` says where, and so does a warning.
      show_progress: whether to show how many examples are decided, in all norms, and what is tried now; default: on
        a terminal and in a notebook.

    Returns:
      Verdicts in the order of the examples, the same whatever `batch_size` and `mesh`, unless the time was over.

    Raises:
      TypeError: if `f` is no function that returns an array, or `regions` are no functions by norm.
      ValueError: if examples, labels, radii or an attack are out of range or do not fit together, for an unknown method
        or arithmetic, no region, a batch that does not divide over the devices, a timeout that is not positive, or one
        with a mesh of several processes, which measure different times.

    Soundness:
      As `certify`, for each example; in float64 rounding errors are 5e8 times smaller, but not accounted for.
    """
    if arithmetic == "float64":
        options = {"attack": attack, "method": method, "batch_size": batch_size, "mesh": mesh, "timeout": timeout}
        certify_wide = in_float64(functools.partial(certify_dataset, **options, show_progress=show_progress))
        return certify_wide(f, images, labels, regions, radii=radii)
    bound_method(method, arithmetic)
    images, labels, classes = checked(f, images, labels, regions, batch_size)
    own = own_radii(radii or {}, regions, images)
    check_divides(batch_size, mesh)
    _check_timeout(timeout, mesh)
    survived = _survived(attack, regions, len(images))
    f, make_regions = as_pytree(f), {norm: as_pytree(make_region) for norm, make_region in regions.items()}
    correct = classified_right(f, images, labels, batch_size, mesh)
    first = {norm: make_region(*_first(images, *own[norm])) for norm, make_region in make_regions.items()}
    _tell_reaching_all(first)
    stages = {norm: tried(method, region, arithmetic) for norm, region in first.items()}
    nothing = np.full(classes - 1, -np.inf, images.dtype)
    cascades, examples = {}, {}
    for norm, make_region in make_regions.items():
        examples[norm] = Batches((f, make_region), (images, labels, *own[norm]), batch_size, mesh)
        prove = functools.partial(_proved, examples[norm], labels, arithmetic, mesh)
        hopeful = correct & survived[norm]
        cascades[norm] = cascade.Cascade(stages[norm], hopeful, nothing, prove, batch_size, OPTIMISED)
    with shown(len(images), "certify", show_progress, parts=len(cascades)) as advance:
        unfinished = cascade.run(cascades, advance, timeout)
    verified, margin = {}, {}
    for norm, done in cascades.items():
        margin[norm] = done.lower.min(axis=1)
        verified[norm] = _uncontradicted(done.admissible & proves(done.lower), survived[norm], norm)
    _tell_unfinished(unfinished, timeout)
    name = method if isinstance(method, str) else ",".join(method)
    balls = {norm: regions_of for norm, regions_of in examples.items() if isinstance(first[norm], LpBall)}
    radii_of = {norm: batches.apply(functools.partial(_radii, mesh=mesh)) for norm, batches in balls.items()}
    return DatasetCertificate(correct, verified, margin, name, unfinished, _shared(radii_of))


def _shared(found: Mapping[str, Mapping[str, np.ndarray]]) -> dict[str, float]:
    """By norm, the radius of the balls, if that is the same everywhere; to the digits that float32 keeps."""
    ends = {norm: (of["least"].min(), of["greatest"].max()) for norm, of in found.items()}
    return {norm: float(f"{least:.7g}") for norm, (least, greatest) in ends.items() if least == greatest}


def _tell_reaching_all(regions: Mapping[str, Region]) -> None:
    """Warns of balls that leave nothing outside, as those in units of 0 to 255; by norm, that of an example."""
    for norm, region in regions.items():
        if isinstance(region, LpBall):
            least = float(np.min(np.asarray(region.radius)))
            if doubt := reaches_all(f"The radius of {norm}", least, region.p, region.center.shape):
                _LOGGER.warning(doubt)


def _check_timeout(timeout: float | int | None, mesh: Mesh | None) -> None:
    if timeout is None:
        return
    if not timeout > 0:
        raise ValueError(f"timeout is {timeout}; expected seconds above 0. Leave it out for no limit.")
    if mesh is not None and distributed.spans_processes(mesh.devices.flat):
        raise ValueError(
            "timeout is given with a mesh of several processes, which measure different times; expected one process. "
            "Leave timeout out, or certify fewer examples."
        )


def _tell_unfinished(unfinished: Mapping[str, np.ndarray], timeout: float | int | None) -> None:
    if left := {norm: int(where.sum()) for norm, where in unfinished.items() if where.any()}:
        _LOGGER.warning(
            "The time is over (%g s): not every method was tried on %s. They count as not verified.",
            timeout,
            ", ".join(f"{count} examples in {norm}" for norm, count in left.items()),
        )


def _survived(attack: DatasetAttack | None, regions: Mapping[str, MakeRegion], count: int) -> dict[str, np.ndarray]:
    """By norm, which examples an attack left standing: all, without one."""
    if attack is None:
        return {norm: np.ones(count, bool) for norm in regions}
    shapes = {norm: np.shape(values) for norm, values in attack.survived.items()}
    if wrong := [norm for norm in regions if shapes.get(norm) != (count,)]:
        raise ValueError(
            f"The attack has verdicts of shapes {shapes}; expected ({count},) for each of {', '.join(wrong)}. Pass "
            "what attack_dataset found for these examples and regions."
        )
    return {norm: np.asarray(attack.survived[norm], bool) for norm in regions}


def _uncontradicted(verified: np.ndarray, survived: np.ndarray, norm: str) -> np.ndarray:
    if np.any(contradicted := verified & ~survived):
        _LOGGER.warning(
            "Bounds verify in %s what the attack broke: examples %s. They count as not verified. Is the attack of the "
            "same examples and regions? If it is, please report the network: a bound, or the attack, is wrong.",
            norm,
            ", ".join(map(str, np.flatnonzero(contradicted)[:20])),
        )
    return verified & survived


def _proved(  # noqa: PLR0913  (one argument for each thing that varies)
    batches: Batches,
    labels: np.ndarray,
    arithmetic: str,
    mesh: Mesh | None,
    stage: str,
    rows: np.ndarray,
    columns: np.ndarray,
) -> dict[str, np.ndarray]:
    """What one method finds of some margins of some of the examples."""
    # Margins are in the order of the other classes.
    against = (columns + (columns >= labels[rows, None])).astype(np.int32)
    bounded = functools.partial(_bounded, method=stage, arithmetic=arithmetic, mesh=mesh)
    # These keep parameters of every neuron for each margin; a batch of 100 with 199 margins took 36 GB.
    share = min(1.0, _MARGINS / columns.shape[1]) if stage in OPTIMISED else 1.0
    return batches.apply(bounded, rows, own=(against,), share=share)


@functools.partial(jax.jit, static_argnames=("method", "arithmetic", "mesh"))
def _bounded(  # noqa: PLR0913  (one argument for each thing that varies)
    f: Model,
    make_region: MakeRegion,
    x: jax.Array,
    label: jax.Array,
    *own: jax.Array,
    method: str,
    arithmetic: str,
    mesh: Mesh | None,
) -> dict[str, jax.Array]:
    """Lower bounds of margins; `own` are the radii, if examples have any, and the classes `against` which."""

    def batch(
        f: Model, make_region: MakeRegion, x: jax.Array, label: jax.Array, *own: jax.Array
    ) -> dict[str, jax.Array]:
        def one(x: jax.Array, label: jax.Array, *own: jax.Array) -> tuple[jax.Array, jax.Array]:
            *radius, against = own
            return lower_margins(f, x, label, make_region(x, *radius), method, arithmetic, against)

        lower, admissible = jax.vmap(one)(x, label, *own)
        return {"lower": lower, "admissible": admissible}

    return divided(batch, mesh, 2)(f, make_region, x, label, *own)


@functools.partial(jax.jit, static_argnames="mesh")
def _radii(
    f: Model, make_region: MakeRegion, x: jax.Array, label: jax.Array, *radius: jax.Array, mesh: Mesh | None
) -> dict[str, jax.Array]:
    """The least and the greatest radius of a pixel in the ball of each example."""

    def batch(f: Model, make_region: MakeRegion, x: jax.Array, label: jax.Array, *radius: jax.Array) -> Any:
        del f, label
        balls = jax.vmap(lambda x, *radius: cast(LpBall, make_region(x, *radius)).radius)(x, *radius)
        flat = balls.reshape(balls.shape[0], -1)
        return {"least": jnp.min(flat, axis=1), "greatest": jnp.max(flat, axis=1)}

    return divided(batch, mesh, 2)(f, make_region, x, label, *radius)


def _first(*arrays: np.ndarray) -> list[jax.Array]:
    return [jnp.asarray(array[0]) for array in arrays]
