"""Verification of many examples: an attack and cheap bounds for all of them, then branch and bound one by one."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cure_jax.certification import attack_dataset, certify_dataset
from cure_jax.certification.batches import MakeRegion, Model, as_pytree, checked, in_all_norms, shown
from cure_jax.verification.verdict import Status, Verdict
from cure_jax.verification.verify import Options, verify

__all__ = ["DatasetVerdicts", "verify_dataset"]


@dataclasses.dataclass(frozen=True)
class DatasetVerdicts:
    """Per-example verdicts, in the order of the examples.

    Attributes:
      status: by norm, `[examples]`, the values of `Status`: "verified", "falsified", "unknown", "timeout".
      witness: by norm, `[examples, *x]`: a counterexample where status is "falsified", else NaN.
      margin: by norm, `[examples]`, as that of `Verdict`.
      domains: by norm, `[examples]`: how many parts were bounded; 0 where attack and bounds of all examples decided.
    """

    status: dict[str, np.ndarray]
    witness: dict[str, np.ndarray]
    margin: dict[str, np.ndarray]
    domains: dict[str, np.ndarray]

    def __repr__(self) -> str:
        shown = "; ".join(f"{norm} {_counts(status)}" for norm, status in self.status.items())
        return f"DatasetVerdicts of {len(self.union)} examples: {shown}; union {np.sum(self.union)} verified"

    @property
    def verified(self) -> dict[str, np.ndarray]:
        """By norm, `[examples]`."""
        return {norm: status == Status.VERIFIED.value for norm, status in self.status.items()}

    @property
    def union(self) -> np.ndarray:
        """`[examples]`: verified in every norm."""
        return in_all_norms(self.verified)

    @property
    def undecided(self) -> np.ndarray:
        """`[examples]`: falsified in no norm, and not verified in every one."""
        unbroken = {norm: status != Status.FALSIFIED.value for norm, status in self.status.items()}
        return ~self.union & in_all_norms(unbroken)


def _counts(status: np.ndarray) -> str:
    return ", ".join(f"{count} {name}" for name, count in zip(*np.unique(status, return_counts=True), strict=True))


def verify_dataset(  # noqa: PLR0913  (the options of a long-running job)
    f: Model,
    images: np.ndarray,
    labels: np.ndarray,
    regions: Mapping[str, MakeRegion],
    *,
    timeout: float | int = 30.0,
    method: str | Sequence[str] = "best",
    key: jax.Array | None = None,
    options: Options | None = None,
    batch_size: int = 100,
    known: Callable[[str, int], Verdict | None] = lambda norm, number: None,
    tell: Callable[[str, int, Verdict], None] = lambda norm, number, verdict: None,
    show_progress: bool | None = None,
) -> DatasetVerdicts:
    """Verifies many examples in several norms.

    All of them are attacked and bounded in batches. What that does not decide is given to `verify`, one by one.

    Args:
      f: as for `certify_dataset`; a `Partial` of a pure function, or each search is compiled anew.
      images: `[examples, *x]`, floats in [0, 1], or uint8.
      labels: `[examples]`, integers in [0, classes).
      regions: by norm, a function from an example to its region.
      timeout: seconds for each example and norm that is verified on its own, compilation included.
      method: of the bounds of all examples, as for `certify_dataset`; of a few examples a cheap one, such as "crown",
        takes less time to compile.
      key: of the attack; default: that of seed 0.
      options: of `verify`.
      batch_size: examples at once in attack and bounds.
      known: asked for a verdict before an example, by its number, is verified on its own; for resuming.
      tell: told each verdict of an example that was verified on its own.
      show_progress: whether to show how many examples are decided; default: on a terminal and in a notebook.

    Returns:
      The verdicts. Those of "timeout" depend on the speed of the machine.

    Raises:
      ValueError: as `certify_dataset`, or if the timeout is not positive.

    Soundness:
      As `verify`; where bounds of all examples decided, as `certify`.
    """
    if not timeout > 0:
        raise ValueError(f"timeout is {timeout}; expected seconds above 0.")
    f, options = as_pytree(f), options or Options()
    key = jax.random.key(options.seed) if key is None else key
    images, labels, _ = checked(f, images, labels, regions, batch_size)
    shared: dict[str, Any] = {"batch_size": batch_size, "show_progress": show_progress}
    attack = attack_dataset(f, images, labels, regions, key=key, **shared)
    certificate = certify_dataset(f, images, labels, regions, attack=attack, method=method, **shared)
    found: dict[str, list[Verdict]] = {norm: [] for norm in regions}
    with shown(len(images), "verify", show_progress, parts=len(regions)) as advance:
        for norm, make_region in regions.items():
            for number, (image, label) in enumerate(zip(images, labels, strict=True)):
                verdict = known(norm, number)
                if verdict is None and certificate.verified[norm][number]:
                    margin = float(certificate.margin[norm][number])
                    verdict = Verdict(Status.VERIFIED, None, margin, 0, 0.0, "bounds of all examples")
                elif verdict is None:
                    x = jnp.asarray(image, jnp.float32)
                    broken = () if attack.survived[norm][number] else (attack.points[norm][number],)
                    verdict = verify(f, x, int(label), make_region(x), timeout, suspects=broken, options=options)
                    tell(norm, number, verdict)
                found[norm].append(verdict)
                advance(norm, 1)
    return _as_arrays(found, np.shape(images)[1:])


def _as_arrays(found: Mapping[str, Sequence[Verdict]], shape: tuple[int, ...]) -> DatasetVerdicts:
    nothing = np.full(shape, np.nan)
    points = {
        norm: np.stack([nothing if verdict.witness is None else verdict.witness for verdict in verdicts])
        for norm, verdicts in found.items()
    }
    status, margin, domains = (
        {norm: np.asarray([read(verdict) for verdict in verdicts]) for norm, verdicts in found.items()}
        for read in (lambda one: one.status.value, lambda one: one.margin, lambda one: one.domains)
    )
    return DatasetVerdicts(status, points, margin, domains)
