"""MNIST on two CPU cores: a small convolutional network, l_inf 0.1 and l_2 0.75; l_1 1.0 is reported beside them.

    python launch/train.py --config=configs/mnist_cpu.py:max --workdir=runs/mnist_cpu/max
    python launch/certify.py --config=configs/mnist_cpu.py:max --workdir=runs/mnist_cpu/max --method=best

TFDS_DATA_DIR or --config.data_dir says where the data is. 2 CPU cores: 6 to 10 minutes to train. First 100 test images:
max 84 % certified in l_inf, 80 % in l_2 (docs/bounds.md).
"""

from cure_jax.training.config import Config, default_config

_SMALL_BOX = {"kind": "small_box", "ratio": 0.4, "inside": False}
_LIPSCHITZ = {"kind": "lipschitz", "fraction": 0.6}


def get_config(method: str = "max") -> Config:
    """The config of one method.

    Args:
      method: linf | l2 (one norm alone); max (both, the larger loss of each example).
    """
    config = default_config()
    config.name = method
    config.dataset = "mnist"
    config.model = {"name": "conv_small", "options": {}}
    config.radii = {"linf": 0.1, "l2": 0.75}
    config.reported = {"l1": 1.0}
    config.epochs = 10
    config.batch_size = 256
    config.learning_rate = 1e-3
    config.milestones = (7, 9)
    config.ramp_end = 4.0
    config.natural_epochs = 0.5
    losses = {"linf": {"linf": _SMALL_BOX}, "l2": {"l2": _LIPSCHITZ}, "max": {"linf": _SMALL_BOX, "l2": _LIPSCHITZ}}
    if method not in losses:
        raise ValueError(f"Unknown method {method!r}; expected one of {', '.join(losses)}.")
    config.losses = losses[method]
    config.combine = "worst"
    return config
