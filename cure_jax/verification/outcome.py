"""How a search ended."""

from typing import NamedTuple

from cure_jax.verification.verdict import Status
from cure_jax.verification.witness import Witness

__all__ = ["Outcome"]


class Outcome(NamedTuple):
    """How a search ended; see `Verdict`.

    Attributes:
      status: what is known.
      witness: a counterexample, if it is FALSIFIED.
      margin: as of a verdict.
      domains: how many were bounded.
      reason: in words.
    """

    status: Status
    witness: Witness | None
    margin: float
    domains: int
    reason: str
