"""`cure-jax`: what it lists, what help says, and how the package looks from outside."""

import ast
import importlib.util
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import cure_jax as cj
from cure_jax.commands import program

ROOT = Path(__file__).parents[2]
PROGRAM = (sys.executable, "-P", "-m", "cure_jax")


def cure_jax(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([*PROGRAM, *arguments], capture_output=True, text=True, check=False)


def test_the_installed_program_is_this_one():
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert scripts == {"cure-jax": f"{program.__name__}:{program.main.__name__}"}


@pytest.mark.parametrize(("arguments", "expected"), [([], "Examples:"), (["--help"], "Examples:")])
def test_help_lists_the_commands(monkeypatch, capsys, arguments, expected):
    monkeypatch.setattr(sys, "argv", ["cure-jax", *arguments])
    program.main()
    shown = capsys.readouterr().out
    assert expected in shown
    assert [line.split()[0] for line in shown.splitlines() if line.startswith("  ") and "cure-jax" not in line] == [
        *program.COMMANDS
    ]


@pytest.mark.parametrize("name", program.COMMANDS)
def test_every_command_has_examples_and_a_launcher_calls_it(name):
    spec = importlib.util.find_spec(f"cure_jax.commands.{name}")
    assert spec is not None
    assert spec.origin is not None
    described = ast.get_docstring(ast.parse(Path(spec.origin).read_text())) or ""
    assert f"    cure-jax {name}" in described or f'    eval "$(cure-jax {name}' in described
    launcher = ROOT / "launch" / f"{name}.py"
    assert name == "completion" or f"{name}.run()" in launcher.read_text()


def test_help_of_a_command_shows_its_examples_and_all_of_its_flags():
    shown = cure_jax("certify", "--workdir=somewhere", "--help")
    assert shown.returncode == 0, shown.stderr
    assert "cure-jax certify --workdir=runs/digits/scratch" in shown.stdout
    for flag in ("config", "workdir", "method", "coordinator_address"):
        assert f"\n  --{flag}\n" in shown.stdout
    assert "Default: '1000'" in shown.stdout


def test_mistakes_end_in_one_sentence(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["cure-jax", "trian"])
    with pytest.raises(SystemExit, match=r"unknown command 'trian'; expected one of train, .* Perhaps train\?"):
        program.main()
    missing = cure_jax("export")
    assert missing.returncode == 1
    assert missing.stderr.startswith("error: ")
    assert "--output" in missing.stderr


def test_only_public_names_are_listed_and_all_of_them_are_there():
    assert {*cj.__all__} < {*dir(cj)}
    assert {"__version__", "training", "testing", "verification"} <= {*dir(cj)}
    assert not {"importlib", "TYPE_CHECKING", "Any", "rules", "graph", "numerics"} & {*dir(cj)}
    assert all(getattr(cj, name) is not None for name in dir(cj))


def test_rooms_are_there_on_first_touch():
    """In a process where nothing else imported them."""
    read = "import cure_jax as cj; assert 'cure_jax.training' not in __import__('sys').modules; print(cj.__version__)"
    done = subprocess.run(
        [sys.executable, "-c", f"{read}; cj.training.fit; cj.testing.assert_bounds_sound"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == cj.__version__
