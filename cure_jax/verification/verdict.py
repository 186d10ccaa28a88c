"""What verification answers."""

import dataclasses
import enum

import numpy as np

__all__ = ["Status", "Verdict"]


class Status(enum.Enum):
    """What is known of a property.

    Attributes:
      VERIFIED: it is proved.
      FALSIFIED: there is a counterexample.
      UNKNOWN: neither, and more time would not help; the verdict has the reason.
      TIMEOUT: neither, within the limits that were set.
    """

    VERIFIED = "verified"
    FALSIFIED = "falsified"
    UNKNOWN = "unknown"
    TIMEOUT = "timeout"


@dataclasses.dataclass(frozen=True)
class Verdict:
    """The answer for one property.

    Attributes:
      status: what is known.
      witness: `[*x]`, an input that breaks the property, if status is FALSIFIED; else None.
      margin: VERIFIED: a positive number that all margins are proved to exceed. FALSIFIED: the margin of the witness,
        at most 0. Else: what the margins are proved to exceed so far, at most 0; -inf if nothing is proved.
      domains: how many parts of the problem were bounded, the whole among them.
      seconds: what it took, compilation included.
      reason: in words, why the status is UNKNOWN or TIMEOUT, or what decided.
    """

    status: Status
    witness: np.ndarray | None
    margin: float
    domains: int
    seconds: float
    reason: str

    def __repr__(self) -> str:
        witness = "" if self.witness is None else f", witness of shape {self.witness.shape}"
        return (
            f"Verdict({self.status.name}, margin {self.margin:.4g}{witness}, {self.domains} domains, "
            f"{self.seconds:.1f} s: {self.reason})"
        )
