"""Hunts for broken certificates: a network, an image and a region that was certified, and a point that breaks it.

    python launch/soundness.py --workdir=runs/soundness

trains three small networks on the embedded digits, bounds the margins of every image on many regions by every method,
and searches each region for the smallest margin: projected gradient ascent (PGD and APGD), vertices and other extreme
points, random points. A certificate is broken by a point with another prediction, and any bound, whether it certifies
or not, by a margin below it. Ends with a table and DIR/soundness.json; with exit status 1, and the counterexample in
DIR/counterexample.npz, if anything was broken. --pairs counts (network, image, region).
"""

import dataclasses
import functools
import itertools
import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from jax.tree_util import Partial
from rich.console import Console
from rich.table import Table

import cure_jax as cj
from cure_jax import data, models, training
from cure_jax.certification import METHODS
from cure_jax.progress import progress
from cure_jax.regions import Region, hull, lp_ball
from launch.parts import common
from launch.parts.weak_points import weak_points

_WORKDIR = flags.DEFINE_string("workdir", None, "Where the table and a counterexample go.")
_PAIRS = flags.DEFINE_integer("pairs", 100_000, "How many (network, image, region) to bound and attack, at least.")
_SEED = flags.DEFINE_integer("seed", 0, "Of the networks, the order of the images, and the attacks.")

# The other methods take minutes to compile and seconds a batch: they bound the first radius of some norms, for the last
# of every so many batches. "best" is the best of all.
CHEAP = ("ibp", "crown_ibp", "crown")
# Beside these, for one kind of ball.
ALSO = {"l1": ("vertex_crown",)}
THOROUGH_NORMS = ("linf", "l2", "l1")
THOROUGH_EVERY = 15
BATCH_SIZE = 60
PIXELS = (0.0, 1.0)
# Margins and bounds of the same point differ by rounding: relative to the largest logit.
TOLERANCE = 1e-4


@dataclasses.dataclass(frozen=True)
class Network:
    """How a network is made: model, options, and what its config overrides."""

    model: str
    options: Mapping[str, Any]
    overrides: Mapping[str, Any]


# Trained for certificates, and not: so that all methods have something to prove and to miss. Equal architectures are
# compiled once.
NETWORKS: Mapping[str, Network] = {
    "mlp": Network("mlp", {"features": (64, 64)}, {"epochs": 20}),
    "conv": Network("conv_small", {"convs": ((8, 3, 2), (16, 3, 2)), "dense": (32,)}, {"epochs": 8}),
    "natural": Network("mlp", {"features": (64, 64)}, {"epochs": 8, "losses": {"linf": {"kind": "natural"}}}),
}


def make_ball(p: float, eps: jax.Array, x: jax.Array) -> Region:
    """The ball of a norm, cut by the pixels."""
    return lp_ball(x, eps, p, PIXELS)


def make_whole_ball(p: float, eps: jax.Array, x: jax.Array) -> Region:
    """The ball of a norm; it leaves the pixels."""
    return lp_ball(x, eps, p)


def make_hull(eps: jax.Array, x: jax.Array) -> Region:
    """The hull of an l_inf and an l_1 ball ten times as large, cut by the pixels."""
    return hull(lp_ball(x, eps, math.inf, PIXELS), lp_ball(x, 10 * eps, 1.0, PIXELS))


# By name: a function of radius and image, and radii at which some images can be certified and some not.
REGIONS: Mapping[str, tuple[Callable[..., Region], tuple[float, ...]]] = {
    "linf": (functools.partial(make_ball, math.inf), (0.02, 0.05, 0.08, 0.12)),
    "l2": (functools.partial(make_ball, 2.0), (0.1, 0.25, 0.4, 0.6)),
    "l1": (functools.partial(make_ball, 1.0), (0.2, 0.5, 0.8, 1.2)),
    "l1.5": (functools.partial(make_ball, 1.5), (0.15, 0.35, 0.55, 0.8)),
    "l2 uncut": (functools.partial(make_whole_ball, 2.0), (0.1, 0.2, 0.3, 0.45)),
    # One only: an attack on it takes as long as fifty others.
    "hull": (make_hull, (0.04,)),
}


@dataclasses.dataclass
class Tally:
    """What was found about one norm and network."""

    pairs: int = 0
    bounds: int = 0
    certified: dict[str, int] = dataclasses.field(default_factory=dict)
    attacked_points: int = 0
    broken: int = 0


@dataclasses.dataclass(frozen=True)
class Batch:
    """Images, labels and one region."""

    network: str
    norm: str
    eps: float
    images: np.ndarray
    labels: np.ndarray
    thorough: bool


