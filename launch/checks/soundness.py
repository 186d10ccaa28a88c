"""Hunts for broken certificates: a network, an image and a region that was certified, and a point that breaks it.

    python launch/checks/soundness.py --workdir=runs/soundness

trains four small networks on the embedded digits, bounds the margins of every image on many regions (radii from 1e-30
to 1e38; norms between 1 and 3 that the seed draws) by every method, and searches each region for the smallest margin:
projected gradient ascent (PGD and APGD), vertices and other extreme points, random points. Between these it bounds
closures that change from call to call (changing.py), with labels of every dtype and activations of any parameter, and
certifies perturbations that are no balls (beyond_norms.py): one kind for each block of images.
A certificate is broken by a point with another prediction, and any bound, whether it certifies or not, by a margin
below it. A bound that is far below every logit is counted as vacuous: where all are, nothing was looked at. Ends with a
table and DIR/soundness.json; with exit status 1, and the counterexample in DIR/counterexample.npz, if anything was
broken. --pairs counts (network, image, region). Where all methods
bound, `verify` decides a few images too, on all of a region.
"""

import dataclasses
import functools
import itertools
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from jax.tree_util import Partial
from rich.console import Console

import cure_jax as cj
from cure_jax import data, models, training
from cure_jax.certification import METHODS
from cure_jax.commands.parts import common
from cure_jax.progress import progress
from cure_jax.verification import Options, Status
from launch.checks import beyond_norms, changing
from launch.checks.findings import VERIFY, Tally, enter, table, totals
from launch.checks.hunting_grounds import Ground, extreme_radii, grounds, usual_radii
from launch.checks.weak_points import MakeRegion, weakest

_WORKDIR = flags.DEFINE_string("workdir", None, "Where the table and a counterexample go.")
_PAIRS = flags.DEFINE_integer("pairs", 100_000, "How many (network, image, region) to bound and attack, at least.")
_SEED = flags.DEFINE_integer("seed", 0, "Of the networks, the order of the images, and the attacks.")

# The other methods take minutes to compile and seconds a batch: they bound the usual radii of some norms, in one of so
# many blocks of images. "best" is the best of all.
CHEAP = ("ibp", "crown_ibp", "crown")
THOROUGH_NORMS = ("linf", "l2", "l1")
THOROUGH_EVERY = 8
BATCH_SIZE = 60
# So many times the images of every eighth block at once, as this compiles every time.
CHANGING, CHANGING_ROUNDS, CHANGING_EVERY = "changing", 8, 8
# Where all methods bound, a search for proofs decides the first images: with next to no attack of its own, so that
# it is the proofs that are put to the test.
SEARCHED = 6
SEARCH, SECONDS = Options(attack_steps=1, attack_restarts=1), 20.0


@dataclasses.dataclass(frozen=True)
class Network:
    """How a network is made: model, options, what its config overrides, what is done to it then; on which norms.

    Convolutions take long to compile: a few norms only, and no search for proofs.
    """

    model: str
    options: Mapping[str, Any]
    overrides: Mapping[str, Any]
    change: Callable[[Partial], Partial] = lambda f: f
    norms: Sequence[str] | None = None
    searched: bool = True


def _saturate(f: Partial) -> Partial:
    """With weights of one sign in the middle: neurons whose box is huge below 0 and small above, in a huge region."""

    def changed(path: Any, leaf: jax.Array) -> jax.Array:
        name = jax.tree_util.keystr(path)
        if "Dense_1" not in name:
            return leaf
        return -jnp.abs(leaf) if "kernel" in name else jnp.abs(leaf) + 1

    return jax.tree_util.tree_map_with_path(changed, f)


# Trained for certificates, and not: so that all methods have something to prove and to miss. Equal architectures are
# compiled once.
NETWORKS: Mapping[str, Network] = {
    "mlp": Network("mlp", {"features": (64, 64)}, {"epochs": 20}),
    "conv": Network(
        "conv_small",
        {"convs": ((8, 3, 2), (16, 3, 2)), "dense": (32,)},
        {"epochs": 8},
        norms=THOROUGH_NORMS,
        searched=False,
    ),
    "natural": Network("mlp", {"features": (64, 64)}, {"epochs": 8, "losses": {"linf": {"kind": "natural"}}}),
    "saturated": Network("mlp", {"features": (64, 64)}, {"epochs": 1}, _saturate),
}


@dataclasses.dataclass(frozen=True)
class Batch:
    """Images, labels and a region around each."""

    network: str
    norm: str
    radii: np.ndarray
    images: np.ndarray
    labels: np.ndarray
    thorough: bool = False
    # Of a perturbation that is no ball, named in the place of the norm.
    method: str | None = None


