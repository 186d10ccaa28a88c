"""Settings are found by name and by path, in a checkout and in a wheel, and each is one module."""

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from absl import flags

from cure_jax import configs
from cure_jax.commands.parts.settings import define_config
from cure_jax.training.workdir import write_config

ROOT = Path(__file__).resolve().parents[1]
# A file of the user's own, and a program that loads settings, then prints the files that are more than one module.
OWN = """
from cure_jax.configs import digits
from cure_jax.configs.methods import small_box

def get_config(method="max"):
    config = digits.get_config(method)
    config.losses.linf = small_box(0.3)
    return config
"""
PROGRAM = """
import sys
from cure_jax import configs
from cure_jax.training.workdir import write_config
for spelling in sys.argv[1:]:
    config = configs.load(spelling)
    print(config.setting, config.name, config.losses.get("linf", {}).get("ratio"))
files = [str(getattr(module, "__file__", None)) for module in sys.modules.values()]
print(sorted({file for file in files if "configs" in file and files.count(file) > 1}))
"""


def run(site: Path, directory: Path, *spellings: str) -> list[str]:
    """What a program prints that finds cure_jax in `site` and runs in `directory`."""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(site)}
    command = [sys.executable, "-c", PROGRAM, *spellings]
    done = subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_a_checkout_has_settings_by_name_and_by_path_and_one_copy_of_each(tmp_path):
    (tmp_path / "own.py").write_text(OWN)
    three_norms, mnist = (f"{ROOT}/configs/{name}.py" for name in ("mnist_three_norms", "mnist_cpu"))
    found = run(
        ROOT, tmp_path, "own.py", f"{three_norms}:max", "mnist_cpu:scratch", f"{mnist}:joint", "pod:digits:l2@512"
    )
    assert found[:3] == ["digits max 0.3", "mnist_three_norms max 0.2", "mnist_cpu scratch 0.4"]
    assert found[3:] == ["mnist_cpu joint 0.4", "digits l2 None", "[]"]


def test_a_wheel_has_them_too_and_never_takes_those_of_another_package(tmp_path):
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    site, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    for source in wheel["only-include"]:
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / source, site / wheel["sources"].get(source, source), dirs_exist_ok=True, ignore=ignore)
    (site / "configs").mkdir()
    (site / "configs" / "digits.py").write_text("raise RuntimeError('another package')")
    (site / "configs" / "theirs.py").write_text("")
    elsewhere.mkdir()
    (elsewhere / "own.py").write_text(OWN)
    path = site / "cure_jax" / "configs" / "digits.py"
    found = run(site, elsewhere, "digits:linf", "own.py:max", f"{path}:joint", "pod:mnist_cpu:max")
    assert found == ["digits linf 0.4", "digits max 0.3", "digits joint 0.4", "mnist_cpu max 0.4", "[]"]


def test_every_file_is_a_setting():
    files = {path.stem for path in (ROOT / "configs").glob("*.py")} - {"methods"}
    assert {"digits", "pod", "cifar10_small"} <= files == set(configs.names())


def test_a_flag_takes_a_name_from_anywhere_and_overrides_known_fields(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def parsed(*arguments):
        values = flags.FlagValues()
        flag = define_config(flag_values=values, sys_argv=["program", *arguments])
        values(["program", *arguments])
        return flag.value

    assert parsed() is None
    config = parsed("--config=digits:max", "--config.epochs=3", "--config.losses.linf.ratio=0.1")
    assert (config.name, config.epochs, config.losses.linf.ratio) == ("max", 3, 0.1)
    with pytest.raises(AttributeError, match="epochz"):
        config.epochz = 3
    with pytest.raises(flags.IllegalFlagValueError, match="Unknown setting 'digit'; expected one of cifar10_large, "):
        parsed("--config=digit:max")


def test_the_config_of_a_work_directory_is_one_too(tmp_path):
    write_config(tmp_path, configs.load("digits:max").to_dict())
    loaded = configs.load(f"{tmp_path}/config.json")
    assert loaded.to_dict() == configs.load("digits:max").to_dict()
    with pytest.raises(ValueError, match=r"There is no .*nowhere/config\.json"):
        configs.load(f"{tmp_path}/nowhere/config.json")


@pytest.mark.parametrize(
    ("spelling", "message"),
    [
        ("mnits:max", r"Unknown setting 'mnits'; expected one of .*, digits, .*mnist_cpu.* or the path of a file"),
        ("methods:max", "Unknown setting 'methods'"),
        ("", "Unknown setting ''"),
        ("nothing.py:max", r"Unknown setting 'nothing\.py'"),
        ("digits:srcatch", "Unknown method 'srcatch'"),
        ("empty.py", r"empty\.py has no get_config that returns a config"),
        ("none.py:max", r"none\.py has no get_config that returns a config"),
        ("notes.txt", r"notes\.txt is no Python file"),
    ],
)
def test_mistakes_are_named(spelling, message, tmp_path, monkeypatch):
    (tmp_path / "empty.py").write_text("")
    (tmp_path / "none.py").write_text("def get_config(method):\n    pass\n")
    (tmp_path / "notes.txt").write_text("")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        configs.load(spelling)
