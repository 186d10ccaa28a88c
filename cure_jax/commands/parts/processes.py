"""Flags of commands that may run as several processes, and joining them."""

import logging

import jax
from absl import flags

from cure_jax import distributed

_COORDINATOR = flags.DEFINE_string("coordinator_address", None, "HOST:PORT of process 0, where no cluster says it.")
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "How many there are; 1: alone, whatever the cluster says.")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "Which of them this is, from 0.")

_LOGGER = logging.getLogger("cure_jax")


def join() -> bool:
    """Joins the other processes, if there are any; returns whether this is the first one.

    Of the others only warnings are heard.
    """
    source = distributed.initialize(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
    if source == "alone":
        return True
    _LOGGER.info(
        "Process %d of %d (%s): %d of %d devices are here.",
        jax.process_index(),
        jax.process_count(),
        source,
        jax.local_device_count(),
        jax.device_count(),
    )
    if jax.process_index() > 0:
        _LOGGER.setLevel(logging.WARNING)
    return jax.process_index() == 0
