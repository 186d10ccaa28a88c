"""Launchers of jobs elsewhere, by what --dry_run prints; and of several processes here."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launch.pods import commands, local

ROOT = Path(__file__).parents[2]
TRAINING = ("--", "--config=configs/pod.py:mnist_cpu:max", "--workdir=gs://bucket/a run")
PLACE = ("--name=pod", "--zone=us-west4-a")


def launch(script: str, *arguments: str, dry_run: bool = True) -> subprocess.CompletedProcess:
    command = [sys.executable, f"launch/pods/{script}.py", *(["--dry_run"] if dry_run else []), *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PATH": ""}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def printed(script: str, *arguments: str) -> list[list[str]]:
    """The words of the commands, as a shell would see them."""
    result = launch(script, *arguments)
    assert result.returncode == 0, result.stderr
    return [shlex.split(line) for line in result.stdout.splitlines()]


def test_a_tpu_is_created_in_the_queue_or_at_once() -> None:
    queued = ["gcloud", "compute", "tpus", "queued-resources", "create", "pod", "--node-id=pod"]
    (command,) = printed("tpu", *PLACE, "--type=v6e-16", "--spot", "create")
    assert command[:7] == queued
    assert set(command[7:]) == {
        "--runtime-version=v2-alpha-tpuv6e", "--accelerator-type=v6e-16", "--zone=us-west4-a", "--spot",
    }  # fmt: skip
    (command,) = printed("tpu", *PLACE, "--noqueued", "--project=p", "create")
    assert command[3:6] == ["tpu-vm", "create", "pod"]
    assert {"--version=v2-alpha-tpuv5-lite", "--project=p"} <= set(command)
    assert "--spot" not in command


def test_every_host_gets_the_code_and_the_same_command() -> None:
    archive, copy, install = printed("tpu", *PLACE, "setup")
    assert archive[0] == "git"
    assert copy[3:5] == ["tpu-vm", "scp"]
    assert "--worker=all" in copy
    assert "environment.sh tpu,cloud" in install[-2]
    (command,) = printed("tpu", *PLACE, "train", *TRAINING)
    assert "--worker=all" in command
    (remote,) = [word.removeprefix("--command=") for word in command if word.startswith("--command=")]
    inner = shlex.split(remote.split("nohup ")[1])
    assert inner[:4] == [".venv/bin/python", "launch/train.py", *TRAINING[1:]]
    assert "--worker=0" in printed("tpu", *PLACE, "logs")[0]
    assert "--force" in printed("tpu", *PLACE, "delete")[0]


def test_a_jobset_has_one_pod_for_each_host_and_starts_again_when_stopped() -> None:
    result = launch("gke", "jobset", "--name=run", "--image=i", "--topology=8x8", "--spot", *TRAINING)
    first, _, text = result.stdout.partition("\n")
    assert first == "kubectl apply -f - <<'EOF'"
    manifest = json.loads(text.removesuffix("EOF\n"))
    job = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]
    assert (job["parallelism"], job["completions"], job["backoffLimit"]) == (16, 16, 0)
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    assert container["resources"]["limits"] == {"google.com/tpu": 4}
    assert container["command"] == ["python", "launch/train.py", *TRAINING[1:], "--preempted_status=75"]
    assert pod["nodeSelector"]["cloud.google.com/gke-spot"] == "true"
    assert pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == "8x8"
    assert pod["terminationGracePeriodSeconds"] > 30
    assert manifest["spec"]["failurePolicy"]["maxRestarts"] > 0
    result = launch("gke", "jobset", "--name=run", "--image=i", "--topology=3x3", *TRAINING)
    assert "9 chips of 3x3 are no multiple of chips_per_host 4" in result.stderr


def test_a_job_has_its_environment_account_and_queue() -> None:
    env, value = ("--env=TFDS_DATA_DIR=gs://b/data", "--env=SAID=it's a b"), "it's a b"
    place = ("--namespace=team", "--queue=tpus", "--service_account=writer")
    result = launch("gke", "jobset", "--name=run", "--image=i", *env, *place, *TRAINING)
    manifest = json.loads(result.stdout.partition("\n")[2].removesuffix("EOF\n"))
    pod = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    variables = [{"name": "TFDS_DATA_DIR", "value": "gs://b/data"}, {"name": "SAID", "value": value}]
    assert pod["containers"][0]["env"] == variables
    assert pod["serviceAccountName"] == "writer"
    assert manifest["metadata"]["namespace"] == "team"
    assert manifest["metadata"]["labels"] == {"kueue.x-k8s.io/queue-name": "tpus"}
    script = launch("slurm", *env, "--account=us", "--qos=low", *TRAINING).stdout
    assert "#SBATCH --account=us\n#SBATCH --qos=low\n" in script
    exported = [shlex.split(line) for line in script.splitlines() if line.startswith("export ")]
    assert exported == [["export", "TFDS_DATA_DIR=gs://b/data"], ["export", f"SAID={value}"]]
    (command,) = printed("tpu", *PLACE, *env, "train", *TRAINING)
    assert any("cd cure_jax && export TFDS_DATA_DIR=gs://b/data; export SAID=" in word for word in command)
    assert "--service-account=w" in printed("tpu", *PLACE, "--service_account=w", "create")[0]
    assert "--dry_run" in launch("slurm", "--help", dry_run=False).stdout


def test_xpk_gets_the_same_command() -> None:
    (command,) = printed("gke", "--name=run", "--image=i", "--cluster=c", "--zone=z", "--env=A=b c", "xpk", *TRAINING)
    assert "--env=A=b c" in command
    for_jobset = launch("gke", "--name=run", "--image=i", "--cluster=c", "--zone=z", "--queue=q", "xpk", *TRAINING)
    assert "got --queue for xpk" in for_jobset.stderr
    assert command[:3] == ["xpk", "workload", "create"]
    inner = next(word for word in command if word.startswith("--command=")).removeprefix("--command=")
    assert shlex.split(inner) == ["python", "launch/train.py", *TRAINING[1:], "--preempted_status=75"]
    assert "needs --cluster and --zone" in launch("gke", "--name=run", "--image=i", "xpk", *TRAINING).stderr


def test_slurm_gives_each_gpu_a_process_and_requeues_a_stopped_job(tmp_path: Path) -> None:
    result = launch("slurm", "--nodes=2", "--gpus_per_node=4", "--partition=gpu", *TRAINING)
    script = result.stdout.split("\n", 1)[1].removesuffix("EOF\n")
    for option in ("nodes=2", "ntasks-per-node=4", "gpus-per-node=4", "partition=gpu", "requeue", "signal=TERM@120"):
        assert f"#SBATCH --{option}\n" in script
    assert "--ntasks-per-node=1\n" in launch("slurm", "--gpus_per_node=0", *TRAINING).stdout
    # The script, with programs that only say what they are called with.
    for name, status in (("srun", 75), ("scontrol", 0)):
        program = tmp_path / name
        program.write_text(f'#!/bin/sh\nfor word; do echo "{name}: $word"; done\nexit {status}\n')
        program.chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_JOB_ID": "7"}
    run = subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 75
    assert "srun: --workdir=gs://bucket/a run\n" in run.stdout
    assert run.stdout.endswith("scontrol: requeue\nscontrol: 7\n")


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        ("tpu", (*PLACE, "fly"), "got fly; expected one of create, setup"),
        ("tpu", (*PLACE, "train", "--", "--config=a"), "got no --workdir=... after --"),
        ("tpu", (*PLACE, "--type=v9-8", "create"), "got the type 'v9-8'; expected one of v2"),
        ("gke", ("--name=a", "--image=i", "job"), "got 'job'; expected jobset or xpk"),
        ("slurm", ("--", "--workdir=a"), "got no --config=... after --"),
        ("tpu", (*PLACE, "--env=1A=b", "train", *TRAINING), "got --env=1A=b; expected NAME=VALUE"),
        ("local", (), "got no launcher; expected one after --"),
    ],
)
def test_mistakes_are_named(script: str, arguments: tuple[str, ...], message: str) -> None:
    result = launch(script, *arguments)
    assert result.returncode == 1
    assert message in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--config=digits:max", "--workdir=/tmp/run"), "lies in /tmp, which each host has for itself"),
        (("--config=digits:maks", "--workdir=a"), "Unknown method 'maks'"),
        (("--config=digits:max", "--config.epochs=0", "--workdir=a"), r"config\.epochs is 0"),
        (("--config=digits:max", "--config.l1=0", "--workdir=a"), "is called 'l1_penalty' now"),
    ],
)
def test_a_training_is_checked_before_it_is_sent(
    arguments: tuple[str, ...], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A checkout in /tmp would be one of each host.
    monkeypatch.chdir("/")
    with pytest.raises(SystemExit, match=message):
        commands.training(arguments, only_buckets=False)
    right = ("--config=digits:max", "--workdir=runs/a", "--num_processes=1")
    assert commands.training(right, only_buckets=False) == ["launch/train.py", *right]
    with pytest.raises(SystemExit, match="runs/a is a directory of each host"):
        commands.training(right, only_buckets=True)


def test_a_missing_program_is_named() -> None:
    result = launch("tpu", *PLACE, "status", dry_run=False)
    assert "there is no program 'gcloud' here" in result.stderr


def test_local_processes_are_numbered() -> None:
    commands = printed("local", "--processes=2", "--devices=4", "--", "launch/train.py", "--config=a")
    assert [words[:2] for words in commands] == [["JAX_PLATFORMS=cpu", "JAX_NUM_CPU_DEVICES=4"]] * 2
    assert [words[-1] for words in commands] == ["--process_id=0", "--process_id=1"]
    assert len({words[-3] for words in commands}) == 1


def test_if_one_process_dies_the_others_are_ended_and_its_status_is_told() -> None:
    job = [
        subprocess.Popen([sys.executable, "-c", f"import time; time.sleep({seconds}); raise SystemExit({status})"])
        for seconds, status in ((0, 0), (0, 3), (600, 0))
    ]
    assert local.wait(job, timeout=60) == 3
    assert [process.returncode for process in job[1:]] == [3, -9]
    job = [subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])]
    with pytest.raises(TimeoutError):
        local.wait(job, timeout=0.1)
    assert job[0].returncode == -9


def test_a_job_starts_again_as_often_as_allowed(tmp_path: Path) -> None:
    script, count = tmp_path / "fails_twice.py", tmp_path / "count"
    script.write_text(
        f"import pathlib, sys\np = pathlib.Path({str(count)!r})\n"
        "p.write_text((p.read_text() if p.exists() else '') + 'x')\nsys.exit(len(p.read_text()) < 3)\n"
    )
    result = launch("local", "--processes=1", "--restarts=1", "--", str(script), dry_run=False)
    assert result.returncode == 1
    assert "restarts left: 0" in result.stderr
    count.unlink()
    result = launch("local", "--processes=1", "--restarts=2", "--", str(script), dry_run=False)
    assert result.returncode == 0, result.stderr
    assert count.read_text() == "xxx"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_job_that_was_told_to_stop_is_not_started_again(tmp_path: Path, number: signal.Signals) -> None:
    program, started = tmp_path / "job.py", tmp_path / "started"
    program.write_text(
        f"import time\nwith open({str(started)!r}, 'a') as file:\n    print('started', file=file)\ntime.sleep(600)\n"
    )
    command = [sys.executable, "launch/pods/local.py", "--processes=1", "--restarts=3", "--", str(program)]
    job = subprocess.Popen(
        command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE, text=True
    )
    while not started.exists() or not started.read_text():
        assert job.poll() is None
        time.sleep(0.05)
    job.send_signal(number)
    _, errors = job.communicate(timeout=60)
    assert job.returncode == 1
    assert f"told to stop ({number.name})" in errors
    assert started.read_text() == "started\n"


def test_a_second_ctrl_c_kills_a_job_that_does_not_end(tmp_path: Path) -> None:
    program, heard = tmp_path / "job.py", tmp_path / "heard"
    program.write_text(
        "import pathlib, signal, time\n"
        f"signal.signal(signal.SIGTERM, lambda *_: pathlib.Path({str(heard)!r}).write_text('told'))\n"
        f"pathlib.Path({str(heard)!r}).write_text('started')\ntime.sleep(600)\n"
    )
    command = [sys.executable, "launch/pods/local.py", "--processes=1", "--", str(program)]
    job = subprocess.Popen(
        command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE, text=True
    )
    for word in ("started", "told"):
        while not heard.exists() or heard.read_text() != word:
            assert job.poll() is None
            time.sleep(0.05)
        job.send_signal(signal.SIGINT)
    _, errors = job.communicate(timeout=60)
    assert "told to stop (SIGINT), and ended with status -9" in errors
