"""MNIST on two CPU cores, three norms in one union: l_inf 0.1, l_2 0.3 and l_1 1.0, as Croce and Hein measure it.

    c=configs/mnist_three_norms.py:max
    python launch/train.py --config=$c --workdir=runs/mnist_three_norms/max
    python launch/certify.py --config=$c --workdir=runs/mnist_three_norms/max --method=best

The l_1 ball has no loss of its own: it lies in the l_2 ball of radius 1, and a Lipschitz margin somewhat above the
radius of l_2 serves both. TFDS_DATA_DIR or --config.data_dir says where the data is. Results: docs/results.md.

Source of the setting: Croce & Hein, "Provable Robustness against all Adversarial l_p-perturbations for p >= 1", ICLR
2020, Table 1.
"""

from configs import mnist_cpu
from configs.methods import Losses, lipschitz, small_box, with_method
from cure_jax.training.config import Config

_LOSSES = Losses(linf=small_box(0.4), l2=lipschitz(1.25), l2_alone=lipschitz(1.25))


def get_config(method: str = "scratch") -> Config:
    """The config of one method, see `configs.methods`."""
    config = mnist_cpu.base()
    config.setting = "mnist_three_norms"
    config.radii = {"linf": 0.1, "l2": 0.3, "l1": 1.0}
    config.reported = {}
    return with_method(config, method, _LOSSES, mnist_cpu.FINETUNING)
