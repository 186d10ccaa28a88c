#!/usr/bin/env bash
# Runs the tests in the project's own virtual environment, which it prepares first.
# Arguments go to pytest: tests/run.sh tests/bounds -x;  tests/run.sh -m slow;  tests/run.sh -n 0 --pdb
# launch/environment.sh says how to choose another interpreter or environment.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
python="$(bash launch/environment.sh test,data,logging)"

# One process a core, at most four: each of them compiles for itself and simulates eight devices.
exec "$python" -m pytest -n logical --maxprocesses 4 --dist worksteal --durations=40 "$@"
