"""The state of a search in a file, so that a long verification goes on where it was interrupted."""

import io
import os
import re
import time
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from cure_jax.distributed import digest
from cure_jax.verification.problem import Problem

__all__ = ["Saved"]

_INTERVAL = 60.0
_QUESTION = "question"


class Saved:
    """A file with the state of one search: an `.npz` that is replaced as a whole.

    Attributes:
      path: of the file; it need not exist, its folder must.
      question: what the state belongs to: a digest of network, region and specifications.
    """

    def __init__(self, path: str | os.PathLike, problem: Problem, how: str) -> None:
        """Names the file.

        Args:
          path: of the file.
          problem: what is searched.
          how: which search.
        """
        self.path, self.question = Path(path), _question(problem, how)
        self._last = time.monotonic()

    def load(self) -> dict[str, np.ndarray] | None:
        """Reads the state; None if there is no file.

        Raises:
          ValueError: if the file is damaged, or has the state of another search.
          OSError: if it cannot be read.
        """
        if not self.path.exists():
            return None
        try:
            with np.load(io.BytesIO(self.path.read_bytes()), allow_pickle=False) as archive:
                state = dict(archive)
        except (ValueError, EOFError, zipfile.BadZipFile) as error:
            raise ValueError(
                f"{self.path} is no state of a search ({error}); expected one that verify has written. Delete it to "
                "start anew."
            ) from error
        if str(state.pop(_QUESTION, "")) != self.question:
            raise ValueError(
                f"{self.path} has the state of another search; expected that of this network, region and "
                "specification. Delete it, or name another file."
            )
        return state

    def keep(self, state: Callable[[], Mapping[str, Any]], *, now: bool = False) -> None:
        """Writes the state if the last time was a minute ago, or `now`.

        Raises:
          OSError: if the file cannot be written; what was there before still is.
        """
        if not now and time.monotonic() < self._last + _INTERVAL:
            return
        arrays = {name: np.asarray(part) for name, part in {_QUESTION: self.question, **state()}.items()}
        content = io.BytesIO()
        np.savez(content, **arrays)  # pyright: ignore[reportArgumentType]
        temporary = self.path.with_name(f"{self.path.name}.tmp")
        try:
            with temporary.open("wb") as file:
                file.write(content.getvalue())
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self.path)
        finally:
            temporary.unlink(missing_ok=True)
        self._last = time.monotonic()

    def forget(self) -> None:
        """Deletes the file: the search has ended."""
        self.path.unlink(missing_ok=True)


def _question(problem: Problem, how: str) -> str:
    traced = jax.jit(lambda f, x: f(x)).trace(problem.f, problem.region.bounding_box().lower)
    # The equations name custom bounds, the program has the constants that a function holds, and the structure what is
    # no array: the norm of a ball. Functions are printed with their addresses.
    structure = jax.tree.structure((problem.f, problem.region))
    words = [re.sub(r"0x[0-9a-f]{8,}", "", str(part)) for part in (traced.jaxpr, structure)]
    parts = [how, *words, traced.lower().as_text(), problem.f, problem.region, problem.specifications, problem.ends]
    return digest([part for part in parts if part is not None]).hex()