def main() -> None:
    """Hunts; exits with 1 if something was broken."""
    if hunt(Path(str(_WORKDIR.value)), pairs=_PAIRS.value, seed=_SEED.value):
        sys.exit(1)


def hunt(
    workdir: Path,
    *,
    pairs: int,
    seed: int,
    networks: Sequence[str] = tuple(NETWORKS),
    norms: Sequence[str] = tuple(REGIONS),
) -> int:
    """Bounds and attacks at least so many pairs, prints and writes what was found.

    Args:
      workdir: for `soundness.json` and `counterexample.npz`.
      pairs: (network, image, region); all of them if there are fewer.
      seed: of everything random.
      networks: names of what is trained.
      norms: names of regions.

    Returns:
      How many bounds were broken.
    """
    if pairs < 1:
        raise ValueError(f"pairs is {pairs}; expected at least 1. Leave it out for 100000.")
    workdir.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    trained = {name: _train(NETWORKS[name], seed) for name in networks}
    tallies: dict[tuple[str, str], Tally] = {key: Tally() for key in itertools.product(networks, norms)}
    console, last = Console(), time.monotonic()
    if not console.is_terminal:
        console = Console(width=160)
    with progress(pairs, "attack", unit="pairs") as bar:
        for index, batch in enumerate(_batches(list(tallies), pairs, seed)):
            tally = tallies[batch.network, batch.norm]
            key = jax.random.fold_in(jax.random.key(seed), index)
            found = _examine(trained[batch.network], batch, key)
            broken = _enter(tally, batch, found)
            if broken is not None:
                _save(workdir / "counterexample.npz", trained[batch.network], batch, found, broken)
            bar.advance(len(batch.images))
            if time.monotonic() - last > 60:
                console.print(_table(tallies))
                last = time.monotonic()
    console.print(_table(tallies))
    total = _totals(tallies.values())
    report = {
        "seed": seed,
        "seconds": round(time.monotonic() - start, 1),
        "total": dataclasses.asdict(total),
        "by_network_and_norm": {f"{network} {norm}": dataclasses.asdict(t) for (network, norm), t in tallies.items()},
        "methods": [name for name in METHODS if name != "best"],
        "radii": {norm: REGIONS[norm][1] for norm in norms},
        "jax": jax.__version__,
    }
    (workdir / "soundness.json").write_text(json.dumps(report, indent=2) + "\n")
    where = f"; see {workdir / 'counterexample.npz'}" if total.broken else ""
    print(f"{workdir}: {total.pairs} pairs, {total.attacked_points} points, {total.broken} broken bounds{where}")
    return total.broken


def _train(network: Network, seed: int) -> Partial:
    """A network of the digits, as a function of one image."""
    images, labels, classes = data.load("digits", "train")
    config = training.default_config()
    config.seed, config.batch_size, config.learning_rate = seed, 128, 5e-3
    config.radii = {"linf": 0.08}
    config.update({"milestones": (), "ramp_end": 6.0, **network.overrides})
    if "losses" in network.overrides:
        config.losses = dict(network.overrides["losses"])
    model = models.create(network.model, classes, **network.options)
    return training.fit(model, (images, labels), config).classifier


def _batches(kinds: Sequence[tuple[str, str]], pairs: int, seed: int) -> Iterator[Batch]:
    """Batches until there are enough pairs: all regions of some images, then of the next."""
    splits = [data.load("digits", split) for split in ("train", "validation", "test")]
    images, labels = (np.concatenate([split[i] for split in splits]) for i in range(2))
    order, done = np.random.default_rng(seed).permutation(len(images)), 0
    for block in range(0, len(order), BATCH_SIZE):
        # The last batch takes some images again, so that one shape is compiled.
        rows = np.take(order, np.arange(block, block + BATCH_SIZE), mode="wrap")
        last = block // BATCH_SIZE % THOROUGH_EVERY == THOROUGH_EVERY - 1
        for network, norm in kinds:
            for index, eps in enumerate(REGIONS[norm][1]):
                if done >= pairs:
                    return
                thorough = last and index == 0 and norm in THOROUGH_NORMS
                yield Batch(network, norm, eps, images[rows], labels[rows], thorough)
                done += len(rows)


def _examine(f: Partial, batch: Batch, key: jax.Array) -> dict[str, Any]:
    """Bounds and attacks; everything on the host."""
    wanted = (*CHEAP, *ALSO.get(batch.norm, ()))
    methods = tuple(name for name in METHODS if name in wanted or (batch.thorough and name != "best"))
    region = Partial(REGIONS[batch.norm][0], np.float32(batch.eps))
    keys = jax.random.split(key, len(batch.images))
    bounds = _bounds(f, region, batch.images, batch.labels, methods=methods)
    return jax.device_get({"bounds": bounds, **_attacks(f, region, batch.images, batch.labels, keys)})


