"""The projection of perturbed digits onto an l_2 ball cut by the box of pixels, against a bisection.

`LpBall.project` finds the multiplier by Newton's method where all pixels have one radius; the reference is a plain
bisection of the same multiplier, in as many steps as float32 has digits.
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import cure_jax as cj
from cure_jax import data
from cure_jax.commands.benchmarks.timing import Check, Report, in_process, rows, take_turns

_BISECTION_STEPS = 30
_TOLERANCE = 1e-4


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Adds sizes."""
    command.add_argument("--batch", type=int, default=128, help="digits at once")
    command.add_argument("--eps", type=float, default=0.5, help="radius of the ball")
    command.add_argument("--noise", type=float, default=0.3, help="standard deviation of what is added to each pixel")


def run(options: argparse.Namespace) -> list[Report]:
    """Times both, in one vmapped program each."""
    images = jnp.asarray(data.load("digits", "test").images[: options.batch])
    points = images + options.noise * jax.random.normal(jax.random.key(options.seed), images.shape)

    def project(image: jax.Array, point: jax.Array) -> jax.Array:
        return cj.l2_ball(image, options.eps, within=(0.0, 1.0)).project(point)

    def bisected(image: jax.Array, point: jax.Array) -> jax.Array:
        return _bisected(image, point, options.eps)

    functions = {"bisection": jax.jit(jax.vmap(bisected)), "LpBall.project": jax.jit(jax.vmap(project))}
    taken = take_turns({name: in_process(f, images, points) for name, f in functions.items()}, options.rounds)
    ours, reference = (np.asarray(functions[name](images, points)) for name in ("LpBall.project", "bisection"))
    difference = float(np.max(np.abs(ours - reference)))
    excess = float(np.max(np.linalg.norm((ours - images).reshape(len(images), -1), axis=1)) - options.eps)
    checks = {
        "largest difference of a pixel": Check(difference, difference <= _TOLERANCE),
        "largest distance from the center minus the radius": Check(excess, excess <= _TOLERANCE * options.eps),
    }
    return [Report(f"{len(images)} digits, radius {options.eps}", rows(taken, "bisection"), checks)]


def _bisected(center: jax.Array, point: jax.Array, eps: float) -> jax.Array:
    """The nearest point of ball and box: (point + nu center) / (1 + nu) cut by the box, nu the least that fits."""

    def at(nu: jax.Array) -> jax.Array:
        return jnp.clip(center + (point - center) / (1 + nu), 0.0, 1.0)

    def halve(_: jax.Array, bracket: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = bracket
        middle = (low + high) / 2
        outside = jnp.sum(jnp.square(at(middle) - center)) > eps**2
        return jnp.where(outside, middle, low), jnp.where(outside, high, middle)

    # There the ball alone is fulfilled, and the box only shortens.
    high = jnp.maximum(jnp.sqrt(jnp.sum(jnp.square(point - center))) / eps - 1, 0)
    return at(lax.fori_loop(0, _BISECTION_STEPS, halve, (jnp.zeros_like(high), high))[1])
