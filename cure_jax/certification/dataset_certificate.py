"""The verdicts on many examples: kept in a file, shown as a table, summed up for `cure_jax.report`."""

import dataclasses
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cure_jax.certification.batches import in_all_norms

__all__ = ["DatasetCertificate"]


@dataclasses.dataclass(frozen=True)
class DatasetCertificate:
    """Per-example verdicts, in the order of the examples.

    Attributes:
      correct: `[examples]`, the prediction at the example itself is right.
      verified: by norm, `[examples]`.
      margin: by norm, `[examples]`, least proved lower bound of the margins.
      method: what proved them; several names with commas between them.
      unfinished: by norm, `[examples]`: not verified, but not every method was tried because the time was over. Empty
        without `timeout`.
      radii: by norm, the radius in pixel units; of balls that have the same one for all examples and pixels.
    """

    correct: np.ndarray
    verified: dict[str, np.ndarray]
    margin: dict[str, np.ndarray]
    method: str
    unfinished: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    radii: dict[str, float] = dataclasses.field(default_factory=dict)

    @property
    def union(self) -> np.ndarray:
        """`[examples]`: verified in every norm at once."""
        return in_all_norms(self.verified)

    def arrays(self) -> dict[str, np.ndarray]:
        """All verdicts as arrays by name, such as `verified.linf`: what `save` writes, and pictures are drawn of."""
        groups = {"verified": self.verified, "margin": self.margin, "unfinished": self.unfinished}
        by_norm = {f"{group}.{norm}": array for group, norms in groups.items() for norm, array in norms.items()}
        return by_norm | {"correct": self.correct, "union": self.union}

    def summary(self, name: str = "") -> dict[str, Any]:
        """The shares of examples, as `cure_jax.report` takes them.

        Args:
          name: of the row in a table; that of the method if empty.
        """
        return {
            "method": name or self.method,
            "clean": float(np.mean(self.correct)),
            "certified": {norm: float(np.mean(verified)) for norm, verified in self.verified.items()},
            "union": float(np.mean(self.union)),
            "radii": dict(self.radii),
            "num_examples": len(self.correct),
        }

    def save(self, path: str | os.PathLike) -> None:
        """Writes everything into one .npz, which `load` reads; a file of that name is replaced in one step.

        Raises:
          OSError: if it cannot be written.
        """
        path = Path(path)
        radii = {f"radius.{norm}": np.asarray(eps) for norm, eps in self.radii.items()}
        about = self.arrays() | radii | {"method": np.asarray(self.method)}
        temporary = path.with_name(f"{path.name}.tmp")
        try:
            with temporary.open("wb") as file:
                np.savez_compressed(file, **about)  # pyright: ignore[reportArgumentType]
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | os.PathLike) -> "DatasetCertificate":
        """Reads what `save` wrote, or the `certify.npz` of `launch/certify.py`, which has no radii and no method.

        Raises:
          OSError: if there is no such file.
          ValueError: if it is another one.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = dict(file)
        except (ValueError, EOFError, zipfile.BadZipFile) as error:
            raise ValueError(f"{path} cannot be read ({error}); expected a file of DatasetCertificate.save.") from error
        lengths = {len(array) for name, array in arrays.items() if name.startswith("verified.")}
        if "correct" not in arrays or lengths != {len(arrays["correct"])}:
            raise ValueError(
                f"{path} has {', '.join(arrays) or 'nothing'}; expected correct and verified.NORM, of one length, from "
                "DatasetCertificate.save. Save it again."
            )
        verified, margin, unfinished, radii = (_by_norm(arrays, name) for name in _GROUPS)
        method = str(arrays.get("method", ""))
        return cls(arrays["correct"], verified, margin, method, unfinished, {n: float(eps) for n, eps in radii.items()})

    def table(self) -> str:
        """A line for each norm, and one for the union: the shares of the examples, in percent.

        Examples:
          >>> verdicts = {"linf": np.array([True, False]), "l2": np.array([True, True])}
          >>> margins = {"linf": np.array([0.5, -1.0]), "l2": np.array([0.25, 0.75])}
          >>> print(DatasetCertificate(np.array([True, True]), verdicts, margins, "crown", radii={"linf": 0.1}).table())
                   radius  verified  median margin
          correct            100.0%
          linf        0.1     50.0%          -0.25
          l2                 100.0%            0.5
          union               50.0%
        """
        rows = [("", "radius", "verified", "median margin"), ("correct", "", _percent(self.correct), "")]
        for norm, verified in self.verified.items():
            radius = f"{self.radii[norm]:.4g}" if norm in self.radii else ""
            margin = f"{np.median(self.margin[norm]):.4g}" if norm in self.margin else ""
            rows.append((norm, radius, _percent(verified), margin))
        rows.append(("union", "", _percent(self.union), ""))
        widths = [max(map(len, column)) + 2 for column in zip(*rows, strict=True)]
        padded = ([row[0].ljust(widths[0] - 2), *map(str.rjust, row[1:], widths[1:])] for row in rows)
        return "\n".join("".join(cells).rstrip() for cells in padded)

    def __repr__(self) -> str:
        unfinished = {norm: int(where.sum()) for norm, where in self.unfinished.items() if where.any()}
        late = f", unfinished {unfinished}" if unfinished else ""
        head = f"DatasetCertificate of {len(self.correct)} examples by {self.method or 'an unknown method'}{late}"
        return f"{head}\n{self.table()}"


_GROUPS = ("verified", "margin", "unfinished", "radius")


def _by_norm(arrays: Mapping[str, np.ndarray], group: str) -> dict[str, Any]:
    return {name.removeprefix(f"{group}."): array for name, array in arrays.items() if name.startswith(f"{group}.")}


def _percent(verdicts: np.ndarray) -> str:
    return f"{100 * np.mean(verdicts):.1f}%" if len(verdicts) else "-"