def main() -> None:
    """Hunts; exits with 1 if something was broken."""
    if hunt(Path(str(_WORKDIR.value)), pairs=_PAIRS.value, seed=_SEED.value):
        sys.exit(1)


def hunt(
    workdir: Path,
    *,
    pairs: int,
    seed: int,
    networks: Sequence[str] = (*NETWORKS, CHANGING),
    norms: Sequence[str] | None = None,
) -> int:
    """Bounds and attacks at least so many pairs, prints and writes what was found.

    Args:
      workdir: for `soundness.json` and `counterexample.npz`.
      pairs: (network, image, region); all of them if there are fewer.
      seed: of everything random.
      networks: names of what is trained; "changing" for closures that change, on regions of their own.
      norms: names of regions and of perturbations; None for all of this seed.

    Returns:
      How many bounds were broken.
    """
    if pairs < 1:
        raise ValueError(f"pairs is {pairs}; expected at least 1. Leave it out for 100000.")
    workdir.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    regions = {name: ground for name, ground in grounds(seed).items() if norms is None or name in norms}
    beyond = [name for name in beyond_norms.NAMES if norms is None or name in norms]
    trained = {name: _train(NETWORKS[name], seed) for name in networks if name != CHANGING}
    closure, tallies = changing.Changing(), {}
    console, last = Console(), time.monotonic()
    if not console.is_terminal:
        console = Console(width=160)
    with progress(pairs, "attack", unit="pairs") as bar:
        for index, batch in enumerate(_batches(networks, regions, beyond, pairs, seed)):
            tally = tallies.setdefault((batch.network, batch.norm), Tally())
            if batch.network == CHANGING:
                f, found = closure.examine(batch.images, batch.radii, np.random.default_rng([seed, 2, index]))
            elif batch.method is not None:
                f, rng = trained[batch.network], np.random.default_rng([seed, 3, index])
                found = beyond_norms.examine(f, batch.images, batch.labels, batch.norm, batch.method, rng)
            else:
                f, ground = trained[batch.network], regions[batch.norm]
                found = _examine(f, ground, batch, jax.random.fold_in(jax.random.key(seed), index))
            broken = enter(tally, found)
            if broken is not None:
                _save(workdir / "counterexample.npz", f, batch, found, broken)
            bar.advance(len(batch.images))
            if time.monotonic() - last > 60:
                console.print(table(tallies))
                last = time.monotonic()
    console.print(table(tallies))
    total = totals(tallies.values())
    report = {
        "seed": seed,
        "seconds": round(time.monotonic() - start, 1),
        "total": dataclasses.asdict(total),
        "by_network_and_norm": {f"{network} {norm}": dataclasses.asdict(t) for (network, norm), t in tallies.items()},
        "methods": [name for name in METHODS if name != "best"],
        "usual_radii": {norm: ground.usual for norm, ground in regions.items()},
        "jax": jax.__version__,
    }
    (workdir / "soundness.json").write_text(json.dumps(report, indent=2) + "\n")
    where = f"; see {workdir / 'counterexample.npz'}" if total.broken else ""
    vacuous = sum(total.vacuous.values())
    print(
        f"{workdir}: {total.pairs} pairs, {total.attacked_points} points, {total.bounds} bounds, {vacuous} of them "
        f"vacuous, {total.broken} broken{where}"
    )
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
    return network.change(training.fit(model, (images, labels), config).classifier)


def _batches(
    networks: Sequence[str], regions: Mapping[str, Ground], beyond: Sequence[str], pairs: int, seed: int
) -> Iterator[Batch]:
    """Batches until there are enough pairs: all regions of some images, then of the next."""
    splits = [data.load("digits", split) for split in ("train", "validation", "test")]
    images, labels = (np.concatenate([split[i] for split in splits]) for i in range(2))
    rng, done = np.random.default_rng(seed), 0
    order = rng.permutation(len(images))
    for block in itertools.count():
        rows = np.take(order, np.arange(block * BATCH_SIZE, (block + 1) * BATCH_SIZE), mode="wrap")
        for batch in _block(networks, regions, beyond, block, rng):
            if done >= pairs:
                return
            chosen = np.resize(rows, len(batch.radii))
            yield dataclasses.replace(batch, images=images[chosen], labels=labels[chosen])
            done += len(chosen)


