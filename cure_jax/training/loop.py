"""The training loop on the host: steps in compiled runs, metrics, checkpoints, and an exact resume."""

import contextlib
import dataclasses
import functools
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cure_jax import distributed, models
from cure_jax import graph as graphs
from cure_jax.bounds.lipschitz import initial_vectors
from cure_jax.data import batch_indices
from cure_jax.models import Fitted
from cure_jax.models.functional import Functional, functional
from cure_jax.progress import compile_seconds, device_memory, profiled, progress
from cure_jax.training import workdir as workdirs
from cure_jax.training.augmentation import center_crop
from cure_jax.training.average import with_average
from cure_jax.training.checkpoint_files import CheckpointError, saved_steps
from cure_jax.training.checkpoints import Checkpoints, load, load_variables
from cure_jax.training.checks import check, warn
from cure_jax.training.collapse import watch_for_collapse
from cure_jax.training.config import Config, build_recipe
from cure_jax.training.initializers import ibp_init
from cure_jax.training.lock import Lock, hold
from cure_jax.training.metrics import MetricWriter
from cure_jax.training.names import identity
from cure_jax.training.network import check_network, classifier, population_statistics
from cure_jax.training.parallel import Run, as_pixels, compile_steps
from cure_jax.training.preemption import Preempted, notices
from cure_jax.training.state import TrainState
from cure_jax.training.step import Recipe
from cure_jax.validation import validate

__all__ = ["Fitted", "TrainingDiverged", "fit", "initial_state", "restore"]

_LOGGER = logging.getLogger(__name__)
Arrays = tuple[np.ndarray, np.ndarray]
Metrics = dict[str, float | int]
_VALIDATION_BATCH = 250


class TrainingDiverged(FloatingPointError):
    """The loss became NaN or infinite."""


