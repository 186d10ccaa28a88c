"""SIGTERM and SIGINT: the state is saved, the rest is done later, and the numbers are those of an undisturbed run."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import chex
import jax
import numpy as np
import pytest

from cure_jax.training import Preempted, fit, loop
from cure_jax.training.parallel import _own_part, compile_steps
from cure_jax.training.preemption import notices
from tests.training import tiny

_CONFIG = tiny.config(losses={"linf": {"kind": "ibp"}}, warmup_regularizer=0.0, parallel="jit", epochs=6)
_DATA = tiny.data(size=32)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_the_state_and_the_same_call_finishes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    calls = []

    def compile_and_signal(*args: Any) -> Any:
        run = compile_steps(*args)

        def wrapped(*arguments: Any) -> Any:
            calls.append(len(arguments[3]))
            if len(calls) == 3:
                os.kill(os.getpid(), number)
            return run(*arguments)

        return wrapped

    before = signal.getsignal(number)
    undisturbed = fit(tiny.TinyMLP(), _DATA, _CONFIG, tmp_path / "undisturbed")
    monkeypatch.setattr(loop, "compile_steps", compile_and_signal)
    with pytest.raises(Preempted, match=r"saved the state at step 6\. The same command") as notice:
        fit(tiny.TinyMLP(), _DATA, _CONFIG, tmp_path / "stopped")
    assert notice.value.step == 6
    # Checkpoints are due at 4, 8, 12: this one was not.
    assert sorted(path.name for path in (tmp_path / "stopped" / "checkpoints").iterdir()) == ["4", "6"]
    assert signal.getsignal(number) is before
    resumed = fit(tiny.TinyMLP(), _DATA, _CONFIG, tmp_path / "stopped")
    assert [record["step"] for record in resumed.history] == [8, 10, 12]
    chex.assert_trees_all_equal(resumed.variables, undisturbed.variables)
    metrics = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("stopped", "undisturbed")]
    assert metrics[0] == metrics[1]


@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGINT])
def test_a_second_notice_by_ctrl_c_ends_at_once_even_in_compiled_code(first: signal.Signals) -> None:
    # Python runs no handler as long as the main thread is within C: here for ever, as it has this mutex already.
    program = (
        "import ctypes, logging\nfrom cure_jax.training.preemption import notices\n"
        "logging.basicConfig(level=logging.INFO, format='%(message)s', force=True)\n"
        "lock, mutex = ctypes.CDLL(None).pthread_mutex_lock, ctypes.create_string_buffer(64)\n"
        "with notices():\n    logging.info('listening')\n    lock(mutex)\n    lock(mutex)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", program]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        assert process.stderr.readline() == "listening\n"
        process.send_signal(first)
        assert process.stderr.readline().startswith("Told to stop")
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130
    assert errors == "error: a second notice to stop, by SIGINT: ended at once, nothing more is saved.\n"


def test_outside_of_the_main_thread_signals_are_left_alone() -> None:
    answers = []

    def listen() -> None:
        with notices() as told:
            answers.append(told(range(1)))

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=listen)
    thread.start()
    thread.join()
    assert answers == [False]
    assert signal.getsignal(signal.SIGTERM) is before


def test_each_process_takes_the_examples_of_its_own_devices_and_no_others() -> None:
    class Device:
        def __init__(self, process_index: int) -> None:
            self.process_index = process_index

    # Of four devices the second and the fourth are ours.
    devices = [Device(index) for index in (1, jax.process_index(), 1, jax.process_index())]
    images, labels = np.arange(40.0).reshape(20, 2), np.arange(20)
    rows = np.stack([np.random.default_rng(step).permutation(20)[:8] for step in range(3)]).astype(np.int32)
    own_images, own_labels, own_rows = _own_part(images, labels, rows, devices)
    assert own_images.shape == (2, 6, 2)
    assert own_rows.shape == (3, 2, 2)
    for step in range(3):
        for own, position in enumerate((1, 3)):
            expected = rows[step, 2 * position : 2 * position + 2]
            np.testing.assert_array_equal(own_labels[own][own_rows[step, own]], labels[expected])
            np.testing.assert_array_equal(own_images[own][own_rows[step, own]], images[expected])
