"""CIFAR-10 on two CPU cores at large radii: l_inf 8/255 and l_2 0.5; l_1 1.0 is reported beside them.

    python launch/train.py --config=cifar_cpu_large:max --workdir=runs/cifar_cpu_large/max
    methods=ibp,lipschitz,box_ball,crown_ibp,sdp_crown,crown
    python launch/certify.py --workdir=runs/cifar_cpu_large/max --method=$methods

Run at half of its epochs so far: docs/results.md. TFDS_DATA_DIR or --config.data_dir says where the data is.
"""

from cure_jax.configs import cifar_cpu, cifar_cpu_deep
from cure_jax.configs.methods import Losses, box_ball, small_box, with_method
from cure_jax.training.config import Config

# At 8/255 small boxes come close to whole ones, as in the published setting.
_LOSSES = Losses(linf=small_box(0.7), l2=box_ball(0.6), l2_alone=box_ball(0.6))


def get_config(method: str = "scratch") -> Config:
    """The config of one method, see `cure_jax.configs.methods`."""
    config = cifar_cpu_deep.base()
    config.setting = "cifar_cpu_large"
    config.radii = {"linf": 8 / 255, "l2": 0.5}
    config.reported = {"l1": 1.0}
    config.l1_penalty = 1e-6 if method == "l2" else 0.0
    return with_method(config, method, _LOSSES, cifar_cpu.FINETUNING)
