"""Attacks: gradient searches for the worst point of a region, for one example; `jax.vmap` gives batches.

They reach a region only through `sample`, `project` and `steepest`, so that they hold for every norm, with and without
a box. What they find bounds the robustness of a network from above, as a certificate bounds it from below.
"""

import itertools
import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Integer, Key

from cure_jax.regions import Box, L0Ball, LpBall, Region
from cure_jax.regions.region import check_region
from cure_jax.validation import as_class, check_logits

Loss = Literal["cross_entropy", "margin", "dlr"]


class _Found(NamedTuple):
    """The best point so far, and its loss with NaN as -inf."""

    point: Array
    score: Array


def pgd(  # noqa: PLR0913 - four things to attack, and the options of every published attack
    f: Callable[[Float[Array, "*x"]], Float[Array, "classes"]],
    x: Float[Array, "*x"],
    label: int | Integer[Array, ""],
    region: Region,
    *,
    key: Key[Array, ""],
    steps: int = 8,
    restarts: int = 1,
    step_size: float | None = None,
    loss: Loss = "cross_entropy",
) -> Float[Array, "*x"]:
    """Projected gradient ascent from random starts: x <- project(x + size * steepest(gradient of the loss at x)).

    Every iterate is a point of the region. Of all iterates, starts and the clean x included, the one with the highest
    loss is returned; a NaN loss counts as the lowest. Sizes fall by 10 at 50 %, 80 % and 90 % of the steps. Wrap calls
    in `jax.jit`. Gradients do not flow through the result; in training, stop those of the parameters in f as well, or
    JAX differentiates the search before it drops the outcome.

    Args:
        f: the network, from one example to its logits.
        x: the clean example, pixels in [0, 1].
        label: the class to be driven away from; may be traced.
        region: where to search.
        key: the randomness of the starts; the same key gives the same result.
        steps: gradient steps of each restart.
        restarts: random starts; the first ones are the same whatever their number, so that more are never weaker.
        step_size: size of a step relative to the radius of the region; None: 0.5 for l_inf, 0.2 for l_2, 1 for
            l_0, else 0.3.
        loss: "cross_entropy", "margin" (largest other logit minus that of the label; above 0 it is misclassified) or
            "dlr", the margin divided by the gap of the largest and the third logit.

    Returns:
        A point of the region, as `region.project` returns it.

    Raises:
        TypeError: `region` is none, or f does not return an array.
        ValueError: steps, restarts or step_size not positive, an unknown loss, or f does not return two logits or more.

    References:
        Madry et al., Towards deep learning models resistant to adversarial attacks (ICLR 2018), section 2.1; the sizes
        are those of CURE (Jiang et al., arXiv 2410.03000) and SABR (Mueller et al., ICLR 2023).
    """
    check_region(region, "pgd")
    size = _default_step_size(region) if step_size is None else step_size
    _check_options(steps, restarts, size)
    objective = _objective(f, label, loss)
    fraction = np.arange(steps) / steps
    sizes = jnp.asarray(size * 0.1 ** np.sum([fraction >= at for at in (0.5, 0.8, 0.9)], axis=0), x.dtype)

    def climb(state: tuple[Array, _Found], size: Array) -> tuple[tuple[Array, _Found], None]:
        point, best = state
        score, gradient = _score_and_gradient(objective, point)
        moved = region.project(point + size * region.steepest(point, gradient))
        return (moved, _better(best, _Found(point, score))), None

    def search(start: Array) -> _Found:
        (last, best), _ = lax.scan(climb, (start, _nothing(objective, start)), sizes)
        return _better(best, _Found(last, _score(objective, last)))

    return _best_of_restarts(search, objective, x, region, key, restarts)


class _Momentum(NamedTuple):
    """The state of APGD: the last two iterates, the best one, and what happened since the last checkpoint."""

    point: Array
    previous: Array
    score: Array
    best: _Found
    best_gradient: Array
    step_size: Array
    increases: Array
    halved: Array
    best_score_then: Array


