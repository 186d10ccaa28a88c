"""CIFAR-10 as base classifiers of smoothed ones: trained on noise, l_2 or l_1.

    python launch/train.py --config=configs/cifar_smoothing.py:gaussian --workdir=runs/cifar_smoothing/gaussian

Methods: gaussian | consistency (l_2), splitting (l_1), for two CPU cores. TFDS_DATA_DIR or --config.data_dir says where
the data is. How they are certified, and with what result: docs/smoothing.md.
"""

from cure_jax.configs import cifar_cpu
from cure_jax.configs.digits_smoothing import with_noise
from cure_jax.training.config import Config

METHODS = {
    "gaussian": ("l2", "gaussian", 0.25, 0.0),
    "consistency": ("l2", "gaussian", 0.25, 5.0),
    "splitting": ("l1", "splitting", 1.0, 5.0),
}


def get_config(method: str = "consistency") -> Config:
    """The config of one method."""
    config = cifar_cpu.base()
    config.setting = "cifar_smoothing"
    config.reported = {}
    config.epochs, config.milestones, config.learning_rate = 8, (6, 7), 2e-3
    config.natural_epochs, config.ramp_end = 0.2, 1.0
    config = with_noise(config, method, 255, METHODS)
    for loss in config.losses.values():
        # Without a consistency a second view costs as much as a second image, and teaches less.
        loss.samples = 2 if loss.consistency else 1
    return config
