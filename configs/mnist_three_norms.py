"""MNIST on two CPU cores, three norms in one union: l_inf 0.1, l_2 0.3 and l_1 1.0, as Croce and Hein measure it.

    c=configs/mnist_three_norms.py:max
    python launch/train.py --config=$c --workdir=runs/mnist_three_norms/max
    python launch/certify.py --workdir=runs/mnist_three_norms/max --method=best --batch_size=25 --curve=

The l_1 ball has no loss of its own: a margin in l_2 and proofs at the vertices of the ball serve it. Twice the width of
mnist_cpu, and six times as long: 77 minutes on one CPU core. TFDS_DATA_DIR or --config.data_dir says where the data is.
Results: docs/results.md.

Source of the setting: Croce & Hein, "Provable Robustness against all Adversarial l_p-perturbations for p >= 1", ICLR
2020, Table 1.
"""

from cure_jax.configs import mnist_cpu
from cure_jax.configs.methods import Losses, lipschitz, small_box, with_method
from cure_jax.training.config import Config

# Chosen on the first 200 or 300 validation images, see docs/ablations.md.
_LOSSES = Losses(linf=small_box(0.2), l2=lipschitz(0.5), l2_alone=lipschitz(1.0))


def get_config(method: str = "scratch") -> Config:
    """The config of one method, see `cure_jax.configs.methods`."""
    config = mnist_cpu.base()
    config.setting = "mnist_three_norms"
    config.model = {"name": "conv_small", "options": {"convs": ((32, 4, 2), (64, 4, 2)), "dense": (200,)}}
    config.radii = {"linf": 0.1, "l2": 0.3, "l1": 1.0}
    config.reported = {}
    config.epochs, config.milestones, config.ramp_end = 60, (42, 54), 16.0
    return with_method(config, method, _LOSSES, mnist_cpu.FINETUNING)
