"""Runs a launcher as several processes on this machine, with CPU devices: what a pod does, on loopback.

    python launch/pods/local.py --processes=2 --devices=2 -- launch/train.py --config=digits:scratch --workdir=DIR

If one process dies the others are ended too, as on a pod, and with --restarts the whole job starts again and resumes.
SIGTERM and Ctrl-C go to all of them, as SIGTERM; a second Ctrl-C kills them. --dry_run prints the commands.
"""

import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from absl import app, flags

from launch.pods.commands import DRY_RUN

_PROCESSES = flags.DEFINE_integer("processes", 2, "How many.", lower_bound=1)
_DEVICES = flags.DEFINE_integer("devices", 1, "CPU devices of each.", lower_bound=1)
_RESTARTS = flags.DEFINE_integer("restarts", 0, "How often the job may start again after one of them died.")

ROOT = Path(__file__).resolve().parents[2]


def environment(devices: int) -> dict[str, str]:
    """Variables of a process that sees so many CPU devices and no accelerator."""
    return {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices), "PYTHONPATH": str(ROOT)}


def commands(launcher: Sequence[str], processes: int, port: int) -> list[list[str]]:
    """One command for each process."""
    if processes == 1:
        return [[sys.executable, *launcher, "--num_processes=1"]]
    return [
        [
            sys.executable,
            *launcher,
            f"--coordinator_address=127.0.0.1:{port}",
            f"--num_processes={processes}",
            f"--process_id={index}",
        ]
        for index in range(processes)
    ]


def free_port() -> int:
    """A port that nobody listens at now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def start(launcher: Sequence[str], processes: int, devices: int, **options) -> list[subprocess.Popen]:
    """Starts the processes of a job; `options` go to `subprocess.Popen`."""
    variables = os.environ | environment(devices)
    return [
        subprocess.Popen(command, env=variables, **options) for command in commands(launcher, processes, free_port())
    ]


def wait(job: Sequence[subprocess.Popen], timeout: float = float("inf")) -> int:
    """Waits for all processes; if one fails, kills the others, which would wait for it in vain.

    Returns:
      0 if all ended well, else the least exit status that is not 0: -N if one was killed by signal N, whatever the
      others made of it.

    Raises:
      TimeoutError: after `timeout` seconds, when all are killed.
    """
    until = time.monotonic() + timeout
    while True:
        statuses = [process.poll() for process in job]
        failed = [status for status in statuses if status]
        if failed or None not in statuses:
            kill(job)
            return min(failed, default=0)
        if time.monotonic() > until:
            kill(job)
            raise TimeoutError(f"The job took longer than {timeout} seconds.")
        time.sleep(0.05)


def kill(job: Sequence[subprocess.Popen]) -> None:
    """Ends all processes of a job at once."""
    for process in job:
        if process.poll() is None:
            process.kill()
        process.wait()


def main(arguments: Sequence[str]) -> None:
    """Runs the job, as often as it takes."""
    launcher = list(arguments[1:])
    if not launcher:
        sys.exit("error: got no launcher; expected one after --, for example -- launch/train.py --config=... .")
    if DRY_RUN.value:
        variables = " ".join(f"{name}={value}" for name, value in environment(_DEVICES.value).items())
        for command in commands(launcher, _PROCESSES.value, 12345):
            print(f"{variables} {shlex.join(command)}")
        return
    for attempt in range(_RESTARTS.value + 1):
        job, told = start(launcher, _PROCESSES.value, _DEVICES.value), []
        signals = (signal.SIGTERM, signal.SIGINT)
        before = {number: signal.signal(number, _hand_on(job, number, told)) for number in signals}
        status = wait(job)
        for number, handler in before.items():
            signal.signal(number, handler)
        if status == 0:
            return
        if told:
            sys.exit(f"The job was told to stop ({told[0].name}), and ended with status {status}.")
        left = _RESTARTS.value - attempt
        print(f"A process ended with status {status}; restarts left: {left}.", file=sys.stderr, flush=True)
    sys.exit(1)


def _hand_on(job: Sequence[subprocess.Popen], number: signal.Signals, told: list[signal.Signals]):
    def handler(*_) -> None:
        told.append(number)
        for process in job:
            if number == signal.SIGINT and len(told) > 1:
                process.kill()
            else:
                # Ctrl-C in a terminal has reached the processes too, and a second SIGINT would end them at once.
                process.send_signal(signal.SIGTERM)

    return handler


flags.declare_key_flag("dry_run")

if __name__ == "__main__":
    app.run(main)