def apgd(  # noqa: PLR0913 - the signature of pgd
    f: Callable[[Float[Array, "*x"]], Float[Array, "classes"]],
    x: Float[Array, "*x"],
    label: int | Integer[Array, ""],
    region: Region,
    *,
    key: Key[Array, ""],
    steps: int = 100,
    restarts: int = 1,
    step_size: float | None = None,
    loss: Loss = "margin",
) -> Float[Array, "*x"]:
    """Auto-PGD: projected gradient ascent with momentum that finds its own step size.

    The step size starts at twice the radius. At checkpoints, ever closer to each other, it is halved and the search
    goes back to the best point where fewer than 75 % of the steps since the last checkpoint raised the loss, or where
    neither the size nor the best loss changed. Stronger than `pgd` where many steps can be afforded.

    Args:
        f: the network, from one example to its logits.
        x: the clean example, pixels in [0, 1].
        label: the class to be driven away from; may be traced.
        region: where to search.
        key: the randomness of the starts.
        steps: gradient steps of each restart.
        restarts: random starts, see `pgd`.
        step_size: the first step size, relative to the radius of the region; None: 2.
        loss: see `pgd`.

    Returns:
        A point of the region, see `pgd`.

    Raises:
        ValueError: see `pgd`.

    References:
        Croce & Hein, Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free attacks
        (ICML 2020), algorithm 1, equations (1) to (3) and, for the dlr loss, (6).
    """
    check_region(region, "apgd")
    size = 2.0 if step_size is None else step_size
    _check_options(steps, restarts, size)
    objective = _objective(f, label, loss)
    windows = jnp.asarray(_checkpoint_windows(steps), x.dtype)
    # The first step is whole, as there is nothing yet to go on with.
    shares = jnp.full(steps, 0.75, x.dtype).at[0].set(1)

    def climb(state: _Momentum, at: tuple[Array, Array]) -> tuple[_Momentum, None]:
        window, share = at
        state, gradient = _observe(state, *_score_and_gradient(objective, state.point), window)
        target = region.project(state.point + state.step_size * region.steepest(state.point, gradient))
        onward = share * (target - state.point) + (1 - share) * (state.point - state.previous)
        moved = region.project(state.point + onward)
        return state._replace(point=moved, previous=state.point), None

    def search(start: Array) -> _Found:
        nothing = _nothing(objective, start)
        first = _Momentum(
            point=start,
            previous=start,
            score=-nothing.score,
            best=nothing,
            best_gradient=jnp.zeros_like(start),
            step_size=jnp.asarray(size, x.dtype),
            increases=jnp.zeros((), x.dtype),
            halved=jnp.zeros((), bool),
            best_score_then=nothing.score,
        )
        last, _ = lax.scan(climb, first, (windows, shares))
        return _better(last.best, _Found(last.point, _score(objective, last.point)))

    return _best_of_restarts(search, objective, x, region, key, restarts)


def _observe(state: _Momentum, score: Array, gradient: Array, window: Array) -> tuple[_Momentum, Array]:
    """Enter the loss at the point into the state; at a checkpoint (window > 0) halve and go back if it stalls."""
    improved = score > state.best.score
    best = _better(state.best, _Found(state.point, score))
    best_gradient = jnp.where(improved, gradient, state.best_gradient)
    increases = state.increases + (score > state.score).astype(window.dtype)
    checkpoint = window > 0
    idle = ~state.halved & (best.score == state.best_score_then)
    stalled = checkpoint & ((increases < 0.75 * window) | idle)
    seen = _Momentum(
        point=jnp.where(stalled, best.point, state.point),
        previous=jnp.where(stalled, best.point, state.previous),
        score=jnp.where(stalled, best.score, score),
        best=best,
        best_gradient=best_gradient,
        step_size=jnp.where(stalled, state.step_size / 2, state.step_size),
        increases=jnp.where(checkpoint, 0, increases),
        halved=jnp.where(checkpoint, stalled, state.halved),
        best_score_then=jnp.where(checkpoint, best.score, state.best_score_then),
    )
    return seen, jnp.where(stalled, best_gradient, gradient)


