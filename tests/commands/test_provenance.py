import hashlib
import subprocess

import pytest

from cure_jax.commands.parts import provenance


def _git(directory, *arguments):
    identity = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", *identity, *arguments], cwd=directory, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture
def checkpoint(tmp_path):
    directory = tmp_path / "checkpoints" / "40"
    (directory / "state").mkdir(parents=True)
    (directory / "b").write_bytes(b"second")
    (directory / "state" / "a").write_bytes(b"first")
    return directory


def test_the_checksum_covers_names_and_contents_of_all_files(tmp_path, checkpoint):
    # Sorted by name: "b" comes before "state/a".
    expected = hashlib.sha256(b"b\x006\x00second" + b"state/a\x005\x00first").hexdigest()[:12]
    assert provenance.checkpoint_sha256(tmp_path, 40) == expected
    (checkpoint / "b").write_bytes(b"secone")
    assert provenance.checkpoint_sha256(tmp_path, 40) != expected
    (checkpoint / "b").write_bytes(b"second")
    (checkpoint / "b").rename(checkpoint / "c")
    assert provenance.checkpoint_sha256(tmp_path, 40) != expected


def test_only_the_step_that_was_asked_for_counts(tmp_path, checkpoint):
    before = provenance.checkpoint_sha256(tmp_path, 40)
    (tmp_path / "checkpoints" / "41").mkdir()
    (tmp_path / "checkpoints" / "41" / "b").write_bytes(b"x")
    assert provenance.checkpoint_sha256(tmp_path, 40) == before
    assert provenance.checkpoint_sha256(tmp_path, 7) is None


def test_the_commit_of_a_checkout_and_its_changes(tmp_path):
    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    assert provenance.commit(package) is None
    _git(tmp_path, "init", "-q")
    # In a checkout, but none of its files: an environment in a project's folder is such a place.
    assert provenance.commit(package) is None
    _git(tmp_path, "add", ".")
    _git(tmp_path, "commit", "-qm", "first")
    head = _git(tmp_path, "rev-parse", "HEAD")
    _git(tmp_path, "tag", "-a", "v1", "-m", "v1")
    assert provenance.commit(package) == head
    (package / "__init__.py").write_text("changed = True\n")
    assert provenance.commit(package) == f"{head}-dirty"


def test_without_git_there_is_no_commit(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert provenance.commit() is None


def test_seconds_of_several_processes_add_up(tmp_path):
    assert provenance.training_seconds(tmp_path) is None
    provenance.add_training_seconds(tmp_path, 10.5)
    provenance.add_training_seconds(tmp_path, 2.25)
    assert provenance.training_seconds(tmp_path) == 12.75
