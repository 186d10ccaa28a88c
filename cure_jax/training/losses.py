"""Every loss that `config.losses.NORM` can name, written down once: what it is, for which norms, when, and its fields.

`objectives` has the functions. The reference and the checks of a config are made of this table, as of `fields`.
"""

from collections.abc import Mapping
from typing import NamedTuple

from cure_jax import smoothing
from cure_jax.training import objectives
from cure_jax.training.fields import Field

__all__ = ["LOSSES", "Loss"]


class Loss(NamedTuple):
    """One loss.

    Attributes:
      meaning: what it is.
      use: for which norm and network.
      source: where it comes from.
      fields: what it has besides `kind`.
      norms: those it is for; empty: all.
    """

    meaning: str
    use: str
    source: str
    fields: Mapping[str, Field]
    norms: tuple[str, ...] = ()


_FRACTION = {
    "fraction": Field(
        1.0, "Trained is at this multiple of the radius.", use="The first thing to tune, on validation images.", least=0
    )
}
_ATTACK_FRACTION = {
    "attack_fraction": Field(
        0.0,
        "The multiple of the radius that is attacked; 0: that of fraction.",
        use="2 on CIFAR-10 at 2/255.",
        source="De Palma et al., ICLR 2024",
        least=0,
    )
}
_SHRINKING = {
    "shrinking": Field(
        0.0,
        "How much the upper bounds of undecided ReLUs are shrunk, in training alone.",
        use="0.4 on CIFAR-10 at 2/255.",
        source="Mueller et al. (SABR), ICLR 2023, Section 4",
        least=0,
        most=1,
    )
}