def _checkpoint_windows(steps: int) -> np.ndarray:
    """Return for each step the number of steps since the last checkpoint if it is one, else 0; equation (2)."""
    places, place, gap = {0}, 0.22, 0.22
    while place <= 1:
        places.add(math.ceil(place * steps))
        gap = max(gap - 0.03, 0.06)
        place += gap
    windows = np.zeros(steps + 1)
    for before, after in itertools.pairwise(sorted(places)):
        windows[after] = after - before
    return windows[:steps]


def _objective(
    f: Callable[[Float[Array, "*x"]], Float[Array, "classes"]], label: int | Integer[Array, ""], loss: Loss
) -> Callable[[Array], Array]:
    """Return x -> the loss to be raised."""
    if loss not in ("cross_entropy", "margin", "dlr"):
        raise ValueError(f"loss is {loss!r}; expected 'cross_entropy', 'margin' or 'dlr': give one of them.")

    def objective(x: Array) -> Array:
        logits = f(x)
        check_logits(logits)
        least = 3 if loss == "dlr" else 2
        if logits.size < least:
            raise ValueError(
                f"f returns shape {logits.shape}; expected logits, at least {least} for loss {loss!r}: choose another."
            )
        is_label = jnp.arange(logits.size, dtype=jnp.int32) == as_class(label)
        others = jnp.where(is_label, -jnp.inf, logits)
        own = jnp.sum(jnp.where(is_label, logits, 0))
        if loss == "cross_entropy":
            # The usual form rounds to 0, with no gradient, for confident predictions; this one keeps it.
            return jax.nn.softplus(jax.nn.logsumexp(others) - own)
        margin = jnp.max(others) - own
        if loss == "margin":
            return margin
        top = lax.top_k(logits, 3)[0]
        gap = top[0] - top[2]
        return margin / jnp.where(gap > 0, gap, 1)

    return objective


def _score(objective: Callable[[Array], Array], point: Array) -> Array:
    """Return the loss, with -inf for NaN."""
    value = objective(point)
    return jnp.where(jnp.isnan(value), -jnp.inf, value)


def _score_and_gradient(objective: Callable[[Array], Array], point: Array) -> tuple[Array, Array]:
    """Return the loss, with -inf for NaN, and its gradient, with 0 for what is not finite."""
    value, gradient = jax.value_and_grad(objective)(point)
    finite = jnp.isfinite(gradient)
    return jnp.where(jnp.isnan(value), -jnp.inf, value), jnp.where(finite, gradient, 0)


def _nothing(objective: Callable[[Array], Array], start: Array) -> _Found:
    """Return the start with the loss -inf, which everything improves on."""
    return _Found(start, jnp.full((), -jnp.inf, jax.eval_shape(objective, start).dtype))


def _better(best: _Found, other: _Found) -> _Found:
    """Return the one with the higher loss, the first in a tie."""
    improved: Bool[Array, ""] = other.score > best.score
    return _Found(jnp.where(improved, other.point, best.point), jnp.where(improved, other.score, best.score))


def _best_of_restarts(
    search: Callable[[Array], _Found],
    objective: Callable[[Array], Array],
    x: Array,
    region: Region,
    key: Array,
    restarts: int,
) -> Array:
    """Return the best of the clean x and of the searches from random starts, one after the other."""

    def restart(best: _Found, index: Array) -> tuple[_Found, None]:
        return _better(best, search(region.sample(jax.random.fold_in(key, index)))), None

    clean = region.project(x)
    best, _ = lax.scan(restart, _Found(clean, _score(objective, clean)), jnp.arange(restarts))
    return lax.stop_gradient(best.point)


def _default_step_size(region: Region) -> float:
    """Return the step size of CURE for the norm of the region; whole steps for l_0, see `L0Ball.steepest`."""
    if isinstance(region, Box | L0Ball):
        return 0.5 if isinstance(region, Box) else 1.0
    return {math.inf: 0.5, 2.0: 0.2}.get(region.p, 0.3) if isinstance(region, LpBall) else 0.3


def _check_options(steps: int, restarts: int, step_size: float) -> None:
    """Raise where an option leaves nothing to search."""
    for name, value in (("steps", steps), ("restarts", restarts), ("step_size", step_size)):
        if not value > 0:
            raise ValueError(f"{name} is {value}; an attack needs a positive one: raise it.")
