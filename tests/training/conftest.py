"""What several tests of training need."""

from collections.abc import Iterator

import fsspec
import pytest
from etils.epath import backend

from cure_jax.training import workdir


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A bucket in memory."""
    files = fsspec.filesystem("memory")
    monkeypatch.setattr(backend.fsspec_backend, "_get_filesystem", lambda name: files)
    monkeypatch.setattr(type(files), "_strip_protocol", classmethod(_without_protocol))
    monkeypatch.setattr(workdir, "_has_gcsfs", lambda: True)
    yield "gs://bucket/run"
    files.store.clear()
    files.pseudo_dirs[:] = [""]


def _without_protocol(cls: type, path: str) -> str:
    return "/" + str(path).removeprefix("gs://").removeprefix("memory://").strip("/") if str(path).strip("/") else ""
