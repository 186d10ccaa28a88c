"""Verdicts on many examples: a host loop around jitted one-example functions."""

import contextlib
import dataclasses
import functools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jax.tree_util import Partial

from cure_jax import attacks, distributed
from cure_jax.bounds import in_float64
from cure_jax.certification.certificate import lower_margins, proves
from cure_jax.certification.methods import bound_method, tried
from cure_jax.equality import ByValue
from cure_jax.progress import progress
from cure_jax.regions import Region
from cure_jax.validation import validate

__all__ = ["DatasetAttack", "DatasetCertificate", "attack_dataset", "certify_dataset"]

# From an example, or an example and its own radius.
MakeRegion = Callable[..., Region]
Model = Callable[[jax.Array], jax.Array]
_LOGGER = logging.getLogger(__name__)
_ATTACK_LOSSES = ("cross_entropy", "margin")


@dataclasses.dataclass(frozen=True)
class DatasetCertificate:
    """Per-example verdicts, in the order of the examples.

    Attributes:
      correct: `[examples]`, the prediction at the example itself is right.
      verified: by norm, `[examples]`.
      margin: by norm, `[examples]`, least proved lower bound of the margins.
      method: what proved them; several names with commas between them.
    """

    correct: np.ndarray
    verified: dict[str, np.ndarray]
    margin: dict[str, np.ndarray]
    method: str

    @property
    def union(self) -> np.ndarray:
        """`[examples]`: verified in every norm at once."""
        return np.all(np.stack(list(self.verified.values())), axis=0)


