"""CROWN of one image: against one gradient of the network, IBP, CROWN-IBP and, if given, auto_LiRPA's CROWN.

For l_1 balls there is `vertex_crown` beside them.

The network is that of `cure_jax.models.ConvNet`, by default five 3x3 convolutions on 28x28 and two dense layers, with
the random weights of PyTorch's default (uniform, bounded by 1 / sqrt(inputs)) or those of a file: an `.npz` with
`Conv_0/kernel`, `Conv_0/bias`, ..., `Dense_1/bias`, and if wanted `image` and `label`. auto_LiRPA runs in another
interpreter on the same cores, with its default options, and takes turns with ours. It cannot cut an l_2 ball by the box
of pixels: use --whole_ball to compare like with like.
"""

import argparse
import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

import cure_jax as cj
from cure_jax import models
from cure_jax.commands.benchmarks import peer
from cure_jax.commands.benchmarks.timing import Check, Report, Seconds, in_process, rows, take_turns

_REFERENCE = "forward + backward"
_CROWN, _VERTICES, _MARGINS, _PEER = "crown", "vertex_crown", "margins", "auto_LiRPA crown"
_NORMS = {"linf": math.inf, "l2": 2.0, "l1": 1.0}
_SAMPLES = 64
# Of the largest margin: two programs differ by as much through float32, and through a ReLU whose interval is a little
# tighter in one of them, so that it chooses the other slope.
_TOLERANCE = 1e-4

