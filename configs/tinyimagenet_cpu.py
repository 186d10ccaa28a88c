"""TinyImageNet (56x56 crops) on two CPU cores: a small convolutional network, l_inf 1/255 and l_2 36/255.

    python launch/prepare_tiny_imagenet.py --source=tiny-imagenet-200.zip --data_dir=DIR
    python launch/train.py --config=tinyimagenet_cpu:max --config.data_dir=DIR --workdir=runs/tinyimagenet_cpu/max
    python launch/certify.py --workdir=runs/tinyimagenet_cpu/max --method=ibp,lipschitz,box_ball,crown_ibp

l_1 72/255 is reported beside them. Not run yet.
"""

from cure_jax.configs import cifar_cpu, tinyimagenet
from cure_jax.configs.methods import Losses, lipschitz, small_box, with_method
from cure_jax.training.config import Config

_LOSSES = Losses(linf=small_box(0.4), l2=lipschitz(0.3), l2_alone=lipschitz(0.3))


def get_config(method: str = "scratch") -> Config:
    """The config of one method, see `cure_jax.configs.methods`."""
    published = tinyimagenet.get_config(method)
    config = cifar_cpu.base()
    config.setting = "tinyimagenet_cpu"
    for field in ("dataset", "augmentation", "radii", "reported"):
        config[field] = published[field]
    config.model = {"name": "conv_small", "options": published.model.options}
    config.epochs, config.milestones, config.ramp_end = 20, (15, 18), 8.0
    return with_method(config, method, _LOSSES, cifar_cpu.FINETUNING)
