#!/usr/bin/env bash
# Runs the quick tests (tests/run.sh --quick) with every newer Python that is installed: 3.13 and 3.14, with the newest
# jax that they get. The suite itself runs with the Python of .venv.
#
#   tests/interpreters.sh            # all of them; environments in .venv-3.13, ...
#   tests/interpreters.sh 3.14       # these
#
# A Python counts if it is on the path, or one of pyenv's. Exits with status 1 if the tests of one fail; 0 if there is none.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."

runs() {
    "$1" -c 'import sys; sys.exit(f"{sys.version_info[0]}.{sys.version_info[1]}" != sys.argv[1])' "$2" >/dev/null 2>&1
}

find_python() {
    local candidate
    # pyenv puts a python3.13 on the path that does not run while another version is chosen.
    for candidate in "python$1" "${PYENV_ROOT:-$HOME/.pyenv}"/versions/"$1".*/bin/python; do
        if runs "$candidate" "$1"; then
            echo "$candidate"
            return
        fi
    done
}

status=0
[[ $# -gt 0 ]] || set -- 3.13 3.14
for version; do
    python="$(find_python "$version")"
    if [[ -z "$python" ]]; then
        echo "tests/interpreters.sh: Python $version is not installed here, and not tested." >&2
        continue
    fi
    echo "+ Python $version: tests/run.sh --quick" >&2
    PYTHON="$python" VENV="$PWD/.venv-$version" bash tests/run.sh --quick || status=1
done
exit "$status"
