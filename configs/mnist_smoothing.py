"""MNIST as base classifiers of smoothed ones: trained on noise, l_2 or l_1.

    python launch/train.py --config=configs/mnist_smoothing.py:consistency --workdir=runs/mnist_smoothing/consistency

Methods: consistency (l_2), splitting (l_1). 4 to 9 minutes on a busy core of a CPU. TFDS_DATA_DIR or
--config.data_dir says where the data is. How they are certified, and with what result: docs/smoothing.md.
"""

from cure_jax.configs import mnist_cpu
from cure_jax.configs.digits_smoothing import with_noise
from cure_jax.training.config import Config

METHODS = {
    "consistency": ("l2", "gaussian", 0.5, 5.0),
    "splitting": ("l1", "splitting", 3.0, 5.0),
}


def get_config(method: str = "consistency") -> Config:
    """The config of one method."""
    config = mnist_cpu.base()
    config.setting = "mnist_smoothing"
    config.reported = {}
    config.epochs, config.milestones, config.learning_rate = 5, (4,), 2e-3
    config.natural_epochs, config.ramp_end = 0.2, 1.0
    return with_noise(config, method, 255, METHODS)