def fit(
    model: Any,
    data: Arrays,
    config: Config,
    workdir: str | os.PathLike | None = None,
    *,
    validation: Arrays | None = None,
    teacher: Callable[[jax.Array], jax.Array] | None = None,
) -> Fitted:
    """Trains a network so that its predictions can be proved not to change.

    Several processes that have joined (`cure_jax.distributed.initialize`) call it with the same arguments and share
    the work; files are written by the first one, where all of them must be able to read.

    Args:
      model: a network of batches, `[batch, *x] -> [batch, classes]`, of one of three kinds.

        A `flax.linen` module: with BatchNorm it takes an argument `train`, as is usual, and needs a field `axis_name`
        to be trained on several devices. Its collections are `params` and `batch_stats`.

        A `flax.nnx` module: training begins with its parameters (`nnx.Param`), runs as after `train()` and gives back
        a module of its own, as after `eval()`; the one that came is left as it is. BatchNorm is averaged over all
        devices. Other variables are constants.

        A pair of functions, `init(key, images) -> params` and `apply(params, images) -> logits`. With statistics of
        batches, `apply` has the arguments `train` and `axis_name`, params are `{"params": ..., "batch_stats": ...}`,
        and with `train=True` it returns `(logits, batch_stats)`, running averages m * old + (1 - m) * statistic. Its
        layers are not known, so `config.initialization` is "default".
      data: images `[examples, *x]`, uint8 or floating in [0, 1], and labels `[examples]`.
      config: from `default_config()`, with fields overridden; `dataset` and `data_dir` are not looked at, `model` only
        to write down whether `load` can make the network of it.
      workdir: for checkpoints, metrics (JSON lines and TensorBoard) and the config; a run that was interrupted
        resumes there, on any number of devices and processes, and ends with the same numbers, on another number of
        devices up to rounding. One training at a time has it. Nothing is written if None.
      validation: images and labels whose clean accuracy is recorded at every checkpoint; of the size that is certified.
      teacher: for a loss of kind "distilled": the logits `[classes]` of one example `[*x]` by a robust network, such as
        `pretrained("digits/linf").classifier`.

    Returns:
      The trained network.

    Raises:
      TypeError: for what is no network, such as a class.
      ValueError: for a config, a network, images, labels or a teacher that do not fit, before anything is trained.
      WorkdirError: if `workdir` was made with another config, other data, or from other parameters, or another
        training has it; nothing in it is changed.
      CheckpointError: if no checkpoint in `workdir` is usable, one could not be saved, or what the config starts from
        does not fit.
      TrainingDiverged: if the loss is not finite, naming the step.
      OSError: if `workdir` cannot be written.
      Preempted: after SIGTERM or SIGINT (Ctrl-C), once the state is saved.
      RuntimeError: if the processes were given different things.
    """
    check(config)
    crop = config.augmentation.crop
    network = functional(model)
    images, labels = _prepared(network, data, crop)
    if images.ndim != 4 and any(config.augmentation.to_dict().values()):
        raise ValueError(
            f"config.augmentation is {config.augmentation.to_dict()}, for images of shape {images.shape[1:]}; expected "
            "[height, width, channels]. Add the axis that is missing, or switch it off."
        )
    if validation is not None:
        expected = center_crop(images[:1], crop).shape[1:]
        if np.shape(validation[0])[1:] != expected:
            raise ValueError(
                f"validation has images of shape {np.shape(validation[0])[1:]}; expected {expected}, as they are "
                "certified. Crop or resize them."
            )
        validation = _prepared(network, validation, 0)
    steps_per_epoch = len(images) // config.batch_size
    if steps_per_epoch == 0:
        raise ValueError(
            f"batch_size {config.batch_size} exceeds the {len(images)} training examples. Choose a smaller one."
        )
    warn(config, center_crop(images[:1], crop).shape[1:], steps_per_epoch)
    recipe = build_recipe(config, network, steps_per_epoch, _checked_teacher(config, network, teacher, images, crop))
    if workdir is not None:
        workdirs.check_config(workdir, config.to_dict(), identity)
    state, start = _first_state(config, recipe, center_crop(images[:1], crop), workdir)
    trainer = _Trainer(config, recipe, (images, labels), validation, config.epochs * steps_per_epoch, workdir, start)
    distributed.check_same(
        config=config.to_json_best_effort(), images=images, labels=labels, parameters=state, version=jax.__version__
    )
    if workdir is None:
        return trainer.run(state, None)
    directory = workdirs.as_path(workdir) / "checkpoints"
    with hold(workdir) as lock, Checkpoints(directory, max_to_keep=config.keep_checkpoints) as checkpoints:
        # Again: another training may have been here until now.
        workdirs.check_config(workdir, config.to_dict(), identity)
        restored = checkpoints.restore(jax.eval_shape(lambda: state))
        if restored is not None:
            state = restored[1]
            _check_origin(workdir, restored[2], trainer.origin)
            _LOGGER.info("Resumed at step %d in %s.", restored[0], workdir)
        with MetricWriter(workdir, resume_from=int(state.step) if restored else -1) as writer:
            return trainer.run(state, _Files(lock, checkpoints, writer))


def restore(model: Any, example: np.ndarray, config: Config, workdir: str | os.PathLike) -> Fitted:
    """The trained network of a work directory, read without changing anything.

    Args:
      model: the network that was trained, see `fit`; parameters that it holds do not matter.
      example: `[1, *x]`, of the shape of its inputs (the crop, if the config has one).
      config: that it was trained with.
      workdir: of the run.

    Raises:
      WorkdirError: if it is missing or was made with another config.
      CheckpointError: if its newest checkpoint is missing or damaged.
    """
    check(config)
    workdirs.read_config(workdir)
    workdirs.check_config(workdir, config.to_dict(), identity)
    # Only the structure of the state matters, and steps enough to keep the milestones apart.
    recipe = build_recipe(config, model, steps_per_epoch=1000)
    abstract = jax.eval_shape(lambda: initial_state(config, recipe, example, start=False))
    step, state, metadata = load(workdirs.as_path(workdir) / "checkpoints", abstract)
    if step < (total := metadata.get("total_steps", step)):
        _LOGGER.warning("The training in %s stopped at step %d of %d; resume it for the whole.", workdir, step, total)
    return _fitted(recipe, config, np.shape(example)[1:], state)


