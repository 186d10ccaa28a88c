"""The config of a work directory: exact, atomic, and never mixed with another one."""

from pathlib import Path

import pytest

from cure_jax.training import workdir
from cure_jax.training.metrics import MetricWriter, read_metrics
from cure_jax.training.workdir import WorkdirError, as_path, check_config, read_config, write_config

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
    with pytest.raises(WorkdirError, match="Run cure-jax train"):
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


def test_other_urls_are_refused_and_buckets_name_what_they_need(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"'s3://bucket/run'; .*gs://BUCKET.*Mount other buckets"):
        as_path("s3://bucket/run")
    monkeypatch.setattr(workdir, "_has_gcsfs", lambda: False)
    with pytest.raises(ModuleNotFoundError, match=r"'gs://bucket/run', which needs gcsfs.*cure-jax\[cloud\]"):
        as_path("gs://bucket/run")


def test_a_bucket_holds_config_and_metrics_as_whole_objects(bucket: str) -> None:
    write_config(bucket, _CONFIG)
    assert read_config(bucket)["eps"] == _CONFIG["eps"]
    check_config(bucket, _CONFIG)
    with pytest.raises(WorkdirError, match="seed was 0, now 1"):
        check_config(bucket, {**_CONFIG, "seed": 1})
    with pytest.raises(WorkdirError, match="Run cure-jax train"):
        read_config(f"{bucket}/other")
    with MetricWriter(bucket, resume_from=-1) as writer:
        for step in (9, 10, 100):
            writer.write(step, {"loss": 1 / step})
        writer.write(100, {"accuracy": 0.5}, tag="validation")
    assert [(record["step"], record["tag"]) for record in read_metrics(bucket)] == [
        (9, "train"), (10, "train"), (100, "train"), (100, "validation"),
    ]  # fmt: skip
    with MetricWriter(bucket, resume_from=10) as writer:
        writer.write(11, {"loss": 0.0})
    assert [record["step"] for record in read_metrics(bucket)] == [9, 10, 11]
    assert read_metrics(f"{bucket}/other") == []


def test_what_cannot_be_written_is_named_and_leaves_no_part_of_it(tmp_path: Path) -> None:
    # Its temporary file is one of a full disk.
    (tmp_path / "config.json.tmp").symlink_to("/dev/full")
    with pytest.raises(OSError, match=r"config\.json could not be written to .* \(No space left.*same command"):
        write_config(tmp_path, _CONFIG)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"config\.json could not be written to .*file/run \(Not a directory"):
        write_config(tmp_path / "file" / "run", _CONFIG)
