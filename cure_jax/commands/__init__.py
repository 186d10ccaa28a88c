"""The command `cure-jax`: train, certify, verify, compare, sweep, export, benchmark.

Each is a module with `run`, which reads the command line. Its flags are those of absl, defined when it is imported, so
a process imports one of them only. `launch/` in a checkout calls the same functions.
"""
