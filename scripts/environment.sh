#!/usr/bin/env bash
# Makes DIR a Python environment that holds what LOCK pins, every file of it checked by hash.
#   scripts/environment.sh DIR LOCK [--with-project]
# uv does it where uv runs; else a Python >= 3.13 does it alone. --with-project adds this checkout, editable.
set -euo pipefail
dir=$1 lock=$2 project=${3:-}

say() { printf '%-8s %s\n' "setup" "$*"; }
fits() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 13))' >/dev/null 2>&1; }

# `command -v` is not enough: a version manager's shim may stand for a uv or Python that is not there.
if uv --version >/dev/null 2>&1; then has_uv=true; else has_uv=false; fi
python=
for name in python3.13 python3.14 python3 python; do
  if fits "$name"; then
    # Not the shim, and not an environment that may be the one made here.
    python=$("$name" -c 'import sys; print(getattr(sys, "_base_executable", sys.executable))')
    break
  fi
done
if [ -z "$python" ] && [ "$has_uv" = false ]; then
  echo "This needs uv, or a Python >= 3.13 as python3.13, python3 or python: neither answers here." >&2
  exit 1
fi

if [ "$has_uv" = true ]; then
  say "$dir from $lock, with $(uv --version | cut -d' ' -f1-2)"
  if ! fits "$dir/bin/python"; then
    rm -rf "$dir"
    uv venv --quiet --python "${python:-3.13}" "$dir"
  fi
  uv pip sync --quiet --python "$dir/bin/python" --require-hashes "$lock"
  install() { uv pip install --quiet --python "$dir/bin/python" "$@"; }
else
  say "$dir from $lock, with $("$python" --version)"
  if ! fits "$dir/bin/python" || ! "$dir/bin/python" -m pip --version >/dev/null 2>&1; then
    rm -rf "$dir"
    "$python" -m venv "$dir"
  fi
  install() { "$dir/bin/python" -m pip install -qq --disable-pip-version-check --no-input "$@"; }
  install --require-hashes --requirement "$lock"
fi

if [ "$project" = --with-project ]; then
  # The lock already holds hatchling and editables: nothing is fetched for this.
  install --no-deps --no-build-isolation --editable .
fi
touch "$dir/.ready"
