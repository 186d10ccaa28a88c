"""Verdicts of single images in a file, so that an interrupted verification goes on."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from cure_jax.training.workdir import write_atomically
from cure_jax.verification import Status, Verdict

__all__ = ["KnownVerdicts"]


class KnownVerdicts:
    """Verdicts of single images, a line each.

    Args:
      path: of the file. What it has is kept if it is of the same origin; a line that was cut off is left out.
      origin: what the verdicts depend on: network, limits, images.
    """

    def __init__(self, path: Path, origin: dict[str, Any]):
        self._path, self._known = path, {}
        lines = path.read_text().splitlines() if path.exists() else []
        lines = [line for line in lines if line.endswith("}")]
        if not lines or json.loads(lines[0]) != origin:
            lines = [json.dumps(origin)]
        write_atomically(path, "\n".join(lines) + "\n")
        for entry in map(json.loads, lines[1:]):
            witness = None if entry["witness"] is None else np.asarray(entry["witness"], np.float32)
            rest = (entry[name] for name in ("margin", "domains", "seconds", "reason"))
            self._known[entry["norm"], entry["number"]] = Verdict(Status(entry["status"]), witness, *rest)

    def known(self, norm: str, number: int) -> Verdict | None:
        """The verdict of an image, by its number; None if there is none yet."""
        return self._known.get((norm, number))

    def tell(self, norm: str, number: int, verdict: Verdict) -> None:
        """Enters a verdict."""
        entry = {"norm": norm, "number": number, "status": verdict.status.value, "margin": verdict.margin}
        entry |= {"domains": verdict.domains, "seconds": round(verdict.seconds, 3), "reason": verdict.reason}
        entry["witness"] = None if verdict.witness is None else np.asarray(verdict.witness, float).tolist()
        with self._path.open("a") as file:
            file.write(json.dumps(entry) + "\n")
