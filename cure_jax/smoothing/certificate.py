"""What smoothing certifies: other types than those of bounds, as it is the smoothed classifier that they are about."""

import dataclasses
import json
import math
import os
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from cure_jax.certification.covering import covering_radius
from cure_jax.smoothing.noise import AdditiveNoise
from cure_jax.smoothing.splitting import SplittingNoise

__all__ = ["ABSTAIN", "DatasetSmoothing", "SmoothedCertificate", "load"]

# In the place of a class.
ABSTAIN = -1
_EXPONENTS = {"l1": 1.0, "l2": 2.0, "linf": math.inf}
_NOISES = {"gaussian": AdditiveNoise, "uniform": AdditiveNoise, "laplace": AdditiveNoise, "splitting": SplittingNoise}


@dataclasses.dataclass(frozen=True)
class SmoothedCertificate:
    """A statement on the SMOOTHED classifier of a base classifier and a noise, of one image or many.

    It is no `cure_jax.Certificate`: the network itself, without noise, may say anything in the same ball. Unless
    alpha is 0, the statement is made by an experiment, and is wrong with a probability of alpha at most.

    Attributes:
      prediction: `[*batch]`, the class; `ABSTAIN` where the experiment did not decide.
      radius: `[*batch]`, in the norm of the noise, in pixels of [0, 1]: at this distance and nearer the smoothed
        classifier says `prediction`. The ball is closed and whole, the pixel box does not cut it. 0 for ABSTAIN.
      probability: `[*batch]`, lower bound of the probability of the class under noise; of `splitting` its share.
      noise: that the classifier averages over.
      size: number of pixels of an image.
      alpha: probability of error of EACH certificate; 0 for `splitting`, which leaves nothing to chance.
      n0: views that chose the class.
      n: fresh views that estimated its probability; for `splitting` all there are.
    """

    prediction: Int[np.ndarray, "*batch"]
    radius: Float[np.ndarray, "*batch"]
    probability: Float[np.ndarray, "*batch"]
    noise: AdditiveNoise | SplittingNoise
    size: int
    alpha: float
    n0: int
    n: int

    @property
    def abstained(self) -> Bool[np.ndarray, "*batch"]:
        """`[*batch]`: nothing is said of these images."""
        return np.asarray(self.prediction == ABSTAIN)

    def radius_in(self, norm: str) -> Float[np.ndarray, "*batch"]:
        """The radius that is implied in another norm: the largest ball of it within the ball that is certified.

        From l_2 the same radius in l_1, and radius / sqrt(size) in l_inf; from l_1 radius / sqrt(size) in l_2 and
        radius / size in l_inf.

        Args:
          norm: "l1", "l2" or "linf".

        Raises:
          ValueError: for another norm.
        """
        if norm not in _EXPONENTS:
            raise ValueError(f"Got the norm {norm!r}; smoothing certifies in {', '.join(_EXPONENTS)}. Choose one.")
        if norm == self.noise.norm:
            return self.radius
        return self.radius / covering_radius({_EXPONENTS[norm]: 1.0}, _EXPONENTS[self.noise.norm], self.size)

    def describe(self) -> dict[str, Any]:
        """What every certificate has in common, for JSON."""
        noise = {"kind": self.noise.kind, **dataclasses.asdict(self.noise)}
        return {"noise": noise, "size": self.size, "alpha": self.alpha, "n0": self.n0, "n": self.n}


