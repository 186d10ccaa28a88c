"""Times the domains of branch and bound beside CROWN on whole regions.

The network is a kept one, the region a ball around the first test image that it classifies rightly, at a multiple of
its radius. A domain is a part of that region in which some neurons are on one side of their kinks, drawn at random; a
batch of them is bounded in one compiled step, which chooses the next neurons to split too. Times are of one domain and
of one region. The whole must not be bounded above what an attack finds.
"""

import argparse
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

import cure_jax as cj
from cure_jax import models
from cure_jax.commands.benchmarks.timing import Check, Report, in_process, rows, take_turns
from cure_jax.regions import Region
from cure_jax.training.config import make_regions
from cure_jax.training.parallel import as_pixels
from cure_jax.verification.problem import Problem, of_class
from cure_jax.verification.roots import root_bounds, traced
from cure_jax.verification.split_bound import Network, free_of
from cure_jax.verification.steps import Batch, Step, bound_batch, first_multipliers, narrowed_batch, whole_batch

# Two computations of one number differ by this at most, as a part of the bound of the whole.
_ROOM = 1e-3


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Adds what can be chosen."""
    command.add_argument("--networks", nargs="+", choices=models.pretrained_names(), default=["mnist_cpu/max"])
    command.add_argument("--norms", nargs="+", default=["linf", "l2"], help="of those of the config")
    command.add_argument("--scale", type=float, default=1.5, help="radius, in multiples of the config's")
    command.add_argument("--batch_size", type=int, default=64, help="domains at once")
    command.add_argument("--steps", type=int, default=20, help="of Adam, for each domain")
    command.add_argument("--splits", type=int, default=4, help="neurons that are split in each domain")
    command.set_defaults(rounds=3)


def run(options: argparse.Namespace) -> list[Report]:
    """Times each network in each norm."""
    return [_report(options, name, norm) for name in options.networks for norm in options.norms]


def _report(options: argparse.Namespace, name: str, norm: str) -> Report:
    fitted, kept = models.pretrained(name), models.pretrained_examples(name)
    radii = dict(fitted.config.radii) | dict(fitted.config.reported)
    if norm not in radii:
        raise ValueError(f"{name} has no radius for {norm}; expected some of {', '.join(radii)}")
    f, images = fitted.classifier, as_pixels(jnp.asarray(kept.images))
    right = np.flatnonzero(np.argmax(jax.vmap(f)(images), axis=-1) == kept.labels)[0]
    x, label = images[right], int(kept.labels[right])
    eps = options.scale * radii[norm]
    region = make_regions({norm: eps})[norm](x)
    found = _bounded(options, f, region, label)
    regions = jax.tree.map(lambda leaf: jnp.stack([leaf] * options.batch_size), region)
    whole = jax.jit(lambda f, regions: jax.vmap(lambda one: cj.crown(cj.margins(f, label))(one).lower)(regions))
    programs = {
        "crown, of a region": in_process(whole, f, regions, repeats=options.batch_size),
        f"a domain, {options.steps} steps": in_process(found.again, repeats=options.batch_size),
    }
    taken = take_turns(programs, options.rounds)
    attacked = cj.pgd(f, x, label, region, key=jax.random.key(options.seed), loss="margin")
    room = float(jnp.min(cj.margins(f, label)(attacked))) - found.whole
    finite = float(np.mean(np.isfinite(found.parts)))
    checks = {
        "the whole region is bounded below what an attack finds, by": Check(
            room, room > -_ROOM * max(1.0, abs(found.whole))
        ),
        "share of parts with a finite bound": Check(finite, finite == 1),
    }
    title = f"{name}, {norm} {eps:.4g}, {options.splits} splits, {options.batch_size} domains"
    table = rows(taken, "crown, of a region")
    gained = float(np.mean(found.parts) - found.whole)
    return Report(title, table, checks, {"domains_a_second": 1 / table[1].shortest, "mean_gain_of_parts": gained})


class _Found(NamedTuple):
    """What was bounded, and the batch to bound again."""

    whole: float
    parts: np.ndarray
    again: Callable[[], Step]


def _bounded(options: argparse.Namespace, f: Partial, region: Region, label: int) -> _Found:
    """The bound of the least margin on the whole region, and on parts of it."""
    classes = jax.eval_shape(f, region.bounding_box().lower).shape[0]
    problem = Problem(f, region, of_class(label, classes))
    root = root_bounds(f, region)
    starts = first_multipliers(f, region, root, problem.rounded)
    free = np.flatnonzero(free_of(Network(traced(f, region), region, root)))
    if len(free) < options.splits:
        raise ValueError(f"{len(free)} neurons can be split, fewer than {options.splits}. Choose a larger --scale.")
    question, chosen = (f, region, root, problem.rounded), {"steps": options.steps, "tried": 4}
    neurons, size = starts.share.shape[-1], options.batch_size
    every, sides = np.arange(size, dtype=np.int32) % (classes - 1), np.zeros((size, neurons), np.int8)
    inside = whole_batch(root, size)
    domains = Batch(every, sides, inside.boxes, jax.tree.map(lambda leaf: leaf[every], starts))
    whole = bound_batch(*question, domains, inside, **chosen)
    # Parts start from what was found of the whole, as in a search, and all but their last split is behind them.
    worst = np.full(size, int(np.argmin(whole.bound)), np.int32)
    rng, before, sides = np.random.default_rng(options.seed), sides.copy(), sides.copy()
    for row, earlier in zip(sides, before, strict=True):
        split = rng.choice(free, options.splits, replace=False)
        row[split] = rng.choice([-1, 1], options.splits)
        earlier[split[1:]] = row[split[1:]]
    boxes = narrowed_batch(f, region, root, inside.boxes, before).boxes
    parts = Batch(worst % (classes - 1), sides, boxes, jax.tree.map(lambda leaf: leaf[worst], whole.multipliers))

    def again() -> Step:
        return bound_batch(*question, parts, narrowed_batch(f, region, root, boxes, sides), **chosen)

    return _Found(float(np.min(whole.bound)), np.asarray(again().bound), again)