def _fitted(
    recipe: Recipe, config: Config, shape: tuple[int, ...], state: TrainState, history: Sequence[Metrics] = ()
) -> Fitted:
    """The network that is certified, of the last state."""
    variables, config = state.variables, config.copy_and_resolve_references()
    if config.round_to:
        variables = models.rounded(variables, config.round_to)
    return Fitted(recipe.model.module(variables), config, variables, shape, state, list(history))


def _checked_teacher(
    config: Config, network: Functional, teacher: Callable | None, images: np.ndarray, crop: int
) -> Callable[[jax.Array], jax.Array] | None:
    """What the losses learn from, which gives the logits that the network gives."""
    if not (pupils := [norm for norm, loss in config.losses.items() if loss.kind == "distilled"]):
        return None
    name = f"config.losses.{pupils[0]} is distilled, and the teacher"
    if teacher is None:
        raise ValueError(
            f"{name} is missing; expected fit(..., teacher=f), f the logits of one example by a robust network. In a "
            "command, name a work directory or a pretrained network: --config.teacher=digits/linf."
        )
    batch = jax.eval_shape(as_pixels, center_crop(images[:1], crop))
    variables = jax.eval_shape(network.init, jax.random.key(0), batch)
    expected = jax.eval_shape(network.apply, variables, batch).shape[1:]
    try:
        given = jax.eval_shape(teacher, jax.ShapeDtypeStruct(batch.shape[1:], batch.dtype)).shape
    except TypeError as error:
        raise ValueError(f"{name} refuses an image of shape {batch.shape[1:]}: {error}") from error
    if given != expected:
        raise ValueError(f"{name} gives {given} for one image; expected logits {expected}. Choose another one.")
    return teacher


def _first_state(
    config: Config, recipe: Recipe, example: np.ndarray, workdir: str | os.PathLike | None
) -> tuple[TrainState, dict[str, Any] | None]:
    """The initial state, and the variables that a fine-tuning begins from."""
    try:
        state = initial_state(config, recipe, example)
    except CheckpointError as error:
        if workdir is None or not saved_steps(workdirs.as_path(workdir) / "checkpoints"):
            raise
        _LOGGER.warning("Resuming without what start_from names (%s)", error)
        return initial_state(config, recipe, example, start=False), None
    return state, state.variables if config.start_from else None


def initial_state(config: Config, recipe: Recipe, example: np.ndarray | jax.Array, *, start: bool = True) -> TrainState:
    """The state before the first step, a function of `config.seed` and, if `start`, of the network of `start_from`."""
    key = jax.random.key(config.seed)
    init_key, ibp_key, vector_key, run_key = jax.random.split(key, 4)
    pixels = as_pixels(jnp.asarray(example))
    variables = jax.jit(functional(recipe.model).init)(init_key, pixels)
    params = variables["params"]
    if config.initialization == "ibp":
        params = ibp_init(recipe.model, params, ibp_key, pixels)
    if start and config.start_from:
        variables = load_variables(config.start_from, variables)
        params = variables["params"]
    vectors: tuple[jax.Array, ...] = ()
    if recipe.needs_lipschitz:
        f = classifier(recipe.model, {**variables, "params": params})
        vectors = initial_vectors(graphs.trace(f, pixels[0]), vector_key)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=variables.get("batch_stats", {}),
        opt_state=recipe.optimizer.init(params),
        key=run_key,
        vectors=vectors,
        average=params if recipe.average else None,
    )


def _check_origin(workdir: str | os.PathLike, metadata: Mapping[str, Any], origin: Mapping[str, str]) -> None:
    """A checkpoint knows what it was made from; those of earlier versions do not."""
    meanings = {"data_sha256": "was trained on other images or labels", "start_sha256": "began from other parameters"}
    for name, sha256 in origin.items():
        if (saved := metadata.get(name, sha256)) != sha256:
            raise workdirs.WorkdirError(
                f"The network in {workdir} {meanings[name]} (SHA-256 {saved[:12]}..., now {sha256[:12]}...); the same "
                "were expected. Choose another work directory, or give it what it began with. Nothing was changed."
            )


