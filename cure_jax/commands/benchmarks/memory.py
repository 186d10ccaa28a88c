"""Time and peak memory of one certificate of a large network, compilation included.

The network has random weights (those that IBP training starts from, so that bounds do not explode with depth). Peak
memory is that of the process, on CPU; on accelerators it is what the device's allocator reports.
"""

import argparse
import functools
import resource
import sys

import jax
import jax.numpy as jnp
import numpy as np

import cure_jax as cj
from cure_jax import models, training
from cure_jax.certification import METHODS
from cure_jax.commands.benchmarks.timing import Check, Report, in_process, rows, take_turns

_GIB = 2**30


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Adds what to certify."""
    command.add_argument("--model", choices=models.names(), default="cnn7")
    command.add_argument("--method", choices=list(METHODS), default="crown")
    command.add_argument("--shape", type=int, nargs=3, default=[32, 32, 3], help="height, width and channels")
    command.add_argument("--p", type=float, default=float("inf"), help="norm of the ball, which the pixels cut")
    command.add_argument("--eps", type=float, default=2 / 255)
    command.add_argument("--batch", type=int, default=1, help="images at once")
    command.add_argument("--limit_gib", type=float, default=10.0, help="more peak memory than this is a failure")


def run(options: argparse.Namespace) -> list[Report]:
    """Certifies a batch, and reports time and memory."""
    model = models.create(options.model, 10)
    images = np.random.default_rng(options.seed).uniform(size=(options.batch, *options.shape)).astype(np.float32)
    variables = jax.jit(model.init)(jax.random.key(options.seed), images[:1])
    params = training.ibp_init(model, variables["params"], jax.random.key(options.seed + 1), images[:1])
    f = training.classifier(model, {**variables, "params": params})

    @jax.jit
    def forward(f: jax.tree_util.Partial, images: jax.Array) -> jax.Array:
        return jax.vmap(f)(images)

    @functools.partial(jax.jit, static_argnames="method")
    def certify(f: jax.tree_util.Partial, images: jax.Array, labels: jax.Array, *, method: str) -> cj.Certificate:
        def one(x: jax.Array, label: jax.Array) -> cj.Certificate:
            return cj.certify(f, x, label, cj.lp_ball(x, options.eps, options.p, (0.0, 1.0)), method)

        return jax.vmap(one)(images, labels)

    labels = jnp.argmax(forward(f, images), axis=1)
    programs = {
        "forward": in_process(forward, f, images),
        options.method: in_process(functools.partial(certify, method=options.method), f, images, labels),
    }
    taken = take_turns(programs, options.rounds)
    margins = certify(f, images, labels, method=options.method).margin
    peak = _peak_memory()
    size = "x".join(map(str, options.shape))
    title = f"{options.model} at {size}, l_{options.p:g} {options.eps:.4g}, {options.batch} at once"
    checks = {
        "peak memory in GiB": Check(peak, peak <= options.limit_gib),
        "least margin": Check(float(jnp.min(margins)), bool(jnp.all(jnp.isfinite(margins)))),
    }
    return [Report(title, rows(taken, "forward"), checks, {"peak_gib": peak})]


def _peak_memory() -> float:
    statistics = jax.devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in statistics:
        return statistics["peak_bytes_in_use"] / _GIB
    # In KiB, but for macOS.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / _GIB
