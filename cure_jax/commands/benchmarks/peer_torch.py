"""Training steps of PyTorch as a child of `cure-jax benchmark train`; runs in an environment with torch, without JAX.

    PYTHON cure_jax/commands/benchmarks/peer_torch.py "" PROBLEM.npz

A first line says that it is ready. A request is `{"loss": "max", "steps": 4, "channels": "last", "separate": false}`;
an answer has the seconds of a step and the loss. The losses are those of `cure_jax.training.objectives` as one would
write them in PyTorch: attacks with projected gradients (the l_2 ball and then the box of pixels), intervals as centers
and radii, the last layer joined with the margins.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

_RADII, _RATIO = {"linf": 0.1, "l2": 0.5}, 0.4
_STEP_SIZES = {"linf": 0.5, "l2": 0.2}


def main(source: str, path: str) -> None:
    """Answers requests until the input ends."""
    del source
    answers, sys.stdout = sys.stdout, sys.stderr
    import torch  # pyright: ignore[reportMissingImports]

    torch.set_num_threads(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    torch.manual_seed(0)
    problem = dict(np.load(path))
    network = json.loads(str(problem["network"]))
    images = torch.tensor(np.ascontiguousarray(problem["images"].transpose(0, 3, 1, 2)))
    labels = torch.tensor(problem["labels"])
    started: dict[tuple[str, str], Callable[[], Any]] = {}
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        key = request["loss"], request["channels"]
        if key not in started:
            started[key] = _step(network, images, labels, request)
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(request["steps"]):
            loss = started[key]()
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        answer = {"wall": wall / request["steps"], "cpu": cpu / request["steps"], "loss": float(loss)}
        answer["versions"] = {"torch": torch.__version__, "threads": torch.get_num_threads()}
        print(json.dumps(answer), file=answers, flush=True)


def _step(network: dict[str, Any], images: Any, labels: Any, request: dict[str, Any]) -> Callable[[], Any]:
    import torch  # pyright: ignore[reportMissingImports]
    from torch.nn import functional  # pyright: ignore[reportMissingImports]

    model = _model(network, images.shape[1:])
    x = images
    if request["channels"] == "last":
        model, x = (value.to(memory_format=torch.channels_last) for value in (model, images))
    optimizer = torch.optim.Adam(model.parameters(), 5e-4)
    kinds = {"max": ("linf", "l2"), "small_box": ("linf",)}.get(request["loss"], ())

    def attacked() -> list[Any]:
        model.eval().requires_grad_(False)
        groups = [(kind,) for kind in kinds] if request["separate"] else [kinds]
        found = [part for group in groups for part in _attack(model, x, labels, group, network["attack_steps"])]
        model.train().requires_grad_(True)
        return found

    def step() -> Any:
        if request["loss"] == "natural":
            loss = functional.cross_entropy(model(x), labels)
        else:
            if kinds:
                centers, widths = attacked(), [_RATIO * _RADII[kind] for kind in kinds]
            else:
                centers, widths = [x], [_RADII["linf"]]
            moments = _moments(model, x)
            low = torch.cat([(center - width).clamp(0, 1) for center, width in zip(centers, widths, strict=True)])
            high = torch.cat([(center + width).clamp(0, 1) for center, width in zip(centers, widths, strict=True)])
            logits = _worst(model, low, high, labels.repeat(len(centers)), moments)
            losses = functional.cross_entropy(logits, labels.repeat(len(centers)), reduction="none")
            loss = torch.stack(losses.chunk(len(centers))).amax(0).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def _model(network: dict[str, Any], shape: Sequence[int]) -> Any:
    from torch import nn  # pyright: ignore[reportMissingImports]

    layers: list[Any] = []
    channels, size = shape[0], shape[1]
    for features, kernel, stride in network["convs"]:
        layers.append(nn.Conv2d(channels, features, kernel, stride, 1))
        layers += [nn.BatchNorm2d(features)] if network.get("batch_norm") else []
        layers.append(nn.ReLU())
        channels, size = features, (size + 2 - kernel) // stride + 1
    layers.append(nn.Flatten())
    inputs = channels * size * size
    for features in network["dense"]:
        layers.append(nn.Linear(inputs, features))
        layers += [nn.BatchNorm1d(features)] if network.get("batch_norm") else []
        layers.append(nn.ReLU())
        inputs = features
    return nn.Sequential(*layers, nn.Linear(inputs, 10))


def _project(points: Any, x: Any, kind: str) -> Any:
    moved, radius = points - x, _RADII[kind]
    if kind == "linf":
        moved = moved.clamp(-radius, radius)
    else:
        length = moved.flatten(1).norm(dim=1).clamp_min(1e-12)
        moved = moved * (radius / length).clamp(max=1).view(-1, 1, 1, 1)
    return (x + moved).clamp(0, 1)


def _steepest(gradient: Any, kind: str) -> Any:
    if kind == "linf":
        return _RADII[kind] * gradient.sign()
    return _RADII[kind] * gradient / gradient.flatten(1).norm(dim=1).clamp_min(1e-12).view(-1, 1, 1, 1)


def _attack(model: Any, x: Any, labels: Any, kinds: Sequence[str], steps: int) -> list[Any]:
    """Attacks in several norms, in one batch."""
    import torch  # pyright: ignore[reportMissingImports]
    from torch.nn import functional  # pyright: ignore[reportMissingImports]

    points = torch.cat([_project(x + _RADII[kind] * torch.randn_like(x), x, kind) for kind in kinds])
    for _ in range(steps):
        points.requires_grad_(True)
        loss = functional.cross_entropy(model(points), labels.repeat(len(kinds)), reduction="sum")
        (gradient,) = torch.autograd.grad(loss, points)
        with torch.no_grad():
            parts = zip(kinds, points.chunk(len(kinds)), gradient.chunk(len(kinds)), strict=True)
            moved = [_project(part + _STEP_SIZES[kind] * _steepest(g, kind), x, kind) for kind, part, g in parts]
            points = torch.cat(moved)
    return list(points.chunk(len(kinds)))


def _moments(model: Any, x: Any) -> dict[int, tuple[Any, Any]]:
    """Scale and shift of each BatchNorm by the clean batch; the running averages are updated on the way."""
    import torch  # pyright: ignore[reportMissingImports]

    found = {}
    if not any(isinstance(layer, torch.nn.modules.batchnorm._BatchNorm) for layer in model):
        with torch.no_grad():
            model(x)  # For the metrics.
        return found
    for i, layer in enumerate(model):
        if isinstance(layer, torch.nn.modules.batchnorm._BatchNorm):
            axes = (0, 2, 3)[: x.ndim - 1] if x.ndim == 4 else (0,)
            variance, mean = torch.var_mean(x, axes, unbiased=False)
            scale = layer.weight * torch.rsqrt(variance + layer.eps)
            found[i] = scale, layer.bias - mean * scale
        x = layer(x)
    return found


def _worst(model: Any, low: Any, high: Any, labels: Any, moments: dict[int, tuple[Any, Any]]) -> Any:
    """Upper bounds of logits_j - logits_label."""
    import torch  # pyright: ignore[reportMissingImports]
    from torch import nn  # pyright: ignore[reportMissingImports]
    from torch.nn import functional  # pyright: ignore[reportMissingImports]

    center, radius = (low + high) / 2, (high - low) / 2
    for i, layer in enumerate(model[:-1]):
        if isinstance(layer, nn.Conv2d):
            center, radius = (
                functional.conv2d(center, layer.weight, layer.bias, layer.stride, layer.padding),
                functional.conv2d(radius, layer.weight.abs(), None, layer.stride, layer.padding),
            )
        elif isinstance(layer, nn.Linear):
            center = functional.linear(center, layer.weight, layer.bias)
            radius = functional.linear(radius, layer.weight.abs())
        elif isinstance(layer, nn.ReLU):
            below, above = torch.relu(center - radius), torch.relu(center + radius)
            center, radius = (below + above) / 2, (above - below) / 2
        elif isinstance(layer, nn.Flatten):
            center, radius = layer(center), layer(radius)
        else:
            scale, shift = (part.view(-1, *[1] * (center.ndim - 2)) for part in moments[i])
            center, radius = center * scale + shift, radius * scale.abs()
    last = model[-1]
    rows = last.weight[labels].unsqueeze(1) - last.weight
    offset = last.bias[labels].unsqueeze(1) - last.bias
    lower = (rows @ center.unsqueeze(2)).squeeze(2) + offset - (rows.abs() @ radius.unsqueeze(2)).squeeze(2)
    return -lower


if __name__ == "__main__":
    main(*sys.argv[1:])
