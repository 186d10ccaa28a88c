"""Any setting with a big batch, for pods: `configs/pod.py:SETTING:METHOD`, with @BATCH for another batch than 4096.

    python launch/train.py --config=configs/pod.py:mnist_small:scratch --workdir=gs://BUCKET/mnist_small
    python launch/train.py --config=configs/pod.py:cifar10_small:max@2048 --workdir=gs://BUCKET/cifar10_small

4096 is 64 images on each chip of a v5e-64. Epochs, ramps and milestones count examples seen, so they stay as they are;
what is counted in steps (compiled runs, checkpoints) shrinks by the same factor. The learning rate of Adam grows with
the square root of the batch (Malladi et al., On the SDEs and Scaling Rules for Adaptive Gradient Algorithms, 2022), and
rises from 0 during the natural epochs, or the first twentieth of all if there are none. Not yet run on a pod; on two
CPU cores `digits:scratch@512` was (docs/pods.md).
"""

import math

from cure_jax.configs import load, names
from cure_jax.training.config import Config

BATCH = 4096


def get_config(spelling: str = "mnist_small:scratch") -> Config:
    """The config of a setting and a method, with a big batch.

    Args:
      spelling: SETTING:METHOD or SETTING:METHOD@BATCH.

    Raises:
      ValueError: for an unknown setting or method, or a batch that is no number.
    """
    name, _, batch = spelling.partition("@")
    setting = name.partition(":")[0]
    if not (batch or str(BATCH)).isdecimal():
        raise ValueError(f"The batch of {spelling!r} is {batch!r}; expected a number, as in mnist_small:scratch@4096.")
    settings = [known for known in names() if known != "pod"]
    if setting not in settings:
        raise ValueError(
            f"Unknown setting {setting!r} in {spelling!r}; expected SETTING:METHOD, as in mnist_small:scratch, with "
            f"one of {', '.join(settings)}. Correct it."
        )
    return with_batch(load(name), int(batch or BATCH))


def with_batch(config: Config, batch_size: int) -> Config:
    """The same training with another batch."""
    factor = batch_size / config.batch_size
    config.batch_size = batch_size
    config.learning_rate *= math.sqrt(factor)
    config.warmup_epochs = float(config.natural_epochs or config.epochs / 20)
    runs = config.checkpoint_every / config.scan_steps
    config.scan_steps = max(1, round(config.scan_steps / factor))
    # Checkpoints fall between compiled runs.
    config.checkpoint_every = max(1, round(runs)) * config.scan_steps
    return config
