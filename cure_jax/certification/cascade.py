"""Several methods on many examples, from cheap to tight, each on what the methods before it left open."""

import math
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from cure_jax.certification.certificate import proves
from cure_jax.progress import compile_seconds

__all__ = ["Cascade", "run"]

# Of a method and the numbers of some examples: "lower" [rows, others] and "admissible" [rows].
Prove = Callable[[str, np.ndarray], Mapping[str, np.ndarray]]


class Cascade:
    """The examples of one norm on their way through the methods.

    Attributes:
      lower: `[examples, others]`, the best lower bounds of all margins; -inf where nothing was tried.
      admissible: `[examples]`, whether anything can be proved; only where something was tried.
    """

    def __init__(self, stages: Sequence[str], hopeful: np.ndarray, nothing: np.ndarray, prove: Prove, batch_size: int):
        """Nothing is tried yet.

        Args:
          stages: the methods, in their order.
          hopeful: `[examples]`; the others are given to the first method alone.
          nothing: `[others]`, -inf: the bounds of an example of which nothing is known.
          prove: what a method finds on some examples.
          batch_size: examples at once.
        """
        self.lower = np.tile(nothing, (len(hopeful), 1))
        self.admissible = np.zeros(len(hopeful), bool)
        self._left, self._hopeful, self._pending = list(stages), hopeful, np.arange(len(hopeful))
        self._prove, self._batch_size = prove, batch_size
        self._proved, self._seconds, self._is_first = 0, 0.0, True

    @property
    def stage(self) -> str | None:
        """The method that comes next; None if all is done."""
        return self._left[0] if self._left else None

    @property
    def is_untried(self) -> bool:
        """Whether the next step is the first of its method, which is compiled there."""
        return not self._seconds

    @property
    def urgency(self) -> tuple[bool, float]:
        """To be compared: whether the first method is not done, and what the current one proved in a second so far.

        Without compilation; infinite before it was tried.
        """
        return self._is_first, self._proved / self._seconds if self._seconds else math.inf

    @property
    def unfinished(self) -> np.ndarray:
        """`[examples]`: a method that could prove them was not tried."""
        waiting = np.zeros(len(self._hopeful), bool)
        if self._left:
            waiting[self._pending] = True
            if len(self._left) > 1:
                waiting |= self._open()
        return waiting

    def step(self) -> int:
        """Tries the current method on the next batch; returns how many examples are decided by that."""
        rows, self._pending = np.split(self._pending, [self._batch_size])
        before = proves(self.lower[rows])
        began = time.monotonic()
        with compile_seconds() as compiling:
            found = self._prove(self._left[0], rows)
            # At least one tick, so that a method that was tried has a rate.
            self._seconds += max(time.monotonic() - began - compiling(), 1e-9)
        # A bound that is not a number is none.
        self.lower[rows] = np.fmax(self.lower[rows], found["lower"])
        self.admissible[rows] = found["admissible"]
        proved = int(np.sum(self.admissible[rows] & proves(self.lower[rows]) & ~before))
        self._proved += proved
        is_last = len(self._left) == 1
        decided = len(rows) if is_last else int(np.sum(~self._open()[rows]))
        if not len(self._pending):
            self._left, self._pending = self._left[1:], np.flatnonzero(self._open())
            self._proved, self._seconds, self._is_first = 0, 0.0, False
            if not len(self._pending):
                self._left = []
        return decided

    def _open(self) -> np.ndarray:
        """`[examples]`: hopeful ones that are not proved."""
        return self._hopeful & self.admissible & ~proves(self.lower)


def run(
    cascades: Mapping[str, Cascade], advance: Callable[[str, int], None], timeout: float | int | None
) -> dict[str, np.ndarray]:
    """Steps until all is done or the time is over.

    Without a limit the norms come one after the other. With one, the first method of every norm goes first, and then
    the norm is next whose current method proved most in a second so far; one that was not tried yet is tried once.

    Args:
      cascades: by norm.
      advance: is told what was done, and how many examples that decided; and what begins to be compiled, with 0.
      timeout: seconds; looked at between batches.

    Returns:
      By norm, `[examples]`: given up because the time was over; empty without a limit.
    """
    deadline = None if timeout is None else time.monotonic() + timeout
    while going := {norm: cascade for norm, cascade in cascades.items() if cascade.stage is not None}:
        norm = next(iter(going))
        if deadline is not None:
            if time.monotonic() >= deadline:
                break
            norm = max(going, key=lambda name: going[name].urgency)
        doing = f"{norm} {going[norm].stage}"
        if going[norm].is_untried:
            advance(f"compiling {doing}", 0)
        advance(doing, going[norm].step())
    return {} if deadline is None else {norm: cascade.unfinished for norm, cascade in cascades.items()}