@dataclasses.dataclass(frozen=True)
class DatasetAttack:
    """Which examples no attack could break, in the order of the examples.

    Attributes:
      survived: by norm, `[examples]`: right at the example and at every point the attack found.
    """

    survived: dict[str, np.ndarray]

    @property
    def union(self) -> np.ndarray:
        """`[examples]`: not broken in any norm."""
        return np.all(np.stack(list(self.survived.values())), axis=0)


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
    show_progress: bool = False,
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
        they are given.
      arithmetic: as for `certify`, or "float64": the network, converted exactly, and its bounds in float64, for every
        method (`cure_jax.bounds.in_float64`).
      batch_size: examples at once; bounds its memory. With a mesh, a multiple of its number of devices.
      mesh: a one-dimensional mesh over whose devices, of one process or several, each batch is divided
        (`cure_jax.distributed.mesh_of_all`). Each process calls with the same arguments and gets all verdicts.
      show_progress: whether to show a progress bar with the expected end.

    Returns:
      Verdicts in the order of the examples, the same whatever `batch_size` and `mesh`.

    Raises:
      ValueError: if examples, labels, radii or an attack are out of range or do not fit together, for an unknown method
        or arithmetic, no region, or a batch that does not divide over the devices.

    Soundness:
      As `certify`, for each example; in float64 rounding errors are 5e8 times smaller, but not accounted for.
    """
    if arithmetic == "float64":
        options = {"attack": attack, "method": method, "batch_size": batch_size, "mesh": mesh}
        certify_wide = in_float64(functools.partial(certify_dataset, **options, show_progress=show_progress))
        return certify_wide(f, images, labels, regions, radii=radii)
    bound_method(method, arithmetic)
    images, labels = _checked(f, images, labels, regions, batch_size)
    own = _own_radii(radii or {}, regions, images)
    _check_divides(batch_size, mesh)
    survived = _survived(attack, regions, len(images))
    f, make_regions = _as_pytree(f), {norm: _as_pytree(make_region) for norm, make_region in regions.items()}
    correct = _in_batches(functools.partial(_correct, mesh=mesh), (f,), (images, labels), batch_size, mesh)["correct"]
    stages = {
        norm: tried(method, make_region(*_first(images, *own[norm])), arithmetic)
        for norm, make_region in make_regions.items()
    }
    verified, margin = {}, {}
    with _progress(len(images) * sum(map(len, stages.values())), "certify", show_progress) as advance:
        for norm, make_region in make_regions.items():
            prove = functools.partial(
                _proved, (f, make_region), (images, labels, *own[norm]), arithmetic, batch_size=batch_size, mesh=mesh
            )
            lower, admissible = _cascade(prove, stages[norm], correct & survived[norm], advance)
            margin[norm] = lower.min(axis=1)
            verified[norm] = _uncontradicted(admissible & proves(lower), survived[norm], norm)
    return DatasetCertificate(correct, verified, margin, method if isinstance(method, str) else ",".join(method))


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
    whole: tuple[Any, ...],
    arrays: Sequence[np.ndarray],
    arithmetic: str,
    stage: str,
    rows: np.ndarray,
    advance: Callable[[int], None],
    *,
    batch_size: int,
    mesh: Mesh | None,
) -> dict[str, np.ndarray]:
    """What one method finds on some of the examples."""
    batch = functools.partial(_bounded, method=stage, arithmetic=arithmetic, mesh=mesh)
    return _in_batches(batch, whole, [array[rows] for array in arrays], batch_size, mesh, advance)


def _cascade(
    prove: Callable[[str, np.ndarray, Callable[[int], None]], dict[str, np.ndarray]],
    stages: Sequence[str],
    hopeful: np.ndarray,
    advance: Callable[[int], None],
) -> tuple[np.ndarray, np.ndarray]:
    """The best lower bounds of all margins, each method tried on the hopeful examples that the others left undecided.

    Returns:
      Lower bounds `[examples, others]`, and whether anything can be proved, `[examples]`.
    """
    undecided = np.arange(len(hopeful))
    first = prove(stages[0], undecided, advance)
    lower, admissible = first["lower"], first["admissible"]
    for stage in stages[1:]:
        undecided = np.flatnonzero(hopeful & admissible & ~proves(lower))
        advance(len(hopeful) - len(undecided))
        if len(undecided):
            found = prove(stage, undecided, advance)["lower"]
            # A bound that is not a number is none.
            lower[undecided] = np.fmax(lower[undecided], found)
    return lower, admissible


def attack_dataset(  # noqa: PLR0913  (the options of a long-running job)
    f: Model,
    images: np.ndarray,
    labels: np.ndarray,
    regions: Mapping[str, MakeRegion],
    *,
    key: jax.Array,
    radii: Mapping[str, np.ndarray] | None = None,
    steps: int = 40,
    restarts: int = 3,
    batch_size: int = 100,
    mesh: Mesh | None = None,
    show_progress: bool = False,
) -> DatasetAttack:
    """Attacks many examples in several norms: an upper bound on what can be certified.

    Args:
      f: as for `certify_dataset`.
      images: `[examples, *x]`, pixels in [0, 1].
      labels: `[examples]`.
      regions: as for `certify_dataset`.
      key: for random starts; each example and norm draws its own.
      radii: as for `certify_dataset`.
      steps: of projected gradient descent, for each of two losses (cross-entropy and margin).
      restarts: for each loss.
      batch_size: examples at once.
      mesh: as for `certify_dataset`.
      show_progress: whether to show a progress bar.

    Returns:
      Which examples survived, in the order of the examples.

    Raises:
      ValueError: if examples, labels or radii are out of range or do not fit together, there is no region, or a batch
        does not divide over the devices.
    """
    images, labels = _checked(f, images, labels, regions, batch_size)
    own = _own_radii(radii or {}, regions, images)
    _check_divides(batch_size, mesh)
    f, survived = _as_pytree(f), {}
    with _progress(len(images) * len(regions), "attack", show_progress) as advance:
        for index, (norm, make_region) in enumerate(regions.items()):
            numbers, norm_key = np.arange(len(images)), jax.random.fold_in(key, index)
            batch = functools.partial(_attacked, steps=steps, restarts=restarts, mesh=mesh)
            whole, divided = (f, _as_pytree(make_region), norm_key), (images, labels, numbers, *own[norm])
            survived[norm] = _in_batches(batch, whole, divided, batch_size, mesh, advance)["survived"]
    return DatasetAttack(survived)


@contextlib.contextmanager
def _progress(total: int, description: str, show: bool) -> Iterator[Callable[[int], None]]:
    if not show:
        yield lambda count: None
        return
    with progress(total, description, unit="images") as bar:
        yield bar.advance


def _predicts(f: Model, x: jax.Array, label: jax.Array) -> jax.Array:
    logits = f(x)
    return (jnp.argmax(logits) == label) & jnp.all(jnp.isfinite(logits))


# Compiled once for each network, norm and shape: parameters and radii are arguments.


@functools.partial(jax.jit, static_argnames="mesh")
def _correct(f: Model, x: jax.Array, label: jax.Array, *, mesh: Mesh | None) -> dict[str, jax.Array]:
    def batch(f: Model, x: jax.Array, label: jax.Array) -> dict[str, jax.Array]:
        return {"correct": jax.vmap(functools.partial(_predicts, f))(x, label)}

    return _divided(batch, mesh, 1)(f, x, label)


@functools.partial(jax.jit, static_argnames=("method", "arithmetic", "mesh"))
def _bounded(  # noqa: PLR0913  (one argument for each thing that varies)
    f: Model,
    make_region: MakeRegion,
    x: jax.Array,
    label: jax.Array,
    *radius: jax.Array,
    method: str,
    arithmetic: str,
    mesh: Mesh | None,
) -> dict[str, jax.Array]:
    def batch(
        f: Model, make_region: MakeRegion, x: jax.Array, label: jax.Array, *radius: jax.Array
    ) -> dict[str, jax.Array]:
        def one(x: jax.Array, label: jax.Array, *radius: jax.Array) -> tuple[jax.Array, jax.Array]:
            return lower_margins(f, x, label, make_region(x, *radius), method, arithmetic)

        lower, admissible = jax.vmap(one)(x, label, *radius)
        return {"lower": lower, "admissible": admissible}

    return _divided(batch, mesh, 2)(f, make_region, x, label, *radius)


@functools.partial(jax.jit, static_argnames=("steps", "restarts", "mesh"))
def _attacked(  # noqa: PLR0913  (one argument for each thing that varies)
    f: Model,
    make_region: MakeRegion,
    key: jax.Array,
    x: jax.Array,
    label: jax.Array,
    number: jax.Array,
    *radius: jax.Array,
    steps: int,
    restarts: int,
    mesh: Mesh | None,
) -> dict[str, jax.Array]:
    def batch(f: Model, make_region: MakeRegion, key: jax.Array, *examples: jax.Array) -> dict[str, jax.Array]:
        def one(x: jax.Array, label: jax.Array, number: jax.Array, *radius: jax.Array) -> jax.Array:
            standing, own = _predicts(f, x, label), jax.random.fold_in(key, number)
            for index, loss in enumerate(_ATTACK_LOSSES):
                folded, region = jax.random.fold_in(own, index), make_region(x, *radius)
                found = attacks.pgd(f, x, label, region, key=folded, steps=steps, restarts=restarts, loss=loss)
                standing &= _predicts(f, found, label)
            return standing

        return {"survived": jax.vmap(one)(*examples)}

    return _divided(batch, mesh, 3)(f, make_region, key, x, label, number, *radius)


def _divided(batch: Callable[..., Any], mesh: Mesh | None, whole: int) -> Callable[..., Any]:
    """A function of batches on the devices of a mesh; its first `whole` arguments go to all of them."""
    if mesh is None:
        return batch
    (axis,) = mesh.axis_names

    def on_devices(*arguments: Any) -> Any:
        specs = (PartitionSpec(),) * whole + (PartitionSpec(axis),) * (len(arguments) - whole)
        mapped = jax.shard_map(batch, mesh=mesh, in_specs=specs, out_specs=PartitionSpec(axis), check_vma=False)
        return mapped(*arguments)

    return on_devices


def _in_batches(
    function: Callable[..., dict[str, jax.Array]],
    whole: tuple[Any, ...],
    arrays: Sequence[np.ndarray],
    batch_size: int,
    mesh: Mesh | None,
    advance: Callable[[int], None] = lambda count: None,
) -> dict[str, np.ndarray]:
    """Applies a function of `whole` and of batches to arrays of examples."""
    total, results = len(arrays[0]), []
    to_all, to_each = _placement(mesh)
    whole = to_all(whole)
    for start in range(0, total, batch_size):
        # The last batch repeats its last example, so that one shape is compiled.
        rows = np.minimum(np.arange(start, start + batch_size), total - 1)
        result = distributed.fetch(function(*whole, *to_each([array[rows] for array in arrays])))
        count = min(batch_size, total - start)
        results.append({name: value[:count] for name, value in result.items()})
        advance(count)
    return {name: np.concatenate([result[name] for result in results]) for name in results[0]}


def _placement(mesh: Mesh | None) -> tuple[Callable[[Any], Any], Callable[[Any], Any]]:
    """How arguments reach the devices of a mesh: those that all devices need, and batches to be divided.

    Within one process JAX does it. Of several, each hands its own devices their part.
    """
    if mesh is None or not distributed.spans_processes(mesh.devices.flat):
        return lambda tree: tree, lambda batch: batch
    own = [device.process_index == jax.process_index() for device in mesh.devices.flat]

    def part(array: np.ndarray) -> np.ndarray:
        return array.reshape(len(own), -1, *array.shape[1:])[own].reshape(-1, *array.shape[1:])

    def to_each(batch: Any) -> Any:
        return distributed.divide(jax.tree.map(part, batch), mesh, PartitionSpec(*mesh.axis_names))

    return lambda tree: distributed.replicate(tree, mesh), to_each


def _check_divides(batch_size: int, mesh: Mesh | None) -> None:
    if mesh is not None and batch_size % mesh.devices.size:
        raise ValueError(
            f"batch_size {batch_size} does not divide over the {mesh.devices.size} devices of the mesh. Choose a "
            f"multiple of {mesh.devices.size}."
        )


def _as_pytree(function: Callable[..., Any]) -> Partial:
    """A callable as an argument of compiled functions: what it holds as a `Partial` is traced, the rest compiled in.

    What is compiled in may be another the next time (an `nnx` module after a step of training), so a plain callable
    becomes a new function, for which nothing has been compiled yet.
    """
    if isinstance(function, Partial):
        return Partial(ByValue(function.func), *function.args, **function.keywords)
    return Partial(lambda *args: function(*args))


def _checked(
    f: Model, images: np.ndarray, labels: np.ndarray, regions: Mapping[str, MakeRegion], batch_size: int
) -> tuple[np.ndarray, np.ndarray]:
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; expected at least 1. Raise it.")
    if not regions:
        raise ValueError("Got no regions; expected at least one, e.g. {'linf': lambda x: linf_ball(x, 0.1)}.")
    # float64 where 64-bit types are on.
    dtype = jax.dtypes.canonicalize_dtype(np.float64)
    logits = jax.eval_shape(f, jax.ShapeDtypeStruct(np.shape(images)[1:], dtype))
    return validate(images, labels, logits.shape[0], dtype)


def _own_radii(
    radii: Mapping[str, np.ndarray], regions: Mapping[str, MakeRegion], images: np.ndarray
) -> dict[str, tuple[np.ndarray, ...]]:
    """By norm, the radii of the examples, if they have any of their own."""
    if unknown := sorted(radii.keys() - regions.keys()):
        raise ValueError(f"radii names {', '.join(unknown)}; regions has {', '.join(regions)}. Use the same names.")
    own: dict[str, tuple[np.ndarray, ...]] = {norm: () for norm in regions}
    for norm, values in radii.items():
        values = np.asarray(values, images.dtype)
        if values.shape not in (images.shape[:1], images.shape):
            raise ValueError(
                f"radii[{norm!r}] has shape {values.shape}; expected {images.shape[:1]}, a radius for each example, or "
                f"{images.shape}, one for each pixel."
            )
        if not np.all((values >= 0) & np.isfinite(values)):
            raise ValueError(f"radii[{norm!r}] must be finite and at least 0; correct it.")
        own[norm] = (values,)
    return own


def _first(*arrays: np.ndarray) -> list[jax.Array]:
    return [jnp.asarray(array[0]) for array in arrays]
