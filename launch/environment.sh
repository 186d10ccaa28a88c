#!/usr/bin/env bash
# Prepares a virtual environment with cure_jax installed in editable mode and prints the path of its Python.
#
#   python="$(bash launch/environment.sh data,logging)"      # the argument: extras of pyproject.toml, may be empty
#
# PYTHON  interpreter that creates the environment (default: the first of python3, python3.14, ... that is 3.11 or newer)
# VENV    directory of the environment              (default: .venv in the root of the project)
#
# The first call installs; later ones only look at a stamp inside the environment until pyproject.toml changes.
# Messages go to stderr, so that stdout holds the path alone.
set -euo pipefail

extras="${1:-}"
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
venv="${VENV:-$root/.venv}"
[[ "$venv" == /* ]] || venv="$PWD/$venv"
venv_python="$venv/bin/python"

is_new_enough() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}

find_interpreter() {
    local candidate candidates=(python3 python3.14 python3.13 python3.12 python3.11)
    [[ -z "${PYTHON:-}" ]] || candidates=("$PYTHON")
    for candidate in "${candidates[@]}"; do
        if is_new_enough "$candidate"; then
            echo "$candidate"
            return
        fi
    done
    echo "cure_jax needs Python 3.11 or newer, but ${PYTHON:-python3} is missing or older." \
        "Install one, or name it: PYTHON=/path/to/python3.12 $0" >&2
    return 1
}

if ! "$venv_python" -m pip --version >/dev/null 2>&1; then
    interpreter="$(find_interpreter)"
    echo "Creating the virtual environment $venv with $("$interpreter" --version)" >&2
    "$interpreter" -m venv "$venv" >&2
fi

stamp="$venv/.cure-jax-${extras:-base}"
wanted="$root $(cksum <"$root/pyproject.toml")"
if [[ ! -f "$stamp" || "$(<"$stamp")" != "$wanted" ]]; then
    echo "Installing cure_jax${extras:+ with the extras $extras} into $venv (the first time takes a few minutes)" >&2
    "$venv_python" -m pip install --quiet --disable-pip-version-check -e "$root${extras:+[$extras]}" >&2
    echo "$wanted" >"$stamp"
fi

echo "$venv_python"