def _prepared(network: Functional, data: Arrays, crop: int) -> Arrays:
    """Checked images and labels; uint8 images stay uint8, a quarter of the memory."""
    images, labels = np.asarray(data[0]), np.asarray(data[1])
    example = jax.ShapeDtypeStruct((1, *((crop, crop) if crop else images.shape[1:3]), *images.shape[3:]), np.float32)
    checked, labels = validate(images, labels, check_network(network, example))
    return images if images.dtype == np.uint8 else checked, labels


class _Files(NamedTuple):
    """What a training writes in its work directory."""

    lock: Lock
    checkpoints: Checkpoints
    writer: MetricWriter


@dataclasses.dataclass(frozen=True)
class _Trainer:
    """One training run; everything but the state."""

    config: Config
    recipe: Recipe
    data: Arrays
    validation: Arrays | None
    total: int
    workdir: str | os.PathLike | None
    start: dict[str, Any] | None

    @functools.cached_property
    def origin(self) -> dict[str, str]:
        """Digests of the data, and of the variables that a fine-tuning begins from."""
        parts = {"data_sha256": self.data} | ({} if self.start is None else {"start_sha256": self.start})
        return {name: distributed.digest(part).hex() for name, part in parts.items()}

    @functools.cached_property
    def interface(self) -> dict[str, Any]:
        """What the network takes and gives, and whether `models.create` makes it of the config: for `finished.load`."""
        network, shape = self.recipe.model, center_crop(self.data[0][:1], self.config.augmentation.crop).shape
        images = jax.ShapeDtypeStruct(shape, np.float32)
        variables = jax.eval_shape(network.init, jax.random.key(0), images)
        num_classes = jax.eval_shape(network.apply, variables, images).shape[1]
        by_name = _is_made_of(self.config, network, num_classes)
        return {"example_shape": list(shape[1:]), "num_classes": num_classes, "model_by_name": by_name}

    def run(self, state: TrainState, files: _Files | None) -> Fitted:
        compiled = self._compiled()
        # On the device once and for all, or the part of each process run by run.
        images, labels = jax.device_put(self.data) if jax.process_count() == 1 else self.data
        history: list[Metrics] = []
        step, watch = int(state.step), watch_for_collapse(self.data[1])
        listen = notices() if files is not None else contextlib.nullcontext(lambda steps: False)
        bars = progress(self.total, "train", start=step, batch_size=self.config.batch_size)
        with listen as told_to_stop, bars as bar, self._profiler() as profile, compile_seconds() as compiling:
            if step < self.total:
                bar.begin("compiling")
            while step < self.total:
                # Runs end at multiples of scan_steps, so that a resumed training is cut up like an undisturbed one.
                count = min(self.config.scan_steps, self.total - step)
                profile(range(step, step + count))
                state, metrics = compiled(state, images, labels, self._rows(step, count))
                record = _summary(metrics, step)
                if not history:
                    _LOGGER.info("Compiled in %.1f seconds%s.", compiling(), device_memory(", device memory "))
                due = (step + count) // self.config.checkpoint_every > step // self.config.checkpoint_every
                stop = told_to_stop(range(step + 1, step + count + 1))
                step += count
                if files is not None:
                    files.lock.check()
                if self.workdir is not None and not history:
                    # Only now: a config that fails before has to be changed, and would not be accepted any more.
                    workdirs.write_config(self.workdir, self.config.to_dict())
                history.append({"step": step, **record})
                watch(history)
                if step == self.total:
                    state, due = self._finished(state), True
                if due and self.validation is not None:
                    history[-1]["validation_accuracy"] = self._accuracy(state, self.validation)
                self._record(state, history[-1], due or stop, files)
                bar.advance(count, loss=record["loss"])
                if files is not None and (stop or step == self.total):
                    # Still listening: what is saved last is saved to its end.
                    files.checkpoints.close()
                    if step < self.total:
                        raise Preempted(step)
        state = jax.device_get(distributed.local(state))
        return _fitted(self.recipe, self.config, tuple(self.interface["example_shape"]), state, history)

    def _finished(self, state: TrainState) -> TrainState:
        """What is certified: the averaged parameters, if any, and the statistics of BatchNorm that belong to them."""
        state = with_average(state)
        if not (self.config.population_statistics and state.batch_stats):
            return state
        images, size = center_crop(self.data[0], self.config.augmentation.crop), self.config.batch_size
        starts = range(0, len(images) - size + 1, size)
        batches = (as_pixels(jnp.asarray(images[start : start + size])) for start in starts)
        statistics = population_statistics(self.recipe.model, distributed.local(state.variables), batches)
        return dataclasses.replace(state, batch_stats=statistics)

    def _profiler(self) -> contextlib.AbstractContextManager[Callable[[range], None]]:
        span = tuple(self.config.profile_steps)
        if not span or self.workdir is None or jax.process_index() > 0:
            return contextlib.nullcontext(lambda steps: None)
        return profiled(os.fspath(workdirs.as_path(self.workdir) / "profile"), *span)

    def _compiled(self) -> Run:
        mode = self.config.parallel
        if mode == "auto":
            mode = "jit" if jax.device_count() == 1 else "shard_map"
        return compile_steps(self.recipe, mode)

    def _rows(self, step: int, count: int) -> np.ndarray:
        size, batch, seed = len(self.data[0]), self.config.batch_size, self.config.seed
        return np.stack([batch_indices(seed, step + i, size, batch) for i in range(count)])

    def _record(self, state: TrainState, record: dict[str, float | int], save: bool, files: _Files | None) -> None:
        if files is None:
            return
        step = int(record["step"])
        files.writer.write(step, {name: value for name, value in record.items() if name != "step"})
        if save:
            metadata = {
                "validation_accuracy": record.get("validation_accuracy"),
                "total_steps": self.total,
                **self.interface,
                **self.origin,
            }
            files.checkpoints.save(step, state, metadata)

    def _accuracy(self, state: TrainState, data: Arrays) -> float:
        predictions = _predictions(classifier(self.recipe.model, distributed.local(state.variables)), data[0])
        return float(np.mean(jax.device_get(predictions) == data[1]))


