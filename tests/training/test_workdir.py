"""The config of a work directory: exact, atomic, and never mixed with another one."""

from pathlib import Path

import pytest

from cure_jax.training.workdir import WorkdirError, check_config, file_system_path, read_config, write_config

_CONFIG = {"seed": 0, "eps": {"linf": 0.1, "l2": 0.75}, "widths": (64, 128), "extra": {}, "l1": None}


def test_config_round_trip_and_no_temporary_file_stays(tmp_path: Path) -> None:
    write_config(tmp_path / "run", _CONFIG)
    assert read_config(tmp_path / "run") == {**_CONFIG, "widths": [64, 128]}
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["config.json"]


def test_same_config_and_new_workdir_pass(tmp_path: Path) -> None:
    check_config(tmp_path / "missing", _CONFIG)
    assert not (tmp_path / "missing").exists()
    write_config(tmp_path, _CONFIG)
    check_config(tmp_path, _CONFIG)


def test_another_config_is_refused_by_the_names_and_values_of_its_fields(tmp_path: Path) -> None:
    write_config(tmp_path, _CONFIG)
    before = (tmp_path / "config.json").read_bytes()
    other = {**_CONFIG, "eps": {"linf": 0.3, "l2": 0.75}, "extra": {"new": 1}}
    del other["l1"]
    with pytest.raises(WorkdirError) as error:
        check_config(tmp_path, other)
    message = str(error.value)
    assert "eps.linf was 0.1, now 0.3" in message
    assert "extra was {}, now absent; extra.new was absent, now 1" in message
    assert "l1 was None, now absent" in message
    assert "eps.l2" not in message
    assert "another work directory" in message
    assert (tmp_path / "config.json").read_bytes() == before


def test_missing_and_damaged_configs_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(WorkdirError, match="Run launch"):
        read_config(tmp_path)
    (tmp_path / "config.json").write_text('{"seed": ')
    for read in (lambda: read_config(tmp_path), lambda: check_config(tmp_path, _CONFIG)):
        with pytest.raises(WorkdirError, match="damaged"):
            read()


def test_a_failed_write_leaves_the_old_config(tmp_path: Path) -> None:
    write_config(tmp_path, _CONFIG)
    with pytest.raises(TypeError):
        write_config(tmp_path, {"model": object()})
    assert read_config(tmp_path)["seed"] == 0


def test_urls_are_refused() -> None:
    with pytest.raises(ValueError, match="Mount the bucket"):
        file_system_path("gs://bucket/run")
