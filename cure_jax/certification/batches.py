"""Many examples in batches of one shape, on one device or many: what certificates and attacks share."""

import contextlib
import functools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jax.tree_util import Partial

from cure_jax import distributed
from cure_jax.equality import ByValue
from cure_jax.progress import is_watched, progress
from cure_jax.regions import Region
from cure_jax.validation import check_logits, described, on_one_example, validate

__all__ = [
    "Batches",
    "MakeRegion",
    "Model",
    "as_pytree",
    "check_divides",
    "checked",
    "checked_examples",
    "classified_right",
    "divided",
    "in_all_norms",
    "own_radii",
    "predicts",
    "shown",
]

_LOGGER = logging.getLogger(__name__)

# From an example, or an example and its own radius.
MakeRegion = Callable[..., Region]
Model = Callable[[jax.Array], jax.Array]


@contextlib.contextmanager
def shown(total: int, description: str, show: bool | None, *, parts: int = 1) -> Iterator[Callable[[str, int], None]]:
    """A progress bar of so many images, or nothing.

    Args:
      total: images.
      description: what is done with them.
      show: whether to show it; None: on a terminal and in a notebook.
      parts: what is told for each image, such as a verdict for each norm: an image counts when all are.

    Yields:
      What is told what was done and for how many; 0: what begins, such as compiling.
    """
    if show is None:
        show = is_watched()
    if not show:
        yield lambda doing, count: None
        return
    told = 0

    def advance(doing: str, count: int) -> None:
        nonlocal told
        if not count:
            bar.begin(doing)
            return
        before, told = told // parts, told + count
        bar.advance(told // parts - before, doing=doing)

    with progress(total, description, unit="images") as bar:
        yield advance


def predicts(f: Model, x: jax.Array, label: jax.Array) -> jax.Array:
    """Whether `f` says `label`; not where a logit is infinite or not a number."""
    logits = f(x)
    return (jnp.argmax(logits) == label) & jnp.all(jnp.isfinite(logits))


def divided(batch: Callable[..., Any], mesh: Mesh | None, whole: int) -> Callable[..., Any]:
    """A function of batches on the devices of a mesh; its first `whole` arguments go to all of them."""
    if mesh is None:
        return batch
    (axis,) = mesh.axis_names

    def on_devices(*arguments: Any) -> Any:
        specs = (PartitionSpec(),) * whole + (PartitionSpec(axis),) * (len(arguments) - whole)
        mapped = jax.shard_map(batch, mesh=mesh, in_specs=specs, out_specs=PartitionSpec(axis), check_vma=False)
        return mapped(*arguments)

    return on_devices


class Batches:
    """Arrays of examples, and what all devices need for them: it is sent there once.

    Args:
      whole: the arguments of a function that all devices need.
      arrays: its other arguments, of all examples.
      batch_size: examples at once.
      mesh: over whose devices each batch is divided, if any.
    """

    def __init__(self, whole: tuple[Any, ...], arrays: Sequence[np.ndarray], batch_size: int, mesh: Mesh | None):
        to_all, self._to_each = _placement(mesh)
        self._whole, self._arrays, self._size, self._mesh = to_all(whole), arrays, batch_size, mesh

    def apply(
        self,
        function: Callable[..., dict[str, jax.Array]],
        rows: np.ndarray | None = None,
        advance: Callable[[int], None] = lambda count: None,
        own: Sequence[np.ndarray] = (),
        share: float = 1.0,
    ) -> dict[str, np.ndarray]:
        """Applies a function of `whole` and of batches to the examples of some rows, or of all; tells each count.

        Where a batch does not fit into memory, half of one is tried, from then on.

        Args:
          function: of `whole`, of the arrays and of `own`.
          rows: numbers of examples, any of them several times; None for all.
          advance: is told how many rows are done, batch by batch.
          own: more arguments, with an entry for each row.
          share: of a batch that is done at once, for functions that need more memory than others.
        """
        rows = np.arange(len(self._arrays[0])) if rows is None else rows
        results, done = [], 0
        while done < len(rows):
            size = self._part(share)
            batch = np.arange(done, min(done + size, len(rows)))
            # The last batch repeats its last example, so that one shape is compiled.
            full = np.pad(batch, (0, size - len(batch)), mode="edge")
            arrays = [array[rows[full]] for array in self._arrays] + [array[full] for array in own]
            try:
                result = distributed.fetch(function(*self._whole, *self._to_each(arrays)))
            except jax.errors.JaxRuntimeError as error:
                self._halve(size, error)
                continue
            results.append({name: value[: len(batch)] for name, value in result.items()})
            done += len(batch)
            advance(len(batch))
        return {name: np.concatenate([result[name] for result in results]) for name in results[0]}

    def _part(self, share: float) -> int:
        """So much of a batch, which still divides over the devices."""
        devices = 1 if self._mesh is None else self._mesh.size
        return max(int(share * self._size) // devices, 1) * devices

    def _halve(self, size: int, error: Exception) -> None:
        """Makes batches of a size smaller, if that is what is missing and can be done."""
        half, mesh = size // 2, self._mesh
        several = mesh is not None and (half % mesh.size or distributed.spans_processes(mesh.devices.flat))
        if "RESOURCE_EXHAUSTED" not in str(error) or not half or several:
            raise error
        _LOGGER.warning("A batch of %d examples does not fit into memory; %d at once are tried.", size, half)
        self._size = half


def classified_right(
    f: Partial, images: np.ndarray, labels: np.ndarray, batch_size: int, mesh: Mesh | None
) -> np.ndarray:
    """`[examples]`: where the network says the label."""
    return Batches((f,), (images, labels), batch_size, mesh).apply(functools.partial(_right, mesh=mesh))["right"]


@functools.partial(jax.jit, static_argnames="mesh")
def _right(f: Model, x: jax.Array, label: jax.Array, *, mesh: Mesh | None) -> dict[str, jax.Array]:
    def batch(f: Model, x: jax.Array, label: jax.Array) -> dict[str, jax.Array]:
        return {"right": jax.vmap(functools.partial(predicts, f))(x, label)}

    return divided(batch, mesh, 1)(f, x, label)


def in_all_norms(verdicts: Mapping[str, np.ndarray]) -> np.ndarray:
    """`[examples]`: true in every norm."""
    return np.all(np.stack(list(verdicts.values())), axis=0)


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


def check_divides(batch_size: int, mesh: Mesh | None) -> None:
    """Raises ValueError for a batch that does not divide over the devices."""
    if mesh is not None and batch_size % mesh.devices.size:
        raise ValueError(
            f"batch_size {batch_size} does not divide over the {mesh.devices.size} devices of the mesh. Choose a "
            f"multiple of {mesh.devices.size}."
        )


def as_pytree(function: Callable[..., Any]) -> Partial:
    """A callable as an argument of compiled functions: what it holds as a `Partial` is traced, the rest compiled in.

    What is compiled in may be another the next time (an `nnx` module after a step of training), so a plain callable
    becomes a new function, for which nothing has been compiled yet.
    """
    if isinstance(function, Partial):
        return Partial(ByValue(function.func), *function.args, **function.keywords)
    return Partial(lambda *args: function(*args))


def checked(
    f: Model, images: np.ndarray, labels: np.ndarray, regions: Mapping[str, MakeRegion], batch_size: int
) -> tuple[np.ndarray, np.ndarray, int]:
    """As `checked_examples`, and raises TypeError or ValueError where `regions` has no functions by norm."""
    _check_makers(regions)
    return checked_examples(f, images, labels, batch_size)


def checked_examples(
    f: Model, images: np.ndarray, labels: np.ndarray, batch_size: int
) -> tuple[np.ndarray, np.ndarray, int]:
    """Images as floats, labels as int32 and the number of classes, or ValueError with what is wrong with them."""
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; expected at least 1. Raise it.")
    # float64 where 64-bit types are on.
    dtype = jax.dtypes.canonicalize_dtype(np.float64)
    if not callable(f):
        raise TypeError(
            f"f is {described(f)}; expected a function of one example. Of what training.fit returns: fitted.classifier."
        )
    shape = np.shape(images)[1:]
    with on_one_example(shape):
        logits = jax.eval_shape(f, jax.ShapeDtypeStruct(shape, dtype))
    check_logits(logits)
    return *validate(images, labels, logits.shape[0], dtype), logits.shape[0]


def _check_makers(regions: Mapping[str, MakeRegion]) -> None:
    """Raises TypeError or ValueError for anything but functions from an example to its region, by norm."""
    example = "{'linf': lambda x: cj.linf_ball(x, 0.1, within=(0.0, 1.0))}, or cj.training.make_regions({'linf': 0.1})"
    if not isinstance(regions, Mapping):
        raise TypeError(f"regions is {described(regions)}; expected functions by norm. Write {example}.")
    if not regions:
        raise ValueError(f"Got no regions; expected at least one. Write {example}.")
    for norm, make_region in regions.items():
        if not callable(make_region):
            raise TypeError(
                f"regions[{norm!r}] is {described(make_region)}; expected a function from an example to its region. "
                f"Write {example}."
            )


def own_radii(
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
