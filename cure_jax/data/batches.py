"""Which examples form the batch of a training step: a pure function of the seed and the step."""

import functools
import operator
from typing import SupportsIndex

import numpy as np
from jaxtyping import Int32, Int64


def batch_indices(
    seed: SupportsIndex, step: SupportsIndex, num_examples: int, batch_size: int
) -> Int32[np.ndarray, "batch"]:
    """Returns the indices of the examples in the batch of one step.

    Epoch e = step // (num_examples // batch_size) draws one permutation of the examples and cuts it into full
    batches, so within an epoch no example comes twice; the num_examples % batch_size examples left over differ
    from epoch to epoch. There is no state: a run resumed at any step, on any number of hosts, sees the same batches.
    The permutation sorts raw Philox output, a stream NumPy guarantees, so it does not change with the NumPy version.

    Args:
      seed: Seed of the run, non-negative.
      step: Number of the step, from 0.
      num_examples: Size of the data set.
      batch_size: Size of the global batch, at most num_examples.

    Returns:
      Indices into the data set, distinct within the batch.

    Raises:
      ValueError: The seed or the step is negative, or the batch is empty or larger than the data set.

    Examples:
      >>> sorted(np.concatenate([batch_indices(0, step, 6, 2) for step in range(3)]).tolist())
      [0, 1, 2, 3, 4, 5]
    """
    seed, step = operator.index(seed), operator.index(step)
    if seed < 0 or step < 0:
        raise ValueError(f"batch_indices got seed {seed} and step {step}; expected both >= 0. Count steps from 0.")
    if not 1 <= batch_size <= num_examples:
        raise ValueError(
            f"batch_indices got batch_size {batch_size} for {num_examples} examples; expected 1 <= batch_size <= "
            f"num_examples. Use a smaller batch or more data."
        )
    epoch, position = divmod(step, num_examples // batch_size)
    return _permutation(seed, epoch, num_examples)[position * batch_size : (position + 1) * batch_size].astype(np.int32)


@functools.lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, num_examples: int) -> Int64[np.ndarray, "num_examples"]:
    stream = np.random.Philox(np.random.SeedSequence([seed, epoch]))
    order = np.argsort(stream.random_raw(num_examples), kind="stable")
    # The cache hands the same array to everybody.
    order.flags.writeable = False
    return order
