"""Image classification data on the host: data sets by name, batches as a function of the step, validation.

Everything here is NumPy. Images of a data set are either float32 in [0, 1] or uint8; `validate` turns
both, and arrays of the user's own, into float32 in [0, 1].
"""

from cure_jax.data.batches import batch_indices
from cure_jax.data.registry import Dataset, describe, load, names, normalization
from cure_jax.validation import validate

__all__ = ["Dataset", "batch_indices", "describe", "load", "names", "normalization", "validate"]
