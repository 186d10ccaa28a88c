"""Flags of XLA: only those that a version knows, and never against what the user says."""

import subprocess
import sys

import pytest

from cure_jax.commands.parts import xla_flags

(FLAG,) = xla_flags.KNOWN
NAME = FLAG.partition("=")[0]


@pytest.mark.parametrize(("version", "expected"), [("0.10.2", FLAG), ("0.11.0", FLAG), ("0.9.1", ""), ("1.10.2", "")])
def test_only_versions_that_were_tried_get_a_flag(version, expected):
    assert xla_flags.known_flags(version) == expected


@pytest.mark.parametrize(
    ("given", "expected"),
    [("", FLAG), ("--xla_a=1", f"--xla_a=1 {FLAG}"), (f"{NAME}=", f"{NAME}="), (FLAG, FLAG)],
)
def test_what_is_set_stays(given, expected, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", given)
    xla_flags.use("0.10.2")
    assert xla_flags.os.environ["XLA_FLAGS"] == expected


def test_the_installed_version_takes_its_flags():
    program = (
        "import os; from cure_jax.commands.parts import xla_flags; xla_flags.use(); import jax; print(jax.devices())"
    )
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
