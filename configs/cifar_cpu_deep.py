"""CIFAR-10 on two CPU cores, a network of 5 M multiply-adds: l_inf 2/255 and l_2 0.25; l_1 0.5 is reported beside them.

    python launch/train.py --config=cifar_cpu_deep:max --workdir=runs/cifar_cpu_deep/max
    python launch/certify.py --workdir=runs/cifar_cpu_deep/max --method=ibp,lipschitz,box_ball,crown_ibp,sdp_crown,crown

One core trains one norm in 30 minutes, both in 75. TFDS_DATA_DIR or --config.data_dir says where the data is. Results:
docs/results.md.
"""

from cure_jax.configs import cifar_cpu
from cure_jax.configs.methods import Losses, box_ball, small_box, with_method
from cure_jax.training.config import Config

_LOSSES = Losses(linf=small_box(0.1), l2=box_ball(0.6), l2_alone=box_ball(0.6))


def base() -> Config:
    """What was tuned on CIFAR-10 at 2/255; the settings beside it start from here."""
    config = cifar_cpu.base()
    config.model.name = "conv_deep"
    config.optimizer, config.learning_rate, config.gradient_clip = "radam", 3e-3, 4.0
    config.epochs, config.milestones, config.milestone_factor, config.ramp_end = 20, (13, 17, 19), 0.3, 8.0
    config.warmup_regularizer, config.attack_steps = 0.0, 3
    return config


def get_config(method: str = "scratch") -> Config:
    """The config of one method, see `cure_jax.configs.methods`."""
    config = base()
    config.setting = "cifar_cpu_deep"
    return with_method(config, method, _LOSSES, cifar_cpu.FINETUNING)
