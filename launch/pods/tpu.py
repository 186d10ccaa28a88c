"""Trains on Cloud TPU VMs, on demand or spot, through queued resources: `gcloud` commands.

    python launch/pods/tpu.py create --name=pod --zone=us-west4-a --type=v5litepod-64 --spot [--dry_run]
    python launch/pods/tpu.py setup  --name=pod --zone=us-west4-a
    python launch/pods/tpu.py train  --name=pod --zone=us-west4-a -- --config=configs/pod.py:mnist_cpu:max --workdir=gs://BUCKET/run
    python launch/pods/tpu.py logs|status|delete --name=pod --zone=us-west4-a

`train` starts one process on every host and returns; each writes cure_jax/train.log. A job that is preempted has saved
its state; create, set up and train again with the same --workdir, and it continues. The config is checked before the
job is sent, and the work directory must be in a bucket: the hosts share nothing else.
"""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import app, flags

from launch.pods import commands
from launch.pods.commands import Command, environment, execute, training

_NAME = flags.DEFINE_string("name", None, "Of the TPU.")
_ZONE = flags.DEFINE_string("zone", None, "Where it is.")
_PROJECT = flags.DEFINE_string("project", "", "Of Google Cloud; empty: the one gcloud is set to.")
_TYPE = flags.DEFINE_string("type", "v5litepod-64", "Accelerator type; the number counts chips (v5e, v6e) or cores.")
_RUNTIME = flags.DEFINE_string("runtime", "", "Version of the VM image; empty: the one for the type.")
_SERVICE_ACCOUNT = flags.DEFINE_string("service_account", "", "Of the VMs: what may write the bucket; for create.")
_SPOT = flags.DEFINE_bool("spot", False, "Cheaper, and may be taken away.")
_QUEUED = flags.DEFINE_bool("queued", True, "Wait in the queue for it, instead of failing if there is none now.")

_RUNTIMES = {
    "v2": "tpu-ubuntu2204-base",
    "v3": "tpu-ubuntu2204-base",
    "v4": "tpu-ubuntu2204-base",
    "v5litepod": "v2-alpha-tpuv5-lite",
    "v5p": "v2-alpha-tpuv5",
    "v6e": "v2-alpha-tpuv6e",
}
_ARCHIVE = "/tmp/cure_jax.tar.gz"


def main(arguments: Sequence[str]) -> None:
    """Runs one action."""
    actions = {"create": create, "setup": setup, "logs": logs, "status": status, "delete": delete}
    action, rest = arguments[1] if len(arguments) > 1 else "", arguments[2:]
    if action == "train":
        execute([train(rest)])
    elif action in actions and not rest:
        execute(actions[action]())
    else:
        sys.exit(f"error: got {' '.join(arguments[1:]) or 'no action'}; expected one of {', '.join(actions)}, train.")


def create() -> list[Command]:
    """Asks for the TPU."""
    generation = str(_TYPE.value).partition("-")[0]
    if not _RUNTIME.value and generation not in _RUNTIMES:
        sys.exit(f"error: got the type {_TYPE.value!r}; expected one of {', '.join(_RUNTIMES)}-N, or --runtime too.")
    common = [f"--accelerator-type={_TYPE.value}", *_place(), *(["--spot"] if _SPOT.value else [])]
    common += [f"--service-account={_SERVICE_ACCOUNT.value}"] if _SERVICE_ACCOUNT.value else []
    runtime = _RUNTIME.value or _RUNTIMES[generation]
    if _QUEUED.value:
        words = ["queued-resources", "create", _NAME.value, f"--node-id={_NAME.value}", f"--runtime-version={runtime}"]
    else:
        words = ["tpu-vm", "create", _NAME.value, f"--version={runtime}"]
    return [_tpus(*words, *common)]


def setup() -> list[Command]:
    """Copies this code to all hosts and installs it."""
    root = Path(__file__).resolve().parents[2]
    install = (
        "mkdir -p cure_jax && tar xzf cure_jax.tar.gz -C cure_jax && cd cure_jax"
        " && bash launch/environment.sh tpu,cloud,data,logging"
    )
    return [
        Command(["git", "-C", str(root), "archive", "--format=tar.gz", f"--output={_ARCHIVE}", "HEAD"]),
        _tpus("tpu-vm", "scp", _ARCHIVE, f"{_NAME.value}:cure_jax.tar.gz", "--worker=all", *_place()),
        _on_workers(install),
    ]


def train(arguments: Sequence[str]) -> Command:
    """Starts a process on every host; they find each other."""
    words = shlex.join([".venv/bin/python", *training(arguments, only_buckets=True)])
    variables = "".join(f"export {name}={shlex.quote(value)}; " for name, value in environment().items())
    return _on_workers(f"cd cure_jax && {variables}nohup {words} >>train.log 2>&1 </dev/null &")


def logs() -> list[Command]:
    """The log of the first host, which is the one that reports."""
    return [_on_workers("tail -n 50 cure_jax/train.log", worker="0")]


def status() -> list[Command]:
    """Where the request stands."""
    kind = "queued-resources" if _QUEUED.value else "tpu-vm"
    return [_tpus(kind, "describe", _NAME.value, *_place())]


def delete() -> list[Command]:
    """Gives it back."""
    if _QUEUED.value:
        return [_tpus("queued-resources", "delete", _NAME.value, "--force", "--quiet", *_place())]
    return [_tpus("tpu-vm", "delete", _NAME.value, "--quiet", *_place())]


def _on_workers(command: str, worker: str = "all") -> Command:
    return _tpus("tpu-vm", "ssh", _NAME.value, f"--worker={worker}", f"--command={command}", *_place())


def _tpus(*words: str | None) -> Command:
    return Command(["gcloud", "compute", "tpus", *map(str, words)])


def _place() -> list[str]:
    return [f"--zone={_ZONE.value}", *([f"--project={_PROJECT.value}"] if _PROJECT.value else [])]


flags.adopt_module_key_flags(commands)

if __name__ == "__main__":
    flags.mark_flags_as_required(["name", "zone"])
    app.run(main)
