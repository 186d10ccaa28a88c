"""Exports a trained network with its certification as files that need neither cure_jax nor flax.

    python launch/export.py --config=configs/digits.py:scratch --workdir=runs/digits/scratch --output=exported/digits

writes a StableHLO program for any number of images, the weights, and `load_certifier.py`, which loads both with jax and
numpy alone. Certified are the regions of the config, its `radii` and its `reported` ones.
"""

from pathlib import Path

from absl import flags

from cure_jax import training
from cure_jax.certification import bound_method
from cure_jax.interop import PLATFORMS, export_certifier
from launch.parts import common, settings

_CONFIG = settings.define_config("The config that the network was trained with.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Its work directory.")
_METHOD = flags.DEFINE_string("method", "crown", "How to bound, see launch/certify.py.")
_OUTPUT = flags.DEFINE_string("output", None, "Where the files go: a new directory.")
_PLATFORMS = flags.DEFINE_list("platforms", list(PLATFORMS), "What to export for.")


def main() -> None:
    """Restores, exports."""
    config = _CONFIG.value
    bound_method(_METHOD.value)
    split = common.load_split(config, "validation")
    fitted = training.restore(
        common.create_model(config, split.num_classes), split.images[:1], config, Path(_WORKDIR.value or "")
    )
    radii = {**dict(config.radii), **dict(config.reported)}
    directory = export_certifier(
        fitted.classifier,
        split.images.shape[1:],
        training.make_regions(radii),
        str(_OUTPUT.value),
        method=_METHOD.value,
        radii=radii,
        platforms=_PLATFORMS.value or PLATFORMS,
    )
    size = sum(path.stat().st_size for path in directory.iterdir())
    print(f"{directory}: {_METHOD.value}, {radii}, for {', '.join(_PLATFORMS.value or PLATFORMS)}, {size / 1e6:.1f} MB")


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "workdir", "output"])
    common.run(main)
