"""Randomised smoothing: certificates of a classifier that averages over noise.

They are about another classifier than those of bounds, the smoothed one, and hold with a stated probability (those of
`splitting` without exception). So they have types of their own.

`noise` is additive noise on a grid, drawn from a `table`, with the theory; `splitting` is the deterministic noise for
l_1. `counting` lets the base classifier vote, `confidence` says what votes mean, `certify` puts it together, for one
example and many; `certificate` is what comes out.
"""

from cure_jax.smoothing.certificate import ABSTAIN, DatasetSmoothing, SmoothedCertificate, load
from cure_jax.smoothing.certify import certify, certify_dataset, predict
from cure_jax.smoothing.counting import class_counts
from cure_jax.smoothing.noise import AdditiveNoise, Noise, gaussian, laplace, on_grid, uniform
from cure_jax.smoothing.splitting import SplittingNoise, splitting

__all__ = [
    "ABSTAIN",
    "NOISES",
    "AdditiveNoise",
    "DatasetSmoothing",
    "Noise",
    "SmoothedCertificate",
    "SplittingNoise",
    "certify",
    "certify_dataset",
    "class_counts",
    "gaussian",
    "laplace",
    "load",
    "on_grid",
    "predict",
    "splitting",
    "uniform",
]

# By name: functions of the scale and of `levels`.
NOISES = {"gaussian": gaussian, "uniform": uniform, "laplace": laplace, "splitting": splitting}
