"""Attacks beyond norms, for one example: the worst parameters, the worst patch of all positions, greedy pixels.

What they find bounds from above what can be certified; `attack_dataset` asks them about many examples.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Integer, Key

from cure_jax.attacks import pgd
from cure_jax.perturbations.geometric import Geometric
from cure_jax.perturbations.patch import Patch
from cure_jax.regions import Box, L0Ball, Region
from cure_jax.validation import as_class

__all__ = ["geometric_attack", "patch_attack", "pixel_attack"]

# Of the first look at all positions: from a random content, each pixel to the end that its gradient names, twice.
_FIRST_STEPS, _WHOLE_STEP = 2, 2.0
_AT_ONCE = 64
# A pixel of more channels has too many corners to try all of them.
_MOST_CHANNELS = 6


def geometric_attack(  # noqa: PLR0913  (what is attacked, and how thoroughly)
    f: Callable[[Float[Array, "*x"]], Float[Array, "classes"]],
    x: Float[Array, "*x"],
    label: int | Integer[Array, ""],
    perturbation: Geometric,
    *,
    key: Key[Array, ""],
    grid: int = 1000,
    steps: int = 20,
    restarts: int = 2,
) -> Float[Array, " parameters"]:
    """Returns the most harmful parameters found: a grid, and gradients from the worst of it.

    The margin has many local minima in an angle, so a grid goes first. Then projected gradient descent searches the
    whole box of parameters, and the surroundings of the worst point of the grid. Wrap calls in `jax.jit`.

    Args:
      f: the network, from one example to its logits.
      x: the clean example.
      label: the class to be driven away from; may be traced.
      perturbation: the set of perturbed images.
      key: the randomness of the first parameters.
      grid: how many parameters there are on the grid, about; the ends of every interval are among them.
      steps: of `pgd`, for each restart.
      restarts: random starts, in the box and around the worst point each.

    Returns:
      Parameters of `perturbation.apply`.

    Raises:
      ValueError: if grid, steps or restarts are not positive.
    """
    if grid < 1:
        raise ValueError(f"grid is {grid}; expected at least 1: raise it.")
    whole = perturbation.parameters(x.dtype)
    along = max(2, round(grid ** (1 / len(perturbation.kinds))))
    axes = [jnp.linspace(low, high, along) for low, high in zip(whole.lower, whole.upper, strict=True)]
    points = jnp.stack([axis.ravel() for axis in jnp.meshgrid(*axes, indexing="ij")], axis=-1)

    def perturbed(theta: Array) -> Array:
        return f(perturbation.apply(x, theta))

    on_grid = lax.map(lambda theta: _harm(perturbed, theta, label), points, batch_size=_AT_ONCE)
    start, step = points[jnp.argmax(on_grid)], (whole.upper - whole.lower) / (along - 1)
    around = Box(whole.project(start - step), whole.project(start + step))
    search = functools.partial(pgd, perturbed, start, label, steps=steps, restarts=restarts, loss="margin")
    candidates = jnp.stack([start, *(search(region, key=key) for region in (around, whole))])
    return candidates[jnp.argmax(jax.vmap(lambda theta: _harm(perturbed, theta, label))(candidates))]


def patch_attack(  # noqa: PLR0913  (what is attacked, and how thoroughly)
    f: Callable[[Float[Array, "*x"]], Float[Array, "classes"]],
    x: Float[Array, "*x"],
    label: int | Integer[Array, ""],
    patch: Patch,
    *,
    key: Key[Array, ""],
    steps: int = 20,
    restarts: int = 2,
    finalists: int = 8,
) -> Float[Array, "*x"]:
    """Returns the image with the most harmful patch found: gradient ascent on the content at every position.

    All positions are looked at with a few steps, the most promising ones are attacked in earnest. Wrap calls in
    `jax.jit`.

    Args:
      f: the network, from one example to its logits.
      x: the clean example.
      label: the class to be driven away from; may be traced.
      patch: the size of the window and the range of its pixels.
      key: the randomness of the first contents.
      steps: of `pgd` at each of the best positions.
      restarts: the same.
      finalists: how many positions are attacked in earnest.

    Returns:
      x outside of one window; x itself if nothing lowers the margin.

    Raises:
      ValueError: if x is smaller than the patch; steps, restarts or finalists not positive.
    """
    if finalists < 1:
        raise ValueError(f"finalists is {finalists}; expected at least 1 position to attack in earnest: raise it.")
    rows, columns = patch.positions(x.shape)
    count = rows * columns

    def region(position: Array) -> Region:
        place = jnp.stack([position // columns, position % columns]).astype(x.dtype)
        return patch.inputs(x, jnp.concatenate([place, jnp.ones(2, x.dtype)])).region

    def look(position: Array) -> Array:
        own = jax.random.fold_in(key, position)
        found = pgd(f, x, label, region(position), key=own, steps=_FIRST_STEPS, step_size=_WHOLE_STEP, loss="margin")
        return _harm(f, found, label)

    def attack(position: Array) -> tuple[Array, Array]:
        own = jax.random.fold_in(key, count + position)
        found = pgd(f, x, label, region(position), key=own, steps=steps, restarts=restarts, loss="margin")
        return _harm(f, found, label), found

    harms = lax.map(look, jnp.arange(count, dtype=jnp.int32), batch_size=min(_AT_ONCE, count))
    best = lax.top_k(harms, min(finalists, count))[1]
    harms, points = lax.map(attack, best.astype(jnp.int32), batch_size=len(best))
    return points[jnp.argmax(harms)]


def pixel_attack(
    f: Callable[[Float[Array, "*x"]], Float[Array, "classes"]],
    x: Float[Array, "*x"],
    label: int | Integer[Array, ""],
    region: L0Ball,
) -> Float[Array, "*x"]:
    """Returns the image with the most harmful pixels, chosen one after the other among all corners of their boxes.

    The first one is the best of all pixels at an end of its range, in each channel; so for k = 1 nothing at these ends
    is missed. Wrap calls in `jax.jit`.

    Args:
      f: the network, from one example to its logits.
      x: the clean example, the center of the region.
      label: the class to be driven away from; may be traced.
      region: from `l0_ball`.

    Returns:
      A point of the region; x itself if nothing lowers the margin.

    Raises:
      ValueError: if a pixel has more than 6 channels that count as one.
    """
    channels = region.channels
    if channels > _MOST_CHANNELS:
        raise ValueError(
            f"pixel_attack got pixels of {channels} channels; expected at most {_MOST_CHANNELS}, as it tries all "
            "combinations of their ends: use cure_jax.pgd on the region."
        )
    lower, upper = (end.reshape(-1, channels) for end in (region.lower, region.upper))
    corners = 2**channels

    def moved(point: Array, choice: Array) -> Array:
        pixel, corner = choice // corners, choice % corners
        up = (corner >> jnp.arange(channels, dtype=jnp.int32)) & 1
        value = jnp.where(up > 0, upper[pixel], lower[pixel])
        return point.reshape(-1, channels).at[pixel].set(value).reshape(x.shape)

    def step(point: Array, _: None) -> tuple[Array, None]:
        choices = jnp.arange(len(lower) * corners, dtype=jnp.int32)
        harms = lax.map(lambda choice: _harm(f, moved(point, choice), label), choices, batch_size=_AT_ONCE)
        best = jnp.argmax(harms)
        better = harms[best] > _harm(f, point, label)
        return jnp.where(better, moved(point, choices[best]), point), None

    return lax.scan(step, x, None, length=region.k)[0]


def _harm(f: Callable[[Array], Array], point: Array, label: int | Array) -> Array:
    """Minus the margin; -inf for what is not a number."""
    logits = f(point)
    own = jnp.arange(logits.size, dtype=jnp.int32) == as_class(label)
    harm = jnp.max(jnp.where(own, -jnp.inf, logits)) - jnp.sum(jnp.where(own, logits, 0))
    return jnp.where(jnp.isnan(harm), -jnp.inf, harm)
