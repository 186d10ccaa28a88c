"""Several methods on many examples, from cheap to tight, each on what the methods before it left open.

That is examples, and of these, for methods whose work grows with them, single margins. What a batch bounds has one
shape, so it bounds as many margins of each example as the example needs that has most of them open. Examples with
equally many are neighbours, and the places that others do not need go to margins that are proved already: every number
that comes back is a bound of the margin whose column it names, and may only raise what is known of that one.

The margin of which the least is known goes first. Where that one stays open, such a method leaves out the others, until
another method has proved it: then it comes to them again, when all methods had their turn.
"""

import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np

from cure_jax.certification.certificate import proves
from cure_jax.progress import compile_seconds

__all__ = ["Cascade", "open_columns", "open_margins", "run", "size_for"]

# Of a method, the numbers of some examples [rows] and of the margins to bound of each [rows, columns]: "lower"
# [rows, columns] and "admissible" [rows].
Prove = Callable[[str, np.ndarray, np.ndarray], Mapping[str, np.ndarray]]
# Of sizes: each is a program that has to be compiled.
_GROWTH = 4


def size_for(margins: int, others: int) -> int:
    """How many margins of each example are bounded at once where `margins` of `others` are wanted: 1, 4, 16, ..., all.

    Examples:
      >>> [size_for(margins, 9) for margins in (1, 2, 4, 5, 9)]
      [1, 4, 4, 9, 9]
    """
    size = 1
    while size < margins:
        size *= _GROWTH
    return min(size, others)


def open_margins(lower: np.ndarray) -> np.ndarray:
    """How many margins lower bounds `[rows, others]` leave open, `[rows]`."""
    return np.sum(_are_open(lower), axis=1)


def _are_open(lower: np.ndarray) -> np.ndarray:
    """Which margins lower bounds `[rows, others]` leave open, `[rows, others]`."""
    return ~proves(lower[..., None])


def open_columns(lower: np.ndarray) -> np.ndarray:
    """Which margins to bound of each row of lower bounds `[rows, others]`: `[rows, columns]`, ascending, no one twice.

    All that are open, up to the size of the row that has most of them, and the least of the others.

    Examples:
      >>> open_columns(np.array([[3.0, 0.1, 2.0, 0.2, -1.0], [0.0, 1.0, -1.0, 1.0, 1.0]])).tolist()
      [[1, 2, 3, 4], [0, 1, 2, 3]]
    """
    size = size_for(int(open_margins(lower).max()), lower.shape[1])
    return np.sort(np.argsort(lower, axis=1, kind="stable")[:, :size], axis=1)


class Cascade:
    """The examples of one norm on their way through the methods.

    Attributes:
      lower: `[examples, others]`, the best lower bounds of all margins; -inf where nothing was tried.
      admissible: `[examples]`, whether anything can be proved; only where something was tried.
    """

    def __init__(
        self,
        stages: Sequence[str],
        hopeful: np.ndarray,
        nothing: np.ndarray,
        prove: Prove,
        batch_size: int,
        by_margin: Collection[str] = (),
    ):
        """Nothing is tried yet.

        Args:
          stages: the methods, in their order.
          hopeful: `[examples]`; the others are given to the first method alone.
          nothing: `[others]`, -inf: the bounds of an example of which nothing is known.
          prove: what a method finds on some margins of some examples.
          batch_size: examples at once.
          by_margin: the methods that bound no more margins than are open, as far as one shape allows.
        """
        self.lower = np.tile(nothing, (len(hopeful), 1))
        self.admissible = np.zeros(len(hopeful), bool)
        self._left, self._hopeful, self._pending = list(stages), hopeful, np.arange(len(hopeful))
        self._prove, self._batch_size, self._by_margin = prove, batch_size, by_margin
        self._proved, self._seconds, self._is_first, self._is_again = 0, 0.0, True, False
        # By method, [examples, others]: what it left out because another margin stayed open.
        self._skipped = {name: np.zeros(self.lower.shape, bool) for name in stages if name in by_margin}

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
            waiting |= self._open() & ((len(self._left) > 1 and not self._is_again) or self._may_yet_be_proved())
        return waiting

    def step(self) -> int:
        """Tries the current method on the next batch; returns how many examples are decided by that."""
        unfinished = self.unfinished
        rows, self._pending = np.split(self._pending, [self._batch_size])
        before, began = proves(self.lower[rows]), time.monotonic()
        with compile_seconds() as compiling:
            self._bound(rows)
            # At least one tick, so that a method that was tried has a rate.
            self._seconds += max(time.monotonic() - began - compiling(), 1e-9)
        self._proved += int(np.sum(self.admissible[rows] & proves(self.lower[rows]) & ~before))
        while self._left and not len(self._pending):
            self._move_on()
        return int(np.sum(unfinished & ~self.unfinished))

    def _move_on(self) -> None:
        """To the next method; when all had their turn, to those that left something out."""
        self._left = self._left[1:]
        if not self._left and not self._is_again:
            self._left, self._is_again = list(self._skipped), True
        if self._left:
            self._pending = self._fewest_first(np.flatnonzero(self._worth_trying()))
        self._proved, self._seconds, self._is_first = 0, 0.0, False

    def _bound(self, rows: np.ndarray) -> None:
        """The current method on the margins of some examples by which it could decide them."""
        if self._left[0] not in self._by_margin:
            self._learn(rows, np.tile(np.arange(self.lower.shape[1]), (len(rows), 1)))
            return
        skipped = self._skipped[self._left[0]]
        if not self._is_first and not self._is_again:
            least = np.argmin(self.lower[rows], axis=1)[:, None]
            self._learn(rows, least)
            skipped[rows] = True
            skipped[rows[:, None], least] = False
            rows = rows[proves(self.lower[rows[:, None], least]) & ~proves(self.lower[rows])]
        if len(rows):
            self._learn(rows, open_columns(self.lower[rows]))
            skipped[rows] = False

    def _learn(self, rows: np.ndarray, columns: np.ndarray) -> None:
        """Keeps what the current method finds of some margins `[rows, columns]`; what is not a number is no bound."""
        found, places = self._prove(self._left[0], rows, columns), (rows[:, None], columns)
        self.lower[places] = np.fmax(self.lower[places], found["lower"])
        self.admissible[rows] = found["admissible"]

    def _worth_trying(self) -> np.ndarray:
        """`[examples]`: those that the current method could help to decide."""
        if not self._is_again:
            return self._open()
        skipped = self._skipped[self._left[0]] & _are_open(self.lower)
        return self._open() & self._may_yet_be_proved() & skipped.any(axis=1)

    def _may_yet_be_proved(self) -> np.ndarray:
        """`[examples]`: every margin that is open was left out by some method."""
        left = _are_open(self.lower)
        for skipped in self._skipped.values():
            left &= ~skipped
        return np.all(~left, axis=1)

    def _fewest_first(self, rows: np.ndarray) -> np.ndarray:
        return rows[np.argsort(open_margins(self.lower[rows]), kind="stable")]

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