LOSSES: Mapping[str, Loss] = {
    "natural": Loss("The images themselves, not perturbed.", "A baseline; nothing will be certified.", "", {}),
    "pgd": Loss(
        "The images found by an attack (adversarial training).",
        "Any norm; robust under attack, but little of it can be proved.",
        "Madry et al., ICLR 2018",
        _FRACTION,
    ),
    "ibp": Loss(
        "Intervals over the bounding box of the whole ball.",
        "linf at large radii. The box of an l2 or l1 ball is far larger than the ball: take dual_norm there.",
        "Gowal et al., 2018",
        _FRACTION | _SHRINKING,
    ),
    "small_box": Loss(
        "SABR: intervals over a small box around an attacked image.",
        "linf: the first to try.",
        "Mueller et al. (SABR), ICLR 2023",
        _FRACTION
        | _ATTACK_FRACTION
        | {
            "ratio": Field(
                0.4,
                "Half-width of the small box, as a share of the radius: 0 is pgd, 1 (in linf) ibp.",
                use="0.1 on CIFAR-10 at 2/255, 0.4 on MNIST at 0.1, 0.6 at 0.3, 0.7 on CIFAR-10 at 8/255; 1e-5 in l2 "
                "is the published loss.",
                source="Mueller et al. (SABR), ICLR 2023; Jiang et al. (CURE), TMLR 2026",
                least=0,
                most=1,
            ),
            "inside": Field(
                False,
                "The small box is cut where it would leave the box of the ball. As published it is not.",
                use="Black and white pixels.",
            ),
        }
        | _SHRINKING,
    ),
    "crown_ibp": Loss(
        "Linear bounds of the margins over intervals inside; they give way to intervals while the radius grows.",
        "linf at large radii, where ibp alone trains badly.",
        "Zhang et al. (CROWN-IBP), ICLR 2020",
        _FRACTION
        | {
            "final": Field(
                0.0,
                "Share of the linear bounds at the end of the ramp; 1 at its start.",
                use="0.5 to keep linear bounds.",
                least=0,
                most=1,
            )
        },
    ),
    "expressive": Loss(
        "MTL-IBP, CC-IBP, Exp-IBP: between an attack and intervals over the whole ball, by one number.",
        "linf at small radii, beside small_box.",
        "De Palma et al., ICLR 2024",
        _FRACTION
        | _ATTACK_FRACTION
        | {
            "combination": Field(
                "mtl",
                "What alpha mixes: mtl, the losses; cc, the logits; exp, the logarithms of the losses.",
                use="By validation; mtl first.",
                source="De Palma et al., ICLR 2024",
                choices=objectives.COMBINATIONS,
            ),
            "alpha": Field(
                0.1,
                "Share of the intervals: 0 is pgd, 1 is ibp.",
                use="Small at small radii, towards 1 at large ones.",
                source="De Palma et al., ICLR 2024",
                least=0,
                most=1,
            ),
        },
    ),
    "distilled": Loss(
        "AD-CERT: between the logits of a robust teacher, at what an attack finds, and intervals over the whole ball.",
        "linf, where a network that was trained by pgd is at hand: config.teacher.",
        "AD-CERT, arXiv 2606.31653",
        _FRACTION
        | _ATTACK_FRACTION
        | {
            "alpha": Field(
                0.1,
                "Share of the intervals: 0 is distillation alone, 1 is ibp.",
                use="Small at small radii, as for expressive.",
                source="AD-CERT, arXiv 2606.31653",
                least=0,
                most=1,
            )
        },
    ),
    "dual_norm": Loss(
        "The exact bound of the first layer over the ball, intervals behind it.",
        "l2 and l1 on shallow networks; on deeper ones its bounds stay loose.",
        "Wong & Kolter, ICML 2018",
        _FRACTION,
    ),
    "box_ball": Loss(
        "Intervals and l2 balls side by side, in every layer the tighter.",
        "l2 with a good proof (best): proves the most here, at about twice the time of lipschitz.",
        "Lee et al., NeurIPS 2020",
        _FRACTION,
    ),
    "lipschitz": Loss(
        "The margin, less what the Lipschitz constants of the network allow an l2 perturbation.",
        "l2, the cheap one; the first to try beside small_box in linf. It also serves l1.",
        "Leino et al. (GloRo), ICML 2021",
        _FRACTION,
        norms=("l2",),
    ),
    "cells": Loss(
        "Intervals over random cells of a perturbation beyond norms, as `config.perturbations` has it.",
        "Only under a name of config.perturbations, `config.losses.rotation`: the key says which one. Not for pixels.",
        "Yang et al., ICLR 2023; Chiang et al., ICLR 2020",
        {
            "count": Field(
                1, "Cells of each image in a step; the worst one is trained.", use="More for many cells.", least=1
            )
        },
    ),
    "noise": Loss(
        "Noisy views of the image, for a smoothed classifier: its own scale takes the place of the radius.",
        "Only for cure_jax.smoothing; the key in losses is any norm of radii.",
        "Cohen et al., ICML 2019; Jeong & Shin, NeurIPS 2020",
        {
            "noise": Field(
                "gaussian",
                "Its distribution.",
                use="gaussian for l2; uniform, laplace or splitting for l1.",
                choices=tuple(smoothing.NOISES),
            ),
            "scale": Field(
                0.25,
                "Of the noise; the ramp brings it in.",
                unit="pixels of [0, 1]",
                use="That of the smoothed classifier; larger for larger radii.",
                least=0,
            ),
            "levels": Field(
                255, "Images and noise are multiples of 1 / levels.", use="Fewer where images have fewer.", least=1
            ),
            "samples": Field(1, "Views of each image.", use="2 with a consistency.", least=1),
            "consistency": Field(
                0.0,
                "Weight of the divergence of the views from their mean.",
                use="5 to 20, with two views.",
                source="Jeong & Shin, NeurIPS 2020",
                least=0,
            ),
            "entropy": Field(
                0.5,
                "Weight of the entropy of their mean, with a consistency.",
                use="As published.",
                source="Jeong & Shin, NeurIPS 2020",
                least=0,
            ),
        },
    ),
}
