"""CIFAR-10 on two CPU cores, three norms in one union: l_inf 2/255, l_2 0.1 and l_1 2, as Croce and Hein measure it.

    c=configs/cifar_three_norms.py:max
    python launch/train.py --config=$c --workdir=runs/cifar_three_norms/max
    methods=ibp,lipschitz,box_ball,crown_ibp,sdp_crown,vertex_crown
    python launch/certify.py --workdir=runs/cifar_three_norms/max --method=$methods --batch_size=50 --num_examples=300

Results: docs/results.md. The l_1 ball has no loss of its own: proofs at the vertices of the ball serve it.
TFDS_DATA_DIR or --config.data_dir says where the data is.

Source of the setting: Croce & Hein, "Provable Robustness against all Adversarial l_p-perturbations for p >= 1", ICLR
2020, Table 1.
"""

from cure_jax.configs import cifar_cpu, cifar_cpu_deep
from cure_jax.configs.methods import Losses, box_ball, small_box, with_method
from cure_jax.training.config import Config

_LOSSES = Losses(linf=small_box(0.1), l2=box_ball(1.0), l2_alone=box_ball(1.0))


def get_config(method: str = "scratch") -> Config:
    """The config of one method, see `cure_jax.configs.methods`."""
    config = cifar_cpu_deep.base()
    config.setting = "cifar_three_norms"
    config.radii = {"linf": 2 / 255, "l2": 0.1, "l1": 2.0}
    config.reported = {}
    return with_method(config, method, _LOSSES, cifar_cpu.FINETUNING)
