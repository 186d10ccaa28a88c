"""Every field of a config, written down once: default, meaning, unit, source, when to use it, and what is refused.

`config.default_config`, `checks.check`, the help of the launchers and docs/config.md are made of these tables; those of
the losses are in `losses`.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

__all__ = ["FIELDS", "SECTIONS", "Field"]


class Field(NamedTuple):
    """One field.

    Attributes:
      default: its value in `default_config()`.
      meaning: what it is.
      unit: of its value; empty where it has none.
      use: when to set it to something else.
      source: where it comes from; empty where that is nowhere in particular.
      least: the least value of a number.
      most: its greatest value.
      choices: the values of a word.
      is_open: a dictionary whose names are the user's.
      is_incidental: where a run happens and what is reported of it, not what it computes: may differ when it is
        resumed.
      is_later: came after the first work directories, and changes nothing at its default: what was trained before it
        came can be resumed.
    """

    default: Any
    meaning: str
    unit: str = ""
    use: str = ""
    source: str = ""
    least: float | None = None
    most: float | None = None
    choices: tuple[str, ...] = ()
    is_open: bool = False
    is_incidental: bool = False
    is_later: bool = False


_CURE = "Jiang et al. (CURE), TMLR 2026"
_SHI = "Shi et al., NeurIPS 2021"

# By the heading under which the reference has them.
SECTIONS: Mapping[str, Mapping[str, Field]] = {
    "What is trained": {
        "setting": Field("", "Name of the setting, for tables and directories.", use="For tables.", is_incidental=True),
        "name": Field("", "Name of the method: the row of a table.", use="For tables.", is_incidental=True),
        "seed": Field(
            0,
            "Of parameters, order of the data, attacks and augmentation.",
            use="Train several, and report mean and deviation.",
            least=0,
        ),
        "dataset": Field(
            "digits",
            "Name of a data set of `cure_jax.data`; launchers load it.",
            use="`training.fit` does not look at it: it is given images.",
        ),
        "data_dir": Field(
            "",
            "Where TensorFlow Datasets or TinyImageNet lie; empty: TFDS_DATA_DIR, or their own default.",
            use="Where the data lies elsewhere; TinyImageNet needs it.",
            is_incidental=True,
        ),
        "model.name": Field(
            "mlp",
            "Name of a network of `cure_jax.models`; launchers make it.",
            use="`training.fit` is given a network.",
        ),
        "model.options": Field(
            {},
            "Arguments of that network, such as its widths, mean and std.",
            use="Wider, deeper, normalised.",
            is_open=True,
        ),
        "start_from": Field(
            "",
            "A work directory, or an .npz of parameters, to begin from; empty: random parameters.",
            use="Fine-tuning: a fifth of the epochs, from a network trained in l_inf.",
            source=_CURE,
        ),
        "teacher": Field(
            "",
            "A work directory, or the name of a network of `cure_jax.models.pretrained`, whose logits are learnt; "
            "launchers load it.",
            use="With a loss of kind distilled. `training.fit` does not look at it: it is given a function.",
            source="AD-CERT, arXiv 2606.31653",
            is_later=True,
        ),
        "initialization": Field(
            "ibp",
            "ibp: kernels drawn so that intervals keep their width from layer to layer; default: those of the modules.",
            use="default for natural or PGD training, or if the modules' own are what you study.",
            source=f"{_SHI}, Section 4.1",
            choices=("ibp", "default"),
        ),
    },
    "Norms and losses": {
        "radii": Field(
            {"linf": 0.1, "l2": 0.4},
            "By norm (linf, l2, l1, or l1_5 for p = 1.5), the radius that is certified and attacked; all of them make "
            "the union.",
            unit="pixels of [0, 1]",
            use="Always. Radii of images in 0 to 255 are divided by 255.",
            is_open=True,
        ),
        "reported": Field(
            {},
            "By norm, a radius that is certified and attacked beside the union.",
            unit="pixels of [0, 1]",
            use="A norm that is not trained for, such as l1.",
            is_open=True,
            is_incidental=True,
        ),
        "perturbations": Field(
            {
                **dict.fromkeys(("rotation", "translation", "scaling", "shear", "contrast", "brightness", "blur"), ()),
                **dict.fromkeys(("patch", "pixels"), 0),
            },
            "What is certified and attacked beside the norms: by name, the least and the greatest parameter, or the "
            "side of a patch and the number of pixels; () and 0: not. Geometric ones are composed by +, with a pair "
            "for each: {'rotation+contrast': ((-2, 2), (0.98, 1.02))}.",
            unit="degrees, pixels or factors: cure_jax.perturbations",
            use="To see what training for norms gives beyond them.",
            is_open=True,
            is_incidental=True,
        ),
        "losses": Field(
            {"linf": {"kind": "small_box", "ratio": 0.4, "inside": False}},
            "By norm, the loss that is trained: its `kind`, and the fields of that kind (below). Each norm needs a "
            "radius; not each radius a loss.",
            use="Always: which loss for which norm is what decides most.",
            is_open=True,
        ),
        "combine": Field(
            "worst",
            "How the norms' losses become one. worst: for each example the largest (CURE-Max); joint: their weighted "
            "mean (CURE-Joint); random_norm: each example has one norm (CURE-Random).",
            use="random_norm for about the cost of one norm.",
            source=f"{_CURE}, Section 4.1",
            choices=("joint", "worst", "random_norm"),
        ),
        "norm_weights": Field(
            {},
            "By norm, the weight of its loss in joint; empty: equal ones.",
            use="To trade one norm for another.",
            source=f"{_CURE}, Section 4.1",
            is_open=True,
        ),
        "attack_steps": Field(
            8, "Steps of PGD in losses that attack.", unit="steps", use="3 on CPUs: the loss costs less.", least=1
        ),
        "alignment.weight": Field(
            0.0,
            "Bound alignment: weight of KL(lower || higher) between the worst-case classes of two norms; 0: off.",
            use="0.5 to 2 when two norms are trained and both must hold for the same images.",
            source=f"{_CURE}, Section 4.2",
            least=0,
        ),
        "alignment.lower": Field(
            "l2",
            "The norm with the lower certified accuracy, or all: the mean over all ordered pairs of norms.",
            use="l2 on MNIST, linf on CIFAR-10 and TinyImageNet.",
            source=f"{_CURE}, Section 4.2",
        ),
        "alignment.higher": Field(
            "linf", "The other norm.", use="With alignment.lower.", source=f"{_CURE}, Section 4.2"
        ),
    },
    "How long, and how fast": {
        "epochs": Field(70, "Passes over the training images.", unit="epochs", use="docs/choosing.md.", least=1),
        "batch_size": Field(
            256,
            "Images in a step, over all devices together.",
            unit="images",
            use="128 on CPUs and CIFAR-10; thousands on pods (configs/pod.py).",
            least=1,
        ),
        "optimizer": Field(
            "adam",
            "adam or radam, which needs no warm-up of the learning rate.",
            use="radam with a larger rate, if early steps are unstable.",
            source="Kingma & Ba, ICLR 2015; Liu et al., ICLR 2020",
            choices=("adam", "radam"),
            is_later=True,
        ),
        "learning_rate": Field(
            5e-4,
            "Of the optimizer, before it falls.",
            use="1e-3 for small convolutional networks, 5e-3 for the digits; lower where training collapses.",
            least=0,
        ),
        "learning_rate_decay": Field(
            "milestones",
            "How the learning rate falls. milestones: at each of them; cosine: to 0, from the first step to the last.",
            use="cosine for trainings of few epochs.",
            source="Loshchilov & Hutter (SGDR), ICLR 2017, Eq. 5",
            choices=("milestones", "cosine"),
            is_later=True,
        ),
        "milestones": Field(
            (50, 60),
            "Where the learning rate falls, if learning_rate_decay is milestones.",
            unit="epochs",
            use="About 70 and 87 % of `epochs`.",
        ),
        "milestone_factor": Field(0.2, "By which it is multiplied there.", use="0.1 for larger rates.", least=0),
        "warmup_epochs": Field(
            0.0,
            "The learning rate rises from 0 along a straight line during these.",
            unit="epochs",
            use="Large batches.",
            least=0,
            is_later=True,
        ),
        "weight_decay": Field(
            0.0,
            "Decoupled weight decay of arrays of two axes or more, times the learning rate.",
            use="Where training accuracy runs ahead of validation accuracy.",
            source="Loshchilov & Hutter (AdamW), ICLR 2019",
            least=0,
            is_later=True,
        ),
        "l1_penalty": Field(
            1e-5,
            "Weight of the sum of the magnitudes of all parameters in the loss. (It is no radius.)",
            use="1e-6 on CIFAR-10 and TinyImageNet, 0 on CIFAR-10 at 8/255.",
            source="Mueller et al. (SABR), ICLR 2023",
            least=0,
        ),
        "gradient_clip": Field(
            0.0,
            "The largest 2-norm of a gradient, which is scaled down to it; 0: none.",
            use="Where the loss jumps, or is not finite.",
            least=0,
            is_later=True,
        ),
        "average_decay": Field(
            0.0,
            "Decay, per step, of a moving average of the parameters, which takes their place at the end; 0: none.",
            use="0.999 for small batches, whose last steps are noisy.",
            source="Polyak & Juditsky, 1992; Izmailov et al., UAI 2018",
            least=0,
            is_later=True,
        ),
        "population_statistics": Field(
            False,
            "At the end, the statistics of BatchNorm are computed anew on all training images.",
            use="Networks with BatchNorm.",
            source="Wu & Johnson, 2021",
            is_later=True,
        ),
        "round_to": Field(
            "",
            "The parameters of the finished network are rounded to it; what is certified and exported are those.",
            use="Where the network is deployed with such weights. May be changed after training.",
            choices=("", "bfloat16", "float16"),
            is_incidental=True,
            is_later=True,
        ),
    },
    "Warm-up and ramp": {
        "natural_epochs": Field(
            1.0,
            "Natural training comes first; the ramp of the radius starts at its end.",
            unit="epochs",
            use="0 when start_from names a trained network.",
            source=_SHI,
            least=0,
        ),
        "ramp_end": Field(
            22.0,
            "Where the ramp of the radius, from 0 to its full value, ends.",
            unit="epochs",
            use="A third to a half of `epochs`; later where training collapses.",
            source=f"{_SHI}; the shape is that of Xu et al. (auto_LiRPA), NeurIPS 2020",
            least=0,
        ),
        "natural_ramp_epochs": Field(
            0.0,
            "After natural_epochs the weight kappa of the natural loss falls to natural_weight in these, along a "
            "straight line; 0: at once.",
            unit="epochs",
            use="Where the loss jumps at the end of natural_epochs.",
            source="Gowal et al., 2018",
            least=0,
        ),
        "natural_weight": Field(
            0.0,
            "The weight kappa of the natural loss that stays: the loss is (1 - kappa) certified + kappa natural.",
            use="For more clean accuracy, at the cost of certified accuracy.",
            source="Gowal et al., 2018",
            least=0,
            most=1,
            is_later=True,
        ),
        "warmup_regularizer": Field(
            0.5,
            "Weight, on the ramp, of what keeps intervals tight and units balanced.",
            use="0 for losses that propagate no box, where it does nothing anyway.",
            source=f"{_SHI}, Eqs. 9-11",
            least=0,
        ),
    },
    "Gradient projection": {
        "projection.beta": Field(
            0.0,
            "Share of the natural gradient, as far as it points where the certified one does; 0: off.",
            use="0.5 to 0.8 for more clean accuracy, at up to twice the cost.",
            source=f"{_CURE}, Section 4.3",
            least=0,
            most=1,
        ),
        "projection.start_epoch": Field(
            -1.0,
            "From when on; negative: from the end of the ramp.",
            unit="epochs",
            use="natural_epochs to project on the ramp too.",
            source=f"{_CURE}, Section 4.3",
        ),
        "projection.every": Field(
            "step",
            "step: of each batch; epoch: of whole epochs of both trainings, as published.",
            use="epoch to reproduce the paper.",
            source=f"{_CURE}, Section 4.3",
            choices=("step", "epoch"),
        ),
    },
    "Images": {
        "augmentation.flip": Field(False, "Mirror images left and right at random.", use="Objects, not digits."),
        "augmentation.padding": Field(
            0,
            "The edges are repeated outward by so many before the crop.",
            unit="pixels",
            use="2 on CIFAR-10.",
            least=0,
        ),
        "augmentation.crop": Field(
            0,
            "Height and width of a random crop; 0: of the image. What is certified is the middle.",
            unit="pixels",
            use="32 on CIFAR-10 with padding, 56 of 64 on TinyImageNet.",
            least=0,
        ),
    },
    "Machine and files": {
        "precision": Field(
            "default",
            "Of matrix products in the bounds of training, on accelerators. Certification always uses highest.",
            use="high where certificates fall short of what training reports, on a TPU.",
            choices=("default", "high", "highest"),
        ),
        "parallel": Field(
            "auto",
            "How devices share a batch; auto: jit on one, else shard_map.",
            use="jit to leave all devices but one alone; pmap computes the same.",
            choices=("auto", "jit", "shard_map", "pmap"),
            is_incidental=True,
        ),
        "scan_steps": Field(
            100,
            "Steps in one compiled call. Metrics, checkpoints and stops fall between calls.",
            unit="steps",
            use="Fewer where a call takes longer than the grace period of a preemption.",
            least=1,
        ),
        "checkpoint_every": Field(
            1000,
            "How often a checkpoint is written and validation accuracy measured: after the call that reaches it.",
            unit="steps",
            use="A multiple of scan_steps.",
            least=1,
        ),
        "keep_checkpoints": Field(
            3, "How many of the newest stay.", use="More, to look back.", least=1, is_incidental=True
        ),
        "profile_steps": Field(
            (),
            "(first, last): a profiler trace of the calls that hold these steps goes to WORKDIR/profile.",
            unit="steps",
            use="(200, 299) to see where the time goes.",
            is_incidental=True,
        ),
    },
}

FIELDS: Mapping[str, Field] = {path: field for fields in SECTIONS.values() for path, field in fields.items()}
