"""Exports a trained network with its certification as files that need neither cure_jax nor flax.

    cure-jax export --workdir=runs/digits/scratch --output=exported/digits
    cure-jax export --name=digits/max --output=exported/digits

writes a StableHLO program for any number of images, the weights, and `load_certifier.py`, which loads both with jax and
numpy alone. Certified are the regions of the config, its `radii` and its `reported` ones.
"""

from absl import flags

from cure_jax import models, training
from cure_jax.certification import bound_method
from cure_jax.commands.parts import common, settings
from cure_jax.interop import PLATFORMS, export_certifier

_CONFIG = settings.define_config(settings.TRAINED_WITH)
_WORKDIR = flags.DEFINE_string("workdir", None, "Its work directory.")
_NAME = flags.DEFINE_string("name", None, "A network of cj.models.pretrained_names(), instead of a work directory.")
_METHOD = flags.DEFINE_string("method", "crown", "How to bound, see cure-jax certify.")
_OUTPUT = flags.DEFINE_string("output", None, "Where the files go: a new directory.")
_PLATFORMS = flags.DEFINE_list("platforms", list(PLATFORMS), "What to export for.")


def run() -> None:
    """Reads the command line, and does it."""
    common.run(main, required=["output"])


def main() -> None:
    """Loads, exports."""
    bound_method(_METHOD.value)
    fitted = _network()
    radii = {**dict(fitted.config.radii), **dict(fitted.config.reported)}
    directory = export_certifier(
        fitted.classifier,
        fitted.example_shape,
        training.make_regions(radii),
        str(_OUTPUT.value),
        method=_METHOD.value,
        radii=radii,
        platforms=_PLATFORMS.value or PLATFORMS,
    )
    size = sum(path.stat().st_size for path in directory.iterdir())
    print(f"{directory}: {_METHOD.value}, {radii}, for {', '.join(_PLATFORMS.value or PLATFORMS)}, {size / 1e6:.1f} MB")


def _network() -> models.Fitted:
    if (_NAME.value is None) == (_WORKDIR.value is None):
        raise ValueError(
            f"Got the name {_NAME.value} and the work directory {_WORKDIR.value}; expected one of them. Give --name or "
            "--workdir"
        )
    if _NAME.value is not None:
        return models.pretrained(_NAME.value)
    return training.load(str(_WORKDIR.value), config=_CONFIG.value)
