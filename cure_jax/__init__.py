"""Certified robustness in JAX: bounds as function transformations, certificates, and multi-norm certified training.

Where to begin:

* `training.fit(model, (images, labels), config)` trains a network of flax, with `training.default_config()`;
* `certify_dataset(fitted.classifier, images, labels, training.make_regions(config.radii))` proves its predictions;
* `interop.load_onnx(path)` reads a network of another framework, `models.classifier(model, variables)` one of flax;
* `certify(f, x, label, linf_ball(x, 0.1, within=(0.0, 1.0)))` proves one prediction of any function of one example;
* `verify` decides, `pgd` attacks, `crown(f)(region)` and the other bounds give intervals.
"""

import importlib
import importlib.metadata
from typing import TYPE_CHECKING, Any

from cure_jax.attacks import apgd, pgd
from cure_jax.bounds import (
    alpha_crown,
    block_norms,
    box_ball,
    crown,
    ibp,
    intermediate_bounds,
    lipschitz,
    sdp_crown,
    vertex_crown,
)
from cure_jax.certification import (
    Certificate,
    UnionCertificate,
    attack_dataset,
    certified_radii,
    certified_radius,
    certify,
    certify_dataset,
    certify_union,
    covered_radius,
    covering_radius,
    margins,
)
from cure_jax.custom import custom_bounds
from cure_jax.graph import UnsupportedPrimitive
from cure_jax.regions import (
    Box,
    CutHull,
    Hull,
    Interval,
    L0Ball,
    LpBall,
    Region,
    box,
    hull,
    l0_ball,
    l1_ball,
    l2_ball,
    linf_ball,
    lp_ball,
)
from cure_jax.verification import verify, verify_dataset, verify_property

if TYPE_CHECKING:
    from cure_jax import configs as configs
    from cure_jax import data as data
    from cure_jax import interop as interop
    from cure_jax import models as models
    from cure_jax import report as report
    from cure_jax import testing as testing
    from cure_jax import training as training

    __version__: str

__all__ = [
    "Box",
    "Certificate",
    "CutHull",
    "Hull",
    "Interval",
    "L0Ball",
    "LpBall",
    "Region",
    "UnionCertificate",
    "UnsupportedPrimitive",
    "alpha_crown",
    "apgd",
    "attack_dataset",
    "block_norms",
    "box",
    "box_ball",
    "certified_radii",
    "certified_radius",
    "certify",
    "certify_dataset",
    "certify_union",
    "covered_radius",
    "covering_radius",
    "crown",
    "custom_bounds",
    "hull",
    "ibp",
    "intermediate_bounds",
    "l0_ball",
    "l1_ball",
    "l2_ball",
    "linf_ball",
    "lipschitz",
    "lp_ball",
    "margins",
    "pgd",
    "sdp_crown",
    "verify",
    "verify_dataset",
    "verify_property",
    "vertex_crown",
]

# What no proof needs is imported when it is first looked at: `cj.models`, `cj.training`.
_ROOMS = ("configs", "data", "interop", "models", "perturbations", "report", "smoothing", "testing", "training")


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return importlib.import_module(f"{__name__}.{name}")
    if name == "__version__":
        return importlib.metadata.version("cure-jax")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, *_ROOMS, "certification", "distributed", "verification", "__version__"])
