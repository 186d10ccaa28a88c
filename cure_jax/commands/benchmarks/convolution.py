"""One gradient of the images and one of the parameters of a small convolutional network, in and out of `lax.scan`.

`cure_jax.convolution.convolution` against `jax.lax.conv_general_dilated`, whose gradients XLA compiles to slow loops on
CPU, above all inside loops. The step is that of an attack of one step and of the training on what it finds.
"""

import argparse
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax import lax

from cure_jax.commands.benchmarks.timing import Check, Report, in_process, rows, take_turns
from cure_jax.convolution import convolution as ours
from cure_jax.models.layers import flatten

_STEP_SIZE = 0.01
_TOLERANCE = 1e-3


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Adds the sizes."""
    command.add_argument("--batch", type=int, default=128, help="images at once")
    command.add_argument("--size", type=int, default=28, help="height and width of the images")
    command.add_argument("--features", type=int, nargs="+", default=[16, 32], help="of each convolution")
    command.add_argument("--kernel", type=int, default=4, help="height and width of the kernels")
    command.add_argument("--stride", type=int, default=2, help="of each convolution")
    command.add_argument("--dense", type=int, default=100, help="width of the hidden dense layer")
    command.add_argument("--steps", type=int, default=4, help="steps of the loop")


def run(options: argparse.Namespace) -> list[Report]:
    """Times a step with either convolution, outside of a loop and as one of several inside."""
    keys = jax.random.split(jax.random.key(options.seed), 3)
    images = jax.random.uniform(keys[0], (options.batch, options.size, options.size, 1))
    labels = jax.random.randint(keys[1], (options.batch,), 0, 10)
    parameters = _network(ours, options).init(keys[2], images)
    programs, loops = {}, {}
    for name, convolution in (("cure_jax", ours), ("lax", lax.conv_general_dilated)):
        step = _step(_network(convolution, options), labels)
        loops[name] = jax.jit(
            lambda carry, step=step: lax.scan(lambda c, _: (step(c), None), carry, length=options.steps)[0]
        )
        programs[f"{name}, no loop"] = in_process(jax.jit(step), (images, parameters))
        programs[f"{name}, in scan"] = in_process(loops[name], (images, parameters), repeats=options.steps)
    taken = take_turns(programs, options.rounds)
    difference = _largest_difference(*(loop((images, parameters)) for loop in loops.values()))
    return [
        Report(
            title=f"one step, batch {options.batch} of {options.size}x{options.size}",
            rows=rows(taken, "cure_jax, no loop"),
            checks={"largest difference after the loop": Check(difference, difference <= _TOLERANCE)},
        )
    ]


def _network(convolution: Callable[..., jax.Array], options: argparse.Namespace) -> Any:
    layers: list[Any] = []
    window = {"kernel_size": (options.kernel,) * 2, "strides": options.stride, "padding": 1}
    for width in options.features:
        layers += [nn.Conv(width, **window, conv_general_dilated=convolution), nn.relu]
    return nn.Sequential([*layers, flatten, nn.Dense(options.dense), nn.relu, nn.Dense(10)])


def _step(network: Any, labels: jax.Array) -> Callable[[Any], Any]:
    """One step of ascent in the images, one of descent in the parameters."""

    def loss(images: jax.Array, parameters: Any) -> jax.Array:
        return optax.softmax_cross_entropy_with_integer_labels(network.apply(parameters, images), labels).mean()

    def step(carry: Any) -> Any:
        images, parameters = carry
        images = images + _STEP_SIZE * jax.grad(loss)(images, parameters)
        gradient = jax.grad(loss, argnums=1)(images, parameters)
        return images, jax.tree.map(lambda value, slope: value - _STEP_SIZE * slope, parameters, gradient)

    return step


def _largest_difference(first: Any, second: Any) -> float:
    return max(float(jnp.max(jnp.abs(a - b))) for a, b in zip(*map(jax.tree.leaves, (first, second)), strict=True))