@jax.jit
def _predictions(f: jax.tree_util.Partial, images: jax.Array) -> jax.Array:
    """Classes, computed in batches: a whole split at once needs gigabytes."""
    return jax.lax.map(lambda image: jnp.argmax(f(as_pixels(image))), images, batch_size=_VALIDATION_BATCH)


def _is_made_of(config: Config, network: Functional, num_classes: int) -> bool:
    """Whether `models.create` makes this very module of the config, which need not name it."""
    try:
        return functional(models.create(config.model.name, num_classes, **config.model.options.to_dict())) == network
    except (ValueError, TypeError):
        return False


def _summary(metrics: dict[str, jax.Array], first_step: int) -> dict[str, float]:
    """Means over a run of steps; a loss that is not finite stops the training."""
    values = jax.device_get(metrics)
    bad = ~(np.isfinite(values["loss"]) & np.isfinite(values["gradient_norm"]))
    if bad.any():
        index = int(np.argmax(bad))
        loss, norm = float(values["loss"][index]), float(values["gradient_norm"][index])
        raise TrainingDiverged(
            f"The loss at step {first_step + index} is {loss} (gradient norm {norm}); expected finite numbers. Nothing "
            "of this run of steps was saved: lower learning_rate or lengthen the ramp (ramp_end), in another work "
            "directory."
        )
    return {name: float(np.mean(value)) for name, value in values.items()} | {
        "radius_scale": float(values["radius_scale"][-1])
    }