def _block(
    networks: Sequence[str],
    regions: Mapping[str, Ground],
    beyond: Sequence[str],
    block: int,
    rng: np.random.Generator,
) -> Iterator[Batch]:
    """What is drawn for a block of images: every region of every network, once as usual and once extreme.

    And one perturbation, by one method: over the blocks, all of them meet.
    """
    nothing, last = np.zeros(0), block % THOROUGH_EVERY == THOROUGH_EVERY - 1
    for network in networks:
        if network == CHANGING:
            if block % CHANGING_EVERY:
                continue
            half = CHANGING_ROUNDS * BATCH_SIZE // 2
            radii = np.power(10, rng.uniform(-2, 0.3, half)).astype(np.float32)
            yield Batch(network, "all", np.concatenate([radii, extreme_radii(half, rng)]), nothing, nothing)
            continue
        for norm, ground in regions.items():
            if (block + 1) % ground.every or norm not in (NETWORKS[network].norms or regions):
                continue
            thorough = last and norm in THOROUGH_NORMS
            yield Batch(network, norm, usual_radii(ground, BATCH_SIZE, rng), nothing, nothing, thorough)
            yield Batch(network, norm, extreme_radii(BATCH_SIZE, rng), nothing, nothing)
        if beyond:
            method = beyond_norms.METHODS[(block + block // len(beyond)) % len(beyond_norms.METHODS)]
            yield Batch(network, beyond[block % len(beyond)], np.zeros(BATCH_SIZE), nothing, nothing, method=method)


def _examine(f: Partial, ground: Ground, batch: Batch, key: jax.Array) -> dict[str, Any]:
    """Bounds and attacks; everything on the host."""
    wanted = (*CHEAP, *ground.methods)
    methods = tuple(name for name in METHODS if name in wanted or (batch.thorough and name != "best"))
    keys = jax.random.split(key, len(batch.images))
    data = (batch.images, batch.labels, batch.radii)
    bounds = _bounds(f, *data, make_region=ground.make, methods=methods)
    found = jax.device_get({"bounds": bounds, **_attacks(f, *data, keys, make_region=ground.make)})
    if batch.thorough and NETWORKS[batch.network].searched:
        found["bounds"][VERIFY] = _searched(f, ground, batch)
    return found


class Verdicts(NamedTuple):
    """Of the first images: whether all of the region is proved, and then 0 as a lower bound of its margins."""

    verified: np.ndarray
    margin: np.ndarray


def _searched(f: Partial, ground: Ground, batch: Batch) -> Verdicts:
    def is_verified(image: np.ndarray, label: int, eps: np.ndarray) -> bool:
        x = jnp.asarray(image)
        verdict = cj.verify(f, x, label, ground.make(jnp.asarray(eps), x), SECONDS, options=SEARCH)
        return verdict.status is Status.VERIFIED

    rows = zip(batch.images[:SEARCHED], batch.labels[:SEARCHED].tolist(), batch.radii[:SEARCHED], strict=True)
    verified = np.array([is_verified(*row) for row in rows])
    return Verdicts(verified, np.where(verified, 0.0, -np.inf))


@functools.partial(jax.jit, static_argnames=("make_region", "methods"))
def _bounds(
    f: Partial,
    images: jax.Array,
    labels: jax.Array,
    radii: jax.Array,
    *,
    make_region: MakeRegion,
    methods: tuple[str, ...],
) -> Any:
    def one(x: jax.Array, label: jax.Array, eps: jax.Array) -> dict[str, cj.Certificate]:
        return {name: cj.certify(f, x, label, make_region(eps, x), name) for name in methods}

    return jax.vmap(one)(images, labels, radii)


@functools.partial(jax.jit, static_argnames="make_region")
def _attacks(
    f: Partial, images: jax.Array, labels: jax.Array, radii: jax.Array, keys: jax.Array, *, make_region: MakeRegion
) -> dict[str, Any]:
    """The smallest margin that was found, where, and how many points were looked at."""
    one = functools.partial(weakest, f, make_region)
    return jax.vmap(one)(images, labels, radii, keys)


def _save(path: Path, f: Partial, batch: Batch, found: Mapping[str, Any], index: int) -> None:
    """A counterexample, with the network that it belongs to."""
    bounds = {f"bound.{name}": certificate.margin[index] for name, certificate in found["bounds"].items()}
    verified = {f"verified.{name}": certificate.verified[index] for name, certificate in found["bounds"].items()}
    leaves = {
        f"weights{jax.tree_util.keystr(at)}": np.asarray(leaf) for at, leaf in jax.tree_util.tree_leaves_with_path(f)
    }
    facts = {
        "network": batch.network, "norm": batch.norm, "eps": batch.radii[index], "label": found["label"][index],
        "image": batch.images[index], "point": found["point"][index], "margin": found["margin"][index],
    }  # fmt: skip
    np.savez(path, **facts, **bounds, **verified, **leaves)  # pyright: ignore[reportArgumentType]


if __name__ == "__main__":
    flags.mark_flags_as_required(["workdir"])
    common.run(main)