Network = Callable[[Any, jax.Array], jax.Array]
Arrays = dict[str, np.ndarray]


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Adds what to bound, and beside whom."""
    command.add_argument("--norm", choices=list(_NORMS), default="linf")
    command.add_argument("--eps", type=float, nargs="+", default=[0.1], help="radii, a table each")
    command.add_argument("--whole_ball", action="store_true", help="do not cut the ball by the box of pixels")
    command.add_argument("--weights", type=Path, help="of a trained network, .npz; random ones if left out")
    command.add_argument("--size", type=int, default=28, help="height and width of the image")
    command.add_argument("--features", type=int, nargs="+", default=[16, 16, 32, 32, 32], help="of each convolution")
    command.add_argument("--strides", type=int, nargs="+", default=[1, 1, 2, 1, 1], help="of each convolution")
    command.add_argument("--dense", type=int, nargs="+", default=[128], help="widths of the hidden dense layers")
    command.add_argument("--auto_lirpa", help="a checkout of auto_LiRPA to run beside; needs --peer_python")
    command.add_argument("--peer_python", help="interpreter of an environment with torch; needs --auto_lirpa")


def run(options: argparse.Namespace) -> list[Report]:
    """Times all programs at each radius."""
    if bool(options.auto_lirpa) != bool(options.peer_python):
        raise ValueError("Only one of --auto_lirpa and --peer_python is given; expected both or none. Give the other")
    if len(options.features) != len(options.strides):
        raise ValueError(f"{len(options.features)} features but {len(options.strides)} strides; expected one of each")
    network, parameters, image, label = _problem(options)
    programs = _programs(network, label, options.norm)
    with _peer(options, parameters, image, label) as ask:
        return [report for eps in options.eps for report in _reports(options, eps, programs, (parameters, image), ask)]


def _problem(options: argparse.Namespace) -> tuple[Network, Any, jax.Array, int]:
    """The network as a function of parameters and image, its parameters, the image and its label."""
    convolutions = tuple((width, 3, stride) for width, stride in zip(options.features, options.strides, strict=True))
    model: Any = models.create("conv_small", 10, convs=convolutions, dense=tuple(options.dense))
    batch = jax.ShapeDtypeStruct((1, options.size, options.size, 1), jnp.float32)
    layers: Any = jax.eval_shape(model.init, jax.random.key(0), batch)["params"]
    shapes: dict[str, Any] = dict(traverse_util.flatten_dict(layers, sep="/"))
    generator = np.random.default_rng(options.seed)
    stored = dict(np.load(options.weights)) if options.weights else _random_weights(shapes, generator)
    wrong = [name for name, value in shapes.items() if name not in stored or stored[name].shape != value.shape]
    if wrong:
        expected = ", ".join(f"{name} {shapes[name].shape}" for name in wrong)
        raise ValueError(f"{options.weights} lacks or has another shape of: {expected}. Give the network's layers too")
    parameters = {"params": traverse_util.unflatten_dict({name: jnp.asarray(stored[name]) for name in shapes}, sep="/")}

    def network(parameters: Any, x: jax.Array) -> jax.Array:
        return model.apply(parameters, x[None])[0]

    image = stored.get("image", generator.uniform(size=batch.shape[1:]))
    image = jnp.asarray(image, jnp.float32)
    label = int(stored.get("label", np.argmax(network(parameters, image))))
    return network, parameters, image, label


def _random_weights(shapes: Mapping[str, Any], generator: np.random.Generator) -> Arrays:
    """Kernels and biases uniform up to 1 / sqrt(inputs of a neuron), layer by layer."""
    weights = {}
    for layer in dict.fromkeys(name.partition("/")[0] for name in shapes):
        kernel, bias = f"{layer}/kernel", f"{layer}/bias"
        inputs = math.prod(shapes[kernel].shape[:-1])
        for name in (kernel, bias):
            weights[name] = (generator.uniform(-1, 1, shapes[name].shape) / math.sqrt(inputs)).astype(np.float32)
    return weights


def _programs(network: Network, label: int, norm: str) -> dict[str, Callable[..., Any]]:
    """What is timed, of parameters and region; parameters are arguments, or XLA would compute with them in advance."""

    def bound(transform: Callable[..., Any]) -> Callable[..., Any]:
        return jax.jit(lambda parameters, region: transform(_margins(network, label, parameters))(region).lower)

    def gradient(parameters: Any, region: cj.LpBall) -> Any:
        return jax.value_and_grad(lambda x: jnp.sum(_margins(network, label, parameters)(x)))(region.center)

    vertices = {_VERTICES: bound(lambda f: cj.vertex_crown(f, lower_only=True))} if norm == "l1" else {}
    programs = {
        _REFERENCE: jax.jit(gradient),
        "ibp": bound(cj.ibp),
        "crown-ibp": bound(lambda f: cj.crown(f, intermediate="ibp")),
        _CROWN: bound(cj.crown),
        _MARGINS: jax.jit(lambda parameters, x: jax.vmap(_margins(network, label, parameters))(x)),
    }
    return programs | vertices


def _margins(network: Network, label: int, parameters: Any) -> Callable[[jax.Array], jax.Array]:
    return cj.margins(lambda x: network(parameters, x), label)


def _reports(
    options: argparse.Namespace, eps: float, functions: Mapping[str, Any], operands: Any, ask: peer.Ask | None
) -> Iterator[Report]:
    """Times at one radius; yields our table, and that of the two verifiers."""
    parameters, image = operands
    region = cj.lp_ball(image, eps, _NORMS[options.norm], within=None if options.whole_ball else (0.0, 1.0))
    ours = {name: in_process(f, parameters, region) for name, f in functions.items() if name != _MARGINS}
    theirs = {} if ask is None else {_PEER: lambda: _seconds(ask({"eps": eps}))}
    taken = take_turns(ours | theirs, options.rounds)
    lower = np.asarray(functions[_CROWN](parameters, region))
    samples = jax.vmap(region.sample)(jax.random.split(jax.random.key(options.seed), _SAMPLES))
    margins = functions[_MARGINS](parameters, samples)
    tolerance = _TOLERANCE * float(np.max(np.abs(lower)))

    def not_negative(differences: Any) -> Check:
        least = float(np.min(differences))
        return Check(least, least >= -tolerance)

    title = f"{options.norm}, eps {eps:g}, {'whole ball' if options.whole_ball else 'cut by [0, 1]'}"
    checks = {"least sampled margin minus its lower bound": not_negative(np.asarray(margins) - lower)}
    facts = {"eps": eps, "lower": lower.tolist()}
    if _VERTICES in functions:
        facts[_VERTICES] = np.asarray(functions[_VERTICES](parameters, region)).tolist()
        checks[f"the same for {_VERTICES}"] = not_negative(np.asarray(margins) - np.asarray(facts[_VERTICES]))
    yield Report(title, rows({name: taken[name] for name in ours}, _REFERENCE), checks, facts)
    if ask is not None:
        answer = {name: value for name, value in ask({"eps": eps}).items() if name not in ("wall", "cpu")}
        checks = {"least lower bound minus auto_LiRPA's": not_negative(lower - np.asarray(answer["lower"]))}
        both = {name: taken[name] for name in (_CROWN, _PEER)}
        yield Report(f"{title}, beside auto_LiRPA", rows(both, _CROWN), checks, answer)


def _seconds(answer: Mapping[str, Any]) -> Seconds:
    return Seconds(answer["wall"], answer["cpu"])


@contextlib.contextmanager
def _peer(options: argparse.Namespace, parameters: Any, image: jax.Array, label: int) -> Iterator[peer.Ask | None]:
    """auto_LiRPA on the same problem, or None."""
    if not options.auto_lirpa:
        yield None
        return
    problem: dict[str, Any] = {"image": image, "label": label, "strides": options.strides, "padding": 1}
    problem |= {"p": _NORMS[options.norm], "cut": not options.whole_ball}
    for i, layer in enumerate(parameters["params"].values()):
        problem |= {f"kernel_{i}": layer["kernel"], f"bias_{i}": layer["bias"]}
    script = Path(__file__).with_name("peer_auto_lirpa.py")
    with peer.started(options.peer_python, script, options.auto_lirpa, problem) as ask:
        yield ask
