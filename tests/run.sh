#!/usr/bin/env bash
# Runs the tests in the project's own virtual environment, which it prepares first.
# Arguments go to pytest: tests/run.sh tests/bounds -x;  tests/run.sh -m slow;  tests/run.sh -n 0 --pdb
# tests/run.sh --quick, a minute and a half: rules, regions, reference networks, losses; for work in between.
# launch/environment.sh says how to choose another interpreter or environment.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
python="$(bash launch/environment.sh test,data,logging)"

if [[ "${1:-}" == --quick ]]; then
    shift
    set -- tests/rules/test_rules.py tests/regions/test_ball.py tests/graph/test_graph.py \
        tests/training/test_schedules.py tests/training/test_multi_norm.py tests/report \
        "tests/bounds/test_golden.py::test_no_looser_than_the_reference" -k "not deep and not resnet" "$@"
fi

# One process a core, at most four: each of them compiles for itself and simulates eight devices.
exec "$python" -m pytest -n logical --maxprocesses 4 --dist worksteal --durations=40 "$@"
