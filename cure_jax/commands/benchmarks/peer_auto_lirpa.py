"""CROWN of auto_LiRPA as a child of `cure-jax benchmark`; runs in an environment with torch, without JAX.

    PYTHON cure_jax/commands/benchmarks/peer_auto_lirpa.py CHECKOUT PROBLEM.npz

A first line says that it is ready. Requests are `{"eps": 0.1}`. An answer has the lower bounds of the margins, the
seconds that they took, and how many neurons before each ReLU are active, inactive and unstable. All options are the
default ones.
"""

import json
import os
import sys
import time
from typing import Any

import numpy as np


def main(source: str, path: str) -> None:
    """Answers requests until the input ends."""
    # Libraries may print; answers have the standard output for themselves.
    answers, sys.stdout = sys.stdout, sys.stderr
    sys.path.insert(0, source)
    import torch  # pyright: ignore[reportMissingImports]
    from auto_LiRPA import BoundedModule  # pyright: ignore[reportMissingImports]

    torch.set_num_threads(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    problem = dict(np.load(path))
    image = torch.tensor(np.ascontiguousarray(problem["image"].transpose(2, 0, 1))[None])
    network = _network(problem)
    bounded = BoundedModule(network, image)
    specification = _margins(int(problem["label"]), network(image).shape[1])
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        inputs = (_region(image, json.loads(line)["eps"], problem),)
        wall, cpu = time.perf_counter(), time.process_time()
        with torch.no_grad():
            lower, _ = bounded.compute_bounds(inputs, C=specification, method="CROWN", bound_upper=False)
        seconds = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
        answer = {"lower": lower[0].tolist(), "relus": [_states(relu) for relu in bounded.relus], **seconds}
        answer["versions"] = {"torch": torch.__version__, "threads": torch.get_num_threads()}
        print(json.dumps(answer), file=answers, flush=True)


def _network(problem: dict[str, np.ndarray]) -> Any:
    """The same network in torch's layout, which has channels before height and width."""
    import torch  # pyright: ignore[reportMissingImports]
    from torch import nn  # pyright: ignore[reportMissingImports]

    layers: list[Any] = []
    strides, padding = problem["strides"], int(problem["padding"])
    height, width, channels = problem["image"].shape
    for i, stride in enumerate(map(int, strides)):
        kernel = problem[f"kernel_{i}"]
        layers += [nn.Conv2d(channels, kernel.shape[3], kernel.shape[:2], stride, padding), nn.ReLU()]
        _set(layers[-2], kernel.transpose(3, 2, 0, 1), problem[f"bias_{i}"])
        size = [(n + 2 * padding - k) // stride + 1 for n, k in zip((height, width), kernel.shape[:2], strict=True)]
        (height, width), channels = size, kernel.shape[3]
    layers.append(nn.Flatten())
    for i in range(len(strides), sum(name.startswith("kernel_") for name in problem)):
        kernel = problem[f"kernel_{i}"]
        layers += [nn.Linear(*kernel.shape), nn.ReLU()]
        if i == len(strides):
            kernel = kernel.reshape(height, width, channels, -1).transpose(2, 0, 1, 3).reshape(kernel.shape)
        _set(layers[-2], kernel.T, problem[f"bias_{i}"])
    return nn.Sequential(*layers[:-1]).to(torch.float32).eval()


def _set(layer: Any, weight: np.ndarray, bias: np.ndarray) -> None:
    import torch  # pyright: ignore[reportMissingImports]

    layer.weight.data = torch.tensor(np.ascontiguousarray(weight))
    layer.bias.data = torch.tensor(bias)


def _margins(label: int, classes: int) -> Any:
    """The matrix of logits[label] - logits[j], j != label, ascending: [1, classes - 1, classes]."""
    import torch  # pyright: ignore[reportMissingImports]

    unit = torch.eye(classes)
    return (unit[label] - unit[[j for j in range(classes) if j != label]])[None]


def _region(image: Any, eps: float, problem: dict[str, np.ndarray]) -> Any:
    """The ball; an l_inf ball is cut by the box of pixels if it is to be, others cannot be here."""
    from auto_LiRPA import BoundedTensor, PerturbationLpNorm  # pyright: ignore[reportMissingImports]

    limits = {}
    if np.isinf(problem["p"]):
        low, high = (0, 1) if problem["cut"] else (None, None)
        limits = {"x_L": image - eps, "x_U": image + eps}
        limits = {name: limit.clamp(low, high) if problem["cut"] else limit for name, limit in limits.items()}
    return BoundedTensor(image, PerturbationLpNorm(norm=float(problem["p"]), eps=eps, **limits))


def _states(relu: Any) -> list[int]:
    lower, upper = relu.inputs[0].lower, relu.inputs[0].upper
    active, inactive = int((lower >= 0).sum()), int((upper <= 0).sum())
    return [active, inactive, lower.numel() - active - inactive]


if __name__ == "__main__":
    main(*sys.argv[1:])
