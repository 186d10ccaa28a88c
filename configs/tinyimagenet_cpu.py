"""TinyImageNet (56x56 crops) on two CPU cores, a network of 7 M multiply-adds: l_inf 1/255 and l_2 36/255.

    python launch/prepare_tiny_imagenet.py --source=tiny-imagenet-200.zip --data_dir=DIR
    python launch/train.py --config=tinyimagenet_cpu:max --config.data_dir=DIR --workdir=runs/tinyimagenet_cpu/max
    methods=ibp,lipschitz,box_ball,crown_ibp,sdp_crown,crown
    python launch/certify.py --workdir=runs/tinyimagenet_cpu/max --method=$methods

l_1 72/255 is reported beside them. The optimiser is that of cifar_cpu_deep, the schedule is shorter by 8 epochs;
nothing was tuned here. One core takes 63 minutes for `linf`, 77 for `paper` and 85 for `max`.
"""

from cure_jax.configs import cifar_cpu_deep, tinyimagenet
from cure_jax.configs.methods import Finetuning, Losses, box_ball, small_box, with_method
from cure_jax.training.config import Config

_LOSSES = Losses(linf=small_box(0.4), l2=box_ball(0.6), l2_alone=box_ball(0.6))
_FINETUNING = Finetuning(epochs=4, milestones=(2, 3), ramp_end=1.5, alignment=0.5)


def get_config(method: str = "scratch") -> Config:
    """The config of one method, see `cure_jax.configs.methods`."""
    published = tinyimagenet.get_config(method)
    config = cifar_cpu_deep.base()
    config.setting = "tinyimagenet_cpu"
    for field in ("dataset", "augmentation", "radii", "reported"):
        config[field] = published[field]
    config.epochs, config.milestones, config.ramp_end = 12, (8, 10, 11), 5.0
    convs = ((32, 3, 2), (64, 3, 2), (64, 3, 2))
    config.model.options = {**published.model.options, "convs": convs}
    return with_method(config, method, _LOSSES, _FINETUNING)
