"""What shells offer behind `cure-jax`, in the shells that are installed."""

import shutil
import subprocess
import sys

import pytest

from cure_jax.commands import completion
from cure_jax.commands.completion import Flag, Words

WORDS = {
    "train": Words(
        (
            Flag("config", "what to train", ("digits:max", "digits:l2")),
            Flag("workdir"),
            Flag("help", is_switch=True),
        )
    ),
    "benchmark": Words((Flag("rounds"),), ("bounds", "memory")),
}
BASH = """
COMP_LINE={line!r} COMP_POINT={point}
IFS=' ' read -ra COMP_WORDS <<<"$COMP_LINE"
[[ $COMP_LINE == *' ' ]] && COMP_WORDS+=('')
COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
compopt() {{ :; }}
_cure_jax
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
# With zsh's completion system left out: what it is told to offer.
ZSH = """
compdef() {{ :; }}
_describe() {{ printf '%s\\n' "${{(P@)2}}" }}
_arguments() {{ printf '%s\\n' "$@" }}
{script}
words=({line})
CURRENT={current}
_cure_jax
"""


def offered(shell: str, *program: str) -> list[str]:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    done = subprocess.run([shell, *program], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return done.stdout.split("\n")[:-1]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("cure-jax tr", ["train"]),
        ("cure-jax train --w", ["--workdir="]),
        ("cure-jax train --h", ["--help"]),
        # Behind = and :, where bash begins a new word.
        ("cure-jax train --config=dig", ["digits:max", "digits:l2"]),
        ("cure-jax train --config=digits:l", ["l2"]),
        ("cure-jax train --help --config=digits:m", ["max"]),
        ("cure-jax benchmark b", ["bounds"]),
    ],
)
def test_bash(line, expected):
    script = completion.script("bash", WORDS)
    assert offered("bash", "-c", script + BASH.format(line=line, point=len(line))) == expected


def test_bash_offers_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    line = "cure-jax train --workdir=ru"
    script = completion.script("bash", WORDS)
    assert offered("bash", "-c", script + BASH.format(line=line, point=len(line))) == ["runs"]


def test_zsh():
    script = completion.script("zsh", WORDS)
    commands = offered("zsh", "-fc", ZSH.format(script=script, line="cure-jax tr", current=2))
    assert commands[0].startswith("train:")
    flags = offered("zsh", "-fc", ZSH.format(script=script, line="cure-jax train --", current=3))
    assert flags == [
        r"--config=[what to train]:config:(digits\:max digits\:l2)", "--workdir=[]:workdir:_files", "--help[]"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("line", "expected"),
    [("cure-jax tr", "train"), ("cure-jax train --work", "--workdir"), ("cure-jax train --config=digits:l", "l2")],
)
def test_fish(tmp_path, line, expected):
    path = tmp_path / "cure-jax.fish"
    path.write_text(completion.script("fish", WORDS))
    found = offered("fish", "--no-config", "-c", f"source {path}; complete --do-complete {line!r}")
    assert any(expected in word for word in found), found


def test_the_words_are_those_of_the_commands():
    """In a process of its own, as all flags are defined there, one command after the other."""
    show = "from cure_jax.commands import completion; import sys; sys.argv = ['completion', 'bash']; completion.run()"
    script = subprocess.run([sys.executable, "-c", show], capture_output=True, text=True, check=True).stdout
    for line, expected in (
        ("cure-jax certify --meth", ["--method="]),
        ("cure-jax certify --method=vertex", ["vertex_crown"]),
        ("cure-jax train --config.proj", ["--config.projection.beta=", "--config.projection.every="]),
        ("cure-jax export --name=digits/sc", ["digits/scratch"]),
        ("cure-jax sweep --configs=mnist_three_norms:m", ["max"]),
        ("cure-jax benchmark mem", ["memory"]),
    ):
        found = offered("bash", "-c", script + BASH.format(line=line, point=len(line)))
        assert set(expected) <= set(found), (line, found)
