r"""Trains on Google Kubernetes Engine: a JobSet, or the same through xpk.

    python launch/pods/gke.py jobset --name=run --image=IMAGE --topology=8x8 [--spot] [--dry_run] -- \
        --config=configs/pod.py:mnist_cpu:max --workdir=gs://BUCKET/run
    python launch/pods/gke.py xpk --name=run --image=IMAGE --cluster=CLUSTER --zone=ZONE --type=v5litepod-64 -- ...

A pod that is told to stop saves its state and ends with status 75, which is a failure for Kubernetes: the JobSet starts
all pods again, and they resume. The image is made by launch/Dockerfile. The config is checked before the job is sent,
and the work directory must be in a bucket: pods share nothing else.
"""

import json
import math
import shlex
import sys
from collections.abc import Sequence
from typing import Any

from absl import app, flags

from launch.pods import commands
from launch.pods.commands import Command, environment, execute, training

_NAME = flags.DEFINE_string("name", None, "Of the job.")
_IMAGE = flags.DEFINE_string("image", None, "Of launch/Dockerfile, in a registry that the cluster can read.")
_ACCELERATOR = flags.DEFINE_string("accelerator", "tpu-v5-lite-podslice", "Label of the nodes.")
_TOPOLOGY = flags.DEFINE_string("topology", "8x8", "Of the slice: chips along each axis.")
_CHIPS_PER_HOST = flags.DEFINE_integer("chips_per_host", 4, "Of the machine type, such as 4 of ct5lp-hightpu-4t.")
_RESTARTS = flags.DEFINE_integer("restarts", 100, "How often the job may start again.")
_SPOT = flags.DEFINE_bool("spot", False, "On spot nodes.")
_NAMESPACE = flags.DEFINE_string("namespace", "", "Of Kubernetes, for jobset; empty: that of kubectl.")
_SERVICE_ACCOUNT = flags.DEFINE_string("service_account", "", "Of Kubernetes, for jobset: what may write the bucket.")
_QUEUE = flags.DEFINE_string("queue", "", "Of Kueue, for jobset: the local queue that admits the job.")
_CLUSTER = flags.DEFINE_string("cluster", "", "For xpk.")
_ZONE = flags.DEFINE_string("zone", "", "For xpk.")
_TYPE = flags.DEFINE_string("type", "v5litepod-64", "For xpk.")

# EX_TEMPFAIL of sysexits.h: try again.
PREEMPTED = 75
# Time to finish the steps under way, and to save.
_GRACE_SECONDS = 90


def main(arguments: Sequence[str]) -> None:
    """Submits the job."""
    action, rest = arguments[1] if len(arguments) > 1 else "", arguments[2:]
    if action not in ("jobset", "xpk"):
        sys.exit(f"error: got {action or 'no action'!r}; expected jobset or xpk.")
    command = ["python", *training(rest, only_buckets=True), f"--preempted_status={PREEMPTED}"]
    if action == "jobset":
        # JSON is YAML.
        text = json.dumps(manifest(command), indent=2) + "\n"
        execute([Command(["kubectl", "apply", "-f", "-"], text)])
    else:
        execute([xpk(command)])


def manifest(command: Sequence[str]) -> dict[str, Any]:
    """The JobSet: one pod for every host of one slice."""
    chips = math.prod(map(int, str(_TOPOLOGY.value).split("x")))
    if chips % _CHIPS_PER_HOST.value and chips > _CHIPS_PER_HOST.value:
        sys.exit(
            f"error: {chips} chips of {_TOPOLOGY.value} are no multiple of chips_per_host {_CHIPS_PER_HOST.value}."
        )
    hosts = max(chips // _CHIPS_PER_HOST.value, 1)
    selector = {
        "cloud.google.com/gke-tpu-accelerator": _ACCELERATOR.value,
        "cloud.google.com/gke-tpu-topology": _TOPOLOGY.value,
    }
    if _SPOT.value:
        selector["cloud.google.com/gke-spot"] = "true"
    container = {
        "name": "train",
        "image": _IMAGE.value,
        "command": list(command),
        "env": [{"name": name, "value": value} for name, value in environment().items()],
        # The ports at which the coordinator and libtpu listen.
        "ports": [{"containerPort": 8471}, {"containerPort": 8482}],
        "resources": {"limits": {"google.com/tpu": min(chips, _CHIPS_PER_HOST.value)}},
    }
    pod = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": _GRACE_SECONDS,
        "nodeSelector": selector,
        "containers": [container],
    }
    if _SERVICE_ACCOUNT.value:
        pod["serviceAccountName"] = _SERVICE_ACCOUNT.value
    job = {"parallelism": hosts, "completions": hosts, "backoffLimit": 0, "template": {"spec": pod}}
    # One slice is one job, and all its pods lie on nodes of one topology.
    topology = {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"}
    metadata: dict[str, Any] = {"name": _NAME.value, "annotations": topology}
    if _NAMESPACE.value:
        metadata["namespace"] = _NAMESPACE.value
    if _QUEUE.value:
        metadata["labels"] = {"kueue.x-k8s.io/queue-name": _QUEUE.value}
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": metadata,
        "spec": {
            "failurePolicy": {"maxRestarts": _RESTARTS.value},
            "replicatedJobs": [{"name": "slice", "replicas": 1, "template": {"spec": job}}],
        },
    }


def xpk(command: Sequence[str]) -> Command:
    """The same job, for a cluster made by xpk."""
    if not (_CLUSTER.value and _ZONE.value):
        sys.exit("error: xpk needs --cluster and --zone, those of `xpk cluster create`.")
    for flag in (_NAMESPACE, _SERVICE_ACCOUNT, _QUEUE):
        if flag.value:
            sys.exit(f"error: got --{flag.name} for xpk, which has its own; expected it for jobset. Leave it out.")
    return Command(
        [
            "xpk",
            "workload",
            "create",
            f"--cluster={_CLUSTER.value}",
            f"--zone={_ZONE.value}",
            f"--workload={_NAME.value}",
            f"--tpu-type={_TYPE.value}",
            "--num-slices=1",
            f"--docker-image={_IMAGE.value}",
            f"--max-restarts={_RESTARTS.value}",
            f"--termination-grace-period-seconds={_GRACE_SECONDS}",
            *(f"--env={name}={value}" for name, value in environment().items()),
            f"--command={shlex.join(command)}",
        ]
    )


flags.adopt_module_key_flags(commands)

if __name__ == "__main__":
    flags.mark_flags_as_required(["name", "image"])
    app.run(main)
