"""What each method costs and proves on networks in the package: which one to take for which network.

Certified are the test images that are kept with each network, on the balls of its config, cut by the pixel box.
Seconds are of all of these images, one after the other in one program, compilation apart (first). No bound may exceed
the margin of a point that an attack finds.
"""

import argparse
import functools
from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

import cure_jax as cj
from cure_jax import models
from cure_jax.certification import METHODS
from cure_jax.certification.methods import cheap_to_tight
from cure_jax.commands.benchmarks.timing import Check, Report, in_process, rows, take_turns
from cure_jax.training.config import make_regions
from cure_jax.training.parallel import as_pixels

# A network, images [images, *x] and their labels.
Data: TypeAlias = tuple[Partial, jax.Array, jax.Array]

# Bounds are computed in float32.
_ROOM = 1e-3


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Adds what to certify, and how."""
    command.add_argument("--networks", nargs="+", choices=models.pretrained_names(), default=["mnist_cpu/max"])
    command.add_argument("--norms", nargs="+", help="of those of the config; all if left out")
    command.add_argument("--methods", nargs="+", choices=list(METHODS), help="those of best if left out")
    command.add_argument("--images", type=int, default=10, help="how many of the images that are kept")
    command.set_defaults(rounds=1)


def run(options: argparse.Namespace) -> list[Report]:
    """Certifies the images of each network in each norm by each method."""
    return [report for name in options.networks for report in _reports(options, name)]


def _reports(options: argparse.Namespace, name: str) -> list[Report]:
    fitted, kept = models.pretrained(name), models.pretrained_examples(name)
    images, labels = (jnp.asarray(array)[: options.images] for array in (kept.images, kept.labels))
    radii = dict(fitted.config.radii) | dict(fitted.config.reported)
    if unknown := set(options.norms or ()) - set(radii):
        raise ValueError(f"{name} has no radius for {', '.join(sorted(unknown))}; expected some of {', '.join(radii)}")
    data = fitted.classifier, as_pixels(images), labels
    return [
        _report(options, f"{name}, {norm} {radii[norm]:.4g}, {len(images)} images", make_region, data)
        for norm, make_region in make_regions(radii).items()
        if norm in (options.norms or radii)
    ]


def _report(
    options: argparse.Namespace, title: str, make_region: Callable[[jax.Array], cj.LpBall], data: Data
) -> Report:
    def of_each(function: Callable[[Partial, jax.Array, jax.Array], jax.Array]) -> Callable[..., jax.Array]:
        return jax.jit(lambda f, images, labels: jax.lax.map(lambda pair: function(f, *pair), (images, labels)))

    def bound(method: str, f: Partial, x: jax.Array, label: jax.Array) -> jax.Array:
        return METHODS[method](cj.margins(f, label))(make_region(x)).lower

    def attacked(f: Partial, x: jax.Array, label: jax.Array) -> jax.Array:
        point = cj.pgd(f, x, label, make_region(x), key=jax.random.key(options.seed), loss="margin")
        return cj.margins(f, label)(point)

    names = options.methods or cheap_to_tight(make_region(data[1][0]))
    bounds = {method: of_each(functools.partial(bound, method)) for method in names}
    taken = take_turns({method: in_process(each, *data) for method, each in bounds.items()}, options.rounds)
    limit, facts, checks = of_each(attacked)(*data), {}, {}
    for method, margins in bounds.items():
        lower = margins(*data)
        proved, mean = float(jnp.mean(jnp.all(lower > 0, axis=1))), float(jnp.mean(lower))
        facts[method] = {"proved": proved, "mean_margin": mean}
        room = float(jnp.min(limit - lower))
        checks[f"{method} proves {proved:.0%}, mean margin {mean:.3g}; an attack is above by"] = Check(
            room, room > -_ROOM
        )
    reference = "crown" if "crown" in names else names[0]
    return Report(title, rows(taken, reference), checks, {"methods": facts, "images": len(data[1])})
