"""Trains under Slurm: one process for every GPU, or every node without GPUs.

    python launch/pods/slurm.py --nodes=2 --gpus_per_node=8 --time=12:00:00 [--dry_run] -- --config=... --workdir=RUN

Slurm sends SIGTERM before the time is over or the job is preempted: it saves its state, goes back into the queue, and
resumes. The work directory and the environment of this Python must be visible on all nodes. The config is checked
before the job is sent, and a work directory in /tmp and the like is refused.
"""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import app, flags

from launch.pods import commands
from launch.pods.commands import Command, environment, execute, training

_NODES = flags.DEFINE_integer("nodes", 1, "How many.", lower_bound=1)
_GPUS = flags.DEFINE_integer("gpus_per_node", 8, "GPUs of each; 0: CPUs only, one process a node.", lower_bound=0)
_CPUS = flags.DEFINE_integer("cpus_per_task", 8, "CPU cores of each process.", lower_bound=1)
_TIME = flags.DEFINE_string("time", "12:00:00", "How long before it goes back into the queue.")
_PARTITION = flags.DEFINE_string("partition", "", "Where; empty: the default.")
_ACCOUNT = flags.DEFINE_string("account", "", "Who is charged; empty: the default.")
_QOS = flags.DEFINE_string("qos", "", "Quality of service; empty: the default.")

_PREEMPTED = 75
_GRACE_SECONDS = 120


def main(arguments: Sequence[str]) -> None:
    """Submits the job."""
    execute([Command(["sbatch"], script(training(arguments[1:], only_buckets=False)))])


def script(arguments: Sequence[str]) -> str:
    """The batch script."""
    options = [
        "--job-name=cure_jax",
        f"--nodes={_NODES.value}",
        f"--ntasks-per-node={max(_GPUS.value, 1)}",
        f"--cpus-per-task={_CPUS.value}",
        f"--time={_TIME.value}",
        "--requeue",
        "--open-mode=append",
        f"--signal=TERM@{_GRACE_SECONDS}",
    ]
    if _GPUS.value:
        options.append(f"--gpus-per-node={_GPUS.value}")
    for flag in (_PARTITION, _ACCOUNT, _QOS):
        if flag.value:
            options.append(f"--{flag.name}={flag.value}")
    root = Path(__file__).resolve().parents[2]
    command = shlex.join([sys.executable, *arguments, f"--preempted_status={_PREEMPTED}"])
    lines = [
        "#!/usr/bin/env bash",
        *(f"#SBATCH {option}" for option in options),
        *(f"export {name}={shlex.quote(value)}" for name, value in environment().items()),
        f"cd {shlex.quote(str(root))}",
        # A process that dies takes the others with it: they would wait for it.
        f"srun --kill-on-bad-exit=1 {command}",
        "status=$?",
        f'if [[ $status == {_PREEMPTED} ]]; then scontrol requeue "$SLURM_JOB_ID"; fi',
        "exit $status",
    ]
    return "\n".join(lines) + "\n"


flags.adopt_module_key_flags(commands)

if __name__ == "__main__":
    app.run(main)