@functools.partial(jax.jit, static_argnames="methods")
def _bounds(f: Partial, make_region: Partial, images: jax.Array, labels: jax.Array, *, methods: tuple[str, ...]) -> Any:
    def one(x: jax.Array, label: jax.Array) -> dict[str, cj.Certificate]:
        return {name: cj.certify(f, x, label, make_region(x), name) for name in methods}

    return jax.vmap(one)(images, labels)


@jax.jit
def _attacks(f: Partial, make_region: Partial, images: jax.Array, labels: jax.Array, keys: jax.Array) -> dict[str, Any]:
    """The smallest margin that was found, where, and how many points were looked at."""

    def one(x: jax.Array, label: jax.Array, key: jax.Array) -> dict[str, Any]:
        region, margins = make_region(x), _margins(f, label)
        points, looked_at = weak_points(f, x, label, region, key)
        values = jax.vmap(lambda point: jnp.min(margins(point)))(points)
        worst = jnp.nanargmin(values)
        scale = jnp.max(jnp.abs(f(x)))
        return {"margin": values[worst], "point": points[worst], "scale": scale, "points": jnp.asarray(looked_at)}

    return jax.vmap(one)(images, labels, keys)


def _margins(f: Callable[[jax.Array], jax.Array], label: jax.Array) -> Callable[[jax.Array], jax.Array]:
    """The differences that are bounded, computed without the code under test."""

    def margins(x: jax.Array) -> jax.Array:
        logits = f(x)
        is_label = jnp.arange(logits.shape[0]) == label
        return jnp.where(is_label, jnp.inf, jnp.sum(jnp.where(is_label, logits, 0)) - logits)

    return margins


def _enter(tally: Tally, batch: Batch, found: Mapping[str, Any]) -> int | None:
    """Counts; returns the index of an example with a broken bound, if there is one."""
    tally.pairs += len(batch.images)
    tally.attacked_points += int(np.sum(found["points"]))
    allowed = TOLERANCE * np.maximum(1, found["scale"])
    worst = None
    for method, certificate in found["bounds"].items():
        tally.bounds += len(batch.images)
        tally.certified[method] = tally.certified.get(method, 0) + int(np.sum(certificate.verified))
        # A bound that is not a number bounds nothing; certificates of such are refused.
        above = np.nan_to_num(certificate.margin, nan=-np.inf) > found["margin"] + allowed
        broken = (
            above
            | (certificate.verified & (found["margin"] < -allowed))
            | (np.isnan(certificate.margin) & certificate.verified)
        )
        tally.broken += int(np.sum(broken))
        worst = int(np.argmax(broken)) if np.any(broken) and worst is None else worst
    return worst


def _save(path: Path, f: Partial, batch: Batch, found: Mapping[str, Any], index: int) -> None:
    """A counterexample, with the network that it belongs to."""
    bounds = {f"bound.{name}": certificate.margin[index] for name, certificate in found["bounds"].items()}
    verified = {f"verified.{name}": certificate.verified[index] for name, certificate in found["bounds"].items()}
    leaves = {
        f"weights{jax.tree_util.keystr(at)}": np.asarray(leaf) for at, leaf in jax.tree_util.tree_leaves_with_path(f)
    }
    facts = {
        "network": batch.network, "norm": batch.norm, "eps": batch.eps, "label": batch.labels[index],
        "image": batch.images[index], "point": found["point"][index], "margin": found["margin"][index],
    }  # fmt: skip
    np.savez(path, **facts, **bounds, **verified, **leaves)  # pyright: ignore[reportArgumentType]


def _totals(tallies: Any) -> Tally:
    total = Tally()
    for tally in tallies:
        total.pairs += tally.pairs
        total.bounds += tally.bounds
        total.attacked_points += tally.attacked_points
        total.broken += tally.broken
        for method, count in tally.certified.items():
            total.certified[method] = total.certified.get(method, 0) + count
    return total


def _table(tallies: Mapping[tuple[str, str], Tally]) -> Table:
    methods = [name for name in METHODS if any(name in tally.certified for tally in tallies.values())]
    table = Table("network", "norm", "pairs", *(f"certified {name}" for name in methods), "points", "broken")
    rows = [(*key, tally) for key, tally in tallies.items() if tally.pairs] + [("all", "", _totals(tallies.values()))]
    for network, norm, tally in rows:
        certified = [str(tally.certified.get(name, "")) for name in methods]
        table.add_row(network, norm, str(tally.pairs), *certified, str(tally.attacked_points), str(tally.broken))
    return table


if __name__ == "__main__":
    flags.mark_flags_as_required(["workdir"])
    common.run(main)
