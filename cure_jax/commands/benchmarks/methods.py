"""What each method costs and proves on networks in the package: which one to take for which network.

Certified are the test images that are kept with each network, on the balls of its config, cut by the pixel box.
Seconds are of all of these images, one after the other in one program, compilation apart (first). No bound may exceed
the margin of a point that an attack finds.

With --after, methods that optimise each margin by itself run once more on the margins that a cheaper method leaves
open, as `certify_dataset` runs them: images with equally many open ones are one program, and each is compiled.
"""

import argparse
import functools
from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

import cure_jax as cj
from cure_jax import models
from cure_jax.certification import METHODS, cascade
from cure_jax.certification.methods import OPTIMISED, cheap_to_tight
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
    command.add_argument("--after", choices=list(METHODS), help="a cheap method, behind which others see what is open")
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


def _on_open(bounds: Callable[..., jax.Array], known: np.ndarray) -> Callable[..., jax.Array]:
    """Known lower bounds `[images, others]`, raised by those of the margins that they leave open."""
    count, others = cascade.open_margins(known), known.shape[1]
    sizes = np.array([cascade.size_for(each, others) if each else 0 for each in count.tolist()])
    parts = [np.flatnonzero(sizes == size) for size in {*sizes.tolist()} - {0}]

    def raised(f: Partial, images: jax.Array, labels: jax.Array) -> jax.Array:
        lower = known.copy()
        for part in parts:
            columns = cascade.open_columns(known[part])
            places, against = (part[:, None], columns), columns + (columns >= np.asarray(labels)[part, None])
            lower[places] = np.fmax(lower[places], bounds(f, images[part], labels[part], against))
        return jnp.asarray(lower)

    return raised


def _report(
    options: argparse.Namespace, title: str, make_region: Callable[[jax.Array], cj.LpBall], data: Data
) -> Report:
    def of_each(function: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
        return jax.jit(lambda f, *arrays: jax.lax.map(lambda each: function(f, *each), arrays))

    def bound(method: str, f: Partial, x: jax.Array, label: jax.Array, against: jax.Array | None = None) -> jax.Array:
        return METHODS[method](cj.margins(f, label, against))(make_region(x)).lower

    def attacked(f: Partial, x: jax.Array, label: jax.Array) -> jax.Array:
        point = cj.pgd(f, x, label, make_region(x), key=jax.random.key(options.seed), loss="margin")
        return cj.margins(f, label)(point)

    names = options.methods or cheap_to_tight(make_region(data[1][0]))
    bounds = {method: of_each(functools.partial(bound, method)) for method in names}
    if options.after is not None:
        known = np.asarray(of_each(functools.partial(bound, options.after))(*data))
        for method in (name for name in names if name in OPTIMISED):
            bounds[f"{method} after {options.after}"] = _on_open(of_each(functools.partial(bound, method)), known)
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
    for method in facts.keys() - {*names}:
        gained = facts[method]["proved"] - facts[method.split()[0]]["proved"]
        checks[f"{method} proves more by"] = Check(gained, gained >= 0)
    reference = "crown" if "crown" in names else names[0]
    return Report(title, rows(taken, reference), checks, {"methods": facts, "images": len(data[1])})