@dataclasses.dataclass(frozen=True)
class DatasetSmoothing:
    """Certificates by smoothing of many labelled images, in their order.

    Attributes:
      certificate: with arrays `[examples]`.
      labels: `[examples]`.
      simultaneous: whether ALL certificates hold at once with a probability of 1 - alpha * examples (each of them has
        its share of the error; a union bound). If not, alpha is the error of each alone, as is usual, and a share of
        alpha of them may be wrong.
    """

    certificate: SmoothedCertificate
    labels: Int[np.ndarray, " examples"]
    simultaneous: bool = False

    @property
    def correct(self) -> Bool[np.ndarray, " examples"]:
        """`[examples]`: the smoothed classifier says the label; abstention is an error."""
        return self.certificate.prediction == self.labels

    @property
    def confidence(self) -> float:
        """Of all certificates at once if they are simultaneous, else of each alone; 1 for `splitting`."""
        alpha = self.certificate.alpha
        return 1 - (alpha * len(self.labels) if self.simultaneous else alpha)

    def certified(self, radii: Mapping[str, float]) -> dict[str, Bool[np.ndarray, " examples"]]:
        """By norm, `[examples]`: the smoothed classifier says the label in the whole ball of this radius.

        Args:
          radii: by norm ("l1", "l2", "linf"), in pixels of [0, 1]; of norms other than that of the noise by the
            implied radius.

        Raises:
          ValueError: for another norm, or a radius that is negative or not finite.
        """
        for norm, radius in radii.items():
            if not 0 <= radius < math.inf:
                raise ValueError(f"The radius of {norm} is {radius}; expected a finite number, at least 0. Correct it.")
        return {norm: self.correct & (self.certificate.radius_in(norm) >= eps) for norm, eps in radii.items()}

    def union(self, radii: Mapping[str, float]) -> Bool[np.ndarray, " examples"]:
        """`[examples]`: certified in every one of these balls, by ONE smoothed classifier; as `certified`.

        The balls share one experiment, so their statements hold together with the confidence of one.
        """
        if not radii:
            raise ValueError("Got no radii; expected at least one, e.g. {'l2': 0.5}.")
        return np.all(np.stack(list(self.certified(radii).values())), axis=0)

    def curve(self, norm: str, radii: Iterable[float]) -> dict[str, list[float]]:
        """Certified accuracy against the radius, as `cure_jax.report.compare_curves` draws it."""
        radii = [float(radius) for radius in radii]
        return {"radii": radii, "certified": [float(self.certified({norm: r})[norm].mean()) for r in radii]}

    def summary(self, radii: Mapping[str, float]) -> dict[str, Any]:
        """Shares of the images, and what they rest on, for JSON."""
        return {
            "guarantee": f"of the smoothed classifier, with confidence {self.confidence:g}"
            f" {'of all images at once' if self.simultaneous else 'for each image'}",
            "num_examples": len(self.labels),
            "radii": dict(radii),
            "clean": float(self.correct.mean()),
            "abstained": float(self.certificate.abstained.mean()),
            "smoothed_certified": {norm: float(where.mean()) for norm, where in self.certified(radii).items()},
            "smoothed_union": float(self.union(radii).mean()),
            **self.certificate.describe(),
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes an `.npz` file that `load` reads."""
        certificate = self.certificate
        settings = {**certificate.describe(), "simultaneous": self.simultaneous}
        arrays = {name: getattr(certificate, name) for name in ("prediction", "radius", "probability")}
        np.savez_compressed(os.fspath(path), settings=json.dumps(settings), labels=self.labels, **arrays)


def load(path: str | os.PathLike[str]) -> DatasetSmoothing:
    """Reads what `DatasetSmoothing.save` wrote.

    Raises:
      ValueError: if the file holds something else.
    """
    with np.load(os.fspath(path)) as file:
        if "settings" not in file or "prediction" not in file:
            raise ValueError(f"{os.fspath(path)} holds {sorted(file)}; expected what DatasetSmoothing.save wrote.")
        settings, arrays = json.loads(str(file["settings"])), {name: file[name] for name in file}
    fields = settings.pop("noise")
    make = _NOISES[fields["kind"]]
    kept = {field.name for field in dataclasses.fields(make)}
    noise = make(**{name: value for name, value in fields.items() if name in kept})
    simultaneous = settings.pop("simultaneous")
    parts = {name: arrays[name] for name in ("prediction", "radius", "probability")}
    return DatasetSmoothing(SmoothedCertificate(**parts, noise=noise, **settings), arrays["labels"], simultaneous)
