#!/usr/bin/env bash
# Trains four networks on the embedded digits, certifies them in l_inf and l_2, and prints one table.
# Everything goes to runs/digits; arguments go to launch/sweep.py. See launch/environment.sh for PYTHON and VENV.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
python="$(bash launch/environment.sh logging)"

config=configs/digits.py
exec "$python" launch/sweep.py --root=runs/digits --jobs=2 --num_examples=300 \
    --configs="$config:linf,$config:l2,$config:paper,$config:scratch" "$@"
