"""CIFAR-10 on two CPU cores, trained longer: the learning rate along a cosine, each example in one norm.

    python launch/train.py --config=cifar_cpu_long:random --workdir=runs/cifar_cpu_long/random
    python launch/certify.py --workdir=runs/cifar_cpu_long/random --method=best

The network, radii and batches of cifar_cpu_deep; 40 epochs. TFDS_DATA_DIR or --config.data_dir says where the data is.
It was not run yet; what speaks for it is in docs/ablations.md.
"""

from cure_jax.configs import cifar_cpu, cifar_cpu_deep
from cure_jax.configs.methods import Losses, box_ball, small_box, with_method
from cure_jax.training.config import Config

_LOSSES = Losses(linf=small_box(0.1), l2=box_ball(0.5), l2_alone=box_ball(0.5))


def get_config(method: str = "random") -> Config:
    """The config of one method, see `cure_jax.configs.methods`."""
    config = cifar_cpu_deep.base()
    config.setting = "cifar_cpu_long"
    config.epochs, config.learning_rate_decay = 40, "cosine"
    config.ramp_end = 16.0
    return with_method(config, method, _LOSSES, cifar_cpu.FINETUNING)
