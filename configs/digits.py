"""Handwritten digits (8x8, embedded): a multi-layer perceptron, l_inf 0.13 and l_2 0.45.

    python launch/train.py --config=configs/digits.py:scratch --workdir=runs/digits/scratch
    python launch/certify.py --config=configs/digits.py:scratch --workdir=runs/digits/scratch --method=crown

2 CPU cores: 15-30 s to train, about 8 s to certify and attack. Union certified accuracy, seeds 0-2, 2026-11-21:
scratch 60.8 +- 1.1 %, paper 38.4 +- 1.7 %, l2 40.6 +- 0.2 %, linf 34.6 +- 1.4 % (docs/results.md).
"""

from cure_jax.training.config import Config, default_config

_SMALL_BOX = {"kind": "small_box", "ratio": 0.4, "inside": False}
_PAPER_L2 = {"kind": "small_box", "ratio": 1e-5, "inside": False}
# The fractions were chosen on the validation split: for the best union, and for l_2 alone the best l_2.
_LIPSCHITZ = {"kind": "lipschitz", "fraction": 0.9}
_L2_ALONE = {"kind": "lipschitz", "fraction": 1.15}


def get_config(method: str = "scratch") -> Config:
    """The config of one method.

    Args:
      method: linf | l2 (one norm alone); joint | max | random (both, combined); scratch (max, bound alignment and
        gradient projection: CURE-Scratch with our l_2 loss); paper (the same with the published l_2 loss).
    """
    config = default_config()
    config.name = method
    config.dataset = "digits"
    config.model = {"name": "mlp", "options": {"features": (128, 128)}}
    config.radii = {"linf": 0.13, "l2": 0.45}
    config.epochs = 100
    config.batch_size = 128
    config.learning_rate = 5e-3
    config.milestones = (70, 87)
    config.ramp_end = 35.0
    config.checkpoint_every = 500
    single = {"linf": {"linf": _SMALL_BOX}, "l2": {"l2": _L2_ALONE}}
    both = {"linf": _SMALL_BOX, "l2": _PAPER_L2 if method == "paper" else _LIPSCHITZ}
    combiners = {"joint": "joint", "max": "worst", "random": "random_norm", "scratch": "worst", "paper": "worst"}
    if method not in (*single, *combiners):
        raise ValueError(f"Unknown method {method!r}; expected one of {', '.join((*single, *combiners))}.")
    config.losses = single.get(method, both)
    config.combine = combiners.get(method, "worst")
    if method in ("scratch", "paper"):
        config.alignment.weight = 0.5
        config.projection.beta = 0.5
    return config
