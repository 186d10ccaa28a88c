"""What tests of data sets share."""

import pytest

from cure_jax.certification import dataset


@pytest.fixture
def tried(monkeypatch):
    """The methods of all batches, in their order."""
    tried, bounded = [], dataset._bounded

    def spy(*args, method, **options):
        tried.append(method)
        return bounded(*args, method=method, **options)

    monkeypatch.setattr(dataset, "_bounded", spy)
    return tried
