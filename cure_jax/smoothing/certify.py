"""Certificates and predictions of smoothed classifiers: an experiment on the device, its evaluation on the host."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jax.typing import ArrayLike

from cure_jax.certification.batches import as_pytree, check_divides, shown
from cure_jax.smoothing.certificate import ABSTAIN, DatasetSmoothing, SmoothedCertificate
from cure_jax.smoothing.confidence import check_alpha, is_top, lower_confidence
from cure_jax.smoothing.counting import Model, count_all
from cure_jax.smoothing.noise import AdditiveNoise, on_grid
from cure_jax.smoothing.splitting import SplittingNoise
from cure_jax.validation import validate

__all__ = ["certify", "certify_dataset", "predict"]

_MOST_SAMPLES = 2**30


def certify(  # noqa: PLR0913  (what an experiment is made of)
    f: Model,
    x: ArrayLike,
    noise: AdditiveNoise | SplittingNoise,
    key: jax.Array | None = None,
    *,
    n0: int = 100,
    n: int = 10_000,
    alpha: float = 0.001,
    samples_at_once: int = 100,
) -> SmoothedCertificate:
    """Certifies the smoothed classifier at one example (CERTIFY of Cohen et al.).

    The class is the most frequent one of n0 noisy views. n fresh views give a lower Clopper-Pearson limit p of its
    probability, and p a radius; where p is at most 1/2 it abstains.

    Args:
      f: the base classifier, one example `[*x]` to logits `[classes]`; any function, no bound looks into it. Trained
        with the same noise it does best. A `Partial` of a pure function is compiled once for all parameters.
      x: `[*x]`, pixels in [0, 1] that are multiples of 1/noise.levels, or uint8.
      noise: `gaussian(sigma)` certifies in l_2, `uniform(half_width)`, `laplace(scale)` and `splitting(half_width)` in
        l_1; other norms by `SmoothedCertificate.radius_in`.
      key: of the views; `splitting` needs none.
      n0: views that choose the class.
      n: fresh views that estimate.
      alpha: probability that the certificate is wrong, at most.
      samples_at_once: views in one step on the device; bounds its memory.

    Returns:
      The certificate; from `splitting` one with alpha 0, for which n0, n and alpha that are given do not count.

    Raises:
      ValueError: if the image is not finite, out of [0, 1] or off the grid, n0 or n is below 1, alpha is not in (0, 1),
        or there is no key.

    Soundness:
      With probability 1 - alpha over the views (0 errors for `splitting`), prediction ABSTAIN or: the smoothed
      classifier, as `cure_jax.smoothing.noise` defines it, says `prediction` at every point within `radius`. The base
      classifier is the function that the compiled program computes, rounding included, so rounding of the network
      breaks nothing as long as the program gives the same class to the same view. Random bits are those of JAX's
      generator, which is taken for a fair one. For `splitting`: at every point of its grid within `radius`.

    Examples:
      >>> import jax, jax.numpy as jnp, cure_jax as cj
      >>> f = lambda x: jnp.stack([x[0], 1 - x[0]])  # the boundary is x[0] = 1/2, at a distance of 0.3
      >>> certificate = cj.smoothing.certify(f, jnp.array([0.8, 0.2]), cj.smoothing.gaussian(0.25), jax.random.key(0))
      >>> int(certificate.prediction), round(float(certificate.radius), 3)
      (0, 0.296)

    References:
      Cohen et al., ICML 2019, Section 3.2.2 and Proposition 2; grids: Voracek and Hein, `Sound Randomized Smoothing in
      Floating-Point Arithmetic <https://arxiv.org/abs/2207.07209>`_, ICLR 2023
    """
    images, _ = _checked(f, np.asarray(x)[None], np.zeros(1, np.int32))
    estimated = _experiment(f, images, noise, key, n0=n0, n=n, alpha=alpha, samples_at_once=samples_at_once)
    parts = {name: getattr(estimated, name)[0] for name in ("prediction", "radius", "probability")}
    arrays = {name: np.asarray(part) for name, part in parts.items()}
    return SmoothedCertificate(
        **arrays, noise=noise, size=estimated.size, alpha=estimated.alpha, n0=estimated.n0, n=estimated.n
    )


def certify_dataset(  # noqa: PLR0913  (the options of a long-running job)
    f: Model,
    images: np.ndarray,
    labels: np.ndarray,
    noise: AdditiveNoise | SplittingNoise,
    key: jax.Array | None = None,
    *,
    n0: int = 100,
    n: int = 10_000,
    alpha: float = 0.001,
    simultaneous: bool = False,
    samples_at_once: int = 100,
    batch_size: int = 16,
    mesh: Mesh | None = None,
    show_progress: bool | None = None,
) -> DatasetSmoothing:
    """Certifies the smoothed classifier at many examples.

    Args:
      f: as for `certify`.
      images: `[examples, *x]`, pixels in [0, 1] that are multiples of 1/noise.levels, or uint8.
      labels: `[examples]`, integers in [0, classes).
      noise: as for `certify`.
      key: of the experiment; each example has views of its own.
      n0: as for `certify`.
      n: as for `certify`.
      alpha: probability of error, for each example alone or for all of them.
      simultaneous: alpha is that any of all the certificates is wrong: each of them gets alpha / examples (a union
        bound). By default it is the error of each alone, as is usual in tables.
      samples_at_once: views of each example in one step on the device.
      batch_size: examples at once; memory holds batch_size * samples_at_once views. With a mesh, a multiple of its
        number of devices.
      mesh: a one-dimensional mesh over whose devices, of one process or several, each batch is divided
        (`cure_jax.distributed.mesh_of_all`).
      show_progress: whether to show how many examples are done; default: on a terminal and in a notebook.

    Returns:
      Certificates in the order of the examples, from the same views whatever `batch_size`, `samples_at_once` and
      `mesh`.

    Raises:
      ValueError: as `certify`, for labels out of range or not as many as images, or a batch that does not divide over
        the devices.

    Soundness:
      As `certify`. An example on which it abstains counts as an error.
    """
    images, labels = _checked(f, images, labels)
    check_divides(batch_size, mesh)
    check_alpha(alpha)
    options: dict[str, Any] = {"batch_size": batch_size, "mesh": mesh, "samples_at_once": samples_at_once}
    share = alpha / len(images) if simultaneous else alpha
    with shown(len(images), "smooth", show_progress) as advance:
        done = lambda count: advance("votes", count)  # noqa: E731
        certificate = _experiment(f, images, noise, key, n0=n0, n=n, alpha=share, advance=done, **options)
    return DatasetSmoothing(certificate, labels, simultaneous)


def predict(  # noqa: PLR0913  (what an experiment is made of)
    f: Model,
    x: ArrayLike,
    noise: AdditiveNoise | SplittingNoise,
    key: jax.Array | None = None,
    *,
    n: int = 1000,
    alpha: float = 0.001,
    samples_at_once: int = 100,
) -> int:
    """What the smoothed classifier says, or ABSTAIN (PREDICT of Cohen et al.).

    Args:
      f: as for `certify`, and so are the others.
      x: the example.
      noise: of the smoothed classifier.
      key: of the views.
      n: views.
      alpha: probability that it is a class other than that of the smoothed classifier, at most.
      samples_at_once: views in one step on the device.

    Raises:
      ValueError: as `certify`.

    References:
      Cohen et al., ICML 2019, Section 3.2.1 and Proposition 1
    """
    images, _ = _checked(f, np.asarray(x)[None], np.zeros(1, np.int32))
    check_alpha(alpha)
    if isinstance(noise, SplittingNoise):
        (votes,) = _votes(f, images, noise, key, (noise.count,), samples_at_once=samples_at_once)
        return int(_argmax(votes)[0])
    (votes,) = _votes(f, images, noise, key, (n,), samples_at_once=samples_at_once)
    # Views without a vote are a class of their own, which is never said.
    counts = np.append(votes[0], n - votes[0].sum())
    certain = is_top(counts, alpha, noise.error(images[0].size)) and np.argmax(counts) < votes.shape[1]
    return int(np.argmax(counts)) if certain else ABSTAIN


def _experiment(  # noqa: PLR0913  (what an experiment is made of)
    f: Model,
    images: np.ndarray,
    noise: AdditiveNoise | SplittingNoise,
    key: jax.Array | None,
    *,
    n0: int,
    n: int,
    alpha: float,
    **options: Any,
) -> SmoothedCertificate:
    check_alpha(alpha)
    size = images[0].size
    if isinstance(noise, SplittingNoise):
        (votes,) = _votes(f, images, noise, key, (noise.count,), **options)
        prediction = _argmax(votes)
        radius = np.where(prediction == ABSTAIN, 0.0, noise.radius(votes))
        return SmoothedCertificate(
            prediction, radius, votes.max(axis=1) / noise.count, noise, size, 0.0, noise.count, noise.count
        )
    chosen, votes = _votes(f, images, noise, key, (n0, n), **options)
    prediction = _argmax(chosen)
    successes = np.take_along_axis(votes, np.maximum(prediction, 0)[:, None], axis=1)[:, 0]
    probability = np.maximum(lower_confidence(successes, n, alpha) - noise.error(size), 0.0)
    prediction = np.where(probability > 0.5, prediction, ABSTAIN)
    radius = np.where(prediction == ABSTAIN, 0.0, noise.radius(probability))
    return SmoothedCertificate(prediction, radius, probability, noise, size, alpha, n0, n)


def _votes(  # noqa: PLR0913  (what an experiment is made of)
    f: Model,
    images: np.ndarray,
    noise: AdditiveNoise | SplittingNoise,
    key: jax.Array | None,
    counts: tuple[int, ...],
    *,
    samples_at_once: int = 100,
    batch_size: int = 1,
    mesh: Mesh | None = None,
    advance: Callable[[int], None] = lambda count: None,
) -> list[np.ndarray]:
    """Votes `[examples, classes]` of several experiments, each with views of its own; tells what the last one did."""
    names = ("n",) if len(counts) == 1 else ("n0", "n")
    at_once = {"samples_at_once": samples_at_once, "batch_size": batch_size}
    for name, count in [*zip(names, counts, strict=True), *at_once.items()]:
        if not 1 <= count <= _MOST_SAMPLES:
            raise ValueError(f"{name} is {count}; expected a number from 1 to {_MOST_SAMPLES}. Change it.")
    if key is None:
        if not isinstance(noise, SplittingNoise):
            raise ValueError(f"Got no key for {noise.kind} noise; expected one. Pass e.g. jax.random.key(0).")
        key = jax.random.key(0)
    levels, f = on_grid(images, noise.levels), as_pytree(f)
    told = [lambda count: None] * (len(counts) - 1) + [advance]
    return [
        count_all(f, levels, noise, jax.random.fold_in(key, index), count, mesh=mesh, advance=tell, **at_once)
        for index, (count, tell) in enumerate(zip(counts, told, strict=True))
    ]


def _argmax(votes: np.ndarray) -> np.ndarray:
    """The class of most votes, ABSTAIN where there is none."""
    return np.where(votes.max(axis=1) > 0, np.argmax(votes, axis=1), ABSTAIN)


def _checked(f: Model, images: Any, labels: Any) -> tuple[np.ndarray, np.ndarray]:
    """Images as floats, labels as int32, or ValueError with what is wrong with them."""
    logits = jax.eval_shape(f, jax.ShapeDtypeStruct(np.shape(images)[1:], np.float32))
    if len(logits.shape) != 1 or logits.shape[0] < 2:
        raise ValueError(
            f"The base classifier returns an array of shape {logits.shape}; expected logits of at least two classes. "
            "Give a function of one example."
        )
    return validate(images, labels, logits.shape[0])
