"""MNIST on two CPU cores, trained longer and with what CIFAR-10 taught: boxes and balls for l_2, RAdam at a high rate.

    python launch/train.py --config=mnist_cpu_long:max --workdir=runs/mnist_cpu_long/max
    python launch/certify.py --workdir=runs/mnist_cpu_long/max --method=best --curve=

The network, radii and batches of mnist_cpu; 28 epochs, 35 minutes on one CPU core. TFDS_DATA_DIR or --config.data_dir
says where the data is. Results: docs/results.md.
"""

from cure_jax.configs import mnist_cpu
from cure_jax.configs.methods import Losses, box_ball, small_box, with_method
from cure_jax.training.config import Config

_LOSSES = Losses(linf=small_box(0.4), l2=box_ball(0.6), l2_alone=box_ball(0.6))


def get_config(method: str = "scratch") -> Config:
    """The config of one method, see `cure_jax.configs.methods`."""
    config = mnist_cpu.base()
    config.setting = "mnist_cpu_long"
    config.optimizer, config.learning_rate, config.gradient_clip = "radam", 3e-3, 4.0
    config.epochs, config.milestones, config.milestone_factor, config.ramp_end = 28, (20, 25), 0.1, 6.0
    return with_method(config, method, _LOSSES, mnist_cpu.FINETUNING)
